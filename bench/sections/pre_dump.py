"""pre-dump: from nothing, and again with every path stored.

With an empty database twice: once while the kernel has every name cached, and once while it has
none, with one scan.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Beside, Figure, Goal, Row, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "pre-dump"

_WARM = "from nothing, names known"
_COLD = "from nothing, one scan"
_AGAIN = "again, every path stored"

# Times a plain loop in Python: the calls of a proof for each path, or os.scandir over the tree.
_GOAL_TIMES = {_WARM: 60, _COLD: 4}
_GOAL_WATCHES = {_WARM: frozenset({10_000, 100_000}), _COLD: frozenset({10_000})}
# Of the scan: its memory for a tree of any size. Each watch takes about 1.5 kB beside that.
_SCAN_GOAL_MB = 120
_SCAN_GOAL_WATCHES = 10_000


def measure(bench: Bench) -> Iterator[Figure]:
    """Each number of watches by turns."""
    walk: float | None = None
    for row in _bare_walk(bench):
        walk = row.median if row.what.endswith("cold") else walk
        yield row
    if bench.why_not_cold:
        yield Skipped(NAME, _COLD, bench.why_not_cold)
    for count in bench.settings.watches:
        yield from _measure(bench, count, walk)


def _bare_walk(bench: Bench) -> Iterator[Row]:
    # The comparison for the scan: the kernel's listings and Python's loop over them.
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


def _measure(bench: Bench, count: int, walk: float | None) -> Iterator[Figure]:
    paths = bench.tree.spread(count)
    (listed := bench.new_directory() / "paths").write_bytes(b"".join(p + b"\0" for p in paths))
    script = Path(__file__).parent.parent / "bare_proofs.py"
    proofs = Samples()
    kinds = [_WARM, _AGAIN] if bench.why_not_cold else [_WARM, _AGAIN, _COLD]
    samples = {kind: Samples() for kind in kinds}
    scanned = dict.fromkeys(kinds, 0)
    with bench.watching(paths) as watched:
        for _ in range(bench.settings.repeats):
            bench.make_warm(paths)
            proofs.add(float(bench.output(sys.executable, "-I", "-S", script, listed)))
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
    plain = proofs.row(NAME, "open and stat of each path, plain loop", count)
    yield plain
    beside = dict.fromkeys(kinds, Beside("the plain loop", plain.median))
    if walk is not None:
        beside[_COLD] = Beside("os.scandir, cold", walk)
    for kind in kinds:
        yield samples[kind].row(
            NAME,
            kind,
            count,
            beside=beside[kind],
            note=f"{scanned[kind]:,} scanned" if scanned[kind] else "",
        )
    if bench.full_size:
        yield from _goals(count, samples, beside)


def _goals(count: int, samples: dict[str, Samples], beside: dict[str, Beside]) -> Iterator[Figure]:
    for kind, limit in _GOAL_TIMES.items():
        if kind in samples and count in _GOAL_WATCHES[kind]:
            got = samples[kind].row(NAME, kind).median / beside[kind].seconds
            what = f"{count:,} watches {kind}, of {beside[kind].name}"
            yield Goal(NAME, what, limit, got, "times")
    if _COLD in samples and count <= _SCAN_GOAL_WATCHES:
        peak = samples[_COLD].peak_bytes / 1e6
        yield Goal(NAME, f"peak memory, {count:,} watches, one scan", _SCAN_GOAL_MB, peak, "MB")
