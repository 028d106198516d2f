"""Reads the facts that CRIU will read, without changing CRIU's result.

The result of CRIU for a handle depends on the file's name in the kernel's cache (its dentry), and
every lookup of a path adds the name. So each watch is first checked by its handle only, which adds
no name; CRIU begins in the same way. Paths of irmap-cache and of a scan are looked up only if CRIU
would look them up too. To search for a file without a cached name (for advice), only listings are
read. If a lookup adds a name, the path is right, and CRIU finds the same path earlier.

Sources: alloc_openable() of criu/fsnotify.c, irmap_revalidate() and irmap_scan() of criu/irmap.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from irmapdb.config import HINTS
from irmapdb.criu.check.criu_view import CriuView, Mountpoints, numbers
from irmapdb.criu.check.facts import (
    CacheLook,
    Facts,
    Found,
    HandleLook,
    Look,
    OverlayLook,
    SearchLook,
)
from irmapdb.criu.check.walks import Walks
from irmapdb.kernel import syscalls
from irmapdb.kernel.proof import disproof, disproof_of_fd
from irmapdb.model import StaleReason
from irmapdb.resolve import engine
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.mount_points import at_mount_points
from irmapdb.resolve.open_files import OpenFiles
from irmapdb.resolve.overlay import OverlayLayers
from irmapdb.resolve.scan import Scan
from irmapdb.resolve.skip_paths import SkipPaths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from irmapdb.config import Config
    from irmapdb.criu.check.facts import Call
    from irmapdb.kernel.root import Root
    from irmapdb.model import CacheEntry, Identity, InodeKey

__all__ = ["Observer"]

_ROOT_HINT = b"/."

_SEARCH_S = 5.0
"""The time limit of the search for better advice."""

_LATE = f"not found within {_SEARCH_S:g} s"

# CRIU 4.3 stats every entry, our walk reads listings: on a tree of a million files CRIU took
# 1.55 s for each watch where our walk took 0.9 s.
_CRIU_WALK_FACTOR = 1.7


class Observer:
    """Takes looks for batches of watched inodes. A context manager that keeps mount points open."""

    def __init__(
        self,
        criu_view: CriuView,
        call: Call,
        entries: Iterable[CacheEntry],
        *,
        config: Config,
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
    ) -> None:
        self._criu_view = criu_view
        self._root = criu_view.root
        self._call = call
        self._config = config
        self._progress = progress
        self._walks = Walks(criu_view, progress)
        self._entries: dict[InodeKey, list[bytes]] = {}
        for entry in entries:
            self._entries.setdefault(entry.key, []).append(entry.path)
        self._mountpoints = Mountpoints(criu_view.views)
        self.denied = False
        """Whether a handle could not be opened without CAP_DAC_READ_SEARCH."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mountpoints.close()

    def facts(self, identity: Identity) -> Facts:
        """The facts before the first look."""
        opened = self._mountpoints.of(identity.kdev)
        fstype = opened[0][0].mount.fstype if opened else None
        return Facts(identity, fstype, own_mounts=self._criu_view.foreign)

    def take(self, look: Look, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts of a batch with one look more."""
        takers = {
            Look.HANDLE: self._handles,
            Look.OVERLAY: self._overlays,
            Look.CACHE: self._caches,
            Look.SCAN: self._scans,
            Look.SEARCH: self._searches,
        }
        return takers[look](batch)

    # By handle

    def _handles(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        for facts in batch:
            yield facts._replace(handle=self._by_handle(facts.identity))

    def _by_handle(self, identity: Identity) -> HandleLook:
        look = HandleLook(opened=False)
        for view, mount_fd in self._mountpoints.of(identity.kdev):
            if identity.handle is None:
                break
            try:
                fd = syscalls.open_by_handle_at(mount_fd, identity.handle, os.O_PATH)
            except OSError as error:
                self.denied |= error.errno == errno.EPERM
                look = look._replace(why_not=look.why_not or error.strerror or "")
                continue
            try:
                look = _opened(fd)
                link = _link_of(fd)
            finally:
                os.close(fd)
            if link is None:  # CRIU looks through no other mount then
                return look._replace(too_long=True)
            found = self._named(view.root, identity, link)
            if found is not None:
                return look._replace(found=found)
        return look._replace(mounted=self._mounted(identity)) if look.opened else look

    def _mounted(self, identity: Identity) -> SearchLook | None:
        nested = (root for root in self._criu_view.nested if not root.may_block(identity.kdev))
        for root in (self._root, *nested):
            for candidate in at_mount_points(root, [identity]):
                if disproof(root, *candidate) is None:
                    if root is self._root:
                        return SearchLook(candidate.path, hinted=self._hinted(candidate.path))
                    return SearchLook(candidate.path, mntns=root.mntns)
        return None

    def _named(self, root: Root, identity: Identity, link: bytes) -> Found | None:
        # CRIU compares only the inode number, and follows a link at the end.
        try:
            fd = self._criu_view.lookup(link[1:] or b".", os.O_PATH, root=root)
        except OSError:
            return None
        try:
            if numbers(fd).ino != identity.ino:
                return None
            return Found(link, _is(identity, root, fd))
        finally:
            os.close(fd)

    # By irmap

    def _caches(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        for facts in batch:
            yield facts._replace(cache=self._in_cache(facts.identity))

    def _in_cache(self, identity: Identity) -> CacheLook:
        refused: list[bytes] = []
        for path in reversed(self._entries.get(identity.key, ())):
            found = self._revalidated(identity, path)
            if found is not None:
                return CacheLook(found, tuple(refused))
            refused.append(path)
        return CacheLook(None, tuple(refused))

    def _revalidated(self, identity: Identity, path: bytes) -> Found | None:
        # A C string ends at the first NUL, and CRIU assumes that its first byte is the slash.
        name = path.partition(b"\0")[0]
        try:
            fd = self._criu_view.lookup(name[1:], root=self._root)
        except OSError:
            return None
        try:
            if numbers(fd) != identity.key:
                return None
            return Found(name, _is(identity, self._root, fd), _is_link(fd))
        finally:
            os.close(fd)

    def _scans(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        found = self._scan([facts.identity for facts in batch])
        for facts in batch:
            yield facts._replace(scan=tuple(found[facts.identity]))

    def _scan(self, identities: Iterable[Identity]) -> dict[Identity, list[Found]]:
        found: dict[Identity, list[Found]] = {identity: [] for identity in identities}
        # On btrfs no st_dev is that of the superblock.
        pending = [one for one in found if not self._criu_view.is_on(one.kdev, "btrfs")]
        for start in (*self._call.scan_paths, *HINTS, _ROOT_HINT):
            done: set[Identity] = set()
            for identity, path in self._walks.below(start, pending, done):
                hit = self._revalidated(identity, path)
                if hit is None:
                    continue
                found[identity].append(hit)
                # Several files of an overlay may have the same numbers, and each of them counts.
                if not self._criu_view.is_on(identity.kdev, "overlay"):
                    done.add(identity)
            pending = [identity for identity in pending if not found[identity]]
        return found

    # As CRIU 4.3 walks an overlay

    def _overlays(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        for kdev in {facts.identity.kdev for facts in batch}:
            yield from self._overlay(kdev, _on_device(kdev, batch))

    def _overlay(self, kdev: int, batch: Sequence[Facts]) -> Iterator[Facts]:
        before, start = self._walks.entries, time.monotonic_ns()
        candidates = [
            candidate
            for mount in self._root.mounts.of_device(kdev)[:1]
            for candidate in self._walks.mount(mount, [facts.identity for facts in batch])
        ]
        walk_us = int((time.monotonic_ns() - start) / 1000 * _CRIU_WALK_FACTOR)
        entries = self._walks.entries - before
        hits: dict[Identity, list[Found]] = {}
        for identity, path in candidates:
            hit = self._numbered(identity, path)
            if hit is not None:
                hits.setdefault(identity, []).append(hit)
        for facts in batch:
            look = OverlayLook(tuple(hits.get(facts.identity, ())), entries, walk_us)
            yield facts._replace(overlay=look)

    def _numbered(self, identity: Identity, path: bytes) -> Found | None:
        with contextlib.suppress(OSError), _path(self._root, path) as fd:
            if numbers(fd) == identity.key:
                return Found(path, _is(identity, self._root, fd), _is_link(fd))
        return None

    # For advice

    def _searches(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        cold: list[Facts] = []
        rest: list[Facts] = []
        for facts in batch:
            (cold if facts.handle and facts.handle.opened else rest).append(facts)
        for kdev in {facts.identity.kdev for facts in cold}:
            yield from self._search_listings(kdev, _on_device(kdev, cold))
        yield from self._search(rest)

    def _search_listings(self, kdev: int, batch: Sequence[Facts]) -> Iterator[Facts]:
        # No name is looked up, because CRIU would find it afterwards.
        paths: dict[Identity, bytes] = {}
        identities = [facts.identity for facts in batch]
        gave_up = self._unwalked(kdev)
        if not gave_up:
            with self._walks.limited(_SEARCH_S):
                skips = SkipPaths(self._config.skip_paths)
                for mount in self._root.mounts.of_device(kdev):
                    for identity, path in self._walks.mount(mount, identities, paths, skips=skips):
                        paths.setdefault(identity, path)
            gave_up = _LATE if self._walks.over else ""
        for facts in batch:
            found = paths.get(facts.identity)
            if found is None:
                yield facts._replace(search=SearchLook(gave_up=gave_up))
            else:
                yield facts._replace(search=self._seen(facts.identity, found))

    def _unwalked(self, kdev: int) -> str:
        kinds = self._root.blocking_kinds(kdev)
        return f"{kinds} is walked only where told" if kinds else ""

    def _seen(self, identity: Identity, path: bytes) -> SearchLook:
        acceptable = False
        # A directory has the st_dev of its files, but on an overlay of several filesystems.
        with contextlib.suppress(OSError), _path(self._root, os.path.dirname(path)) as fd:
            acceptable = numbers(fd).kdev == identity.kdev
        return SearchLook(path, acceptable=acceptable, hinted=self._hinted(path))

    def _hinted(self, path: bytes) -> bool:
        starts = (*self._call.scan_paths, *HINTS)
        return any((path + b"/").startswith(start.rstrip(b"/") + b"/") for start in starts)

    def _search(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        # By any source: no handle opens there, so a cached name does not matter.
        root, pids = self._root, self._criu_view.pids
        paths = self._call.scan_paths
        deadline = time.monotonic() + _SEARCH_S

        def over() -> bool:
            return time.monotonic() > deadline

        scan = Scan(root, self._config, paths=paths, pids=pids, progress=self._progress, over=over)
        outcome = engine.resolve(
            [facts.identity for facts in batch],
            (OpenFiles(root, pids), scan),
            lambda identity, path: disproof(root, identity, path),
            over=over,
        )
        elsewhere = self._elsewhere(
            [one for one, failure in outcome.unresolved.items() if not failure.deleted], over
        )
        late = _LATE if over() else ""
        for facts in batch:
            answer = outcome.resolved.get(facts.identity)
            if facts.identity in elsewhere:
                yield facts._replace(search=elsewhere[facts.identity])
                continue
            if answer is None:
                deleted = outcome.unresolved[facts.identity].deleted
                gave_up = self._unwalked(facts.identity.kdev) or late
                yield facts._replace(search=SearchLook(deleted=deleted, gave_up=gave_up))
                continue
            path = _ROOT_HINT if answer.path == b"/" else answer.path
            acceptable = self._revalidated(facts.identity, path) is not None
            yield facts._replace(search=SearchLook(path, acceptable=acceptable))

    def _elsewhere(
        self, identities: Iterable[Identity], over: Callable[[], bool]
    ) -> dict[Identity, SearchLook]:
        # In the tree's other mount namespaces. pre-dump searches there, and CRIU does not.
        found: dict[Identity, SearchLook] = {}
        left = list(identities)
        for root in self._criu_view.nested:
            here = [one for one in left if root.mounts.of_device(one.kdev)]
            outcome = self._resolve_in(root, here, over)
            for identity, answer in outcome.resolved.items():
                found[identity] = SearchLook(answer.path, mntns=root.mntns)
            for identity in here:
                failure = outcome.unresolved.get(identity)
                if failure is not None and failure.deleted:
                    found[identity] = SearchLook(deleted=True)
                elif identity not in found and not self._root.mounts.of_device(identity.kdev):
                    found[identity] = SearchLook(mntns=root.mntns)  # where its device is
            left = [one for one in left if one not in found]
        return found

    def _resolve_in(
        self, root: Root, identities: Iterable[Identity], over: Callable[[], bool]
    ) -> engine.Resolution:
        pids, config = self._criu_view.pids, self._config
        return engine.resolve(
            [one for one in identities if not root.may_block(one.kdev)],
            (
                Handles(root),
                OverlayLayers(root, over),
                OpenFiles(root, pids),
                Scan(root, config, pids=pids, progress=self._progress, over=over),
            ),
            lambda identity, path: disproof(root, identity, path),
            over=over,
        )


def _on_device(kdev: int, batch: Iterable[Facts]) -> list[Facts]:
    return [facts for facts in batch if facts.identity.kdev == kdev]


def _opened(fd: int) -> HandleLook:
    status = os.fstat(fd)
    return HandleLook(
        opened=True, deleted=status.st_nlink == 0, symlink=stat.S_ISLNK(status.st_mode)
    )


def _link_of(fd: int) -> bytes | None:
    # None: the path is too long for a link (proc_pid_readlink() of fs/proc/base.c).
    try:
        return os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None


def _is_link(fd: int) -> bool:
    return stat.S_ISLNK(os.fstat(fd).st_mode)


def _is(identity: Identity, root: Root, fd: int) -> bool | None:
    # As in Found: None if another file may have the same handle.
    try:
        reason = disproof_of_fd(root, identity, fd)
    except OSError:
        return False
    return None if reason is StaleReason.AMBIGUOUS else reason is None


@contextlib.contextmanager
def _path(root: Root, path: bytes) -> Iterator[int]:
    fd = root.open(path)
    try:
        yield fd
    finally:
        os.close(fd)
