"""Real CRIU's own figures, alone and with the hook: the time of its irmap in the freeze.

`criu dump -R --force-irmap --irmap-scan-path TREE` with cold dentries; `frozen_time` and
`irmap_resolve` are those of CRIU's stats-dump.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Row, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.harness import Bench
    from tests.support.criu import Criu

__all__ = ["NAME", "measure"]

NAME = "criu"

_WATCHES = (1_000, 10_000)
_GOAL = 100
_OPEN = 0x20
_FIGURES = ("irmap_resolve", "frozen_time")


def measure(bench: Bench) -> Iterator[Figure]:
    """Alone, then with the hook."""
    if bench.why_not_cold:
        yield Skipped(NAME, "CRIU with cold dentries", bench.why_not_cold)
        return
    sys.path.insert(0, str(bench.checkout))
    from tests.support import packages  # noqa: PLC0415 fetches packages: only where it is asked
    from tests.support.criu import Criu  # noqa: PLC0415
    from tests.support.criu_versions import version_of  # noqa: PLC0415

    try:
        program = packages.criu_wrapper()
        criu = Criu(program, packages.crit_wrapper(), version_of(program))
    except packages.RigError as error:
        yield Skipped(NAME, "CRIU with cold dentries", str(error))
        return
    for count in _WATCHES:
        if count <= bench.settings.files:
            yield from _measure(bench, criu, count)


def _measure(bench: Bench, criu: Criu, count: int) -> Iterator[Figure]:
    from tests.support.hook import hook_program  # noqa: PLC0415
    from tests.support.watcher import Watcher  # noqa: PLC0415

    paths = bench.tree.spread(count)
    hook = hook_program(bench.new_directory())
    seconds: dict[tuple[str, str], list[float]] = {}
    pipes = bench.new_directory()
    with Watcher(pipes=pipes / "pipes", cwd="/") as target:
        target.add_many(paths, _OPEN)
        for who, script in (("CRIU alone", None), ("CRIU with the hook", hook)):
            for _ in range(1 if script is None else bench.settings.repeats):
                stats = _dump(bench, criu, target.pid, script)
                for figure in _FIGURES:
                    seconds.setdefault((who, figure), []).append(stats[figure] / 1e6)
    for figure in _FIGURES:
        alone = Row(NAME, f"{figure}, CRIU alone", count, tuple(seconds["CRIU alone", figure]))
        helped = Row(
            NAME,
            f"{figure}, CRIU with the hook",
            count,
            tuple(seconds["CRIU with the hook", figure]),
            beside=Beside("CRIU alone", alone.median),
        )
        yield alone
        yield helped
        if figure == "irmap_resolve" and bench.full_size:
            ratio = helped.median / alone.median
            yield Goal(NAME, f"irmap_resolve, {count:,} watches", 1 / _GOAL, ratio, "times")


def _dump(bench: Bench, criu: Criu, pid: int, script: Path | None) -> dict[str, int]:
    images = bench.new_directory()
    bench.make_cold()
    done = criu.dump(
        pid, images, force_irmap=True, scan_paths=[bench.tree.top], action_script=script
    )
    if not done.ok:
        raise BenchError(f"criu dump: {done!r}")
    return criu.stats(done)
