"""Walks one mount once, for all wanted inode numbers.

The walk compares the inode number of the listing first (d_ino, getdents64(2)), so an entry that
cannot be a hit costs no system call. It opens directories one by one below the mount's root with
openat2(2), through no link and no other mount. So the walk stays in the mount also if tasks move
directories meanwhile. It skips a directory that is gone or denied, and reports a denied one.

d_ino is not the inode's own number for a mount point, a btrfs subvolume and some directories of
overlayfs. So the walk reads the number of every directory when it opens it. If d_ino can differ for
files too (overlayfs with layers on several filesystems, FUSE), `every_entry` makes a slower walk
that yields all names.
"""

from __future__ import annotations

import itertools
import os

from irmapdb.kernel import syscalls
from irmapdb.kernel.root import open_beneath
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from typing import Self

__all__ = ["Hit", "walk"]

_EMPTY_PATH = syscalls.AT_EMPTY_PATH | syscalls.AT_HANDLE_FID
_ITSELF = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK

# Work is counted in entries. Opening a directory costs as much as some entries, and more if its
# path is long.
_DIRECTORY_WORK = 16
_PROGRESS_WORK = 16384

# The largest distance of a path from the descriptor of its lookup, and the largest number of such
# descriptors.
_ANCHOR_BYTES = 1000
_ANCHORS = 64


class Hit(Record):
    """An entry with a wanted inode number: only a candidate."""

    ino: int
    """The number of the listing; 0 in an `every_entry` walk, which compares none."""
    path: bytes
    """Relative to the top of the walk, b"" for the top itself."""


def walk(  # noqa: PLR0913 the options of a walk
    top_fd: int,
    inos: Container[int],
    *,
    every_entry: bool = False,
    by_handle: bool = False,
    prune: Container[bytes] = (),
    closed: Container[bytes] = (),
    on_entries: Callable[[int], bool] = lambda _: True,
    on_directories: Callable[[int], bool] = lambda _: True,
    on_denied: Callable[[bytes], None] = lambda _: None,
    over: Callable[[], bool] = lambda: False,
) -> Iterator[Hit]:
    """Yield entries that may be one of `inos` below the directory `top_fd`, on the same mount.

    `inos` may shrink during the walk. The walk skips the directories in `prune`, and compares those
    in `closed` without entering them. It calls `on_entries` now and then with the number of entries
    since the last call, and ends if that returns False. It calls `on_directories` with the total
    number of directories, and `on_denied` with each directory that it may not read. Before each
    directory it calls `over`, and ends if the time is up. It does not enter a directory with a path
    of some 64,000 bytes.

    The walk lists a directory only once, also if it is moved ahead of the walk. Directories are
    identified by their number, or with `by_handle` by their handle, if several directories can
    share a number.
    """
    visit = _visit_every if every_entry else _visit
    which = _handle if by_handle else _number
    listed: set[object] = set()
    seen = _Count(on_entries, on_directories)
    try:
        with _Descent(top_fd) as descent:
            there = True
            while there and not over():
                path = descent.path
                subdirectories: list[bytes] | None = None if path in closed else []
                fd = None
                if path not in prune:
                    fd = descent.look() if subdirectories is None else descent.open(on_denied)
                if fd is not None:
                    try:
                        if _is_new(which(fd), listed):
                            seen.directories += 1
                            yield from visit(fd, path, inos, subdirectories, seen)
                    except OSError:
                        pass  # removed meanwhile, or an input error of only this directory
                    finally:
                        os.close(fd)
                there = descent.go_on(subdirectories) and not seen.over
                seen.work += _DIRECTORY_WORK + len(path) // _DIRECTORY_WORK
                seen.tell()
    finally:
        # Also if the caller stops because all is found.
        if seen.entries:
            on_entries(seen.entries)


class _Count:
    """Counts the work since the last report, and decides whether to end the walk."""

    def __init__(
        self, on_entries: Callable[[int], bool], on_directories: Callable[[int], bool]
    ) -> None:
        self.directories = 0
        self.entries = 0
        self.work = 0
        self.over = False
        self._on_entries = on_entries
        self._on_directories = on_directories

    def add(self, entries: int) -> None:
        self.entries += entries
        self.work += entries

    def tell(self) -> None:
        if self.work >= _PROGRESS_WORK and not self.over:
            entries, self.entries, self.work = self.entries, 0, 0
            self.over = not (self._on_entries(entries) and self._on_directories(self.directories))


class _Anchor(Record):
    """A directory on the path that is kept open."""

    fd: int
    level: int
    length: int
    """The number of bytes of the path to it."""


class _Descent:
    """The position of a walk, and the remaining work on each level above.

    There is one path for all levels, and each directory is opened from an anchor that is not far
    above. So a tree that is deep on purpose does not cost much memory or time.
    """

    def __init__(self, top_fd: int) -> None:
        self.path = b""
        """Of the directory to be opened next, relative to the top."""
        self._buffer = bytearray()
        self._lengths: list[int] = []  # of the path at each level
        self._pending: list[list[bytes]] = []  # names not opened yet, at each level
        self._anchors = [_Anchor(top_fd, 0, 0)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lift_anchors(0)

    def go_on(self, subdirectories: list[bytes] | None) -> bool:
        """Take the next directory, first of those below this one; False at the end."""
        pending = self._pending
        if subdirectories:
            pending.append(subdirectories)
        while pending and not pending[-1]:
            pending.pop()
        if not pending:
            return False
        level = len(pending) - 1
        self._lift_anchors(level)
        del self._lengths[level:]
        del self._buffer[self._lengths[-1] if level else 0 :]
        if level:
            self._buffer += b"/"
        self._buffer += pending[-1].pop()
        self._lengths.append(len(self._buffer))
        self.path = bytes(self._buffer)
        return True

    def open(self, on_denied: Callable[[bytes], None]) -> int | None:
        """Open the directory for reading; None if it is gone, denied or too deep."""
        if not self._is_near():
            return None
        try:
            return self._open(self.path, _LISTED | os.O_NOATIME)
        except PermissionError:
            pass  # O_NOATIME is for the owner and for root
        except OSError:
            return None
        try:
            return self._open(self.path, _LISTED)
        except PermissionError:
            on_denied(self.path)
        except OSError:
            pass
        return None

    def look(self) -> int | None:
        """Open the directory with O_PATH, not for reading; None if it is gone or too deep."""
        if not self._is_near():
            return None
        try:
            return self._open(self.path, _ITSELF)
        except OSError:
            return None

    def _is_near(self) -> bool:
        return len(self.path) - self._anchors[-1].length < _ANCHOR_BYTES or self._anchor()

    def _anchor(self) -> bool:
        # Open the parent: its other entries are opened from there too.
        if len(self._anchors) > _ANCHORS:
            return False
        length = self._lengths[-2]
        try:
            fd = self._open(self.path[:length], _ITSELF)
        except OSError:
            return False
        self._anchors.append(_Anchor(fd, len(self._lengths) - 1, length))
        return True

    def _open(self, path: bytes, flags: int) -> int:
        anchor = self._anchors[-1]
        return open_beneath(anchor.fd, path[anchor.length :], flags, resolve=syscalls.RESOLVE_PLAIN)

    def _lift_anchors(self, level: int) -> None:
        # Those below this level; never the top itself, which is the caller's.
        while self._anchors[-1].level > level:
            os.close(self._anchors.pop().fd)


def _is_new(this: object, listed: set[object]) -> bool:
    if this in listed:
        return False
    if this is not None:
        listed.add(this)
    return True


def _number(fd: int) -> object:
    status = os.fstat(fd)
    # The subvolumes of a btrfs count alike. One number takes less memory than a pair.
    return status.st_dev << 64 | status.st_ino


def _handle(fd: int) -> object:
    # None: it has none, and may be any. The number too: layers without a UUID share handles.
    try:
        return syscalls.name_to_handle_at(fd, b"", _EMPTY_PATH)[0], os.fstat(fd).st_ino
    except OSError:
        return None


def _visit(
    fd: int, path: bytes, inos: Container[int], subdirectories: list[bytes] | None, count: _Count
) -> Iterator[Hit]:
    # One directory, listed when its subdirectories are needed. This loop takes most of the time.
    ino = os.fstat(fd).st_ino
    if ino in inos:
        yield Hit(ino, path)
    if subdirectories is None:
        return
    with os.scandir(fd) as entries:
        while not count.over and (some := list(itertools.islice(entries, _PROGRESS_WORK))):
            count.add(len(some))  # also if the caller stops
            for entry in some:
                if entry.is_dir(follow_symlinks=False):
                    subdirectories.append(os.fsencode(entry.name))
                elif entry.inode() in inos:
                    yield Hit(entry.inode(), _join(path, os.fsencode(entry.name)))
            count.tell()


def _visit_every(
    fd: int, path: bytes, _inos: Container[int], subdirectories: list[bytes] | None, count: _Count
) -> Iterator[Hit]:
    yield Hit(0, path)
    if subdirectories is None:
        return
    with os.scandir(fd) as entries:
        for entry in entries:
            count.add(1)
            count.tell()
            if count.over:
                return
            if entry.is_dir(follow_symlinks=False):
                subdirectories.append(os.fsencode(entry.name))
            else:
                yield Hit(0, _join(path, os.fsencode(entry.name)))


def _join(directory: bytes, name: bytes) -> bytes:
    return b"%b/%b" % (directory, name) if directory else name
