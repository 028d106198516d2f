"""pre-dump: from nothing, and again with every path stored.

From nothing twice: while the kernel knows every name, and where it knows none, with one scan.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "pre-dump"

# `criu pre-dump --force-irmap --irmap-scan-path TREE`, every handle made useless by
# CRIU_FAULT=128, warm, on the machine where the goals were set.
_CRIU_S = {1_000: 5.6, 10_000: 28.5, 100_000: 258.0}
_GOAL_S = {10_000: 3.5, 100_000: 8.0}
# Of the scan: what it needs for a tree of any size. Each watch takes about 1.5 kB beside that.
_SCAN_GOAL_MB = 120
_SCAN_GOAL_WATCHES = 10_000

_WARM = "from nothing, names known"
_COLD = "from nothing, one scan"
_AGAIN = "again, every path stored"


def measure(bench: Bench) -> Iterator[Figure]:
    """Each number of watches by turns."""
    yield from _bare_walk(bench)
    if bench.why_not_cold:
        yield Skipped(NAME, _COLD, bench.why_not_cold)
    for count in bench.settings.watches:
        yield from _measure(bench, count)


def _bare_walk(bench: Bench) -> Iterator[Figure]:
    # What the scan is to be seen beside: the kernel's listings and Python's loop over them.
    script = Path(__file__).parent.parent / "bare_walk.py"
    states = ("warm",) if bench.why_not_cold else ("warm", "cold")
    for state in states:
        samples = Samples()
        for _ in range(bench.settings.repeats + 1):
            if state == "cold":
                bench.make_cold()
            timing = bench.time(sys.executable, "-I", "-S", script, bench.tree.top)
            samples.add_command(timing)
        # The first made the warm one warm.
        del samples.seconds[0], samples.cpu_seconds[0]
        note = f"{bench.tree.entries:,} entries"
        yield samples.row(NAME, f"os.scandir over the tree, {state}", note=note)


def _measure(bench: Bench, count: int) -> Iterator[Figure]:
    paths = bench.tree.spread(count)
    kinds = [_WARM, _AGAIN] if bench.why_not_cold else [_WARM, _AGAIN, _COLD]
    samples = {kind: Samples() for kind in kinds}
    scanned = dict.fromkeys(kinds, 0)
    with bench.watching(paths) as watched:
        for _ in range(bench.settings.repeats):
            for kind in kinds:
                if kind != _AGAIN:
                    work = bench.new_directory()
                if kind == _COLD:
                    bench.make_cold()
                else:
                    bench.make_warm(paths)
                timing = bench.irmapdb(
                    *("pre-dump", "-t", str(watched.pid), "-D", work),
                    *("--irmap-scan-path", bench.tree.top),
                )
                samples[kind].add_command(timing)
                scanned[kind] = max(scanned[kind], bench.check(work, paths).scanned)
    criu = _CRIU_S.get(count) if bench.full_size else None
    for kind in kinds:
        yield samples[kind].row(
            NAME,
            kind,
            count,
            beside=None if criu is None or kind == _AGAIN else Beside("CRIU's scan", criu),
            note=f"{scanned[kind]:,} scanned" if scanned[kind] else "",
        )
    if bench.full_size:
        yield from _goals(count, samples)


def _goals(count: int, samples: dict[str, Samples]) -> Iterator[Figure]:
    for kind in (_WARM, _COLD):
        if kind in samples and count in _GOAL_S:
            got = samples[kind].row(NAME, kind).median
            yield Goal(NAME, f"{count:,} watches {kind}", _GOAL_S[count], got, "s")
    if _COLD in samples and count <= _SCAN_GOAL_WATCHES:
        peak = samples[_COLD].peak_bytes / 1e6
        yield Goal(NAME, f"peak memory, {count:,} watches, one scan", _SCAN_GOAL_MB, peak, "MB")
