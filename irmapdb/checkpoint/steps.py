"""Runs the whole steps, pre-dump and dump. Begin to read the flow of the data here.

    survey (fdinfo) → load (image, database) → resolve (engine) → write (image, database)

dump does all of that while the tasks run. Then it freezes them, reads fdinfo again, proves the
paths again that may have changed, and resumes the tasks before it writes.

The hook does the same as pre-dump in another order. CRIU gets irmap-cache first (`find`,
`hand_over`). The database gets the results after CRIU has continued (`keep`). So modules with a
slow import are imported only where they are needed.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime

from irmapdb import files
from irmapdb.checkpoint import criu_cache, work_dir
from irmapdb.checkpoint.findings import Begun, make_findings
from irmapdb.checkpoint.work_dir import MappingsAndNews, WorkDir
from irmapdb.config import Config
from irmapdb.errors import FileError
from irmapdb.kernel import pause_detection
from irmapdb.kernel.proc import mountinfo, procfs, tasks
from irmapdb.kernel.proc.fdinfo_files import FdinfoFiles
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.root import Root, open_root
from irmapdb.log import Log
from irmapdb.model import Event, MarkKind, Resolved, RunStats, Source
from irmapdb.record import Record
from irmapdb.resolve.engine import Resolution
from irmapdb.resolve.root_search import Paused
from irmapdb.resolve.search import Search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from irmapdb.checkpoint.confirm import Confirmation
    from irmapdb.checkpoint.findings import Findings
    from irmapdb.checkpoint.transaction import StepReport
    from irmapdb.kernel.own_freezer.stop_tree import Frozen
    from irmapdb.kernel.proc.fdinfo import RawWatchFile
    from irmapdb.kernel.proc.survey import Denied
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.model import (
        AnyPath,
        CacheEntry,
        Identity,
        Mark,
        Mount,
        WatchFile,
    )
    from irmapdb.resolve.stored import Load
    from irmapdb.store.mappings import StoredMappings
    from irmapdb.store.records import FileStamp

__all__ = [
    "FreezeOptions",
    "StepOptions",
    "Survey",
    "dump",
    "find",
    "hand_over",
    "keep",
    "pre_dump",
]

_log = Log(__name__)


class StepOptions(Record):
    """The options of pre-dump and dump."""

    pid: int
    images_dir: AnyPath = b"."
    work_dir: AnyPath | None = None
    database: AnyPath | None = None
    prev_images_dir: AnyPath | None = None
    scan_paths: tuple[bytes, ...] = ()
    config: Config = Config()
    progress: Callable[[int, bytes], None] = lambda _scanned, _top: None
    """Called during a scan with the number of compared entries, and the place."""
    over: Callable[[], bool] = lambda: False
    """Returns True if the time is up. The paths proved until then are written."""
    wait_s: float = 10.0
    """The longest wait for another process's step in the database."""
    ask_servers: Callable[[], bool] = lambda: True
    """Whether a filesystem whose lookups may block is asked for paths now."""
    take_cache: bool = True
    """Whether to load a new irmap-cache."""
    paused_for_s: float | None = None
    """The time for opening and walking directories if the tasks are paused already. Such an open
    may wait for a paused task."""
    surveyed: Callable[[Survey], None] = lambda _survey: None
    """Called by `find` with the watches, before it looks for any path."""

    def open_work_dir(self) -> WorkDir:
        """The directories and files of the step. FileError if a directory is missing."""
        return WorkDir.open(
            self.images_dir,
            self.work_dir,
            database=self.database,
            previous=self.prev_images_dir,
        )


class Survey(Record):
    """The watches, and the paths found so far."""

    watches: int
    entries: Callable[[], list[CacheEntry]]
    """The entries of irmap-cache from the paths proved so far. For any thread, at any time."""


class FreezeOptions(Record):
    """The options for the freeze of dump."""

    cgroup: Path | None = None
    timeout_s: float = 10.0
    leave_stopped: bool = False


def pre_dump(options: StepOptions) -> StepReport:
    """Find, prove and store the paths of a tree's watches, without stopping a task."""
    from irmapdb.checkpoint import transaction  # noqa: PLC0415 the hook does without

    with _tree(options) as tree, transaction.open_transaction(options, Event.PRE_DUMP) as step:
        loaded = transaction.load_cache(options, step)
        with tree.search(options, step.tx.load) as search:
            watched = _resolve(tree, search, tree.read(options.over), options.over)
            found = make_findings(step, tree, search, watched)
        return transaction.write(options, step, found, loaded)


def find(options: StepOptions, stored: StoredMappings) -> Findings:
    """The first half of pre-dump: find and prove, and write nothing."""
    with _tree(options) as tree:
        place = options.open_work_dir()
        files.check_replaceable(place.cache)
        begun = Begun(Event.PRE_DUMP, place, datetime.now(UTC))
        begun.share = RunStats(paused=int(options.paused_for_s is not None))
        news = work_dir.read_news(stored.image_seen, place) if options.take_cache else None
        load = MappingsAndNews(stored.load, news, begun.started_at)
        with tree.search(options, load) as search:
            watched = tree.read(options.over)
            options.surveyed(_survey(tree, search, watched))
            watched = _resolve(tree, search, watched, options.over)
            return make_findings(begun, tree, search, watched)._replace(news=news)


def _survey(tree: _Tree, search: Search, watched: list[WatchFile]) -> Survey:
    identities = [watch.identity for file in watched for watch in file.watches]

    def entries() -> list[CacheEntry]:
        found = search.proved.copy()  # at once: the other thread continues
        proved = Resolution({i: Resolved(i, path, Source.STORED) for i, path in found.items()})
        criu_cache.spell_root(proved)
        return criu_cache.cache_entries(proved, identities, tree.root)

    return Survey(len(identities), entries)


def hand_over(
    found: Findings, further: Sequence[CacheEntry] = (), after: bytes = b""
) -> FileStamp | None:
    """Write irmap-cache for CRIU, with `further` entries that CRIU looks at after all others.

    `after`: an image of such entries that is too large to be decoded.
    In a pause the tasks do not wait for the disk: `keep` does. Returns the stamp of the file for
    `keep`; None if the file has entries that are not ours.
    """
    entries = [*further, *found.entries]
    stamp = work_dir.write_cache(found.place, entries, synced=not found.stats.paused, after=after)
    return None if further or after else stamp


def keep(options: StepOptions, found: Findings, stamp: FileStamp | None) -> StepReport:
    """The second half: store the results."""
    from irmapdb.checkpoint import transaction  # noqa: PLC0415 not before the answer

    if found.stats.paused:
        with contextlib.suppress(FileError):  # the work dir may be gone
            files.sync(found.place.cache)
    with transaction.open_transaction(options, found.event) as step:
        loaded = transaction.import_news(step, found.news, found.started_at)
        report = transaction.store(options, step, found, loaded)
        step.tx.set_image(found.entries)
        if stamp is not None:
            step.tx.set_image_seen(found.place.cache, stamp)
        return report


def dump(options: StepOptions, freezing: FreezeOptions) -> StepReport:
    """The same, confirmed with the tasks stopped, and CRIU's fsnotify images written.

    The tasks run again before anything is written. With `leave_stopped` they stay frozen until all
    is written and committed. After any error, also after a kill, they run again.
    """
    from irmapdb import garbage_collector  # noqa: PLC0415 for a dump alone
    from irmapdb.checkpoint import transaction  # noqa: PLC0415
    from irmapdb.checkpoint.confirm import Confirmation  # noqa: PLC0415
    from irmapdb.kernel.own_freezer import stop_tree  # noqa: PLC0415
    from irmapdb.kernel.rename_monitor import RenameMonitor  # noqa: PLC0415

    stop_tree.check(options.pid, cgroup=freezing.cgroup)
    with (
        _tree(options) as tree,
        contextlib.ExitStack() as left_stopped,
        transaction.open_transaction(options, Event.DUMP) as step,
    ):
        loaded = transaction.load_cache(options, step)
        with tree.search(options, step.tx.load) as search, RenameMonitor() as monitor:
            search.freeze_follows = True
            confirmation = Confirmation(tree.root, monitor)
            watched = tree.read()
            confirmation.cover(w.identity.kdev for file in watched for w in file.watches)
            watched = _resolve(tree, search, watched)
            confirmation.index(search.outcome)
            search.prove_again(confirmation.suspects(search.outcome))
            search.hold_open()
            _log.info("prepared, freezing the tasks")
            with garbage_collector.paused(collect_first=True), contextlib.ExitStack() as until_read:
                until = left_stopped if freezing.leave_stopped else until_read
                held = until.enter_context(_frozen(options.pid, freezing))
                watched, step.share = _confirm_frozen(tree, search, confirmation, held)
                held.confirm()
            step.freezing_us = held.freezing_us
            step.frozen_us = (time.monotonic_ns() - held.since_ns) // 1000
            _log.info("the tasks stood still for %d us", step.frozen_us)
            search.resolve(watched)
            found = make_findings(step, tree, search, watched)
            report = transaction.write(options, step, found, loaded)
            if freezing.leave_stopped:
                held.confirm()  # before anything is final: images of running tasks would be wrong
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
        # The lookup of the candidates may have made the kernel show a handle that it did not show
        # before.
        watched = tree.read()
        search.resolve(watched)
    return watched


def _read_frozen(tree: _Tree, search: Search, pids: Sequence[int]) -> list[WatchFile]:
    watched = tree.read_again(pids)
    bare = {identity.key for identity in tree.rewatched if identity.handle is None}
    known = [one for one in search.outcome.resolved if one.key in bare and one.handle is not None]
    if known:
        # If the kernel drops a name, it drops the handle too. A lookup restores both.
        search.prove_again(known, at_once=True)
        rewatched, reparsed = tree.rewatched, tree.reparsed
        watched = tree.read_again(pids)
        tree.rewatched += rewatched
        tree.reparsed += reparsed
    return watched


def _confirm_frozen(
    tree: _Tree, search: Search, confirmation: Confirmation, held: Frozen
) -> tuple[list[WatchFile], RunStats]:
    # With the parts of the time in the freeze.
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
    """The tasks, their root, and their watches."""

    def __init__(self, pid: int, root: Root, texts: FdinfoFiles) -> None:
        self._texts = texts
        self.pid = pid
        self.root = root
        self.denied: tuple[Denied, ...] = ()
        self.unread = 0
        self.owners: dict[tuple[int, int], list[int]] = {}
        """The other tasks that have a descriptor, by (pid, fd)."""
        self.rewatched: list[Identity] = []
        """The watches of the descriptors whose text has changed."""
        self.reparsed = 0
        """The number of these descriptors."""
        self._tasks: dict[int, Task] = {}
        self._parsed: dict[tuple[int, int], tuple[bytes, WatchFile]] = {}
        self._nested_mounts: dict[int, tuple[Mount, int]] = {}

    def comm(self, pid: int) -> bytes:
        task = self._tasks.get(pid)
        return b"?" if task is None else task.comm

    @property
    def pids(self) -> list[int]:
        """All tasks that were found."""
        return list(self._tasks)

    def read(self, over: Callable[[], bool] = lambda: False) -> list[WatchFile]:
        """Read the watches of the tasks now. TaskError if the root task is gone."""
        files = self._survey(tasks.task_tree(self.pid), over)
        _log.info("tasks: %d, descriptors that watch: %d", len(self._tasks), len(files))
        return files

    def read_again(self, pids: Sequence[int]) -> list[WatchFile]:
        """The same for frozen tasks, some of them new."""
        found = (self._tasks.get(pid) or tasks.read_task(pid) for pid in pids)
        return self._survey([task for task in found if task is not None])

    def _survey(
        self, found: Sequence[Task], over: Callable[[], bool] = lambda: False
    ) -> list[WatchFile]:
        self._tasks.update((task.pid, task) for task in found)
        self.rewatched = []
        self.reparsed = 0
        survey = read_survey(found, over=over, texts=self._texts)
        self.denied, self.unread = survey.denied, survey.unread
        self.owners = survey.owners()
        for tid, pid in survey.threads.items():
            self._tasks[tid] = self._tasks[pid]
        return [self._parse(raw) for raw in survey.files]

    def _parse(self, raw: RawWatchFile) -> WatchFile:
        # A text that has not changed is not parsed again. In the freeze this saves most of the
        # time.
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
        mount = self.root.mounts.by_id.get(mnt_id)
        return mount or self._nested_mounts.get(mnt_id, (None, 0))[0]

    def mntns_of(self, mnt_id: int) -> int:
        """The mount namespace that the mount was found in; 0: the root task's, or nowhere."""
        nested = mnt_id not in self.root.mounts.by_id
        return self._nested_mounts.get(mnt_id, (None, 0))[1] if nested else 0

    def _read_nested_mounts(self, pid: int) -> None:
        try:
            mntns = mountinfo.mount_namespace(pid)
            if mntns != self.root.mntns:
                for mount in mountinfo.read_mountinfo(procfs.living_thread(pid)):
                    self._nested_mounts[mount.mnt_id] = (mount, mntns)
        except OSError:
            return  # gone, or we may not look at it

    def search(self, options: StepOptions, load: Load) -> Search:
        search = Search(
            self.root,
            load,
            config=options.config,
            scan_paths=options.scan_paths,
            ask_servers=options.ask_servers,
            progress=options.progress,
            over=options.over,
        )
        if options.paused_for_s is not None:
            search.paused = Paused(
                options.paused_for_s,
                lambda: pause_detection.has_permission_listener(self.pid, self.pids),
            )
        return search


def _mount_marks(file: WatchFile) -> Iterator[Mark]:
    return (mark for mark in file.marks if mark.kind is MarkKind.MOUNT)


@contextlib.contextmanager
def _tree(options: StepOptions) -> Iterator[_Tree]:
    tasks.task_tree(options.pid)  # check that it exists before anything is created for it
    with open_root(options.pid) as root, FdinfoFiles() as texts:
        root.adopt(options.config, options.scan_paths)
        if options.scan_paths or options.config.scan_paths:
            from irmapdb.checkpoint.scan_paths import check_scan_paths  # noqa: PLC0415

            check_scan_paths(root, options.scan_paths, options.config)
        yield _Tree(options.pid, root, texts)


@contextlib.contextmanager
def _frozen(pid: int, freezing: FreezeOptions) -> Iterator[Frozen]:
    import signal  # noqa: PLC0415

    from irmapdb.kernel.own_freezer import stop_tree  # noqa: PLC0415

    # A ^Z, or a write to the terminal from the background, would stop us, and the tasks with us.
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    )
    try:
        with stop_tree.frozen(
            pid,
            cgroup=freezing.cgroup,
            timeout_s=freezing.timeout_s,
            leave_stopped=freezing.leave_stopped,
        ) as held:
            yield held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
