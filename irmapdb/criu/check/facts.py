"""Defines the facts about a watch that CRIU's decision needs, and the looks that find them."""

from __future__ import annotations

import enum

from irmapdb.config import HINTS
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.criu.check.version import CriuVersion
    from irmapdb.model import Identity

__all__ = [
    "CacheLook",
    "Call",
    "Facts",
    "Found",
    "HandleLook",
    "Look",
    "OverlayLook",
    "SearchLook",
    "by_device",
]


class Call(Record):
    """The options of the call of CRIU."""

    pid: int
    version: CriuVersion
    force_irmap: bool = False
    scan_paths: tuple[bytes, ...] = ()
    work_dir: bytes = b"."
    """b"": one that does not exist yet."""
    runtime: str = ""
    """The runtime of `irmapdb hook --install`, if a container engine calls CRIU. The engine has its
    own work dir and options, so only the hook helps. Empty: the user calls CRIU."""

    def scans(self, path: bytes) -> bool:
        """Whether a path is below a scan path or a hint of CRIU, where --force-irmap finds it."""
        starts = (*self.scan_paths, *HINTS)
        return any((path + b"/").startswith(start.rstrip(b"/") + b"/") for start in starts)


class Look(enum.IntEnum):
    """The looks at facts, in the allowed order.

    A look that can put a file's name into the kernel's cache, and so change CRIU's result, comes
    after all looks that CRIU takes before it.
    """

    HANDLE = enum.auto()
    """Open the handle, and read the name that the kernel has for it."""
    OVERLAY = enum.auto()
    """Walk an overlay, as CRIU 4.3 does."""
    CACHE = enum.auto()
    """Check the entries of irmap-cache."""
    SCAN = enum.auto()
    """Search below the scan paths, then below CRIU's hints."""
    SEARCH = enum.auto()
    """Search everywhere: only for the advice."""


class Found(Record):
    """A path that CRIU accepts as the watched file."""

    path: bytes
    right: bool | None
    """Whether it is the watched file, by handle; CRIU compares only numbers. None: it has the
    handle, but another file can have the same handle."""
    symlink: bool = False
    """Whether it is a symbolic link; a restore follows it."""


class HandleLook(Record):
    """The result of open_by_handle_at(2) through the mounts of the device."""

    opened: bool
    found: Found | None = None
    deleted: bool = False
    """Whether the inode has no name; it may have a mount point."""
    why_not: str = ""
    """The kernel's error, if no mount could open the handle."""
    mounted: SearchLook | None = None
    """Its own mount point, for example if it is bind-mounted over another file."""
    symlink: bool = False
    """Whether it is a symbolic link."""
    directory: bool = False
    """Whether it is a directory."""
    too_long: bool = False
    """Whether its path is longer than the kernel gives it (PATH_MAX)."""


class OverlayLook(Record):
    """The result of a walk of the mounts of an overlay."""

    hits: tuple[Found, ...]
    entries: int
    walk_us: int
    """An estimate of the time of CRIU's walk, from the time of ours."""


class CacheLook(Record):
    """The result of the entries of irmap-cache for this device and inode number."""

    found: Found | None = None
    refused: tuple[bytes, ...] = ()
    """The paths of entries that CRIU would drop."""


class SearchLook(Record):
    """The path of the watched file, and whether CRIU's irmap would accept it."""

    path: bytes | None = None
    deleted: bool = False
    """Whether the inode has no name."""
    mntns: int = 0
    """The mount namespace in which `path` starts, if the root task's namespace does not have the
    file."""
    gave_up: str = ""
    """The reason, if not every place was searched."""
    acceptable: bool = False
    """Whether st_dev and st_ino of the path are the numbers that irmap expects."""
    hinted: bool = False
    """Whether it is below a scan path or a hint of CRIU, where --force-irmap would find it."""


class Facts(Record):
    """The facts about one watched inode. A look that was not taken is None."""

    identity: Identity
    fstype: str | None = None
    """None: no directory in CRIU's mount tables has the device."""
    covered: bytes | None = None
    """The mount point of the device, if other mounts cover all its mounts."""
    hopeless: tuple[str, str] | None = None
    """Why CRIU fails without any further look, and the remedy."""
    unseen: tuple[str, str] | None = None
    """Why the inode could not be read, and the remedy."""
    own_mounts: bool = True
    """Whether the tree has a mount namespace of its own. Only then do the images have mounts,
    through which a restore can open handles."""
    handle: HandleLook | None = None
    overlay: OverlayLook | None = None
    cache: CacheLook | None = None
    scan: tuple[Found, ...] | None = None
    search: SearchLook | None = None


def by_device(batch: Iterable[Facts]) -> Iterable[tuple[int, list[Facts]]]:
    """The facts of each device."""
    found: dict[int, list[Facts]] = {}
    for facts in batch:
        found.setdefault(facts.identity.kdev, []).append(facts)
    return found.items()
