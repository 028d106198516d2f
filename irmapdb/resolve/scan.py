"""Walks directories for inodes that no other source finds."""

from __future__ import annotations

import itertools
import os
import stat

from irmapdb.kernel import proof, syscalls
from irmapdb.kernel.fs.walk import Hit, walk
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import Source, is_fuse, printable
from irmapdb.record import Record
from irmapdb.resolve.engine import Candidate, Note
from irmapdb.resolve.skip_paths import SkipPaths, canonical_path, is_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator

    from irmapdb.config import Config
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Mount
    from irmapdb.resolve.engine import Answer, Wanted

__all__ = ["Scan"]


class _ClosedInProc:
    """The directories of /proc that a scan does not enter: all but those of the tasks.

    The files of a thread repeat those of its task, and map_files has a name for each map.
    """

    def __init__(self, pids: Container[bytes]) -> None:
        self._pids = pids
        self.met = False
        """Whether there was one."""

    def __contains__(self, path: object) -> bool:
        closed = isinstance(path, bytes) and self._is_closed(path)
        self.met = self.met or closed
        return closed

    def _is_closed(self, path: bytes) -> bool:
        pid, *below = path.split(b"/", 4)
        if not pid.isdigit():
            return False
        if pid not in self._pids or below == [b"map_files"]:
            return True
        return below[:1] == [b"task"] and len(below) > _TASK_AND_THREAD


class _Either:
    """The directories of both."""

    def __init__(self, first: Container[bytes], second: Container[bytes]) -> None:
        self._both = (first, second)

    def __contains__(self, path: object) -> bool:
        return any(path in one for one in self._both)


_MOST_SAMPLED = 1000
"""The limit of compared entries in a search for a file: there may be no file."""

_TASK_AND_THREAD = 2  # of /proc/PID/task/TID, below PID


class _Walk(Record):
    """One walk: from an absolute path, on the mount of that path."""

    top: bytes
    mount: Mount
    skips: SkipPaths
    """The directories that it leaves out."""


class _Denied(Record):
    """The directories of one device that a scan may not read."""

    first: bytes
    number: int

    def __str__(self) -> str:
        first = printable(self.first)
        if self.number == 1:
            return f"{first} may not be read"
        return f"{self.number} directories may not be read, the first is {first}"


class _LeftOut:
    """The parts of each device that a scan has left out."""

    def __init__(self) -> None:
        self.closed: set[int] = set()
        """The devices with directories that a scan does not enter."""
        self._denied: dict[int, _Denied] = {}
        self._given_up: dict[int, str] = {}

    def deny(self, kdev: int, path: bytes) -> None:
        """A directory may not be read."""
        first, number = self._denied.get(kdev) or (path, 0)
        self._denied[kdev] = _Denied(first, number + 1)

    def give_up(self, kdev: int, top: bytes, directories: int) -> None:
        """A walk has ended early, because there were too many directories."""
        how_many = f"{directories:,} directories, more than it should hold"
        self._given_up[kdev] = f"{printable(top)} was given up after {how_many}"

    def notes(self, kdev: int) -> Iterator[str]:
        """The reasons, for people."""
        if kdev in self.closed:
            yield "not looked for in other tasks' directories, in map_files and below task/TID"
        if kdev in self._given_up:
            yield self._given_up[kdev]
        if kdev in self._denied:
            yield str(self._denied[kdev])


class Scan:
    """Walk the user's paths, the hints, then every mount whose device is wanted.

    It walks a mount for all wanted inodes at once, and ends as soon as they are found. It does not
    enter a mount without wanted inodes.
    """

    source = Source.SCAN

    def __init__(
        self,
        root: Root,
        config: Config,
        *,
        paths: Iterable[bytes] = (),
        pids: Collection[int] = (),
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._root = root
        self._config = config
        self._paths = tuple(map(canonical_path, (*paths, *config.scan_paths)))
        self._hints = tuple(map(canonical_path, config.hints))
        skips = map(canonical_path, config.skip_paths)
        self._skips = SkipPaths(path for path in skips if path not in self._paths)
        self._pids = pids
        self._progress = progress
        self._over = over
        self._walked: list[_Walk] = []
        self._left_out = _LeftOut()
        self.scanned = 0
        """The number of directory entries compared so far."""

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        self._walked = []
        self._left_out = _LeftOut()
        for one in self._walks():
            if not wanted or self._over():
                break
            if self._was_walked(one):
                continue
            if any(identity.kdev == one.mount.kdev for identity in wanted):
                yield from self._walk(one, wanted)
        for one in self._walks():
            # If the listing's numbers are not the inodes' own, look up every entry.
            if (
                _own_numbers(one.mount.fstype)
                and not self._over()
                and self._may_differ(one, wanted)
            ):
                yield from self._walk_every_entry(one, wanted)
        for identity in list(wanted):
            yield Note(identity, self._why_not(identity))

    def _was_walked(self, one: _Walk) -> bool:
        # The same path or a parent, on the same mount: for example a hint that is a mount point.
        return any(
            walk.mount is one.mount and is_below(one.top, walk.top) and not walk.skips.has(one.top)
            for walk in self._walked
        )

    def _walks(self) -> Iterator[_Walk]:
        root = self._root
        for path in self._paths:
            mount = root.mounts.of_path(path)
            if mount is not None:
                skips = self._skips.for_named(path)
                yield _Walk(path, mount, skips)
                yield from self._submounts(path, skips)
        for path in self._hints:
            mount = root.mounts.of_path(path)
            if self._skips.has(path):
                continue
            if mount is not None and self._config.walkable(mount.fstype):
                yield _Walk(path, mount, self._skips)
                yield from self._submounts(path, self._skips)
        yield from self._submounts(b"/", self._skips)

    def _submounts(self, path: bytes, skips: SkipPaths) -> Iterator[_Walk]:
        for mountpoint, mount in self._root.mounts.by_mountpoint.items():
            if not is_below(mountpoint, path) or skips.has(mountpoint):
                continue
            if self._config.walkable(mount.fstype):
                yield _Walk(mountpoint, mount, skips)

    def _walk(self, one: _Walk, wanted: Wanted) -> Iterator[Answer]:
        inos: dict[int, list[Identity]] = {}
        for identity in wanted:
            if identity.kdev == one.mount.kdev:
                inos.setdefault(identity.ino, []).append(identity)
        for hit in self._hits(one, inos, every_entry=False):
            for identity in inos[hit.ino]:
                yield Candidate(identity, _join(one.top, hit.path))
            inos[hit.ino] = [identity for identity in inos[hit.ino] if identity in wanted]
            if not inos[hit.ino]:
                del inos[hit.ino]
            if not inos:
                return
        self._walked.append(one)

    def _may_differ(self, one: _Walk, wanted: Wanted) -> bool:
        # An overlay with its layers on one filesystem, or with xino, gives each file the number of
        # the listing, and its own st_dev: one file shows this. Directories were checked before.
        if one.mount.fstype != "overlay":
            return True
        if not any(identity.kdev == one.mount.kdev for identity in wanted):
            return False
        for hit in itertools.islice(self._hits(one, (), every_entry=True), _MOST_SAMPLED):
            try:
                with Descriptor(self._root.open(_join(one.top, hit.path))) as fd:
                    known = syscalls.statx(fd)
            except OSError:
                continue
            if known.mnt_id == one.mount.mnt_id and not stat.S_ISDIR(known.mode):
                return known.st_kdev != one.mount.kdev
        return True

    def _walk_every_entry(self, one: _Walk, wanted: Wanted) -> Iterator[Answer]:
        mine = [identity for identity in wanted if identity.kdev == one.mount.kdev]
        if not mine:
            return
        for hit in self._hits(one, (), every_entry=True):
            if self._over():
                return  # to check a whole directory like this can take long
            path = _join(one.top, hit.path)
            mount = self._root.mounts.of_path(path)
            if mount is not None and mount.mnt_id != one.mount.mnt_id:
                continue  # hidden by a mount that may have a server
            try:
                found = proof.identify(self._root, path)
            except OSError:
                continue
            hits = [identity for identity in mine if found.matches(identity)]
            for identity in hits:
                yield Candidate(identity, path)
                mine.remove(identity)
            if not mine:
                return

    def _hits(self, one: _Walk, inos: Collection[int], *, every_entry: bool) -> Iterator[Hit]:
        def on_denied(path: bytes) -> None:
            if not every_entry:  # else it is the second walk
                self._left_out.deny(one.mount.kdev, _join(one.top, path))

        try:
            top_fd = self._root.open(one.top)
        except PermissionError:
            on_denied(b"")
            return
        except OSError:
            return
        try:
            top = syscalls.statx(top_fd)
            if top.mnt_id not in {one.mount.mnt_id, None}:
                return  # another filesystem was mounted there meanwhile
            if not stat.S_ISDIR(top.mode):
                if every_entry or top.ino in inos:
                    yield Hit(0 if every_entry else top.ino, b"")
                return
            below = one.top.rstrip(b"/") + b"/"
            walked = () if every_entry else [other.top for other in self._walked]
            closed = self._closed_on(one)
            yield from walk(
                top_fd,
                inos,
                every_entry=every_entry,
                by_handle=_own_numbers(one.mount.fstype),
                prune={path.removeprefix(below) for path in walked if path.startswith(below)},
                closed=_Either(one.skips.below(one.top), closed or ()),
                on_entries=lambda count: self._tick(count, one.top),
                on_directories=lambda number: self._is_in_proportion(one, top_fd, number),
                on_denied=on_denied,
                over=self._over,
            )
            if closed and closed.met:
                self._left_out.closed.add(one.mount.kdev)
        except OSError:
            return
        finally:
            os.close(top_fd)

    def _closed_on(self, one: _Walk) -> _ClosedInProc | None:
        # If the user names a directory below /proc, scan all of it.
        whole = one.top == one.mount.mountpoint and one.mount.root == b"/"
        if one.mount.fstype == "proc" and whole:
            return _ClosedInProc(_names_in_proc(self._pids))
        return None

    def _tick(self, count: int, top: bytes) -> bool:
        self.scanned += count
        self._progress(self.scanned, top)
        return not self._over()

    def _is_in_proportion(self, one: _Walk, top_fd: int, number: int) -> bool:
        if number <= _most_directories(top_fd, one.mount.fstype):
            return True
        self._left_out.give_up(one.mount.kdev, one.top, number)
        return False

    def _why_not(self, identity: Identity) -> str:
        mounts = self._root.mounts.of_device(identity.kdev)
        if not mounts:
            return "not mounted in this root, nothing to walk"
        walked, rest = self._walked_of(mounts)
        notes = []
        if walked:
            notes.append(f"not found on {', '.join(map(printable, walked))}")
        if rest:
            which = "the rest of " if walked else ""
            notes.append(f"{which}{', '.join(rest)} is walked only where a scan path names it")
        notes += self._left_out.notes(identity.kdev)
        if skipped := self._skips.note(mounts, self._root.mounts.of_path):
            notes.append(skipped)
        return "; ".join(notes)

    def _walked_of(self, mounts: Iterable[Mount]) -> tuple[list[bytes], list[str]]:
        # The mounts of a device that are walked, and the types of those that are not.
        walked: list[bytes] = []
        rest: dict[str, None] = {}
        for mount in mounts:
            named = [path for path in self._paths if self._root.mounts.of_path(path) == mount]
            if mount.mountpoint in named:
                walked.append(mount.mountpoint)
            elif self._skips.has(mount.mountpoint):
                walked += dict.fromkeys(named)
            elif self._config.walkable(mount.fstype):
                walked.append(mount.mountpoint)
            else:
                walked += dict.fromkeys(named)
                rest[mount.fstype] = None
        return walked, list(rest)


def _names_in_proc(pids: Iterable[int]) -> frozenset[bytes]:
    # A /proc of the container has the pids of its own namespace.
    return frozenset(str(number).encode() for pid in pids for number in tasks.namespace_pids(pid))


# overlayfs with layers on several filesystems gives a directory a number of its own, and FUSE
# need not fill d_ino at all (fs/overlayfs/readdir.c, fs/fuse/readdir.c).
def _own_numbers(fstype: str) -> bool:
    return fstype == "overlay" or is_fuse(fstype)


# A task that makes directories ahead of a walk could keep it for ever. The number of inodes of the
# filesystem is a limit; btrfs does not give it, and overlayfs only that of its upper layer.
_SPARE_DIRECTORIES = 1_000_000
_MOST_UNCOUNTED = 4_000_000


def _most_directories(fd: int, fstype: str) -> int:
    try:
        status = os.fstatvfs(fd)
    except OSError:
        return _MOST_UNCOUNTED  # a FUSE server need not answer this
    used = max(0, status.f_files - status.f_ffree)
    if not status.f_files or _own_numbers(fstype):
        return max(_MOST_UNCOUNTED, 2 * used)
    return _SPARE_DIRECTORIES + 2 * used


def _join(top: bytes, path: bytes) -> bytes:
    if not path:
        return top
    return b"%b/%b" % (top.rstrip(b"/"), path)
