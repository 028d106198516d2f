"""Collects the results of a step as plain data, before any of it is written."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from irmapdb.checkpoint import changes, criu_cache
from irmapdb.checkpoint.work_dir import within
from irmapdb.model import Event, MarkKind, RunStats, format_kdev
from irmapdb.record import Record
from irmapdb.store.records import WatchRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from irmapdb.checkpoint.work_dir import News, WorkDir
    from irmapdb.kernel.proc.holders import Holder
    from irmapdb.kernel.proc.survey import Denied
    from irmapdb.kernel.root import Root
    from irmapdb.model import CacheEntry, Identity, Mark, Mount, Resolved, WatchFile
    from irmapdb.resolve.engine import Resolution
    from irmapdb.resolve.search import Search

__all__ = ["FSNOTIFY_NAMES", "Begun", "Findings", "MarkRow", "Tree", "make_findings"]

FSNOTIFY_NAMES = b"inotify.img", b"fanotify.img"


class MarkRow(Record):
    """A mark without an inode, and its mount or filesystem."""

    mark: Mark
    comm: bytes
    target: bytes
    """The mount point, or `major:minor` of the filesystem."""
    mntns: int = 0
    """As in Mapping: the mount namespace of the mount point."""

    @property
    def is_dropped(self) -> bool:
        """Whether CRIU leaves it out of a dump without a message."""
        return self.mark.kind is not MarkKind.MOUNT


class Begun:
    """The directories, time and figures of one step."""

    def __init__(self, event: Event, place: WorkDir, started_at: datetime) -> None:
        self.event = event
        self.place = place
        self.started_at = started_at
        self.freezing_us = 0
        self.frozen_us = 0
        self.share = RunStats()


class Findings(Record):
    """The results of a step, before any of them is written."""

    event: Event
    pid: int
    comm: bytes
    started_at: datetime
    finished_at: datetime
    place: WorkDir
    watches: tuple[WatchRow, ...]
    marks: tuple[MarkRow, ...]
    denied: tuple[Denied, ...]
    proved: tuple[Resolved, ...]
    """Also of inodes that are not watched any more."""
    change_set: changes.ChangeSet
    stats: RunStats
    entries: tuple[CacheEntry, ...]
    """For irmap-cache, in its order."""
    images: dict[bytes, bytes]
    """The fsnotify images, of a dump."""
    mounted: dict[int, frozenset[int]]
    """The mounted devices of each mount namespace that was read; 0: the root task's."""
    cut: int
    """Watches without a path because the time was up."""
    unread: int
    """Tasks whose descriptors were not all read because the time was up."""
    unopenable: frozenset[Identity] = frozenset()
    """Watches without a path where CRIU can open no handle: the dump fails on them."""
    news: News | None = None
    """The irmap-cache that was loaded and is not stored yet."""


if TYPE_CHECKING:

    class Tree(Protocol):
        """The parts of a task tree that findings need."""

        pid: int
        root: Root
        denied: tuple[Denied, ...]
        unread: int

        @property
        def pids(self) -> list[int]: ...
        def comm(self, pid: int) -> bytes: ...
        def mount_of(self, mnt_id: int) -> Mount | None: ...
        def mntns_of(self, mnt_id: int) -> int: ...


def make_findings(
    begun: Begun, tree: Tree, search: Search, watched: Sequence[WatchFile]
) -> Findings:
    """Collect all results of a step."""
    outcome = search.outcome
    criu_cache.spell_root(outcome)
    watches = _watch_rows(tree, outcome, watched)
    change_set = changes.diff(search.rows, outcome, search.disprove)
    current = {row.watch.identity for row in watches}
    resolved = [answer for answer in outcome.resolved.values() if answer.identity in current]
    stats = begun.share._replace(
        freezing_us=begun.freezing_us,
        frozen_us=begun.frozen_us,
        resolve_us=search.resolve_us,
        watches=len(watches),
        resolved=sum(row.path is not None for row in watches),
        unresolved=sum(row.path is None for row in watches),
        hits=change_set.hits,
        scanned=search.scanned,
        sources=dict(Counter(str(answer.source) for answer in resolved)),
    )
    images: dict[bytes, bytes] = {}
    if begun.event is Event.DUMP:
        images = _fsnotify_images(begun.place, tree, outcome, watched)
    watched_now = (row.watch.identity for row in watches)
    entries = criu_cache.cache_entries(outcome, watched_now, tree.root)
    return Findings(
        event=begun.event,
        pid=tree.pid,
        comm=tree.comm(tree.pid),
        started_at=begun.started_at,
        finished_at=datetime.now(UTC),
        place=begun.place,
        watches=watches,
        marks=_mark_rows(tree, watched),
        denied=tree.denied,
        proved=tuple(outcome.resolved.values()),
        change_set=change_set,
        stats=stats,
        entries=tuple(entries),
        images=images,
        mounted=_mounted(tree.root, search),
        cut=sum(outcome.unresolved[row.watch.identity].cut for row in watches if row.path is None),
        unread=tree.unread,
        unopenable=frozenset(
            row.watch.identity
            for row in watches
            if row.path is None and criu_cache.is_unopenable(tree.root, row.watch.identity)
        ),
    )


def _mounted(root: Root, search: Search) -> dict[int, frozenset[int]]:
    mounted = {0: frozenset(mount.kdev for mount in root.mounts.all)}
    for nested in search.nested_roots:
        nested.renew()
        mounted[nested.mntns] = frozenset(mount.kdev for mount in nested.mounts.all)
    return mounted


def _watch_rows(
    tree: Tree, outcome: Resolution, watched: Sequence[WatchFile]
) -> tuple[WatchRow, ...]:
    rows = []
    deleted = [identity for identity, failure in outcome.unresolved.items() if failure.deleted]
    holders: dict[Identity, Holder] = {}
    if deleted:
        from irmapdb.kernel.proc.holders import deleted_holders  # noqa: PLC0415 seldom needed

        holders = deleted_holders(tree.root, tree.pids, deleted)
    for file in watched:
        comm = tree.comm(file.pid)
        for watch in file.watches:
            answer = outcome.resolved.get(watch.identity)
            if answer is not None:
                rows.append(WatchRow(watch, comm, answer.path, None, answer.mntns))
            else:
                failure = outcome.unresolved[watch.identity]
                holder = holders.get(watch.identity)
                why = failure.why if holder is None else f"{failure.why}: {holder}"
                rows.append(WatchRow(watch, comm, None, why, tried=failure.tried))
    return tuple(rows)


def _mark_rows(tree: Tree, watched: Sequence[WatchFile]) -> tuple[MarkRow, ...]:
    rows = []
    for file in watched:
        for mark in file.marks:
            mntns = 0
            if mark.kind is MarkKind.NAMESPACE:
                target = b"mount namespace %d" % mark.target
            elif mark.kind is MarkKind.FILESYSTEM:
                target = format_kdev(mark.target).encode()
            else:
                mount, mntns = tree.mount_of(mark.target), tree.mntns_of(mark.target)
                target = b"mount %d" % mark.target if mount is None else mount.mountpoint
            rows.append(MarkRow(mark, tree.comm(file.pid), target, mntns))
    return tuple(rows)


def _fsnotify_images(
    place: WorkDir, tree: Tree, outcome: Resolution, watched: Sequence[WatchFile]
) -> dict[bytes, bytes]:
    from irmapdb.image import fsnotify  # noqa: PLC0415 for a dump alone

    def path_of(identity: Identity) -> bytes | None:
        answer = outcome.resolved.get(identity)
        # CRIU would look a nested namespace's path up in the root task's.
        return None if answer is None or answer.mntns else answer.path

    inotify, fanotify = FSNOTIFY_NAMES
    return {
        within(place.images, inotify): fsnotify.encode_inotify(watched, path_of),
        within(place.images, fanotify): fsnotify.encode_fanotify(
            watched, path_of, mount_of=tree.mount_of
        ),
    }
