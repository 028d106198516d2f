"""`irmapdb ps`: one process with very many watches, and very many tasks with one instance.

Beside a plain loop over the same fdinfo, and inotify-info from Debian's packages. The tasks share a
descriptor: the others read it once for each task.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "ps"

_WATCHES, _TASKS = 190_000, 2_000
_WATCHES_OF_TASKS = 50
_SPARE = 8_192
_GOAL = 3
_HERE = Path(__file__).parent.parent
_SYSCTL = Path("/proc/sys/fs/inotify/max_user_watches")


def measure(bench: Bench) -> Iterator[Figure]:
    """First watches, then tasks."""
    watches = min(_WATCHES, bench.settings.files)
    needed = watches + _SPARE
    if int(_SYSCTL.read_text()) < needed:
        why = f"it takes sysctl fs.inotify.max_user_watches={needed}"
        yield Skipped(NAME, f"{watches:,} watches", why)
    else:
        with bench.watching(bench.tree.spread(watches)) as watched:
            yield from _compared(bench, "watches", watched.pid, watches, watches)
    tasks = _TASKS if bench.full_size else min(_TASKS, bench.settings.files)
    count = min(_WATCHES_OF_TASKS, bench.settings.files)
    with _tasks(tasks, bench.tree.spread(count)) as pid:
        yield from _compared(bench, "tasks with one instance", pid, tasks, count)


def _compared(bench: Bench, what: str, pid: int, size: int, watches: int) -> Iterator[Figure]:
    bench.irmapdb("ps", "--json")  # compiles the modules that are not compiled yet
    document = json.loads(bench.output(*bench.settings.irmapdb, "ps", "--json"))
    found = {row["pid"]: row["watches"] for row in document["processes"]}
    if found.get(pid) != watches or document["totals"]["watches"] >= 2 * watches + _SPARE:
        raise BenchError(f"ps has found {found.get(pid)} of {watches} watches")
    loop, ours = Samples(), Samples()
    peer = _inotify_info(bench)
    theirs = Samples()
    for _ in range(bench.settings.repeats):
        loop.add_command(bench.time(sys.executable, "-I", "-S", _HERE / "bare_ps.py"))
        ours.add_command(bench.irmapdb("ps"))
        if isinstance(peer, Path):
            theirs.add_command(bench.time(peer))
    yield loop.row(NAME, f"{what}, read in a plain loop", size)
    row = ours.row(NAME, f"{what}, irmapdb ps", size, beside=Beside("the plain loop", loop.median))
    yield row
    if isinstance(peer, Path):
        beside = Beside("the plain loop", loop.median)
        yield theirs.row(NAME, f"{what}, inotify-info", size, beside=beside)
    else:
        yield Skipped(NAME, f"{what}, inotify-info", peer)
    if bench.full_size:
        yield Goal(
            NAME, f"{size:,} {what}, of a plain loop", _GOAL, row.median / loop.median, "times"
        )


def _inotify_info(bench: Bench) -> Path | str:
    # The program, or why there is none.
    sys.path.insert(0, str(bench.checkout))
    from tests.support.inotify_info import inotify_info  # noqa: PLC0415 fetches a package
    from tests.support.packages import RigError  # noqa: PLC0415

    try:
        return inotify_info()
    except RigError as error:
        return str(error)


@contextlib.contextmanager
def _tasks(number: int, paths: Sequence[bytes]) -> Iterator[int]:
    command = [sys.executable, "-I", "-S", _HERE / "many_tasks.py", str(number), *paths]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline().decode().strip()
            if said != "ready":
                raise BenchError(f"{number} tasks: {said or 'the process ended'}")
            yield process.pid
        finally:
            process.stdin.close()
