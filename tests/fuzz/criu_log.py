"""Target: CRIU's log, which has names that a tenant chose, and may be cut off or quoted."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from irmapdb.criu.explain.engines import Engine, help_for
from irmapdb.criu.explain.explanation import ExplainOptions, explain
from irmapdb.criu.explain.message_kinds import Remedy
from irmapdb.criu.explain.other_causes import OTHER_CAUSES
from irmapdb.errors import FileError, ImageError
from tests.fuzz.target import Target, check, check_text, refusal
from tests.support.explain_lines import LINES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.criu.explain.explanation import Explanation

__all__ = ["TARGETS"]

_OPTIONS = ExplainOptions("log", None, machine=False)
_MOST_FINDINGS = 70
_COMMANDS = {help_for(remedy, engine).command for remedy in Remedy for engine in Engine}
_ENGINES_LOG = re.compile(r"irmapdb explain ('?)/[^\n]*\.log\1")


def _explained(data: bytes) -> None:
    with refusal(ImageError, FileError) as refused:
        whole = explain([data] if data else [], _OPTIONS)
        _check_words(whole)
        # The encoding is detected from the first piece.
        size = random.Random(len(data)).randrange(1, 20)
        first = [data[:64], *(data[start : start + size] for start in range(64, len(data), size))]
        check(explain(first, _OPTIONS) == whole, "other pieces, another explanation")
    check(data or refused, "an empty log was explained")


def _check_words(explanation: Explanation) -> None:
    findings = explanation.findings
    check(len(findings) <= _MOST_FINDINGS, f"{len(findings)} findings")
    check(findings or explanation.facts.outcome == "success", "no finding, and no success")
    for one in findings:
        for text in (one.why, one.help.text, one.help.command, one.find_out):
            check_text(text)
        check(one.why, f"{one.name} without a reason")
        _check_command(explanation, one.help.command, ours=one.ours)
    for note in explanation.notes:
        check_text(note)


def _check_command(explanation: Explanation, command: str, *, ours: bool) -> None:
    # A number, or the path of a log, is all that may come from the input.
    pid = explanation.facts.root_pid
    known = {one.replace("PID", str(pid)) if pid is not None else one for one in _COMMANDS}
    if command in known or _ENGINES_LOG.fullmatch(command):
        return
    options = {cause.option for cause in OTHER_CAUSES} - {""}
    check(not ours and any(option in command for option in options), f"{command!r}")


def _seeds() -> Iterator[bytes]:
    lines = [line.encode() for several in LINES.values() for line in several]
    yield b"\n".join(b"(00.012345) Error (criu/fsnotify.c:12): " + line for line in lines[::9])
    for line in lines:
        yield b"(00.000169) Version: 4.3 (gitid 0)\n(00.012345) " + line + b"\n"
        yield b"Error (criu/irmap.c:12): " + line + b"\nError (criu/x.c:1): Dumping FAILED."
    yield b'time="1" level=error msg="criu failed: type NOTIFY errno 0\\nlog file: /a/dump.log"'
    yield b'{"log":"(00.01) Error (criu/fsnotify.c:1): fsnotify: \\tCan\'t dump that handle\\n"}'
    yield "(00.012345) Dumping finished successfully\n".encode("utf-16")


TARGETS = (
    Target(
        "criu-log",
        _explained,
        _seeds,
        (
            *(b"(00.012345) ", b"Error (criu/fsnotify.c:12): ", b"Warn  (", b"fsnotify: \t"),
            *(b"irmap: ", b"irmapdb-hook: ", b"Dumping FAILED.", b"Restoring FAILED.", b"\\n"),
            *(b"\\\\n", b"\\u0027", b'\\"', b"Version: 4.3 (gitid ", b" fdinfo 5: ", b"0x2c:0xe"),
            *(b"Dumping processes (pid: 12 comm: ", b"Dumping task (pid: ", b"log file: /"),
            *(b"criu failed: type NOTIFY errno 0", b"RPC settings with values from ", b"cg: "),
        ),
        short_runs=1000,
    ),
)
