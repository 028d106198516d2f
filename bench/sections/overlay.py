"""pre-dump on an overlay over the whole tree, from nothing and cold, beside ext4 with names known.

The layer is on the tree's own filesystem, so that both have the same files. The overlay needs no
scan: its handles give the paths in the layer.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "overlay"

_COLD = "overlay, from nothing, cold"
_BESIDE = "the tree itself, from nothing, names known"
_GOAL = {10: 1.3, 10_000: 1.5}


def measure(bench: Bench) -> Iterator[Figure]:
    """10 and 10,000 watches, as many as the tree has files for."""
    if bench.why_not_cold:
        yield Skipped(NAME, _COLD, bench.why_not_cold)
        return
    try:
        with _overlay(bench) as top:
            for count in _GOAL:
                yield from _measure(bench, top, min(count, bench.tree.files))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="backslashreplace").strip()
        yield Skipped(NAME, _COLD, said or "no overlay can be mounted")


@contextlib.contextmanager
def _overlay(bench: Bench) -> Iterator[Path]:
    place = bench.new_directory()
    for name in ("upper", "work", "top"):
        (place / name).mkdir()
    layers = f"lowerdir={bench.tree.top},upperdir={place}/upper,workdir={place}/work"
    command = ["mount", "-t", "overlay", "-o", layers, "overlay", place / "top"]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place / "top"
    finally:
        subprocess.run(["umount", "-l", place / "top"], check=True)


def _measure(bench: Bench, top: Path, count: int) -> Iterator[Figure]:
    paths = bench.tree.spread(count)
    shown = [os.fsencode(top) + path.removeprefix(os.fsencode(bench.tree.top)) for path in paths]
    samples = {_BESIDE: Samples(), _COLD: Samples()}
    scanned = 0
    for _ in range(bench.settings.repeats):
        with bench.watching(paths) as watched:
            bench.make_warm(paths)
            work = bench.new_directory()
            timing = bench.irmapdb("pre-dump", "-t", str(watched.pid), "-D", work)
            samples[_BESIDE].add_command(timing)
            bench.check(work, paths)
        with bench.watching(shown) as watched:
            bench.make_cold()
            work = bench.new_directory()
            timing = bench.irmapdb("pre-dump", "-t", str(watched.pid), "-D", work)
            samples[_COLD].add_command(timing)
            scanned = max(scanned, bench.check(work, shown).scanned)
    beside = samples[_BESIDE].row(NAME, _BESIDE, count)
    yield beside
    row = samples[_COLD].row(
        NAME,
        _COLD,
        count,
        beside=Beside(_BESIDE, beside.median),
        note=f"{scanned:,} scanned",
    )
    yield row
    if bench.full_size and row.ratio is not None:
        yield Goal(NAME, f"{count:,} watches, {_COLD}", _GOAL[count], row.ratio, "times")
        yield Goal(NAME, f"entries scanned, {count:,} watches, {_COLD}", 0, scanned, "entries")
