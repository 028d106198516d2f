"""Keeps directories open for open_by_handle_at(2) and ioctl(2), which take no O_PATH descriptor.

A real open may wait for a fanotify listener (FAN_OPEN_PERM), and in the freeze the listener may be
frozen itself. So all descriptors are opened before the freeze, and none in the freeze.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from irmapdb.kernel import syscalls
from irmapdb.kernel.root import open_beneath
from irmapdb.kernel.syscalls import Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from irmapdb.kernel.root import Root

__all__ = ["MountFds", "MountLookup"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK

_MOST_OF_A_DEVICE = 8
"""The largest number of mounts of one device that are tried: it may have thousands."""


class MountFds:
    """The directories of one root through which filesystems are asked."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._kept: dict[tuple[int | None, int, int], int] = {}
        self._only_kept = False

    def close(self) -> None:
        """Close the kept directories: until then they cannot be unmounted."""
        self._root.superblocks.close()
        while self._kept:
            os.close(self._kept.popitem()[1])

    def open(self, path: bytes) -> int:
        """A descriptor of a directory, which the caller closes. OSError as open(2).

        EAGAIN: it is not kept, and no directory may be opened now.
        """
        if not self._kept and not self._only_kept:
            return self._root.open(path, _DIRECTORY)
        with Descriptor(self._root.open(path)) as path_fd:
            kept = self._kept.get(_which(path_fd))
            if kept is not None:
                return os.dup(kept)
            if self._only_kept:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
            return open_beneath(path_fd, b"/", _DIRECTORY)

    def keep(self, kdevs: Iterable[int], most: int) -> int:
        """Open mounts of these devices and keep them open; mounts that show more come first.

        Opens at most `most`, and stops if no more can be opened. Returns the number of kept
        directories.
        """
        before = len(self._kept)
        for kdev in kdevs:
            if any(mount.fstype == "overlay" for mount in self._root.mounts.of_device(kdev)):
                self._root.superblocks.keep()
            found = 0
            for mount in self._root.mounts.of_device(kdev):
                if found == _MOST_OF_A_DEVICE or len(self._kept) - before >= most:
                    break
                try:
                    found += self._keep(mount.mountpoint)
                except OSError as error:
                    if error.errno in {errno.EMFILE, errno.ENFILE}:
                        return len(self._kept) - before
        return len(self._kept) - before

    def _keep(self, mountpoint: bytes) -> bool:
        fd = self._root.open(mountpoint, _DIRECTORY)  # ENOTDIR: a file bound over another
        try:
            which = _which(fd)
        except OSError:
            os.close(fd)
            raise
        if which in self._kept:
            os.close(fd)
            return False
        self._kept[which] = fd
        return True

    @contextmanager
    def only_kept(self) -> Iterator[None]:
        """Inside, only kept directories are used, and none is opened."""
        before, self._only_kept = self._only_kept, True
        try:
            with self._root.superblocks.only_kept():
                yield
        finally:
            self._only_kept = before


class MountLookup:
    """A resolver that asks a filesystem through its mounts, until `over` returns True."""

    def __init__(
        self,
        root: Root,
        mount_fds: MountFds | None = None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._root = root
        self._mount_fds = mount_fds or MountFds(root)
        self._over = over


def _which(fd: int) -> tuple[int | None, int, int]:
    # While a descriptor is open, the numbers of its mount and inode are not reused
    # (cleanup_mnt() of fs/namespace.c): so it is the same directory on the same mount.
    known = syscalls.statx(fd)
    return known.mnt_id, known.st_kdev, known.ino
