"""`irmapdb check --all` on a machine with many containers, without and with the hook.

Each container is on an overlay, so without the hook each of its watches makes a dump by CRIU 4.2
fail: for the advice irmapdb then searches for the path.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.figures import Beside, Figure, Samples, Skipped
from bench.made_containers import made_containers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "check"

_CONTAINERS, _A_FEW = 200, 4
_WATCHES = 50
_BARE = "the watches and mount tables of all containers, read by bare calls"
_FINDINGS_ARE_RIGHT = 'status=0; "$@" || status=$?; [ $status = 0 ] || [ $status = 3 ]'


def measure(bench: Bench) -> Iterator[Figure]:
    """A row for each of the two predictions."""
    count = _CONTAINERS if bench.full_size else _A_FEW
    what = f"check --all, {count} containers with {_WATCHES} watches each"
    if os.geteuid():
        yield Skipped(NAME, what, "making containers needs root")
        return
    with contextlib.ExitStack() as stack:
        try:
            cgroup = stack.enter_context(made_containers(bench, count, _WATCHES))
        except OSError as error:
            yield Skipped(NAME, what, f"no container can be made here: {error}")
            return
        groups = [cgroup / f"c{number}" for number in range(count)]
        pids = [(group / "cgroup.procs").read_text().split()[0] for group in groups]
        bare = Samples()
        script = str(Path(__file__).parent.parent / "bare_look.py")
        for _ in range(bench.settings.repeats):
            bare.add(float(bench.output(sys.executable, "-I", "-S", script, *pids)))
        row = bare.row(NAME, _BARE, count, note="CPU time")
        yield row
        beside = Beside(_BARE, row.median)
        for option, verdict in (("--no-hook", "options"), ("--hook", "cache")):
            command = _command(bench, option)
            _compare(json.loads(bench.output(*command)), pids, verdict)
            samples = Samples()
            for _ in range(bench.settings.repeats):
                samples.add_command(bench.time(*command))
            yield samples.row(NAME, f"{what}, {option}", count * _WATCHES, beside=beside)


def _command(bench: Bench, option: str) -> tuple[str, ...]:
    words = (*bench.settings.irmapdb, "check", "--all", "--json", "--criu-version", "4.2", option)
    return ("sh", "-c", _FINDINGS_ARE_RIGHT, "sh", *words)


def _compare(document: dict[str, Any], pids: list[str], verdict: str) -> None:
    rows = {str(one["pid"]): one["verdicts"] for one in document["containers"]}
    wrong = [rows.get(pid) for pid in pids if rows.get(pid) != {verdict: _WATCHES}]
    if wrong:
        raise BenchError(f"{len(wrong)} of {len(pids)} containers are wrong, one is {wrong[0]}")
