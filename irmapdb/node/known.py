"""Holds the data of the service about one container."""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.proc.containers import Container
    from irmapdb.node.keep import Kept
    from irmapdb.node.look import Seen

__all__ = ["RETRY_MOST_S", "Known", "is_touched"]

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
    failures: int = 0
    problem: str = ""
    touched: bool = True
    """Whether a name in one of its paths was moved since the proof."""
    slow: bool = False
    apart: bool = False
    """Whether its paths are proved again in a separate child, because a shared one failed."""
    verified_s: float = 0.0
    """The time of the last proof of its paths (time.monotonic())."""


def is_touched(known: Known, names: frozenset[bytes]) -> bool:
    """Whether one of these names is in a proved path."""
    kept = known.kept
    if kept is None:
        return False
    return kept.watches > 0 if kept.parts is None else not kept.parts.isdisjoint(names)
