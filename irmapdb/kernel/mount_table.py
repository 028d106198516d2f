"""Finds the mount of a path, and the mounts of a device, in one snapshot of a root's mounts."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.model import Mount

__all__ = ["MountTable"]


class MountTable:
    """The mounts of a root at one moment. `root_id` is the mount of the root directory."""

    def __init__(self, mounts: tuple[Mount, ...], root_id: int | None) -> None:
        self.all = mounts
        """Every mount, hidden ones too, in the kernel's order."""
        self.by_id = {mount.mnt_id: mount for mount in mounts}
        self.by_mountpoint = _visible(mounts, root_id)
        """The mount that a lookup meets at each mount point, without hidden mounts."""
        self._of_device: dict[int, list[Mount]] = {}
        self._of_directory: dict[bytes, Mount | None] = {}
        self._on_way_to: dict[int, list[Mount]] = {}

    def of_path(self, path: bytes) -> Mount | None:
        """The mount of a lookup of an absolute path, by its name only.

        None below a chroot that is no mount point, if the kernel does not give its mount (before
        Linux 5.8).
        """
        mount = self.by_mountpoint.get(path)
        if mount is not None:
            return mount
        # Many paths are in one directory: its result is remembered.
        directory = path[: path.rfind(b"/")]
        if directory not in self._of_directory:
            self._of_directory[directory] = next(self._upwards(directory), None)
        return self._of_directory[directory]

    def along(self, path: bytes) -> list[Mount]:
        """The visible mounts that a lookup of an absolute path passes, by its name only."""
        return list(self._upwards(path))

    def _upwards(self, path: bytes) -> Iterator[Mount]:
        for above in _upwards(path):
            if above in self.by_mountpoint:
                yield self.by_mountpoint[above]

    def of_device(self, kdev: int) -> list[Mount]:
        """The visible mounts of a device; mounts that show more of it come first."""
        mounts = self._of_device.get(kdev)
        if mounts is None:
            found = (mount for mount in self.by_mountpoint.values() if mount.kdev == kdev)
            mounts = self._of_device[kdev] = sorted(found, key=lambda mount: len(mount.root))
        return mounts

    def on_way_to(self, kdev: int) -> list[Mount]:
        """The visible mounts of a device, and the mounts on the way to them."""
        found = self._on_way_to.get(kdev)
        if found is None:
            own = self.of_device(kdev)
            above = (met for mount in own for met in self._upwards(mount.mountpoint))
            found = self._on_way_to[kdev] = list(dict.fromkeys((*own, *above)))
        return found


def _visible(mounts: tuple[Mount, ...], root_id: int | None) -> dict[bytes, Mount]:
    """The mount that a lookup meets at each mount point.

    Of two mounts with one parent, the mount with the upper mount point hides the other. A mount on
    a mount's own root hides all its siblings below it in the same way. A lookup never meets a mount
    on the root (`root_id`) itself, because it begins below that.
    """
    children: dict[int, list[Mount]] = {}
    known = {mount.mnt_id for mount in mounts}
    for mount in mounts:
        top = mount.parent_id == mount.mnt_id or mount.parent_id not in known
        if mount.mountpoint == b"/" and mount.parent_id == root_id != mount.mnt_id:
            continue
        children.setdefault(-1 if top else mount.parent_id, []).append(mount)
    table: dict[bytes, Mount] = {}
    pending = [-1]
    while pending:
        siblings = children.get(pending.pop(), ())
        points = {mount.mountpoint for mount in siblings}
        for mount in siblings:
            if _below_any(mount.mountpoint, points):
                continue
            table[mount.mountpoint] = mount
            pending.append(mount.mnt_id)
    return table


def _below_any(path: bytes, points: set[bytes]) -> bool:
    while path not in {b"", b"/"}:
        path = path[: path.rfind(b"/")]
        if (path or b"/") in points:
            return True
    return False


def _upwards(path: bytes) -> Iterator[bytes]:
    """An absolute path, and each directory above it."""
    while path not in {b"", b"/"}:
        yield path
        path = path[: path.rfind(b"/")]
    yield b"/"
