"""The steps, whole: pre-dump and dump. The way of the data is read from here.

    survey (fdinfo) → load (image, database) → resolve (engine) → write (image, database)

dump does all of that while the tasks run; then it freezes them, reads fdinfo again, proves what
may have changed since, and lets them go before it writes.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from irmapdb import files, handover, history, workdir
from irmapdb.config import Config
from irmapdb.confirm import Confirmation
from irmapdb.errors import FreezeError
from irmapdb.image import fsnotify
from irmapdb.kernel import freeze, procfs, tasks
from irmapdb.kernel.holders import deleted_holders
from irmapdb.kernel.namespaces import mounted_anywhere
from irmapdb.kernel.renames import Witness
from irmapdb.kernel.root import Root, open_root
from irmapdb.kernel.survey import read_survey
from irmapdb.model import Event, MarkKind, RunStats, format_kdev
from irmapdb.scanpaths import check_scan_paths
from irmapdb.search import Search
from irmapdb.store.database import Store
from irmapdb.store.nouns import WatchRow
from irmapdb.workdir import WorkDir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from irmapdb.engine import Outcome
    from irmapdb.kernel.freeze import Frozen
    from irmapdb.kernel.procfs import RawWatchFile
    from irmapdb.kernel.survey import Denied
    from irmapdb.kernel.tasks import Task
    from irmapdb.model import Change, Identity, Mapping, Mark, Mount, Resolved, WatchFile
    from irmapdb.store.write import Step

__all__ = ["FreezeOptions", "MarkRow", "Options", "Report", "dump", "pre_dump"]

_log = logging.getLogger(__name__)

_INOTIFY_NAME, _FANOTIFY_NAME = "inotify.img", "fanotify.img"


@dataclass(frozen=True, slots=True)
class Options:
    """What pre-dump and dump are told."""

    pid: int
    images_dir: Path = Path()
    work_dir: Path | None = None
    database: Path | None = None
    prev_images_dir: Path | None = None
    scan_paths: tuple[bytes, ...] = ()
    config: Config = field(default_factory=Config)
    progress: Callable[[int, bytes], None] = lambda _scanned, _top: None
    """Told during a scan: entries looked at so far, and where."""
    over: Callable[[], bool] = lambda: False
    """Whether the time is up; what was proved until then is written."""
    wait_s: float = 10.0
    """How long to wait for another process's step in the database."""
    take_cache: bool = True
    """Whether to take over what irmap-cache holds, where it is news."""


@dataclass(frozen=True, slots=True)
class FreezeOptions:
    """How dump stops the tasks."""

    cgroup: Path | None = None
    timeout_s: float = 10.0
    leave_stopped: bool = False


class MarkRow(NamedTuple):
    """A mark that has no inode, and what it is on."""

    mark: Mark
    comm: bytes
    target: bytes
    """The mount point, or `major:minor` of the filesystem."""
    mntns: int = 0
    """As in Mapping: whose mount table the mount point is in."""

    @property
    def is_dropped(self) -> bool:
        """Whether CRIU leaves it out of a dump, and says nothing."""
        return self.mark.kind is not MarkKind.MOUNT


@dataclass(frozen=True, slots=True)
class Report:
    """What a step came to."""

    event: Event
    pid: int
    run_id: int
    watches: tuple[WatchRow, ...]
    marks: tuple[MarkRow, ...]
    denied: tuple[Denied, ...]
    changes: tuple[Change, ...]
    stats: RunStats
    loaded: int
    """Entries taken over from an irmap-cache that was newer than the database."""
    cut: int
    """Watches without a path because the time was up."""
    unread: int
    """Tasks whose descriptors were not all read because the time was up."""
    written: tuple[Path, ...]
    """The files that were replaced, the cache image first."""
    resolved: tuple[Resolved, ...] = ()
    """What was proved, with every name."""
    private_copy: str = ""
    """Why SQLite worked on a private copy of the database; "" where it did not."""


def pre_dump(options: Options) -> Report:
    """Find, prove and store the paths of a tree's watches, without stopping anyone."""
    with _tree(options) as tree, _transaction(options, Event.PRE_DUMP) as step:
        loaded = _load_cache(options, step)
        with tree.search(options, step.tx) as search:
            watched = _resolve(tree, search, tree.read(options.over), options.over)
            return _write(options, step, tree, search, watched, loaded)


def dump(options: Options, freezing: FreezeOptions) -> Report:
    """The same, confirmed with the tasks stopped, and CRIU's fsnotify images written.

    The tasks run again before anything is written. If they are to be left stopped, they stand
    still until all is written and committed: whatever goes wrong, also a kill, lets them go.
    """
    freeze.check(options.pid, cgroup=freezing.cgroup)
    with (
        _tree(options) as tree,
        contextlib.ExitStack() as left_stopped,
        _transaction(options, Event.DUMP) as step,
    ):
        loaded = _load_cache(options, step)
        with tree.search(options, step.tx) as search, Witness() as witness:
            search.freeze_follows = True
            confirmation = Confirmation(tree.root, witness, options.config)
            watched = tree.read()
            confirmation.cover(w.identity.kdev for file in watched for w in file.watches)
            watched = _resolve(tree, search, watched)
            confirmation.index(search.outcome)
            search.prove_again(confirmation.suspects(search.outcome))
            search.hold_open()
            _log.info("prepared, freezing the tasks")
            with _no_collection(), contextlib.ExitStack() as until_read:
                until = left_stopped if freezing.leave_stopped else until_read
                held = until.enter_context(_frozen(options.pid, freezing))
                watched, step.share = _confirm_frozen(tree, search, confirmation, held)
                held.confirm()
            step.freezing_us = held.freezing_us
            step.frozen_us = (time.monotonic_ns() - held.since_ns) // 1000
            _log.info("the tasks stood still for %d us", step.frozen_us)
            search.resolve(watched)
            report = _write(options, step, tree, search, watched, loaded)
            if freezing.leave_stopped:
                held.confirm()  # before anything is for good: images of tasks that run are none
            return report


def _resolve(
    tree: _Tree,
    search: Search,
    watched: list[WatchFile],
    over: Callable[[], bool] = lambda: False,
) -> list[WatchFile]:
    search.add_holders(tree.pids)
    search.add_owners(tree.owners)
    search.resolve(watched)
    if any(one.handle is None for one in search.outcome.unresolved) and not over():
        # The look at the candidates may have made the kernel show a handle that it did not show.
        watched = tree.read()
        search.resolve(watched)
    return watched


def _read_frozen(tree: _Tree, search: Search, pids: Sequence[int]) -> list[WatchFile]:
    watched = tree.read_again(pids)
    bare = {identity.key for identity in tree.rewatched if identity.handle is None}
    known = [one for one in search.outcome.resolved if one.key in bare and one.handle is not None]
    if known:
        # A name that fell out of the cache took the handle along; a look at it brings both back.
        search.prove_again(known, at_once=True)
        rewatched, reparsed = tree.rewatched, tree.reparsed
        watched = tree.read_again(pids)
        tree.rewatched += rewatched
        tree.reparsed += reparsed
    return watched


def _confirm_frozen(
    tree: _Tree, search: Search, confirmation: Confirmation, held: Frozen
) -> tuple[list[WatchFile], RunStats]:
    # With what the time in the freeze went into.
    begun = time.monotonic_ns()
    watched = _read_frozen(tree, search, held.pids)
    read = time.monotonic_ns()
    suspects = confirmation.suspects(search.outcome, tree.rewatched)
    asked = time.monotonic_ns()
    search.prove_again(suspects, at_once=True)
    search.resolve(watched, at_once=True)
    done = time.monotonic_ns()
    return watched, RunStats(
        tasks_frozen=len(held.pids),
        reread_us=(read - begun) // 1000,
        reparsed=tree.reparsed,
        confirm_us=(asked - read) // 1000,
        reproved=len(suspects),
        reproved_why=", ".join(f"{why} {count}" for why, count in confirmation.causes.items()),
        frozen_resolve_us=(done - asked) // 1000,
    )


class _Tree:
    """The tasks, their root, and what they watch."""

    def __init__(self, pid: int, root: Root) -> None:
        self.pid = pid
        self.root = root
        self.denied: tuple[Denied, ...] = ()
        self.unread = 0
        self.owners: dict[tuple[int, int], list[int]] = {}
        """Who else has a descriptor, by (pid, fd)."""
        self.rewatched: list[Identity] = []
        """What the descriptors watch whose text was another one than before."""
        self.reparsed = 0
        """How many these descriptors are."""
        self._tasks: dict[int, Task] = {}
        self._parsed: dict[tuple[int, int], tuple[bytes, WatchFile]] = {}
        self._nested_mounts: dict[int, tuple[Mount, int]] = {}

    def comm(self, pid: int) -> bytes:
        task = self._tasks.get(pid)
        return b"?" if task is None else task.comm

    @property
    def pids(self) -> list[int]:
        """All tasks that were met."""
        return list(self._tasks)

    def read(self, over: Callable[[], bool] = lambda: False) -> list[WatchFile]:
        """What the tasks watch now. TaskError where the root task is gone."""
        files = self._survey(tasks.task_tree(self.pid), over)
        _log.info("tasks: %d, descriptors that watch: %d", len(self._tasks), len(files))
        return files

    def read_again(self, pids: Sequence[int]) -> list[WatchFile]:
        """The same for tasks that stand still, some of them new."""
        found = (self._tasks.get(pid) or tasks.read_task(pid) for pid in pids)
        return self._survey([task for task in found if task is not None])

    def _survey(
        self, found: Sequence[Task], over: Callable[[], bool] = lambda: False
    ) -> list[WatchFile]:
        self._tasks.update((task.pid, task) for task in found)
        self.rewatched = []
        self.reparsed = 0
        survey = read_survey(found, over=over)
        self.denied, self.unread = survey.denied, survey.unread
        self.owners = survey.owners()
        for tid, pid in survey.threads.items():
            self._tasks[tid] = self._tasks[pid]
        return [self._parse(raw) for raw in survey.files]

    def _parse(self, raw: RawWatchFile) -> WatchFile:
        # A text that has not changed is not parsed again: most of the time, in the freeze.
        known = self._parsed.get((raw.pid, raw.fd))
        if known is None or known[0] != raw.raw:
            known = self._parsed[raw.pid, raw.fd] = (raw.raw, raw.parse())
            self.reparsed += 1
            self.rewatched += (watch.identity for watch in known[1].watches)
            if any(self.mount_of(mark.target) is None for mark in _mount_marks(known[1])):
                self._read_nested_mounts(raw.pid)
        return known[1]

    def mount_of(self, mnt_id: int) -> Mount | None:
        """The marked mount, in the root task's table or in that of the marking task."""
        mount = self.root.by_id.get(mnt_id)
        return mount or self._nested_mounts.get(mnt_id, (None, 0))[0]

    def mntns_of(self, mnt_id: int) -> int:
        """The mount namespace that the mount was found in; 0: the root task's, or nowhere."""
        nested = mnt_id not in self.root.by_id
        return self._nested_mounts.get(mnt_id, (None, 0))[1] if nested else 0

    def _read_nested_mounts(self, pid: int) -> None:
        try:
            mntns = procfs.mount_namespace(pid)
            if mntns != self.root.mntns:
                for mount in procfs.read_mountinfo(procfs.living_thread(pid)):
                    self._nested_mounts[mount.mnt_id] = (mount, mntns)
        except OSError:
            return  # gone, or not ours to look at

    def search(self, options: Options, tx: Step) -> Search:
        return Search(
            self.root,
            tx.load,
            config=options.config,
            scan_paths=options.scan_paths,
            progress=options.progress,
            over=options.over,
        )


def _mount_marks(file: WatchFile) -> Iterator[Mark]:
    return (mark for mark in file.marks if mark.kind is MarkKind.MOUNT)


@contextlib.contextmanager
def _tree(options: Options) -> Iterator[_Tree]:
    tasks.task_tree(options.pid)  # before anything is made on its behalf: is it there?
    with open_root(options.pid) as root:
        check_scan_paths(root, options.scan_paths, options.config)
        yield _Tree(options.pid, root)


@dataclass(slots=True)
class _Transaction:
    """One step's place, time and figures, and the transaction that all of it goes into."""

    event: Event
    place: WorkDir
    tx: Step
    started_at: datetime
    until_committed: contextlib.ExitStack
    """Undoes what was done beside the database, should it not be committed."""
    freezing_us: int = 0
    frozen_us: int = 0
    share: RunStats = field(default_factory=RunStats)
    private_copy: str = ""


@contextlib.contextmanager
def _transaction(options: Options, event: Event) -> Iterator[_Transaction]:
    place = WorkDir.open(
        options.images_dir,
        options.work_dir,
        database=options.database,
        previous=options.prev_images_dir,
    )
    images = (_INOTIFY_NAME, _FANOTIFY_NAME) if event is Event.DUMP else ()
    for target in (*(place.images / name for name in images), place.cache):
        files.check_replaceable(target)
    started_at = datetime.now(UTC)
    with Store.open(place.database, create=True, wait_s=options.wait_s) as store:
        try:
            with contextlib.ExitStack() as until_committed, store.step() as tx:
                step = _Transaction(event, place, tx, started_at, until_committed)
                step.private_copy = store.why_copied
                yield step
        except FreezeError as error:
            if store.made:
                raise  # nothing is left behind, not even the database
            # Something was done to the tasks, if in vain: that is worth a row.
            with store.step() as tx:
                tx.add_run(
                    event,
                    pid=options.pid,
                    comm=None,
                    started_at=started_at,
                    finished_at=datetime.now(UTC),
                    stats=RunStats(),
                    outcome=f"failed: {error}",
                )
            raise


def _load_cache(options: Options, step: _Transaction) -> int:
    if not options.take_cache:
        return 0
    loaded = workdir.load_cache(step.tx, step.place, step.started_at)
    _log.info("entries taken over from an irmap-cache: %d", loaded)
    return loaded


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # A full collection among 100,000 watches takes longer than the frozen part itself.
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _frozen(pid: int, freezing: FreezeOptions) -> Iterator[Frozen]:
    # A ^Z, or a write to the terminal from the background, would stop us, and the tasks with us.
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    )
    try:
        with freeze.frozen(
            pid,
            cgroup=freezing.cgroup,
            timeout_s=freezing.timeout_s,
            leave_stopped=freezing.leave_stopped,
        ) as held:
            yield held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write(
    options: Options,
    step: _Transaction,
    tree: _Tree,
    search: Search,
    watched: list[WatchFile],
    loaded: int,
) -> Report:
    """Everything that a step found, into the images and the database."""
    outcome = search.outcome
    handover.spell_root(outcome)
    now = datetime.now(UTC)
    watches = _watch_rows(tree, outcome, watched)
    cut = sum(outcome.unresolved[row.watch.identity].cut for row in watches if row.path is None)
    unmounted: list[Mapping] = []
    if not options.over():
        unmounted = [*_unmounted(step.tx, tree.root), *_unmounted_nested(step.tx, search)]
    story = history.tell(search.rows, outcome, search.disprove, unmounted)
    current = {row.watch.identity for row in watches}
    resolved = [answer for answer in outcome.resolved.values() if answer.identity in current]
    stats = replace(
        step.share,
        freezing_us=step.freezing_us,
        frozen_us=step.frozen_us,
        resolve_us=search.resolve_us,
        watches=len(watches),
        resolved=sum(row.path is not None for row in watches),
        unresolved=sum(row.path is None for row in watches),
        hits=story.hits,
        stale=len(story.stale),
        scanned=search.scanned,
        sources=dict(Counter(str(answer.source) for answer in resolved)),
    )
    step.tx.flag_all()
    step.tx.mark_stale(story.stale, now)
    step.tx.prove(outcome.resolved.values(), now)
    run_id = step.tx.add_run(
        step.event,
        pid=tree.pid,
        comm=tree.comm(tree.pid),
        started_at=step.started_at,
        finished_at=now,
        stats=stats,
        outcome=_in_words(stats, cut, tree.unread),
    )
    step.tx.add_watches(run_id, watches)
    step.tx.add_changes(run_id, story.changes, now)
    if options.config.retention.automatic:
        step.tx.prune(options.config.retention, now, len(watches) + len(story.changes))
    images: dict[Path, bytes] = {}
    if step.event is Event.DUMP:
        images = _fsnotify_images(step.place, tree, outcome, watched)
    watched_now = (row.watch.identity for row in watches)
    entries = handover.cache_entries(outcome, watched_now, tree.root, options.config.may_wait)
    workdir.save_images(step.tx, step.place, entries, images.items(), step.until_committed)
    return Report(
        event=step.event,
        pid=tree.pid,
        run_id=run_id,
        watches=watches,
        marks=_mark_rows(tree, watched),
        denied=tree.denied,
        changes=story.changes,
        stats=stats,
        loaded=loaded,
        cut=cut,
        unread=tree.unread,
        written=(step.place.cache, *images),
        resolved=tuple(resolved),
        private_copy=step.private_copy,
    )


def _in_words(stats: RunStats, cut: int, unread: int) -> str:
    words = [f"{stats.unresolved} unresolved"] if stats.unresolved else []
    if cut:
        words.append(f"{cut} of them for lack of time")
    if unread:
        words.append(f"{unread} tasks not read for lack of time")
    return ", ".join(words) or "done"


def _unmounted(tx: Step, root: Root) -> list[Mapping]:
    """The live rows of devices that are mounted nowhere.

    What is not mounted in our tree's namespace may be the row of another tree that shares the
    database, and no row tells whose it is. It is as right as before where its device is still
    mounted in any namespace of the machine; a wrong one is found out when it is used.
    """
    absent = tx.live_devices() - {mount.kdev for mount in root.mounts}
    return tx.live_on(absent - mounted_anywhere(absent)) if absent else []


def _unmounted_nested(tx: Step, search: Search) -> Iterator[Mapping]:
    """The same of the nested namespaces that were looked at.

    Their rows tell whose they are, so that what is mounted elsewhere does not count. A namespace
    that was not looked at may have its mounts still; of a chroot not all are seen.
    """
    for root in search.nested_roots:
        root.renew()
        mounted = {mount.kdev for mount in root.mounts}
        yield from tx.live_on(tx.live_devices(root.mntns) - mounted, root.mntns)


def _watch_rows(tree: _Tree, outcome: Outcome, watched: list[WatchFile]) -> tuple[WatchRow, ...]:
    rows = []
    deleted = [identity for identity, failure in outcome.unresolved.items() if failure.deleted]
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


def _mark_rows(tree: _Tree, watched: list[WatchFile]) -> tuple[MarkRow, ...]:
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
    place: WorkDir, tree: _Tree, outcome: Outcome, watched: list[WatchFile]
) -> dict[Path, bytes]:
    def path_of(identity: Identity) -> bytes | None:
        answer = outcome.resolved.get(identity)
        # CRIU would look a nested namespace's path up in the root task's.
        return None if answer is None or answer.mntns else answer.path

    return {
        place.images / _INOTIFY_NAME: fsnotify.encode_inotify(watched, path_of),
        place.images / _FANOTIFY_NAME: fsnotify.encode_fanotify(
            watched, path_of, mount_of=tree.mount_of
        ),
    }
