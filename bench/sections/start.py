"""Cold start: the time before a command begins its work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Beside, Figure, Goal, Samples, Skipped
from bench.irmap_image import write_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.figures import Timing
    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "start"
_VERSION_GOAL = 8
_PRE_DUMP = "pre-dump, 2 watches"
_PRE_DUMP_GOAL = 20


def measure(bench: Bench) -> Iterator[Figure]:
    """New processes with very little work, beside a Python without any."""
    directory = bench.new_directory()
    image = directory / "irmap-cache"
    write_image(image, 3)
    near = [os.fsencode(directory / name) for name in ("one", "two")]
    for path in near:
        Path(os.fsdecode(path)).touch()
    with bench.watching(near) as watched:
        pid = str(watched.pid)
        used = bench.new_directory()
        bench.irmapdb("pre-dump", "-t", pid, "-D", used)
        commands: dict[str, Callable[[], Timing]] = {
            "python -c pass": lambda: bench.time(sys.executable, "-c", "pass"),
            "--version": lambda: bench.irmapdb("--version"),
            "--help": lambda: bench.irmapdb("--help"),
            "show, 3 entries": lambda: bench.irmapdb("show", image),
            "pre-dump, 2 watches, new database": lambda: bench.irmapdb(
                "pre-dump", "-t", pid, "-D", bench.new_directory()
            ),
            _PRE_DUMP: lambda: bench.irmapdb("pre-dump", "-t", pid, "-D", used),
            "dump, 2 watches": lambda: bench.irmapdb("dump", "-t", pid, "-D", used),
        }
        if bench.crit is None:
            yield Skipped(NAME, "crit decode, 3 entries", f"no {bench.settings.crit} on PATH")
        else:
            crit, json = bench.crit, directory / "out.json"
            commands["crit decode, 3 entries"] = lambda: bench.time(
                crit, "decode", "-i", image, "-o", json
            )
        samples = {what: Samples() for what in commands}
        # Turn by turn, so that a busy moment of the machine hits all alike.
        for _ in range(bench.settings.start_repeats):
            for what, run in commands.items():
                timing = run()
                samples[what].add_command(timing)
    bare = samples["python -c pass"].row(NAME, "python -c pass")
    yield bare
    beside = Beside("python -c pass", bare.median)
    for what in list(commands)[1:]:
        row = samples[what].row(NAME, what, beside=beside)
        yield row
        limit = {"--version": _VERSION_GOAL, _PRE_DUMP: _PRE_DUMP_GOAL}.get(what)
        if limit is not None:
            yield Goal(NAME, f"{what}, of {beside.name}", limit, row.median / bare.median, "times")
