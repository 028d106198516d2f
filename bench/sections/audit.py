"""audit: every stored path proved again. Exit code 0 means that all are valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.figures import Beside, Figure, Goal, Samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "audit"
_GOAL = 1
_GOAL_WATCHES = frozenset({100_000})


def measure(bench: Bench) -> Iterator[Figure]:
    """Each number of mappings, the names known to the kernel; beside the pre-dump before it."""
    for count in bench.settings.watches:
        paths = bench.tree.spread(count)
        work = bench.new_directory()
        with bench.watching(paths) as watched:
            bench.make_warm(paths)
            before = bench.irmapdb("pre-dump", "-t", str(watched.pid), "-D", work)
            bench.check(work, paths)
        samples = Samples()
        for _ in range(bench.settings.repeats):
            samples.add_command(bench.irmapdb("audit", "-W", work))
        row = samples.row(
            NAME, "every mapping", count, beside=Beside("pre-dump from nothing", before.wall_s)
        )
        yield row
        if count in _GOAL_WATCHES:
            ratio = row.median / before.wall_s
            yield Goal(NAME, f"{count:,} mappings, of the pre-dump", _GOAL, ratio, "times")
