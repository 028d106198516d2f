"""Prints the faults of many watches: few rows, and one line for each reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irmapdb.commands import render
from irmapdb.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol, TypeVar

    class _Checked(Protocol):
        @property
        def right(self) -> bool: ...

    _Row = TypeVar("_Row", bound=_Checked)

__all__ = ["Finding", "listed", "print_findings"]

_MANY_ROWS = 20
_MANY_FINDINGS = 20


def listed(every: Sequence[_Row], *, all_rows: bool) -> list[_Row]:
    """All, if they are few; else some of those that are not right."""
    if all_rows or len(every) <= _MANY_ROWS:
        return list(every)
    return [one for one in every if not one.right][:_MANY_ROWS]


class Finding(Record):
    """One reason, and its remedy."""

    what: str
    why: str
    advice: str
    """Empty if nothing is necessary."""


def print_findings(findings: Iterable[Finding], *, all_rows: bool) -> None:
    """Two lines for each reason that has advice."""
    # One for each reason: many watches can differ only in their paths.
    alike: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.advice:
            alike.setdefault((finding.what, finding.why), []).append(finding.advice)
    for (what, why), advice in list(alike.items())[: None if all_rows else _MANY_FINDINGS]:
        times = f" ({len(advice):,} times)" if len(advice) > 1 else ""
        rest = " (for the others likewise)" if len(set(advice)) > 1 else ""
        render.print_line(f"{what}{times}: {why}")
        render.print_line(f"  → {advice[0]}{rest}")
    if len(alike) > _MANY_FINDINGS and not all_rows:
        render.print_line(
            f"… and {len(alike) - _MANY_FINDINGS:,} more findings (--all-rows lists all)"
        )
