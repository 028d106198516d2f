"""The results of a section of the benchmark: rows, goals, and figures that were not measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Beside", "Figure", "Goal", "Row", "Samples", "Skipped", "Timing"]


class Timing(NamedTuple):
    """The time and memory of one command."""

    wall_s: float
    user_s: float
    system_s: float
    peak_bytes: int
    code: int


class Beside(NamedTuple):
    """The comparison for a time: the same work by another program."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One measure, repeated."""

    section: str
    what: str
    size: int | None
    """Watches or entries; None where there are none."""
    seconds: tuple[float, ...]
    """Each repeat, in the order in which they were made."""
    cpu_seconds: tuple[float, ...] = ()
    """User and system time of each repeat; () where it is no whole command."""
    peak_bytes: int | None = None
    """The largest resident size of any repeat."""
    beside: Beside | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> float | None:
        """The median of the CPU time, which a busy machine disturbs least."""
        return statistics.median(self.cpu_seconds) if self.cpu_seconds else None

    @property
    def ratio(self) -> float | None:
        """The median by the other one's time: below 1 is faster."""
        return None if self.beside is None else self.median / self.beside.seconds

    def to_json(self) -> dict[str, Any]:
        """As it stands in the JSON file; times in seconds."""
        return {
            "section": self.section,
            "what": self.what,
            "size": self.size,
            "median": self.median,
            "min": min(self.seconds),
            "samples": list(self.seconds),
            "cpu": self.cpu,
            "peak_bytes": self.peak_bytes,
            "beside": None if self.beside is None else self.beside._asdict(),
            "ratio": self.ratio,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that was promised: it is to be no more than the limit."""

    section: str
    what: str
    limit: float
    got: float
    unit: str
    """`times` (the bare machine's, in the same run), `entries`, `MB` (10^6 bytes), or `% CPU` (of
    one core): no seconds, which would judge the machine."""

    @property
    def reached(self) -> bool:
        return self.got <= self.limit

    def to_json(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        return {
            "section": self.section,
            "what": self.what,
            "limit": self.limit,
            "got": self.got,
            "unit": self.unit,
            "reached": self.reached,
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that this machine could not measure, and the reason."""

    section: str
    what: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        return {"section": self.section, "what": self.what, "why": self.why}


Figure = Row | Goal | Skipped


@dataclass(slots=True)
class Samples:
    """Times of one measure while they are being collected, and the largest peak."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """The middle one of the times so far, in seconds."""
        return statistics.median(self.seconds)

    def add(self, seconds: float) -> None:
        """One repeat that is no command."""
        self.seconds.append(seconds)

    def add_command(self, timing: Timing) -> None:
        """One repeat."""
        self.seconds.append(timing.wall_s)
        self.cpu_seconds.append(timing.user_s + timing.system_s)
        self.peak_bytes = max(self.peak_bytes, timing.peak_bytes)

    def row(
        self,
        section: str,
        what: str,
        size: int | None = None,
        *,
        beside: Beside | None = None,
        note: str = "",
    ) -> Row:
        """The finished measure."""
        peak = self.peak_bytes or None
        return Row(
            section,
            what,
            size,
            tuple(self.seconds),
            tuple(self.cpu_seconds),
            peak,
            beside,
            note,
        )
