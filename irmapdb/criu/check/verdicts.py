"""Defines the verdicts of check on a watch, and the facts that they depend on."""

from __future__ import annotations

import enum

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.model import Identity

__all__ = [
    "CacheLook",
    "Call",
    "CriuOutcome",
    "CriuVersion",
    "Facts",
    "Found",
    "HandleLook",
    "Look",
    "OverlayLook",
    "Prediction",
    "ScanAdvice",
    "SearchLook",
    "WatchVerdict",
]


class CriuOutcome(enum.StrEnum):
    """What CRIU, called as it is, makes of one watch."""

    PATH = "dumped with its path"
    NO_PATH = "dumped without a path"
    WRONG_PATH = "dumped with the path of something else"
    FAILS = "not dumped, and with it nothing else"
    UNKNOWN = "not known"


class WatchVerdict(enum.StrEnum):
    """What that means to who wants the checkpoint."""

    PATH = "path"
    """Dumped with its path, which CRIU finds itself."""
    NO_PATH = "no-path"
    """Dumped without one: a restore finds the file by its handle, on this filesystem only."""
    NO_RESTORE = "no-restore"
    """Dumped without one, and no restore brings the watch back: it fails, or loses the watch."""
    SYMLINK = "symlink"
    """Dumped with the path of a symbolic link: a restore watches where that leads, or fails."""
    OPTIONS = "options"
    """Fails as CRIU is called, but not with other options."""
    CACHE = "cache"
    """Dumped with its path, because irmap-cache has it."""
    WALK = "walk"
    """Dumped with its path after a walk of the whole filesystem, while the tasks are frozen."""
    WRONG_PATH = "wrong-path"
    """Dumped with the path of another file, and nothing says so."""
    FAILS = "fails"
    """The whole dump fails on it."""
    UNKNOWN = "unknown"
    """It was not found out, or not in time, what would help, or what CRIU will do."""

    @property
    def right(self) -> bool:
        """Whether the watch comes back wherever the path is there."""
        return self in {WatchVerdict.PATH, WatchVerdict.CACHE, WatchVerdict.WALK}


class CriuVersion(Record):
    """A version of CRIU, and who says that it is this one."""

    major: int
    minor: int
    source: str = "--criu-version"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def is_known(self) -> bool:
        """Whether it is one of those whose ways are described here (docs/criu.md)."""
        return (4, 1) <= (self.major, self.minor) <= (4, 3)

    @property
    def walks_overlays(self) -> bool:
        """CRIU 4.3 and later look for the watches of an overlay by walking it."""
        return (self.major, self.minor) >= (4, 3)


class Call(Record):
    """How CRIU is to be called."""

    pid: int
    version: CriuVersion
    force_irmap: bool = False
    scan_paths: tuple[bytes, ...] = ()
    work_dir: bytes = b"."


class Look(enum.IntEnum):
    """What is to be looked at, in the order in which it may be looked at.

    Whatever could give a file's name to the kernel, and so change what CRIU finds, comes after
    all looks that CRIU makes before it.
    """

    HANDLE = enum.auto()
    """What the handle opens, and which name the kernel has for it."""
    OVERLAY = enum.auto()
    """All of an overlay, as CRIU 4.3 walks it."""
    CACHE = enum.auto()
    """The entries of irmap-cache."""
    SCAN = enum.auto()
    """Below the scan paths, then below CRIU's hints."""
    SEARCH = enum.auto()
    """Everywhere: not for CRIU, but to give advice."""


class Found(Record):
    """A path that CRIU takes for the watched file."""

    path: bytes
    right: bool | None
    """Whether it is the watched file, by handle; CRIU compares numbers alone. None: it has the
    handle, and another file can have the same one."""
    symlink: bool = False
    """Whether it is a symbolic link, which a restore follows."""


class HandleLook(Record):
    """What open_by_handle_at(2) through the mounts of the device gives."""

    opened: bool
    found: Found | None = None
    deleted: bool = False
    """The inode has no name left; it may have a mount point."""
    why_not: str = ""
    """Where no mount opened it: what the kernel said."""
    mounted: SearchLook | None = None
    """Where it is mounted by itself: a file bound over another, say."""
    symlink: bool = False
    """It is a symbolic link."""
    too_long: bool = False
    """It has a path, which is longer than the kernel tells (PATH_MAX)."""


class OverlayLook(Record):
    """What a walk of the mounts of an overlay meets."""

    hits: tuple[Found, ...]
    entries: int
    walk_us: int
    """How long CRIU's walk would take, by how long ours took."""


class CacheLook(Record):
    """What the entries of irmap-cache for this device and inode number come to."""

    found: Found | None = None
    refused: tuple[bytes, ...] = ()
    """Paths of entries that CRIU would drop."""


class SearchLook(Record):
    """Where the watched file is, and whether CRIU's irmap would know it there."""

    path: bytes | None = None
    deleted: bool = False
    """The inode has no name left."""
    mntns: int = 0
    """The mount namespace that it lives in, where that of the root task lacks it; there `path`
    starts."""
    gave_up: str = ""
    """Where it was not looked for everywhere: why not."""
    acceptable: bool = False
    """Whether st_dev and st_ino of the path are what irmap compares them with."""
    hinted: bool = False
    """Below a scan path or one of CRIU's hints, where --force-irmap alone would find it."""


class Facts(Record):
    """What is known of one watched inode. A look that was not taken is None."""

    identity: Identity
    fstype: str | None = None
    """None: no directory in CRIU's mount tables has the device."""
    hopeless: tuple[str, str] | None = None
    """Where no look is worth taking, and CRIU fails: why, and what to do."""
    unseen: tuple[str, str] | None = None
    """Where it could not be looked at: why not, and what to do."""
    own_mounts: bool = True
    """Whether the tree has a mount namespace of its own. Only then the images have mounts, and a
    restore can open handles through them."""
    handle: HandleLook | None = None
    overlay: OverlayLook | None = None
    cache: CacheLook | None = None
    scan: tuple[Found, ...] | None = None
    search: SearchLook | None = None


class ScanAdvice(Record):
    """Advice that ends with an option."""

    lead: str
    """The advice up to the option."""
    path: bytes
    """The path that the option is to be given: the watched file, or a directory above it."""


class Prediction(Record):
    """What CRIU will do with one watch."""

    verdict: WatchVerdict
    outcome: CriuOutcome
    why: str
    """One line for people: how CRIU gets there."""
    path: bytes | None = None
    """The path that CRIU records, right or wrong; or where the file is, as far as we know."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    scan: ScanAdvice | None = None
    """Where the advice ends with an --irmap-scan-path."""
    deleted: bool = False
    """Whether it is because the inode has no name left."""
    entries: int = 0
    """How many directory entries CRIU walks for this watch, while the tasks are frozen."""
    walk_us: int = 0
    """How long that may take."""
