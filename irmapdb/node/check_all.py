"""Predicts a dump of every container of this machine, without a freeze.

Each container is checked in a child process of its own with a time limit, several at a time: one
that is slow, hangs or ends does not hold up the others. No task is stopped and nothing is written.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections import Counter
from pathlib import Path

from irmapdb.config import Config
from irmapdb.criu.check.dump import DROPPED, DumpCheckOptions, check_dump
from irmapdb.criu.check.verdicts import WatchVerdict
from irmapdb.criu.check.version import criu_version
from irmapdb.criu.config_files import DIRECTORY
from irmapdb.criu.engines import calls_hook, names_hook, runtime_under
from irmapdb.errors import TaskError
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.proc.containers import find_containers
from irmapdb.node.container_info import ContainerInfo, describe_all, runtime_of
from irmapdb.node.criu_annotations import files_by_id, files_with_hook
from irmapdb.node.guarded_json import host_root
from irmapdb.node.pool import Pool
from irmapdb.node.services import find_services
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from irmapdb.criu.check.dump import DumpCheck
    from irmapdb.criu.check.version import CriuVersion
    from irmapdb.kernel.proc.containers import Container
    from irmapdb.node.pool import Ended

__all__ = [
    "ContainerCheck",
    "NodeCheck",
    "NodeCheckOptions",
    "Reason",
    "check_all",
    "dump_by_engine",
]

_MEMORY_BYTES = 2 << 30
_SEVERITY = (
    WatchVerdict.FAILS,
    WatchVerdict.OPTIONS,
    WatchVerdict.WRONG_PATH,
    WatchVerdict.UNKNOWN,
    WatchVerdict.NO_RESTORE,
    WatchVerdict.SYMLINK,
    DROPPED,
    WatchVerdict.NO_PATH,
    WatchVerdict.WALK,
    WatchVerdict.CACHE,
    WatchVerdict.PATH,
)
"""The verdicts, the worst first: a dump that fails, a watch that is lost, a watch that works."""


_NO_CHECKPOINT = {None, "systemd-nspawn", "libvirt-lxc"}
"""Engines that have no command for a checkpoint, or may have none: the user calls CRIU."""


class NodeCheckOptions(Record):
    """CRIU's options, the same for each container, and the limits."""

    version: CriuVersion | None = None
    """None: from the criu on PATH."""
    force_irmap: bool = False
    scan_paths: tuple[bytes, ...] = ()
    config: Config = Config()
    hook: bool | None = None
    """Whether CRIU calls the hook, which writes irmap-cache. None: if it is installed for the
    engine of the container."""
    criu_dir: Path = DIRECTORY
    """The directory of CRIU's configuration."""
    services: bool = False
    """Whether to check the host's own services too."""
    cgroup: str | None = None
    """A shell pattern for the cgroups of the root tasks; None: all containers."""
    patience_s: float = 20.0
    """The time limit for one container."""
    workers: int = 0
    """The number of containers that are checked at a time; 0: one for each CPU."""
    progress: Callable[[int, int], None] = lambda _done, _total: None
    """Called with the number of checked containers, and the number of all."""


class Reason(Record):
    """The worst finding about a container."""

    verdict: str
    """A WatchVerdict, or `dropped` for a mark that CRIU leaves out."""
    why: str
    advice: str
    """The remedy; empty if none is necessary."""


class ContainerCheck(Record):
    """One container, and the prediction for its watches."""

    info: ContainerInfo
    pid: int
    """The root task."""
    hook: bool
    """Whether the prediction is for a dump with the hook."""
    watches: int
    """The number of watches and marks."""
    verdicts: dict[str, int]
    """The number of watches with each verdict, the worst first."""
    worst: Reason | None
    """None if it has no watch, and nothing is in the way."""
    fails: bool
    """Whether the dump will fail."""
    right: bool
    """Whether a restore sets every watch again."""
    runtime: str = ""
    """The runtime of `irmapdb hook --install`, if a container engine calls CRIU."""

    @property
    def rank(self) -> tuple[bool, int, str]:
        """For sorting: the container with the worst verdict first."""
        severity = len(_SEVERITY) if self.worst is None else _SEVERITY.index(self.worst.verdict)
        return self.right, severity, self.info.label


class NodeCheck(Record):
    """The whole answer."""

    version: CriuVersion
    containers: tuple[ContainerCheck, ...]
    """In the order of their ids."""
    services: tuple[ContainerCheck, ...]
    """The host's own services that watch a file, if they were asked for."""
    ended: int
    """The number of containers and services that ended before they were checked."""

    @property
    def right(self) -> bool:
        """Whether a restore sets every watch again."""
        return all(one.right for one in (*self.containers, *self.services))


def check_all(options: NodeCheckOptions) -> NodeCheck:
    """Predict a dump of every container by CRIU with these options.

    Each container is dumped by itself, into a new directory, so CRIU has no irmap-cache.
    """
    version = options.version or criu_version()
    options = options._replace(version=version)
    found = find_containers(options.cgroup)
    subjects = _subjects(found, options)
    containers = len(subjects)
    if options.services:
        is_hooked = _hooks(options)
        subjects += [
            _Subject(one.info, one.pid, one.starttime, is_hooked(one.info, "criu"), "")
            for one in find_services({pid for one in found for pid in one.pids})
        ]
    checked = _check_each(subjects, options)
    return NodeCheck(
        version,
        tuple(one for one in checked[:containers] if one is not None),
        tuple(one for one in checked[containers:] if one is not None),
        sum(one is None for one in checked),
    )


class _Subject(Record):
    info: ContainerInfo
    pid: int
    starttime: int
    hook: bool
    runtime: str


def dump_by_engine(container: Container, options: NodeCheckOptions) -> DumpCheckOptions:
    """The dump that the engine of a container makes, as `check_all` predicts it."""
    (subject,) = _subjects((container,), options)
    return _dump_of(subject, options)


def _subjects(found: Sequence[Container], options: NodeCheckOptions) -> list[_Subject]:
    is_hooked = _hooks(options)
    subjects = []
    for one, info in zip(found, describe_all(found), strict=True):
        runtime = runtime_of(one)
        hook = is_hooked(info, runtime)
        installs = _installs(info.engine, runtime)
        subjects.append(_Subject(info, one.pid, one.starttime, hook, installs))
    return subjects


def _installs(engine: str | None, runtime: str | None) -> str:
    # The word for `hook --install`. podman uses either runtime, so the hook is installed for both.
    if engine == "podman":
        return engine
    if engine in _NO_CHECKPOINT:
        return ""
    return str(runtime_under(runtime or engine, Path(host_root() or "/")))


def _hooks(options: NodeCheckOptions) -> Callable[[ContainerInfo, str | None], bool]:
    # Whether CRIU calls the hook for a container and its runtime, by the files that CRIU reads.
    wanted = options.hook
    if wanted is not None:
        return lambda _info, _runtime: wanted
    root = Path(host_root() or "/")
    always = calls_hook("criu", options.criu_dir, root)
    files = files_by_id(root)
    named_by = files_with_hook(
        {file for found in files.values() for file in found if file},
        lambda file: names_hook(root / file.lstrip("/")),
    )

    @functools.cache
    def is_installed(engine: str | None) -> bool:
        return calls_hook(engine, options.criu_dir, root)

    def is_hooked(info: ContainerInfo, runtime: str | None = None) -> bool:
        # Several containers can have this id: none of them is called safe without a hook.
        named = {None} if always else files.get(info.id.rpartition("/")[2], {None})
        return all(
            is_installed(runtime or info.engine) if file is None else file in named_by
            for file in named
        )

    return is_hooked


def _check_each(
    subjects: Sequence[_Subject], options: NodeCheckOptions
) -> list[ContainerCheck | None]:
    # None for a container that has ended.
    checked: dict[int, ContainerCheck | None] = {}
    waiting = iter(enumerate(subjects))
    workers = options.workers or len(os.sched_getaffinity(0))
    pool = Pool(_silence)
    try:
        while len(checked) < len(subjects):
            while len(pool) < workers and (following := next(waiting, None)) is not None:
                _start(pool, *following, options)
            for ended in _next_ended(pool):
                subject = subjects[ended.child.key]
                checked[ended.child.key] = _answer(subject, ended, options)
                options.progress(len(checked), len(subjects))
    finally:
        pool.close()
    return [checked[index] for index in range(len(subjects))]


def _start(pool: Pool, index: int, subject: _Subject, options: NodeCheckOptions) -> None:
    pool.start(
        "check",
        index,
        lambda: _check(subject, options),
        limit_s=options.patience_s,
        memory_bytes=_MEMORY_BYTES,
    )


def _silence(_kind: str) -> None:
    # A child that hangs in the kernel may outlive us. It must not keep our output open.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _next_ended(pool: Pool) -> list[Ended]:
    poll = select.poll()
    for child in pool:
        poll.register(child.pipe, select.POLLIN)
    limit_s = pool.next_limit_s()
    left_s = 0.0 if limit_s is None else max(0.0, limit_s - time.monotonic())
    return pool.take({fd for fd, _ in poll.poll(left_s * 1000 + 1)})


def _answer(subject: _Subject, ended: Ended, options: NodeCheckOptions) -> ContainerCheck | None:
    if not _runs(subject):
        return None
    if isinstance(ended.result, ContainerCheck):
        return ended.result
    is_late = ended.child.killed
    why = f"not checked within {options.patience_s:g} s" if is_late else ended.why
    advice = f"run `irmapdb check` for task {subject.pid} alone"
    reason = Reason(WatchVerdict.UNKNOWN, why, advice)
    return ContainerCheck(
        subject.info,
        subject.pid,
        subject.hook,
        0,
        {},
        reason,
        fails=False,
        right=False,
        runtime=subject.runtime,
    )


def _runs(subject: _Subject) -> bool:
    try:
        task = tasks.read_task(subject.pid)
    except TaskError:
        return True
    return task is not None and task.starttime == subject.starttime and task.state not in {"Z", "X"}


def _check(subject: _Subject, options: NodeCheckOptions) -> ContainerCheck:
    report = check_dump(_dump_of(subject, options))
    reasons = sorted(_reasons(report), key=lambda one: _SEVERITY.index(one.verdict))
    counts = Counter(str(one.prediction.verdict) for one in report.watches)
    for mark in report.marks:
        counts[str(mark.verdict)] += 1
    return ContainerCheck(
        info=subject.info,
        pid=subject.pid,
        hook=subject.hook,
        watches=len(report.watches) + len(report.marks),
        verdicts={str(one): counts[one] for one in _SEVERITY if counts[one]},
        worst=reasons[0] if reasons else None,
        fails=report.fails,
        right=report.right,
        runtime=subject.runtime,
    )


def _dump_of(subject: _Subject, options: NodeCheckOptions) -> DumpCheckOptions:
    return DumpCheckOptions(
        subject.pid,
        images_dir=None,
        version=options.version,
        force_irmap=options.force_irmap,
        scan_paths=options.scan_paths,
        config=options.config,
        hook=subject.hook,
        runtime=subject.runtime,
    )


def _reasons(report: DumpCheck) -> Iterator[Reason]:
    for problem in report.problems:
        verdict = WatchVerdict.FAILS if problem.fatal else WatchVerdict.NO_RESTORE
        yield Reason(verdict, problem.why, problem.advice)
    for watch in report.watches:
        said = watch.prediction
        yield Reason(said.verdict, said.why, said.advice)
    for mark in report.marks:
        yield Reason(mark.verdict, mark.why, mark.advice)
    for denied in report.denied:
        why = f"{denied.task.name} could not be read: {denied.why}"
        yield Reason(WatchVerdict.UNKNOWN, why, "run check as root")
