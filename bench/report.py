"""The figures as text for people, and as JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.figures import Figure, Goal, Row, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["document", "seconds", "tables"]


def seconds(value: float) -> str:
    """A time with three figures or so, in the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.1f} ms"
    return f"{value * 1e6:.0f} µs"


def tables(machine: dict[str, Any], figures: Sequence[Figure]) -> str:
    """Everything on one page: the machine, a table a section, the goals, the omitted figures."""
    rows = [figure for figure in figures if isinstance(figure, Row)]
    goals = [figure for figure in figures if isinstance(figure, Goal)]
    skipped = [figure for figure in figures if isinstance(figure, Skipped)]
    parts = ["\n".join(f"{name:<14}{value}" for name, value in machine.items())]
    parts += [
        _section(section, [row for row in rows if row.section == section])
        for section in dict.fromkeys(row.section for row in rows)
    ]
    if goals:
        parts.append(_table(("GOAL", "AT MOST>", "GOT>", ""), map(_goal_cells, goals)))
    if skipped:
        lines = (f"{one.section}: {one.what}: {one.why}" for one in skipped)
        parts.append("Not measured\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _section(section: str, rows: Iterable[Row]) -> str:
    columns = (section.upper(), "SIZE>", "MEDIAN>", "LEAST>", "CPU>", "PEAK>", "RATIO>", "TO", "")
    return _table(columns, map(_row_cells, rows))


def _row_cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        "" if row.size is None else f"{row.size:,}",
        seconds(row.median),
        seconds(min(row.seconds)),
        "" if row.cpu is None else seconds(row.cpu),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f} MB",
        "" if row.ratio is None else f"{row.ratio:.3g}",
        "" if row.beside is None else f"{row.beside.name}, {seconds(row.beside.seconds)}",
        row.note,
    )


def _goal_cells(goal: Goal) -> tuple[str, ...]:
    def amount(value: float) -> str:
        return f"{value:.3g} {goal.unit}"

    verdict = "ok" if goal.reached else "missed"
    return f"{goal.section}: {goal.what}", amount(goal.limit), amount(goal.got), verdict


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # A column whose name ends with ">" is flush right.
    cells = [tuple(column.rstrip(">") for column in columns), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def lines() -> Iterator[str]:
        for row in cells:
            padded = (
                cell.rjust(width) if column.endswith(">") else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            )
            yield "  ".join(padded).rstrip()

    return "\n".join(lines())


def document(
    machine: dict[str, Any], settings: dict[str, Any], figures: Sequence[Figure]
) -> dict[str, Any]:
    """All of it for programs; times in seconds."""
    return {
        "machine": machine,
        "settings": settings,
        "rows": [figure.to_json() for figure in figures if isinstance(figure, Row)],
        "goals": [figure.to_json() for figure in figures if isinstance(figure, Goal)],
        "skipped": [figure.to_json() for figure in figures if isinstance(figure, Skipped)],
    }
