"""Walks the directories of CRIU's scan, for many inodes at once, without a stat of each entry.

CRIU calls stat for every entry (irmap_scan() of criu/irmap.c), again for each watch. This module
compares the inode numbers of listings, which looks up no name, and yields candidates. CRIU's scan
crosses mounts, and follows links only on the way to its start.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time

from irmapdb.criu.check.criu_view import numbers
from irmapdb.kernel.fs.walk import walk
from irmapdb.kernel.root import open_beneath
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import is_fuse
from irmapdb.record import Record
from irmapdb.resolve.skip_paths import SkipPaths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator

    from irmapdb.criu.check.criu_view import CriuView
    from irmapdb.model import Identity, Mount

__all__ = ["ROOT_HINT", "WalkHit", "Walks"]

_NO_SKIPS = SkipPaths()
ROOT_HINT = b"/."
"""CRIU's last hint: the root, but nothing below it."""


class WalkHit(Record):
    """A path whose inode number in the listing is wanted."""

    identity: Identity
    path: bytes


class Walks:
    """Walks in one criu_view. It does not search for inodes that the caller counts as `done`."""

    def __init__(self, criu_view: CriuView, progress: Callable[[int, bytes], None]) -> None:
        self._criu_view = criu_view
        self._root = criu_view.root
        self._progress = progress
        self._deadline = math.inf
        self.entries = 0
        """The number of directory entries compared so far."""
        self.over = False
        """Whether the limit has ended a walk."""

    @contextlib.contextmanager
    def limited(self, timeout_s: float) -> Iterator[None]:
        """End all walks when the time is over."""
        self.over = False
        self._deadline = time.monotonic() + timeout_s
        try:
            yield
        finally:
            self._deadline = math.inf

    def below(
        self, start: bytes, identities: Collection[Identity], done: Container[Identity]
    ) -> Iterator[WalkHit]:
        """The start of CRIU's scan, and everything below it, also on other mounts."""
        try:
            top_fd = self._criu_view.lookup(start[1:], root=self._root)
        except OSError:
            return
        with Descriptor(top_fd):
            key = numbers(top_fd)
            yield from (WalkHit(one, start) for one in identities if one.key == key)
            if start == ROOT_HINT or not _is_directory(top_fd):
                return
            top = None
            # The start may lead through a link (/lib/udev), and CRIU keeps its spelling.
            with contextlib.suppress(OSError):  # ENAMETOOLONG
                top = self._root.strip(os.fsencode(os.readlink(f"/proc/self/fd/{top_fd}")))
            if top is None:
                return
            mount = self._root.mounts.of_path(top)
            if mount is not None:
                yield from self._directory(top_fd, mount, start, identities, done)
            for mountpoint, mount in self._root.mounts.by_mountpoint.items():
                if mountpoint.startswith(top.rstrip(b"/") + b"/") and mountpoint != b"/":
                    spelled = start.rstrip(b"/") + mountpoint[len(top.rstrip(b"/")) :]
                    yield from self.mount(mount, identities, done, spelled)

    def mount(
        self,
        mount: Mount,
        identities: Iterable[Identity],
        done: Container[Identity] = (),
        spelled: bytes | None = None,
        skips: SkipPaths = _NO_SKIPS,
    ) -> Iterator[WalkHit]:
        """All of a visible mount, but `skips`; `spelled` is another way to write its mount point.

        CRIU leaves out no directory.
        """
        if skips.has(mount.mountpoint):
            return
        wanted = [one for one in identities if one.kdev == mount.kdev and one not in done]
        if not wanted:
            return
        top = mount.mountpoint if spelled is None else spelled
        try:
            fd = self._root.open(mount.mountpoint)
        except OSError:
            return
        with Descriptor(fd):
            if _is_directory(fd):
                closed = skips.below(mount.mountpoint)
                yield from self._directory(fd, mount, top, wanted, done, closed)
            else:  # a file bound over another
                yield from (WalkHit(one, top) for one in wanted)

    def _directory(
        self,
        top_fd: int,
        mount: Mount,
        top: bytes,
        identities: Iterable[Identity],
        done: Container[Identity],
        closed: Container[bytes] = (),
    ) -> Iterator[WalkHit]:
        inos: dict[int, list[Identity]] = {}
        for identity in identities:
            if identity.kdev == mount.kdev and identity not in done:
                inos.setdefault(identity.ino, []).append(identity)
        if not inos:
            return
        # FUSE need not give the inode of an entry (fs/fuse/readdir.c), so each is looked up.
        every = is_fuse(mount.fstype)
        tick = self._ticker(top)
        for hit in walk(top_fd, inos, every_entry=every, closed=closed, on_entries=tick):
            path = b"%b/%b" % (top.rstrip(b"/"), hit.path) if hit.path else top
            ino = _ino_below(top_fd, hit.path) if every else hit.ino
            for identity in inos.get(ino, ()):
                yield WalkHit(identity, path)
            left = [identity for identity in inos.pop(ino, ()) if identity not in done]
            if left:
                inos[ino] = left
            if not inos:
                return

    def _ticker(self, top: bytes) -> Callable[[int], bool]:
        def tick(count: int) -> bool:
            self.entries += count
            self._progress(self.entries, top)
            self.over |= time.monotonic() > self._deadline
            return not self.over

        return tick


def _is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def _ino_below(top_fd: int, path: bytes) -> int:
    # 0, which no inode has, for a removed entry.
    try:
        fd = open_beneath(top_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return 0
    with Descriptor(fd):
        return os.fstat(fd).st_ino
