"""Holds the memory of the service about one container."""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.proc.containers import Container
    from irmapdb.node.keep import Kept
    from irmapdb.node.look import Seen

__all__ = ["RETRY_MOST_S", "Known", "is_touched"]

RETRY_MOST_S = 3600.0
"""A container is looked at, and work that failed is tried again, at least this often."""


@dataclass(slots=True)
class Known:
    """What is remembered of one container."""

    container: Container
    seen: Seen | None = None
    kept: Kept | None = None
    next_look_s: float = 0.0
    """Not before this time (time.monotonic())."""
    retry_s: float = 0.0
    """Not before this time is work that failed tried again."""
    failures: int = 0
    problem: str = ""
    touched: bool = True
    """Whether a name in a path of it was moved since it was proved."""
    slow: bool = False
    apart: bool = False
    """Whether its paths are proved again in a child of its own, as one with others failed."""
    verified_s: float = 0.0
    """When its paths were proved last (time.monotonic())."""


def is_touched(known: Known, names: frozenset[bytes]) -> bool:
    """Whether one of these names is in a path that was proved."""
    kept = known.kept
    if kept is None:
        return False
    return kept.watches > 0 if kept.parts is None else not kept.parts.isdisjoint(names)
