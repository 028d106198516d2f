"""Prints the results of `irmapdb hook --status` and `--try`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from irmapdb.commands import render

if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.criu.hook_runs import HookRun
    from irmapdb.criu.trial import Trial
    from irmapdb.node.doctor import Diagnosis, EngineState
    from irmapdb.node.service_faults import Finding, ServiceState

__all__ = ["print_status", "print_trial", "status_json"]


def print_status(found: Diagnosis) -> None:
    """A table of the engines, a line for each other part, and the findings with their commands."""
    if found.engines:
        rows = [_engine_row(one) for one in found.engines]
        render.print_table(("engine", "version", "starts criu by", "hook", "file"), rows)
    criu = found.criu
    if criu is not None:
        works = "does not work on this kernel" if criu.why_not else "works on this kernel"
        render.print_line(f"criu: {criu.version or '?'} at {render.shown(criu.path)}, {works}")
    render.print_line(f"service: {_service_text(found.service)}")
    if not found.runs:
        render.print_line("last runs of the hook: none since the machine has started")
    for run in found.runs:
        render.print_line(f"run: {_run_text(run)}")
    _print_findings("note", found.notes)
    _print_findings("finding", found.findings)
    if not found.findings:
        render.print_line("the hook is ready")


def _engine_row(one: EngineState) -> tuple[str, str, str, str, str]:
    engine = one.engine
    if not engine.files:
        return engine.name, engine.version or "?", engine.runtime, "no CRIU", "-"
    files = [one.file] if one.file is not None else [*engine.read_files[-1:]]
    state = "in effect" if one.scripts else "missing"
    shown = ", ".join(map(render.shown, files))
    return engine.name, engine.version or "?", engine.runtime, state, shown


def _service_text(service: ServiceState) -> str:
    if service.pid is None:
        return "does not run"
    parts = [f"process {service.pid}"]
    if service.replied_s is None:
        parts.append("does not answer")
    else:
        parts.append(f"answers in {service.replied_s * 1000:.0f} ms")
    parts.append(render.count(service.containers, "container"))
    if service.looked_at_s is not None:
        parts.append(f"last look {max(time.time() - service.looked_at_s, 0):.0f} s ago")
    return ", ".join(parts)


def _run_text(run: HookRun) -> str:
    where = f" of {render.printable_text(run.container)}" if run.container else ""
    at = render.time_cell(datetime.fromtimestamp(run.at_s, UTC))
    return f"{at} by the {run.by}{where}: {run.outcome}: {render.printable_text(run.text)}"


def _print_findings(kind: str, findings: Iterable[Finding]) -> None:
    for one in findings:
        render.print_line(f"{kind}: {one.text}")
        # In one line, so that it can be copied.
        render.print_unwrapped(f"    {one.command}")


def status_json(found: Diagnosis) -> dict[str, Any]:
    """The contract of `irmapdb hook --status --json`."""
    criu = found.criu
    service = found.service
    return {
        "ok": not found.findings,
        "engines": [
            {
                **render.json_fields(one.engine, "name program version runtime files"),
                "not_read": one.engine.unread,
                "in_effect": bool(one.scripts),
                **render.json_fields(one, "scripts"),
            }
            for one in found.engines
        ],
        "criu": None
        if criu is None
        else {
            "program": str(criu.path),
            "version": criu.version,
            "works": not criu.why_not,
            "why_not": criu.why_not,
        },
        "service": {
            **render.json_fields(service, "pid replied_s containers"),
            "looked_at": service.looked_at_s,
        },
        "runs": [
            {
                "at": run.at_s,
                **render.json_fields(run, "by outcome took_s paused watches resolved pid"),
                **render.json_fields(run, "container text"),
                "work_dir": render.json_path(run.work) if run.work else None,
            }
            for run in found.runs
        ],
        **render.json_fields(found, "findings notes"),
    }


def print_trial(result: Trial) -> None:
    """A line for each step, and the result."""
    for step in result.steps:
        state = "passed" if step.passed else "failed"
        render.print_line(f"{step.name}: {state} in {step.took_s:.1f} s: {step.text}")
    if result.passed:
        render.print_line("the checkpoint passed: the restored watch reports its events")
    else:
        render.print_line("the checkpoint failed")
        for line in result.log:
            render.print_line(f"    {line}")
