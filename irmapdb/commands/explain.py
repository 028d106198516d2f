"""Implements `irmapdb explain`: explains CRIU's log."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.input_file import STDIN, is_pipe_name, open_input
from irmapdb.commands.options import (
    AsJson,
    Database,
    argument,
    flag,
    named_database,
    path_option,
)
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from irmapdb.criu.explain.explanation import Explanation, Finding
    from irmapdb.criu.explain.paths import FoundPath
    from irmapdb.criu.explain.reader import WatchFacts

__all__ = ["explain"]

EngineName = Literal["criu", "runc", "crun", "podman", "cri-o", "containerd", "docker", "lxc"]


def explain(
    log: Annotated[
        Path | None,
        argument(
            "LOG",
            "CRIU's dump.log or restore.log, or the output of an engine that quotes it; `-` "
            "for standard input.  [default: -]",
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="The program that called CRIU.  [default: guessed from the log]",
            show_default=False,
        ),
    ] = None,
    work_dir: Annotated[
        Path | None,
        path_option(
            *("-W", "--work-dir"),
            metavar="DIR",
            text="Directory of irmap.db and irmap-cache.  [default: the directory of LOG]",
        ),
    ] = None,
    db: Database = None,
    offline: Annotated[
        bool,
        flag(
            "--offline",
            "Do not look at this machine: the log is from another one, or from before a reboot.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain why CRIU failed: the watch, its file, the reason, and the command that helps.

    explain reads logs of any verbosity, with or without times. A log may be cut off, or quoted by
    an engine. explain knows every message of CRIU 4.1 to 4.3 about watches and irmap-cache, and
    names the subject of many others: sockets, terminals, mounts.

    The path of a watched inode comes from the log, from irmap.db, from irmap-cache, or from this
    machine: from a process that watches the inode now, or by the file handle in the log. explain
    writes nothing and stops no task.

    With less than -v4, CRIU leaves out details. With -v1, CRIU 4.1 and 4.2 do not even name the
    inode.

    Exits with 0 if the log shows a success. Exits with 3 if the log shows a failure, has no end, or
    shows a watch that CRIU dumped without a path. Exits with 1 if no line of the log is from CRIU.

    Examples:
        irmapdb explain work/dump.log

        irmapdb explain --engine podman < dump.log

        runc checkpoint web 2>&1 | irmapdb explain

        irmapdb explain dump.log --json | jq -r '.findings[0].command'

    """
    from irmapdb.criu.explain.engines import Engine
    from irmapdb.criu.explain.explanation import ExplainOptions
    from irmapdb.criu.explain.explanation import explain as run

    if log is None and sys.stdin.isatty():
        message = "explain needs LOG"
        raise UsageError(message, advice="name CRIU's dump.log, or pipe it in")
    log = STDIN if log is None else log
    is_pipe = is_pipe_name(log)
    database = named_database(db, work_dir)
    options = ExplainOptions(
        name="standard input" if is_pipe else render.shown(log),
        log=None if is_pipe else os.fsencode(log),
        work_dir=None if work_dir is None else os.fsencode(work_dir),
        database=None if database is None else os.fsencode(database),
        engine=None if engine is None else Engine(engine),
        machine=not offline,
    )
    with open_input(log) as file:
        explanation = run(_chunks(file), options)
    if as_json:
        render.print_json(_document(explanation))
    else:
        _print(explanation)
    end_with_findings(not explanation.right)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    from irmapdb.criu.explain.lines import CHUNK_BYTES

    while chunk := file.read(CHUNK_BYTES):
        yield chunk


# For people


def _print(explanation: Explanation) -> None:
    render.print_line(_headline(explanation))
    for finding in explanation.findings:
        typer.echo()
        _print_finding(finding)
    if explanation.facts.outcome == "success":
        _print_statistics(explanation)
    elif explanation.engine is None:
        render.say("the engine is not known from the log; --engine names it")
    for note in explanation.notes:
        render.print_line(f"note: {note}")


def _headline(explanation: Explanation) -> str:
    facts = explanation.facts
    criu = f"CRIU {facts.version}" if facts.version else "CRIU"
    by = ""
    if explanation.engine is not None and str(explanation.engine) != "criu":
        by = f", called by {explanation.engine}"
    what = f"the {facts.action}" if facts.action else "the run"
    if facts.root_pid is not None:
        what += f" of process {facts.root_pid} ({render.printable(facts.root_comm or b'')})"
    match facts.outcome:
        case "success":
            ended = f"{what} passed"
        case "failed":
            ended = f"{what} failed"
        case _:
            ended = f"{what} has no end in the log"
    return f"{explanation.name}: {ended} ({criu}{by})"


def _print_finding(finding: Finding) -> None:
    where = f"line {finding.line:,}: " if finding.text else ""
    verb = "" if finding.stops else "not fatal: "
    said = render.printable(finding.text.replace(b"\t", b"").strip()) or finding.why
    render.print_line(f"{where}{verb}{said}")
    if not finding.ours and finding.name != "unknown" and finding.text:
        render.print_line(f"  cause:  {finding.topic}; no watch and no mark")
    if finding.watch is not None:
        render.print_line(f"  watch:  {_watch_text(finding.watch, finding.file)}")
        if line := _file_text(finding):
            render.print_line(f"  file:   {line}")
    elif finding.find_out:
        render.print_line(f"  file:   not known: {finding.find_out}")
    if finding.text:
        render.print_line(f"  why:    {finding.why}")
    render.print_line(f"  help:   {finding.help.text}")
    if finding.help.command:
        render.print_line(f"  → {finding.help.command}")


def _watch_text(watch: WatchFacts, file: FoundPath | None) -> str:
    what = watch.kind or "a watch"
    if watch.wd is not None:
        what += f" wd {watch.wd}"
    if watch.key is not None:
        what += f" on inode {watch.key}"
    pid, comm, fd = watch.pid, watch.comm, watch.fd
    if file is not None and file.pid is not None:
        pid, comm, fd = file.pid, file.comm, file.fd
    if pid is not None:
        what += f", process {pid}"
        what += f" ({render.printable(comm)})" if comm else ""
        what += f", descriptor {fd}" if fd is not None else ""
    return what


def _file_text(finding: Finding) -> str:
    watch, file = finding.watch, finding.file
    path, origin, note = watch.path if watch else None, "the log", ""
    if file is not None and file.path is not None:
        path, origin, note = file.path, _ORIGINS[str(file.origin)], file.note
    if path is not None:
        more = f"; {note}" if note else ""
        return f"{render.printable(path)} (from {origin}{more})"
    if watch is not None and watch.last_name is not None:
        return f"deleted; it was {render.printable(watch.last_name)}"
    why = f"no path ({file.note}); " if file is not None and file.note else "not known: "
    return f"{why}{finding.find_out}" if finding.find_out else ""


_ORIGINS = {
    "log": "the log",
    "database": "irmap.db",
    "irmap-cache": "irmap-cache",
    "task": "the process that watches it now, proved",
    "handle": "the file handle in the log, proved",
}


def _print_statistics(explanation: Explanation) -> None:
    facts = explanation.facts
    counts = facts.counts
    watches = counts["inode"] or counts["restoring-wd"]
    marks = counts["mark"] + counts["mount-mark"] or counts["restoring-group"]
    parts = [
        f"{render.count(watches, 'inotify watch', 'inotify watches')}",
        f"{render.count(marks, 'fanotify mark')}",
    ]
    if facts.has_debug and facts.action == "dump":
        parts.append(f"{counts['path-recorded']:,} with a path")
    render.print_line(", ".join(parts))
    irmap = [
        f"{number:,} {words}"
        for words, number in (
            ("from irmap-cache", counts["found"]),
            ("from CRIU's own scan", counts["scanned"]),
            ("from walks of overlays", counts["walk-found"]),
            ("stale entries", counts["entry-invalid"]),
        )
        if number
    ]
    if facts.irmap_us is not None:
        irmap.append(f"{facts.irmap_us / 1000:,.1f} ms")
    if irmap:
        render.print_line(f"irmap: {', '.join(irmap)}")
    if facts.hook is not None:
        render.print_line(render.printable(facts.hook))


# For programs


def _document(explanation: Explanation) -> dict[str, Any]:
    facts = explanation.facts
    counts = facts.counts
    root = None
    if facts.root_pid is not None:
        root = {"pid": facts.root_pid, "comm": render.json_path(facts.root_comm)}
    return {
        "log": explanation.name,
        **render.json_fields(facts, "outcome action lines runs frozen_us hook"),
        **render.json_fields(explanation, "right engine engine_is_given without_path notes"),
        "criu": facts.version,
        "root": root,
        "watches": counts["inode"] or counts["restoring-wd"],
        "marks": counts["mark"] + counts["mount-mark"] or counts["restoring-group"],
        "irmap": {
            "found": counts["found"],
            "scanned": counts["scanned"],
            "walked": counts["walk-found"],
            "stale": counts["entry-invalid"],
            "entries": counts["pre-cache"],
            "time_us": facts.irmap_us,
        },
        "findings": list(map(_finding_json, explanation.findings)),
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        **render.json_fields(finding, "name topic ours stops line text why"),
        "help": finding.help.text,
        "command": finding.help.command or None,
        "watch": _watch_json(finding.watch, finding.file),
        "find_out": finding.find_out or None,
    }


def _watch_json(watch: WatchFacts | None, file: FoundPath | None) -> dict[str, Any] | None:
    if watch is None:
        return None
    path, origin, note = watch.path, "log" if watch.path is not None else None, None
    if file is not None:
        note = file.note or None
        if file.path is not None:
            path, origin = file.path, str(file.origin)
    return {
        **render.json_fields(watch, "kind wd pid comm fd last_name"),
        "dev": watch.key and watch.key.kdev,
        "ino": watch.key and watch.key.ino,
        "path": render.json_path(path),
        "path_from": origin,
        "note": note,
        "now": render.json_fields(file, "pid comm fd") if file and file.pid is not None else None,
    }
