"""Lists the watches of all tasks, from /proc only: it reads and writes no database.

It counts the watches in the descriptors of the tasks. A descriptor that several tasks share (fork),
or that one task has twice (dup), is counted once, for the first of them. The kernel does not show
the user that it charges. So ps uses the effective user of that task (irmapdb.kernel.proc.limits).
"""

from __future__ import annotations

import os
from collections import Counter

from irmapdb.config import Config
from irmapdb.errors import TaskError
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.proc.command_lines import read_command_lines
from irmapdb.kernel.proc.limits import (
    LimitKind,
    effective_uid,
    is_unlimited,
    payer_of,
    read_limits,
    read_queue_limits,
    sysctl_to_raise,
)
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.model import Watch, WatchKind
from irmapdb.node.process_places import Place, find_places
from irmapdb.node.ps_groups import add_up, directory_rows, group_rows, sorted_rows
from irmapdb.node.ps_rows import LimitAdvice, ProcessRow, Usage
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Mapping as MappingABC

    from irmapdb.kernel.proc.fdinfo import RawWatchFile
    from irmapdb.kernel.proc.fdinfo_files import FdinfoFiles
    from irmapdb.kernel.proc.limits import ChargedUser
    from irmapdb.kernel.proc.survey import Survey
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.node.ps_groups import Grouping, GroupRow, Sort, Totals
    from irmapdb.node.ps_paths import WatchedPaths
    from irmapdb.node.ps_rows import WatchedPath

__all__ = ["PsOptions", "WatchList", "take"]

_HEAD_BYTES = 512
"""More than the lines of an fdinfo before the first mark."""

_NEARLY = 0.8
"""The share of a limit from which on ps advises to raise it."""
_LARGEST_SYSCTL = 0x7FFFFFFF
_MOST_DIGITS = 19


class PsOptions(Record):
    """The options of `take`."""

    pid: int | None = None
    """The root of a tree; None: all tasks of the machine."""
    processes: tuple[str, ...] = ()
    """Only these of them: pids, and parts of the name of a task or of its program."""
    by: Grouping = "process"
    depth: int = 3
    """The number of directories of a path that `by` directory tells apart."""
    sort: Sort = "watches"
    search: bool = False
    """Whether to scan for inodes without a known path."""
    scan_paths: tuple[bytes, ...] = ()
    config: Config = Config()
    progress: Callable[[int, bytes], None] = lambda _scanned, _top: None
    texts: FdinfoFiles | None = None
    """They make a later call faster."""

    @property
    def of_machine(self) -> bool:
        """Whether the count is about all tasks: no tree and no process is named."""
        return self.pid is None and not self.processes


class WatchList(Record):
    """The result of a count."""

    processes: tuple[ProcessRow, ...]
    """The processes with watches or marks, as `sort` says."""
    totals: Totals
    """Of these processes."""
    users: tuple[Usage, ...]
    """Counted from all tasks of the machine, those nearest to their limits first; all limits of
    each user that has a watch or mark in a listed process."""
    limits: dict[LimitKind, int]
    queues: dict[str, int]
    """The largest number of waiting events of one instance or group, by sysctl."""
    advice: tuple[LimitAdvice, ...]
    """For the limits that are nearly reached, the fullest first."""
    denied: tuple[Task, ...]
    """Tasks that may not be read: of the tree, or of the machine."""
    hidden: tuple[Task, ...]
    """Those of the machine: `users` lacks them."""
    groups: tuple[GroupRow, ...] = ()
    """The sums, if they are not by process; as `sort` says."""
    watches: tuple[WatchedPath, ...] = ()
    """Only of a tree or of named processes, in the order of the tasks."""
    of_machine: bool = True
    """Whether the count is about all tasks, and not about a tree or named processes."""

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
    """Count the watches.

    TaskError if the task, or a process that is named by its pid, is gone or may not be read.
    """
    tree = tasks.all_tasks() if options.pid is None else tasks.task_tree(options.pid)
    shown = _chosen(tree, options.processes)
    pids = {task.pid for task in shown}
    # The shown ones first: descriptors that they share with others are counted for them.
    everyone = (*shown, *(task for task in _rest(tree, options) if task.pid not in pids))
    survey = read_survey(everyone, texts=options.texts)
    counted = [_count(raw, survey.threads) for raw in survey.files]
    rows = _processes(shown, counted, survey)
    limits = read_limits()
    users = _users(shown, counted, limits)
    denied = [one.task for one in survey.denied]
    paths, groups = _watched(options, rows, shown, survey)
    return WatchList(
        processes=sorted_rows(rows, options.sort),
        totals=add_up(rows),
        users=users,
        limits=limits,
        queues=read_queue_limits(),
        advice=_advice(users),
        denied=tuple(task for task in denied if task.pid in pids),
        hidden=tuple(denied),
        groups=sorted_rows(groups, options.sort),
        watches=paths,
        of_machine=options.of_machine,
    )


def _rest(tree: Sequence[Task], options: PsOptions) -> Sequence[Task]:
    if options.pid is None:
        return tree
    pids = {task.pid for task in tree}
    return (*tree, *(task for task in tasks.all_tasks() if task.pid not in pids))


def _chosen(tree: Sequence[Task], wanted: Sequence[str]) -> Sequence[Task]:
    if not wanted:
        return tree
    numbers = {_pid(one) for one in wanted if _is_number(one)}
    for number in numbers:
        tasks.require_task(number)
    parts = [os.fsencode(one) for one in wanted if not _is_number(one)]
    commands = read_command_lines([task.pid for task in tree]) if parts else {}

    def is_wanted(task: Task) -> bool:
        program = os.path.basename(commands.get(task.pid, b"").partition(b" ")[0])
        return task.pid in numbers or any(part in task.comm or part in program for part in parts)

    return [task for task in tree if is_wanted(task)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _pid(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # int() refuses thousands of digits
        message = f"{text[:_MOST_DIGITS]}… is not a process id"
        raise TaskError(message, advice="give the number of a running process")
    return int(text)


def _watched(
    options: PsOptions, rows: Sequence[ProcessRow], shown: Sequence[Task], survey: Survey
) -> tuple[tuple[WatchedPath, ...], tuple[GroupRow, ...]]:
    # The paths, if they are listed, and the sums.
    groups = () if options.by in {"process", "directory"} else group_rows(rows, options.by)
    by_directory = options.by == "directory"
    if not by_directory and options.of_machine:
        return (), groups
    found: list[tuple[WatchedPath, bytes | None]] = []
    for root_pid, comms in _by_root(options, rows, shown).items():
        with _open_paths(options, root_pid, comms) as paths:
            for row in paths.find(survey, holders=not options.of_machine):
                directory = paths.directory_of(row, options.depth) if by_directory else None
                found.append((row, directory))
    if by_directory:
        groups = directory_rows(found, rows, survey.threads)
    return () if options.of_machine else tuple(row for row, _ in found), groups


def _open_paths(options: PsOptions, root_pid: int, comms: dict[int, bytes]) -> WatchedPaths:
    from irmapdb.node.ps_paths import WatchedPaths  # noqa: PLC0415 most lists have no paths

    def opened(pid: int) -> WatchedPaths:
        return WatchedPaths(
            pid,
            comms,
            config=options.config,
            scan_paths=options.scan_paths,
            search=options.search,
            named=pid not in {options.pid, os.getpid()},
            progress=options.progress,
        )

    try:
        return opened(root_pid)
    except (OSError, TaskError):
        if root_pid in {options.pid, os.getpid()}:
            raise
        # The container is ending, or we may not look into it. Its watches are listed all the same.
        return opened(os.getpid())


def _by_root(
    options: PsOptions, rows: Sequence[ProcessRow], shown: Sequence[Task]
) -> dict[int, dict[int, bytes]]:
    # The tasks whose paths begin at the root of one task. A task of a container has paths in the
    # container, also if our own mount namespace shows the same files.
    if options.pid is not None:
        return {options.pid: {task.pid: task.comm for task in shown}}
    found: dict[int, dict[int, bytes]] = {}
    for row in rows:
        root_pid = row.container_root or os.getpid()
        found.setdefault(root_pid, {})[row.pid] = row.comm
    return found


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
    shown: Iterable[Task], counted: Iterable[_Counted], survey: Survey
) -> tuple[ProcessRow, ...]:
    counts: Counter[tuple[int, str]] = Counter()
    for one in counted:
        inotify = one.kind is WatchKind.INOTIFY
        counts[one.pid, "instances" if inotify else "groups"] += 1
        counts[one.pid, "watches" if inotify else "marks"] += one.watches
    for copy in survey.copies:
        counts[survey.threads.get(copy.pid, copy.pid), "shared"] += 1
    busy = {pid for pid, _ in counts}
    busy_tasks = [task for task in shown if task.pid in busy]
    places = find_places(busy)
    commands = read_command_lines([task.pid for task in busy_tasks])
    return tuple(
        _process(task, counts, places[task.pid], commands.get(task.pid, b"")) for task in busy_tasks
    )


def _process(
    task: Task, counts: Counter[tuple[int, str]], place: Place, command: bytes
) -> ProcessRow:
    pid = task.pid
    return ProcessRow(
        pid,
        task.comm,
        effective_uid(pid),
        instances=counts[pid, "instances"],
        watches=counts[pid, "watches"],
        groups=counts[pid, "groups"],
        marks=counts[pid, "marks"],
        shared=counts[pid, "shared"],
        command=command,
        unit=place.unit,
        cgroup=place.cgroup,
        container=place.container,
        container_root=place.root_pid,
        place=place.label,
    )


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


def _advice(users: Iterable[Usage]) -> tuple[LimitAdvice, ...]:
    # One for each sysctl: all users have the same limit.
    found: dict[LimitKind, LimitAdvice] = {}
    for usage in users:
        full = usage.limit is not None and usage.used >= max(1, _NEARLY * usage.limit)
        if usage.limit is None or not full or usage.account in found:
            continue
        value = min(2 * max(usage.limit, usage.used), _LARGEST_SYSCTL)
        found[usage.account] = LimitAdvice(usage, sysctl_to_raise(usage.account), value)
    return tuple(found.values())
