"""Holds the data of the service about one container."""

from __future__ import annotations

from dataclasses import dataclass

from irmapdb.kernel.proc.tasks import read_task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.proc.containers import Container
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.node.keep import Kept
    from irmapdb.node.look import Seen

__all__ = ["RETRY_MOST_S", "Known", "is_touched", "waits_for_server"]

RETRY_MOST_S = 3600.0
"""The longest time between two looks at a container, and until failed work is tried again."""


@dataclass(slots=True)
class Known:
    """The data about one container."""

    container: Container
    seen: Seen | None = None
    kept: Kept | None = None
    next_look_s: float = 0.0
    """The next look is not before this time (time.monotonic())."""
    retry_s: float = 0.0
    """Failed work is not tried again before this time."""
    store_s: float = 0.0
    """A database that could not be written is not tried again before this time, unless there is
    other work."""
    failures: int = 0
    problem: str = ""
    touched: bool = True
    """Whether a name in one of its paths was moved since the proof."""
    slow: bool = False
    apart: bool = False
    """Whether its paths are proved again in a separate child, because a shared one failed."""
    stuck: tuple[Task, ...] = ()
    """Killed children of the last work that asked servers; they may still wait for one."""
    verified_s: float = 0.0
    """The time of the last proof of its paths (time.monotonic())."""


def waits_for_server(known: Known) -> bool:
    """Whether a child still waits for a server: each question more could leave one more."""
    for task in known.stuck:
        now = read_task(task.pid)
        if now is not None and now.starttime == task.starttime:
            return True
    return False


def is_touched(known: Known, names: frozenset[bytes]) -> bool:
    """Whether one of these names is in a proved path."""
    kept = known.kept
    if kept is None:
        return False
    return kept.watches > 0 if kept.parts is None else not kept.parts.isdisjoint(names)
