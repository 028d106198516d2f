"""Targets: the list of the last runs of the hook."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb.criu import hook_runs
from irmapdb.criu.hook_runs import append_run, read_runs
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target, check, check_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TARGETS"]

_FIRST = (
    b"1\t1795915229.381\thook\tdone\t0.254493\t0\t1\t1\t6\t-\t/w\t1 watch: 1 proved, in 254 ms\n"
    b"1\tup:120\tscript\tfailed\t-\t0\t-\t-\t7\t-\t-\tnot done: /p is missing\n"
)
_SECOND = (
    b"total\thook\tincomplete\t7\t3500000\t2\t1500000\n"
    b"1\t2.5\tservice\tlast image\t1\t1\t3\t2\t1\tcaf\\xe9\t/w\\n\ttext\twith a tab\n"
)


class _HookLog:
    """Reads each input as `hook.log`, and writes its runs again."""

    def __init__(self) -> None:
        self._given = self._written = Path()

    def __call__(self, data: bytes) -> None:
        if not self._given.name:  # not when the targets are listed
            self._given, self._written = scratch() / "given", scratch() / "written"
            self._given.mkdir(mode=0o700)
        (self._given / hook_runs.NAME).write_bytes(data)
        found = read_runs(self._given)
        shutil.rmtree(self._written, ignore_errors=True)
        for run in found.last:
            check_text(run.text)
            check("\n" not in run.text, "a text of two lines")
            datetime.fromtimestamp(run.at_s, UTC)
            append_run(self._written, run)
        for total in found.totals:
            check(total.runs > 0 and total.took_s >= 0 and total.paused_s >= 0, f"{total}")
        again = read_runs(self._written).last
        check(len(again) == len(found.last), f"{len(again)} of {len(found.last)} runs")
        for before, after in zip(found.last, again, strict=True):
            same = before._replace(at_s=0.0, took_s=None, text="", container="")
            check(
                same == after._replace(at_s=0.0, took_s=None, text="", container=""),
                f"{before} is {after}",
            )


def _logs() -> Iterator[bytes]:
    yield from (b"", _FIRST, _SECOND, _FIRST + _SECOND)


TARGETS = (
    Target(
        name="hook-log",
        run=_HookLog(),
        seeds=_logs,
        words=(b"total\t", b"\tup:", b"nan", b"inf", b"last image", b"\\xe9", b"1\t"),
        short_runs=300,
    ),
)
