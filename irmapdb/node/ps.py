"""Lists the watches of all tasks, from /proc only: it reads and writes no database.

It counts the watches in the descriptors of the tasks. A descriptor that several tasks share (fork)
is counted once, for the first of them. The kernel does not show the user that it charges. So ps
uses the effective user of that task (irmapdb.kernel.proc.limits).
"""

from __future__ import annotations

from collections import Counter

from irmapdb.config import Config
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.proc.holders import deleted_holders
from irmapdb.kernel.proc.limits import LimitKind, effective_uid, is_unlimited, payer_of, read_limits
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.root import open_root
from irmapdb.model import MarkKind, Watch, WatchKind
from irmapdb.record import Record
from irmapdb.resolve.search import Search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from collections.abc import Mapping as MappingABC

    from irmapdb.kernel.proc.fdinfo import RawWatchFile
    from irmapdb.kernel.proc.limits import ChargedUser
    from irmapdb.kernel.proc.survey import SharedDescriptor, Survey
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.kernel.root import Root
    from irmapdb.model import InodeKey, Mapping, Mark

__all__ = ["ProcessRow", "PsOptions", "Usage", "WatchList", "WatchedPath", "take"]

_HEAD_BYTES = 512
"""More than the lines of an fdinfo before the first mark."""


class ProcessRow(Record):
    """One process, and its inotify and fanotify descriptors."""

    pid: int
    comm: bytes
    uid: int | None
    """Its effective user, as our user namespace numbers it."""
    instances: int
    watches: int
    groups: int
    marks: int
    shared: int
    """Descriptors that another process has too, and that are counted there."""


class Usage(Record):
    """One account of one user."""

    uid: int | None
    """The charged user; None if that could not be read."""
    account: LimitKind
    used: int
    limit: int | None
    """None if this kernel has no such limit."""
    below: int
    """The part of it from tasks in the user's own user namespaces."""


class WatchedPath(Record):
    """One watch, or one mark of a mount or filesystem, and its path."""

    watch: Watch | Mark
    comm: bytes
    path: bytes | None
    why: str | None
    """Why there is no path."""
    mntns: int = 0
    """As in Mapping: the mount namespace of the path."""
    deleted: bool = False
    """Whether the inode has no name, so that no search can find one."""


class PsOptions(Record):
    """The options of `take`."""

    pid: int | None = None
    """The root of a tree; None: all tasks of the machine."""
    search: bool = False
    """Whether to scan for inodes without a known path."""
    scan_paths: tuple[bytes, ...] = ()
    config: Config = Config()
    progress: Callable[[int, bytes], None] = lambda _scanned, _top: None


class WatchList(Record):
    """The result of a count."""

    processes: tuple[ProcessRow, ...]
    """The processes with watches or marks, those with most of them first."""
    users: tuple[Usage, ...]
    """Counted from all tasks of the machine, those nearest to their limits first; all limits of
    each user that has a watch or mark."""
    limits: dict[LimitKind, int]
    denied: tuple[Task, ...]
    """Tasks that may not be read: of the tree, or of the machine."""
    hidden: tuple[Task, ...]
    """Those of the machine: `users` lacks them."""
    watches: tuple[WatchedPath, ...] = ()
    """Only of a tree, in the order of the tasks."""
    of_machine: bool = True
    """Whether it is about all tasks, and not about a tree."""

    @property
    def unresolved(self) -> tuple[WatchedPath, ...]:
        """The watches without a path. Marks of mounts and filesystems are listed, not resolved."""
        return tuple(
            row for row in self.watches if row.path is None and isinstance(row.watch, Watch)
        )

    @property
    def complete(self) -> bool:
        """Of a tree: whether all its tasks were read, and each watch has a path.

        Of the machine: True, because nearly every machine has a hidden task, also for root;
        `hidden` has it.
        """
        return self.of_machine or not (self.denied or self.unresolved)


def take(options: PsOptions) -> WatchList:
    """Count the watches. TaskError if the task is gone or its root may not be read."""
    tree = () if options.pid is None else tasks.task_tree(options.pid)
    pids = {task.pid for task in tree}
    # The tree first: descriptors that it shares with others are counted for it.
    everyone = (*tree, *(task for task in tasks.all_tasks() if task.pid not in pids))
    shown = everyone if options.pid is None else tree
    survey = read_survey(everyone)
    counted = [_count(raw, survey.threads) for raw in survey.files]
    limits = read_limits()
    denied = [one.task for one in survey.denied]
    return WatchList(
        processes=_processes(shown, counted, survey.copies),
        users=_users(shown, counted, limits),
        limits=limits,
        denied=tuple(task for task in denied if options.pid is None or task.pid in pids),
        hidden=tuple(denied),
        watches=() if options.pid is None else _paths(options, options.pid, tree, survey),
        of_machine=options.pid is None,
    )


class _Counted(Record):
    pid: int
    kind: WatchKind
    watches: int
    """inotify watches, or fanotify marks."""
    charged: int
    """Those of them that count towards the limit."""


def _count(raw: RawWatchFile, threads: MappingABC[int, int]) -> _Counted:
    # Lines are counted, not parsed: a machine may have a million of them.
    lines = b"\n" + raw.raw
    pid = threads.get(raw.pid, raw.pid)
    if raw.kind is WatchKind.INOTIFY:
        watches = lines.count(b"\ninotify wd:")
        return _Counted(pid, raw.kind, watches, watches)
    marks = sum(
        lines.count(b"\nfanotify " + word) for word in (b"ino:", b"mnt_id:", b"sdev:", b"mnt_ns:")
    )
    head = raw._replace(raw=raw.raw[:_HEAD_BYTES])
    free = is_unlimited(head.parse().faflags)
    return _Counted(pid, raw.kind, marks, 0 if free else marks)


def _processes(
    shown: Iterable[Task],
    counted: Iterable[_Counted],
    copies: Iterable[SharedDescriptor],
) -> tuple[ProcessRow, ...]:
    counts: Counter[tuple[int, str]] = Counter()
    for one in counted:
        inotify = one.kind is WatchKind.INOTIFY
        counts[one.pid, "instances" if inotify else "groups"] += 1
        counts[one.pid, "watches" if inotify else "marks"] += one.watches
    for copy in copies:
        counts[copy.pid, "shared"] += 1
    busy = {pid for pid, _ in counts}
    rows = [
        ProcessRow(
            task.pid,
            task.comm,
            effective_uid(task.pid),
            *(counts[task.pid, what] for what in ProcessRow._fields[3:]),
        )
        for task in shown
        if task.pid in busy
    ]
    rows.sort(key=lambda row: (-(row.watches + row.marks), row.pid))
    return tuple(rows)


def _users(
    shown: Iterable[Task], counted: Iterable[_Counted], limits: dict[LimitKind, int]
) -> tuple[Usage, ...]:
    used: Counter[tuple[int | None, LimitKind]] = Counter()
    below: Counter[tuple[int | None, LimitKind]] = Counter()
    payers: dict[int, ChargedUser] = {}
    for one in counted:
        if one.pid not in payers:
            payers[one.pid] = payer_of(one.pid)
        uid, is_below = payers[one.pid]
        inotify = one.kind is WatchKind.INOTIFY
        charges = (
            (LimitKind.INOTIFY_INSTANCES if inotify else LimitKind.FANOTIFY_GROUPS, 1),
            (LimitKind.INOTIFY_WATCHES if inotify else LimitKind.FANOTIFY_MARKS, one.charged),
        )
        for account, number in charges:
            used[uid, account] += number
            below[uid, account] += number * is_below
    pids = {task.pid for task in shown}
    wanted = dict.fromkeys(payer.uid for pid, payer in payers.items() if pid in pids)
    rows = [
        Usage(uid, account, used[uid, account], limits.get(account), below[uid, account])
        for uid in wanted
        for account in LimitKind
        if account in limits or used[uid, account]
    ]
    rows.sort(key=lambda row: -row.used / row.limit if row.limit else 0.0)
    return tuple(rows)


def _paths(
    options: PsOptions, pid: int, tree: Iterable[Task], survey: Survey
) -> tuple[WatchedPath, ...]:
    comms = {task.pid: task.comm for task in tree}
    comms.update((tid, comms[pid]) for tid, pid in survey.threads.items() if pid in comms)
    files = [raw.parse() for raw in survey.files if raw.pid in comms]
    rows: list[WatchedPath] = []
    with (
        open_root(pid) as root,
        Search(
            root,
            _nothing_stored,
            config=options.config,
            scan_paths=options.scan_paths,
            scan=options.search,
            progress=options.progress,
        ) as search,
    ):
        search.add_holders(comms)
        search.add_owners(survey.owners())
        search.resolve(files)
        outcome = search.outcome
        deleted = [one for one, failure in outcome.unresolved.items() if failure.deleted]
        holders = deleted_holders(root, list(comms), deleted)
        for file in files:
            comm = comms[file.pid]
            for watch in file.watches:
                answer = outcome.resolved.get(watch.identity)
                if answer is None:
                    failure = outcome.unresolved[watch.identity]
                    holder = holders.get(watch.identity)
                    why = failure.why if holder is None else f"{failure.why}: {holder}"
                    row = WatchedPath(watch, comm, None, why, deleted=failure.deleted)
                    rows.append(row)
                else:
                    rows.append(WatchedPath(watch, comm, answer.path, None, answer.mntns))
            rows += [_of_mark(mark, comm, root) for mark in file.marks]
    return tuple(rows)


def _of_mark(mark: Mark, comm: bytes, root: Root) -> WatchedPath:
    if mark.kind is MarkKind.FILESYSTEM:
        mounts = root.mounts.of_device(mark.target)
        mount = mounts[0] if mounts else None
        missing = "its filesystem is not mounted in this root"
    elif mark.kind is MarkKind.NAMESPACE:
        return WatchedPath(mark, comm, None, f"it is on mount namespace {mark.target}")
    else:
        mount = root.mounts.by_id.get(mark.target)
        missing = "its mount is in another mount namespace, or in none any more"
    if mount is None:
        return WatchedPath(mark, comm, None, missing)
    return WatchedPath(mark, comm, mount.mountpoint, None)


def _nothing_stored(
    keys: Collection[InodeKey],  # noqa: ARG001 nothing is stored for any
    mntns: int = 0,  # noqa: ARG001
) -> dict[InodeKey, list[Mapping]]:
    return {}
