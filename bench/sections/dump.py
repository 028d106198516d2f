"""dump: the time in which the tasks are frozen, beside the bare time of reading the same fdinfo.

A freeze must read fdinfo at least once. The kernel makes its whole text at the first read
(fs/proc/fd.c, single_open), so no program can read less.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bench.figures import Beside, Figure, Goal, Samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench, Watched

__all__ = ["NAME", "measure"]

NAME = "dump"
_GOAL_TIMES = 1.1
_GOAL_WATCHES = frozenset({10_000, 100_000})
_READS = 3
"""Bare reads before each dump."""
_CHUNK_BYTES = 1 << 20


def measure(bench: Bench) -> Iterator[Figure]:
    """A dump after a pre-dump, as a checkpoint has it, for each number of watches."""
    for count in bench.settings.watches:
        yield from _measure(bench, count)


def _measure(bench: Bench, count: int) -> Iterator[Figure]:
    paths = bench.tree.spread(count)
    work = bench.new_directory()
    bare, wall, freezing, frozen = Samples(), Samples(), Samples(), Samples()
    with bench.watching(paths) as watched:
        options = ("-t", str(watched.pid), "-D", work, "--irmap-scan-path", bench.tree.top)
        bench.make_warm(paths)
        bench.irmapdb("pre-dump", *options)
        for _ in range(bench.settings.repeats):
            bench.make_warm(paths)
            for _ in range(_READS):
                bare.add(_read_fdinfo(watched))
            timing = bench.irmapdb("dump", *options)
            wall.add_command(timing)
            step = bench.check(work, paths)
            freezing.add(step.freezing_us / 1e6)
            frozen.add(step.frozen_us / 1e6)
    plain = bare.row(NAME, "bare read of fdinfo", count)
    row = frozen.row(NAME, "frozen_time", count, beside=Beside("bare read", plain.median))
    yield plain
    yield freezing.row(NAME, "freezing_time", count)
    yield row
    yield wall.row(NAME, "the whole command", count)
    if count in _GOAL_WATCHES:
        what = f"frozen_time, {count:,} watches, of the bare read"
        yield Goal(NAME, what, _GOAL_TIMES, row.median / plain.median, "times")


def _read_fdinfo(watched: Watched) -> float:
    start = time.perf_counter()
    fd = os.open(f"/proc/{watched.pid}/fdinfo/{watched.fd}", os.O_RDONLY)
    while os.read(fd, _CHUNK_BYTES):
        pass
    os.close(fd)
    return time.perf_counter() - start
