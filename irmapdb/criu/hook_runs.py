"""Keeps a list of the last runs of the hook, in a file that only root can change.

`hook.log` in `/run/irmapdb` gets one line for each run, after CRIU has its answer. The line has
these fields, with a tab between two of them:

1 TIME BY OUTCOME SECONDS PAUSED WATCHES RESOLVED PID CONTAINER WORK_DIR TEXT

`1` is the version of the line. TIME is in seconds since the epoch; with `up:` before it, it is the
uptime. A field without a value is `-`. CONTAINER and WORK_DIR are printable
(`irmapdb.model.printable`). TEXT is the line that CRIU's log has. The script writes a line if the
program or the service did not.

If the file becomes long, its older lines are replaced by sums:

total BY OUTCOME RUNS MICROSECONDS PAUSED_RUNS PAUSED_MICROSECONDS

The script, which has no way to make such sums, renames a long file to `hook.log.old`.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.model import from_printable, one_line, printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from irmapdb.model import AnyPath

    By = Literal["hook", "service", "script"]
    Outcome = Literal["done", "incomplete", "failed", "last image"]

__all__ = ["NAME", "OUTCOMES", "HookRun", "HookRuns", "Total", "append_run", "read_runs"]

NAME = "hook.log"

BY = ("hook", "service", "script")
OUTCOMES = ("done", "incomplete", "failed", "last image")
"""`incomplete`: irmap-cache was written, and an error was reported. `last image`: the service did
not reply in time, and the script used the image that the service had proved last."""

_OLD = f"{NAME}.old"
_VERSION = "1"
_FIELDS = 12
_TOTAL_FIELDS = 7
_LIMIT_BYTES = 4 << 20
_LONG_BYTES = 256 << 10
_KEPT_LINES = 200
_TEXT_CHARACTERS = 500
_MOST = 1 << 60
_MOST_S = 1e11
"""Some 3,000 years: a time that can be printed."""
_NAME_CHARACTERS = 500


class HookRun(Record):
    """One run of the hook."""

    at_s: float
    """time.time() at its end."""
    by: By
    outcome: Outcome
    took_s: float | None
    """None: not measured."""
    paused: bool
    """Whether the tasks were paused, so that `took_s` is a part of the pause."""
    watches: int | None
    resolved: int | None
    pid: int | None
    """The root task."""
    container: str
    """The id of its container; "" outside of containers, or if it is not known."""
    work: bytes
    """CRIU's work dir; b"" if it is not known."""
    text: str


class Total(Record):
    """The sums of all runs with one outcome."""

    by: By
    outcome: Outcome
    runs: int
    took_s: float
    paused_runs: int
    paused_s: float


class HookRuns(Record):
    """The content of the file."""

    last: tuple[HookRun, ...]
    """The last runs, the newest one last."""
    totals: tuple[Total, ...]
    """The sums of all runs since the machine has started, also of those in `last`."""


def append_run(directory: AnyPath, run: HookRun) -> None:
    """Add a run to the file of this directory, which is made if it is missing. OSError, FileError.

    Nothing is added if other users may write to the directory.
    """
    top = os.fsencode(directory)
    os.makedirs(top, mode=0o700, exist_ok=True)
    found = os.lstat(top)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        return
    path = os.path.join(top, os.fsencode(NAME))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, _line(run).encode("utf-8", "backslashreplace"))
        is_long = os.fstat(fd).st_size > _LONG_BYTES
    finally:
        os.close(fd)
    if is_long:
        _shorten(top)


def read_runs(directory: AnyPath) -> HookRuns:
    """The runs in the file of this directory; none if there is no file. FileError."""
    return _read(_lines(os.fsencode(directory)))


def _read(lines: Iterable[str]) -> HookRuns:
    runs: list[HookRun] = []
    sums: Counter[tuple[str, str, str]] = Counter()
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for line in lines:
        if line.startswith("total\t"):
            _add_total(sums, line.split("\t"))
        elif (run := _parsed(line, boot_s)) is not None:
            runs.append(run)
            _add(sums, run)
    return HookRuns(tuple(runs[-_KEPT_LINES:]), _totals(sums))


def _line(run: HookRun) -> str:
    fields = (
        _VERSION,
        f"{run.at_s:.3f}",
        run.by,
        run.outcome,
        "-" if run.took_s is None else f"{run.took_s:.6f}",
        str(int(run.paused)),
        _number(run.watches),
        _number(run.resolved),
        _number(run.pid),
        printable(os.fsencode(run.container[:_NAME_CHARACTERS])) or "-",
        printable(run.work) or "-",
        one_line(run.text)[:_TEXT_CHARACTERS],
    )
    return "\t".join(fields) + "\n"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _optional(text: str) -> int | None:
    return None if text == "-" else _count(text)


def _count(text: str) -> int:
    # ValueError for a number that no run has.
    number = int(text)
    if not 0 <= number < _MOST:
        raise ValueError("out of range")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < _MOST_S:  # not for NaN either
        raise ValueError("out of range")
    return seconds


def _lines(top: bytes) -> Iterable[str]:
    for name in (_OLD, NAME):
        path = os.path.join(top, os.fsencode(name))
        data = files.read_if_there(path, limit_bytes=_LIMIT_BYTES)
        yield from (data or b"").decode("utf-8", "replace").split("\n")


def _parsed(line: str, boot_s: float) -> HookRun | None:
    fields = line.split("\t", _FIELDS - 1)
    if len(fields) != _FIELDS or fields[0] != _VERSION:
        return None
    _, at, by, outcome, took, paused, watches, resolved, pid, container, work, text = fields
    try:
        known_by, known_outcome = BY[BY.index(by)], OUTCOMES[OUTCOMES.index(outcome)]
        at_s = boot_s + _seconds(at[3:]) if at.startswith("up:") else _seconds(at)
        return HookRun(
            at_s,
            known_by,  # type: ignore[arg-type]
            known_outcome,  # type: ignore[arg-type]
            None if took == "-" else _seconds(took),
            paused == "1",
            _optional(watches),
            _optional(resolved),
            _optional(pid),
            "" if container == "-" else os.fsdecode(from_printable(container)),
            from_printable(work) if work.startswith("/") else b"",
            one_line(text),
        )
    except ValueError:
        return None


def _add(sums: Counter[tuple[str, str, str]], run: HookRun) -> None:
    sums[run.by, run.outcome, "runs"] += 1
    took_us = round((run.took_s or 0.0) * 1_000_000)
    sums[run.by, run.outcome, "took"] += took_us
    sums[run.by, run.outcome, "paused runs"] += run.paused
    sums[run.by, run.outcome, "paused"] += took_us if run.paused else 0


def _add_total(sums: Counter[tuple[str, str, str]], fields: list[str]) -> None:
    if len(fields) != _TOTAL_FIELDS or fields[1] not in BY or fields[2] not in OUTCOMES:
        return
    _, by, outcome, *rest = fields
    try:
        numbers = [_count(one) for one in rest]
    except ValueError:
        return
    for field, number in zip(("runs", "took", "paused runs", "paused"), numbers, strict=True):
        sums[by, outcome, field] += number


def _totals(sums: Counter[tuple[str, str, str]]) -> tuple[Total, ...]:
    return tuple(
        Total(
            by,  # type: ignore[arg-type]
            outcome,  # type: ignore[arg-type]
            sums[by, outcome, "runs"],
            sums[by, outcome, "took"] / 1_000_000,
            sums[by, outcome, "paused runs"],
            sums[by, outcome, "paused"] / 1_000_000,
        )
        for by in BY
        for outcome in OUTCOMES
        if sums[by, outcome, "runs"]
    )


def _shorten(top: bytes) -> None:
    # A run that another process adds at this moment may be lost.
    lines = [line for line in _lines(top) if line]
    kept = lines[-_KEPT_LINES:]
    head = [
        "\t".join(
            (
                "total",
                one.by,
                one.outcome,
                str(one.runs),
                str(round(one.took_s * 1_000_000)),
                str(one.paused_runs),
                str(round(one.paused_s * 1_000_000)),
            )
        )
        for one in _read(lines[:-_KEPT_LINES]).totals
    ]
    text = "".join(f"{line}\n" for line in (*head, *kept))
    try:
        files.replace_whole(os.path.join(top, os.fsencode(NAME)), text.encode())
        os.unlink(os.path.join(top, os.fsencode(_OLD)))
    except FileNotFoundError:
        return
    except FileError:
        return  # a full disk: the next run tries again
