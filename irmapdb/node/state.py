"""Holds the shared state of the service: the containers, the queue and the children."""

from __future__ import annotations

from irmapdb.config import Config
from irmapdb.kernel.proc.tasks import read_task
from irmapdb.kernel.rename_monitor import RenameMonitor
from irmapdb.node.rundir import RUN_DIRECTORY, RunDirectory
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from irmapdb.node.known import Known
    from irmapdb.node.pool import Child, Pool

__all__ = [
    "ANSWER",
    "KEEP",
    "LOOK",
    "METRICS",
    "PUSH",
    "SLOW",
    "SPARE",
    "VERDICTS",
    "VERIFY",
    "ServiceOptions",
    "State",
]

LOOK, VERIFY, KEEP, SLOW = "look", "verify", "keep", "keep slow"
ANSWER, SPARE = "answer", "spare"
METRICS, VERDICTS = "metrics", "verdicts"
PUSH = "push"
"""The kinds of the children."""


class ServiceOptions(Record):
    """The options of the service."""

    run: Path = RUN_DIRECTORY
    config: Config = Config()
    interval_s: float | None = None
    """The time between two looks; None: from the configuration."""
    cgroup: str | None = None
    """A shell pattern for the cgroups of the root tasks; None: all containers."""
    push_command: tuple[str, ...] = ()
    """The program that pushes to the fleet's server, and its arguments; empty: none."""


class State:
    """The containers by (pid, starttime) of their root task, and the work on them."""

    def __init__(self, options: ServiceOptions, run: RunDirectory, pool: Pool) -> None:
        self.options = options
        self.settings = options.config.warm
        self.interval_s = options.interval_s or self.settings.interval_s
        self.run = run
        self.pool = pool
        self.monitor = RenameMonitor()
        self.known: dict[tuple[int, int], Known] = {}
        self.queue: dict[tuple[int, int], None] = {}
        """The containers that wait for work, the first one first."""

    def find(self, pid: int) -> Known | None:
        """The container with this root task; None if it is not known, or the task has ended."""
        for (known_pid, starttime), known in self.known.items():
            if known_pid == pid:
                task = read_task(pid)
                return known if task is not None and task.starttime == starttime else None
        return None

    def forget(self, key: tuple[int, int]) -> None:
        """The container has ended."""
        del self.known[key]
        self.queue.pop(key, None)
        used = {kdev for known in self.known.values() if known.kept for kdev in known.kept.kdevs}
        self.monitor.kdevs &= used  # the next filesystem may get the number

    def is_worked_on(self, key: tuple[int, int]) -> bool:
        """Whether a child may have the container's database open, or a directory in it."""
        return any(_works_on(child, key) for child in self.pool)

    def stop_work(self, known: Known) -> None:
        """Kill the children that work on a container, and remove it from the queue."""
        key = known.container.key
        self.queue.pop(key, None)
        if self.pool.kill(lambda child: _works_on(child, key)):
            known.touched = True


def _works_on(child: Child, key: tuple[int, int]) -> bool:
    if child.kind == VERIFY:
        return key in child.key
    return child.kind in {KEEP, SLOW} and child.key == key
