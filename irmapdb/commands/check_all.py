"""Prints `irmapdb check --all`: a line for each container of the machine."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from irmapdb.node.check_all import ContainerCheck, NodeCheck, NodeCheckOptions

__all__ = ["run"]

_A_FEW = 6


def run(options: NodeCheckOptions, *, as_json: bool) -> None:
    """Check all containers and print the answer; exit code 3 if a watch would be lost."""
    from irmapdb.criu.usable import unusable_notes
    from irmapdb.node.check_all import check_all

    if os.geteuid():
        render.say("containers of other users cannot be seen: run it as root")
    with Progress() as progress:
        report = check_all(options._replace(progress=progress.checking_containers))
    notes = () if options.version else unusable_notes()
    if as_json:
        render.print_json({**_document(report), "notes": list(notes)})
    else:
        _print(report, notes, services=options.services)
    end_with_findings(not report.right)


def _print(report: NodeCheck, notes: Iterable[str], *, services: bool) -> None:
    for note in notes:
        render.print_line(f"note: {note}")
    rows = sorted((*report.containers, *report.services), key=lambda one: one.rank)
    if rows:
        columns = ("container", "watches>", "survive", "verdicts", "worst reason")
        alike = Counter(one.info.label for one in rows)
        render.print_table(columns, [_row(one, alike) for one in rows])
        _print_advice(rows)
    if report.ended:
        render.say(f"{render.count(report.ended, 'container')} ended before the check")
    if rows and not report.version.is_known:
        render.print_line(
            f"note: CRIU {report.version} may behave differently: only 4.1.1 to 4.3 are known"
        )
    render.print_line(_summary(report, services=services))


def _row(one: ContainerCheck, alike: Counter[str]) -> tuple[str, ...]:
    counts = ", ".join(f"{number:,} {verdict}" for verdict, number in one.verdicts.items())
    why = "" if one.worst is None or one.right else one.worst.why
    label = one.info.label
    # Two containers may have one name.
    name = label if alike[label] == 1 else f"{label} ({one.info.short_id})"
    return (render.shown(name), f"{one.watches:,}", _survival(one), counts or "-", why or "-")


def _survival(one: ContainerCheck) -> str:
    if one.right:
        return "all"
    if one.fails:
        return "dump fails"
    if one.worst is not None and one.worst.verdict == "unknown":
        return "unknown"
    return "not all"


def _print_advice(rows: Sequence[ContainerCheck]) -> None:
    # One for each verdict and runtime: then the advice differs only in pids and paths.
    alike: dict[tuple[str, str], list[ContainerCheck]] = {}
    for one in rows:
        if one.worst is not None and one.worst.advice and not one.right:
            alike.setdefault((one.worst.verdict, one.runtime), []).append(one)
    for (verdict, _), found in alike.items():
        render.print_line(f"{verdict}: {_names(found)}")
        advice = [one.worst.advice for one in found if one.worst is not None]
        rest = " (for the others likewise)" if len(set(advice)) > 1 else ""
        render.print_line(f"  → {advice[0]}{rest}")


def _names(found: Sequence[ContainerCheck]) -> str:
    shown = ", ".join(render.shown(one.info.label) for one in found[:_A_FEW])
    more = f" and {len(found) - _A_FEW:,} more" if len(found) > _A_FEW else ""
    return f"{shown}{more}"


def _summary(report: NodeCheck, *, services: bool) -> str:
    criu = f"CRIU {report.version} ({report.version.source})"
    if not report.containers and not services:
        return "no container runs here"
    parts = [render.count(len(report.containers), "container")]
    if services:
        parts.append(render.count(len(report.services), "service"))
    every = (*report.containers, *report.services)
    watches = render.count(sum(one.watches for one in every), "watch", "watches")
    lost = [one for one in every if not one.right]
    fails = sum(one.fails for one in lost)
    said = "each keeps all its watches" if not lost else f"{len(lost):,} would not keep all watches"
    if fails:
        said += f", {fails:,} of them because the dump fails"
    hooked = sum(one.hook for one in every)
    hook = f"; CRIU calls the hook for {hooked:,} of them" if hooked else ""
    return f"{', '.join(parts)}, {watches}, {criu}: {said}{hook}"


def _document(report: NodeCheck) -> dict[str, Any]:
    return {
        "criu": {"version": str(report.version), "source": report.version.source},
        "right": report.right,
        "containers": _rows(report.containers),
        "services": _rows(report.services),
        "ended": report.ended,
    }


def _rows(checks: Iterable[ContainerCheck]) -> list[dict[str, Any]]:
    return [
        {
            **one.info._asdict(),
            **render.json_fields(one, "pid hook watches verdicts fails right"),
            "worst": None if one.worst is None else one.worst.verdict,
            "why": None if one.worst is None else one.worst.why,
            "advice": None if one.worst is None else one.worst.advice or None,
        }
        for one in checks
    ]
