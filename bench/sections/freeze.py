"""The part of the hook in CRIU's freeze of a small tree: `frozen_time` of stats-dump.

CRIU executes an action script in the freeze, for `post-dump`, by a fork and an exec of its own.
/bin/true in the place of the hook shows the time of these alone. CRIU 4.1.1 does it twice for a
line of a configuration file, 4.2 once.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.harness import Bench
    from tests.support.criu import Criu

__all__ = ["NAME", "measure"]

NAME = "freeze"

_GOAL = 1.05
_VERSIONS = ("4.1", "4.2")
_ROUNDS = 2
"""Dumps of each kind for one repeat of a cold start, where the benchmark is whole."""
_ALONE, _HOOK, _NOTHING = "alone", "with the hook", "with /bin/true for a hook"


def measure(bench: Bench) -> Iterator[Figure]:
    """Turn by turn, so that a busy moment of the machine hits all alike."""
    sys.path.insert(0, str(bench.checkout))
    from tests.support import packages  # noqa: PLC0415 fetches packages: only where it is asked
    from tests.support.criu import Criu  # noqa: PLC0415
    from tests.support.criu_versions import criu_of  # noqa: PLC0415

    for version in _VERSIONS if bench.full_size else _VERSIONS[:1]:
        try:
            criu = Criu(criu_of(version), packages.crit_wrapper(), version)
        except packages.RigError as error:
            yield Skipped(NAME, f"CRIU {version}", str(error))
        else:
            yield from _figures(version, _measure(bench, criu))


def _figures(version: str, samples: dict[str, Samples]) -> Iterator[Figure]:
    alone = samples[_ALONE].row(NAME, f"CRIU {version} {_ALONE}")
    yield alone
    for what in (_NOTHING, _HOOK):
        row = samples[what].row(
            NAME, f"CRIU {version} {what}", beside=Beside(f"CRIU {version} alone", alone.median)
        )
        yield row

    hook_s, nothing_s = (samples[what].median for what in (_HOOK, _NOTHING))
    what = f"frozen_time of CRIU {version} with the hook"
    yield Goal(NAME, f"{what}, of no hook", _GOAL, hook_s / alone.median, "times")
    yield Goal(NAME, f"{what}, of /bin/true for a hook", _GOAL, hook_s / nothing_s, "times")


def _measure(bench: Bench, criu: Criu) -> dict[str, Samples]:
    from tests.support.hook import hook_program, log_until_stored  # noqa: PLC0415
    from tests.support.warm import write_hook  # noqa: PLC0415
    from tests.support.watcher import Watcher  # noqa: PLC0415

    place = bench.new_directory()
    run = place / "run"
    run.mkdir(mode=0o700)
    script = write_hook(place, run, hook_program(place))
    scripts = {_ALONE: None, _NOTHING: "/bin/true", _HOOK: script}
    samples = {what: Samples() for what in scripts}
    with Watcher(pipes=place / "pipes", cwd="/") as target:
        target.add_inotify(place)
        # The first turn reads programs from disk.
        rounds = _ROUNDS if bench.full_size else 1
        for turn in range(1 + bench.settings.start_repeats * rounds):
            for what, called in scripts.items():
                config = place / "criu.conf"
                config.write_text(f"action-script {called}\n" if called else "")
                images = bench.new_directory()
                frozen_us = _dump(criu, target.pid, images, config)
                if turn:
                    samples[what].add(frozen_us / 1e6)
                if what == _HOOK:
                    log_until_stored(images)  # the next dump is not to share the core with it
                shutil.rmtree(images)
    return samples


def _dump(criu: Criu, pid: int, images: Path, config: Path) -> int:
    done = criu.dump(pid, images, options=["--config", str(config)])
    if not done.ok:
        raise BenchError(f"criu dump: {done!r}")
    return criu.stats(done)["frozen_time"]
