"""Many inotify descriptors with the same text: kcmp(2) distinguishes each from its copies."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "equal"

_NUMBER = 10_000
_GOAL = 10
_SPARE = 64
_SCRIPT = Path(__file__).parent.parent / "equal_descriptors.py"
_SYSCTL = Path("/proc/sys/fs/inotify/max_user_instances")


def measure(bench: Bench) -> Iterator[Figure]:
    """Beside a plain loop that reads them all."""
    number = min(_NUMBER, bench.settings.entries)
    needed = number + _SPARE
    what = f"{number:,} equal descriptors"
    if int(_SYSCTL.read_text()) < needed:
        yield Skipped(NAME, what, f"it takes sysctl fs.inotify.max_user_instances={needed}")
        return
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < needed:
        yield Skipped(NAME, what, f"it takes a limit of {needed} open files (ulimit -n)")
        return
    loop, survey = Samples(), Samples()
    for _ in range(bench.settings.repeats):
        try:
            said = bench.output(sys.executable, _SCRIPT, str(number)).split()
        except subprocess.CalledProcessError as error:
            raise BenchError(f"{_SCRIPT.name}: exit code {error.returncode}") from error
        if int(said[2]) != number:
            raise BenchError(f"{said[2]} of {number} descriptors found")
        loop.add(int(said[0]) / 1e6)
        survey.add(int(said[1]) / 1e6)
    bare = loop.row(NAME, "read in a plain loop", number)
    row = survey.row(NAME, "told apart", number, beside=Beside("the plain loop", bare.median))
    yield bare
    yield row
    if number == _NUMBER:
        yield Goal(NAME, f"{what}, of a plain loop", _GOAL, row.median / bare.median, "times")
