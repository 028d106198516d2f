"""Works on one container: proves its paths, and updates its database and its image.

Runs in a child of the service, at idle priority and with a time limit.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.confirm import Confirmation
from irmapdb.checkpoint.work_dir import CACHE_NAME, DATABASE_NAME
from irmapdb.errors import DatabaseError, TaskError
from irmapdb.kernel.child_call import left_behind
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.root import open_root
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.checkpoint.transaction import StepReport
    from irmapdb.config import Config
    from irmapdb.kernel.proc.containers import Container
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.kernel.rename_monitor import RenameMonitor
    from irmapdb.model import AnyPath, Identity, Resolved
    from irmapdb.node.look import Seen
    from irmapdb.node.rundir import RunDirectory

__all__ = ["KeepOptions", "Kept", "NoPath", "keep", "nothing_to_keep"]

_WAIT_FOR_DATABASE_S = 2.0
_MOST_ANSWERS = 20_000
_MOST_NO_PATH = 100


class NoPath(Record):
    """A watch that has no proved path. Every text is printable."""

    pid: int
    fd: int
    kind: str
    comm: str
    kdev: int
    ino: int
    why: str


class KeepOptions(Record):
    """The options for the work on a container."""

    run: RunDirectory
    databases: AnyPath
    """The directory with a database for each container."""
    config: Config
    time_s: float
    """After this time the search ends, and the proved paths are written."""
    ask_servers: bool = True
    """Whether filesystems whose lookups may block are asked for paths."""


class Kept(Record):
    """A container with proved paths."""

    container: Container
    digest: bytes
    """The digest of its watches before the work; see `look.Seen`."""
    proved_at_s: float
    """time.time() when it was done."""
    took_s: float
    watches: int
    resolved: int
    no_path: tuple[NoPath, ...]
    """The first of the watches without a path."""
    parts: frozenset[bytes] | None
    """The names in all paths; None if they are too many: then any rename may concern them."""
    kdevs: frozenset[int]
    """The filesystems whose renames the kernel reports."""
    unheard: bool
    """Whether there is a path on a filesystem whose renames are not reported."""
    answers: tuple[Resolved, ...] | None
    """The proved paths; None if they are too many: then the database has them."""
    without: frozenset[Identity]
    """Watched inodes without a known path in the root of the container."""
    cut: bool
    """Whether the time was up before the search was complete."""
    problem: str
    """A further problem; "" if there is none."""
    stuck: tuple[Task, ...] = ()
    """Killed children that still wait for a server of the container."""

    @property
    def known(self) -> frozenset[Identity]:
        """The inodes with a path in the root of the container."""
        return frozenset(one.identity for one in self.answers or () if not one.mntns)


def keep(seen: Seen, options: KeepOptions, monitor: RenameMonitor) -> Kept:
    """Prove every path of a container; TaskError if it ended meanwhile."""
    container = seen.container
    begun_s = time.monotonic()
    end_s = begun_s + options.time_s
    _require(container)
    known = frozenset(monitor.kdevs)
    _cover(container, options.config, monitor)
    problem = ""
    with options.run.work(container) as work:
        step = steps.StepOptions(
            pid=container.pid,
            images_dir=work,
            database=Path(os.fsdecode(options.databases), f"{container.name.file_stem}.db"),
            config=options.config,
            over=lambda: time.monotonic() > end_s,
            wait_s=_WAIT_FOR_DATABASE_S,
            ask_servers=lambda: options.ask_servers and not left_behind(),
            take_cache=False,
        )
        try:
            report = steps.pre_dump(step)
        except DatabaseError as error:
            # An error of the database does not affect the image.
            problem = str(error)
            report = steps.pre_dump(_without(step, work))
        _require(container)  # else it is the image of another task, which has the number now
        os.replace(work / CACHE_NAME, options.run.image(*container.key))
    kept = _kept(seen, report, begun_s, end_s, frozenset(monitor.kdevs) | known, problem)
    stuck = (tasks.read_task(pid) for pid in left_behind())
    return kept._replace(stuck=tuple(task for task in stuck if task is not None))


def nothing_to_keep(seen: Seen) -> Kept:
    """The same for a container without watches."""
    return Kept(
        seen.container,
        seen.digest,
        proved_at_s=time.time(),
        took_s=0.0,
        watches=0,
        resolved=0,
        no_path=(),
        parts=frozenset(),
        kdevs=frozenset(),
        unheard=False,
        answers=(),
        without=frozenset(),
        cut=False,
        problem="",
    )


def _without(step: steps.StepOptions, work: Path) -> steps.StepOptions:
    return step._replace(database=work / DATABASE_NAME)


def _require(container: Container) -> None:
    task = tasks.read_task(container.pid)
    if task is None or task.starttime != container.starttime:
        raise TaskError(f"container {printable(container.name.id.encode())} has ended")


def _cover(container: Container, config: Config, monitor: RenameMonitor) -> None:
    # Before the first proof: from now on the kernel reports renames.
    with open_root(container.pid) as root, contextlib.suppress(TaskError):
        root.adopt(config)
        confirmation = Confirmation(root, monitor)
        files = read_survey(tasks.task_tree(container.pid)).files
        kdevs = {watch.identity.kdev for raw in files for watch in raw.parse().watches}
        confirmation.cover(kdevs - monitor.kdevs)


def _kept(
    seen: Seen,
    report: StepReport,
    begun_s: float,
    end_s: float,
    heard: frozenset[int],
    problem: str,
) -> Kept:
    rows = report.watches
    kdevs = {row.watch.identity.kdev for row in rows}
    few = len(report.resolved) <= _MOST_ANSWERS
    parts: set[bytes] = set()
    if few:
        for answer in report.resolved:
            for path in (answer.path, *answer.other_paths):
                parts.update(path.split(b"/"))
    missing = [row for row in rows if row.path is None]
    no_path = tuple(
        NoPath(
            row.watch.pid,
            row.watch.fd,
            str(row.watch.kind),
            printable(row.comm or b"?"),
            row.watch.identity.kdev,
            row.watch.identity.ino,
            row.why or "",
        )
        for row in missing[:_MOST_NO_PATH]
    )
    return Kept(
        container=seen.container,
        digest=seen.digest,
        proved_at_s=time.time(),
        took_s=time.monotonic() - begun_s,
        watches=len(rows),
        resolved=len(rows) - len(missing),
        no_path=no_path,
        parts=frozenset(parts) if few else None,
        kdevs=frozenset(kdevs & heard),
        unheard=not kdevs <= heard,
        answers=report.resolved if few else None,
        without=frozenset(row.watch.identity for row in rows if row.path is None or row.mntns),
        cut=bool(missing) and time.monotonic() > end_s,
        problem=problem,
    )
