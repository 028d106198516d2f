"""The hook: at any other action, and at `pre-dump` while a container engine has paused the tasks.

In such a pause the hook's time is the container's downtime. Each figure stands beside the start of
the smallest program that could do the work: `sh -c :` for an action that is passed over,
`python -c pass` for one that is served.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cgroups import freezer_hierarchy, frozen
from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.figures import Timing
    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "hook"

_WATCHES = 100
_OTHER_GOAL = 2
_PAUSED_GOAL = 5
_STORED_S = 60.0
_SH, _PYTHON = "sh -c :", "python -c pass"
_OTHER, _PAUSED = "another action", f"pre-dump in a pause, {_WATCHES} watches on overlay"


def measure(bench: Bench) -> Iterator[Figure]:
    """Turn by turn, so that a busy moment of the machine hits all alike."""
    if os.geteuid():
        yield Skipped(NAME, _PAUSED, "mounting an overlay and freezing a cgroup needs root")
        return
    script = _script(bench)
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(_overlay(bench.new_directory()))
        paths = [os.fsencode(top / f"d{number}" / "file") for number in range(_WATCHES)]
        watched = stack.enter_context(bench.watching(paths))
        work = bench.new_directory()
        commands: dict[str, Callable[[], Timing]] = {
            _SH: lambda: bench.time("env", "sh", "-c", ":"),
            _PYTHON: lambda: bench.time("env", sys.executable, "-c", "pass"),
            _OTHER: lambda: _call(bench, script, "post-dump", watched.pid, work),
        }
        try:
            freeze = stack.enter_context(_cgroup(watched.pid))
        except OSError as error:
            yield Skipped(NAME, _PAUSED, f"no cgroup can be frozen here: {error}")
        else:
            _call(bench, script, "pre-dump", watched.pid, work)  # the database knows them
            _await_stored(work, 1)

            def call_in_pause() -> Timing:
                with freeze():  # the hook stores its results when the pause has ended
                    return _call(bench, script, "pre-dump", watched.pid, work)

            commands[_PAUSED] = call_in_pause
        samples = {what: Samples() for what in commands}
        for turn in range(bench.settings.start_repeats):
            for what, run in commands.items():
                samples[what].add_command(run())
            if _PAUSED in commands:
                _await_stored(work, turn + 2)  # the next turn is not to share the core with it
        if _PAUSED in commands:
            bench.check(work, paths)
    yield from _figures(samples)


def _figures(samples: dict[str, Samples]) -> Iterator[Figure]:
    bare = {what: samples[what].row(NAME, what) for what in (_SH, _PYTHON)}
    yield from bare.values()
    for what, beside, limit in ((_OTHER, _SH, _OTHER_GOAL), (_PAUSED, _PYTHON, _PAUSED_GOAL)):
        if what in samples:
            row = samples[what].row(NAME, what, beside=Beside(beside, bare[beside].median))
            yield row
            got = row.median / bare[beside].median
            yield Goal(NAME, f"{what}, of {beside}", limit, got, "times")


def _script(bench: Bench) -> Path:
    # As `hook --install` writes it, for this checkout, with a run directory of its own.
    sys.path.insert(0, str(bench.checkout))
    from irmapdb.criu.hook_script import script_text  # noqa: PLC0415 of the checkout
    from tests.support.hook import hook_program  # noqa: PLC0415

    place = bench.new_directory()
    run = place / "run"
    run.mkdir(mode=0o700)
    script = place / "hook"
    script.write_bytes(
        script_text(
            hook_program(place), python=Path(sys.executable), config_file=place / "none", run=run
        )
    )
    script.chmod(0o755)
    return script


def _call(bench: Bench, script: Path, action: str, pid: int, work: Path) -> Timing:
    # A CRIU of its own for each call: what starts it here is a new process every time.
    settings = (f"CRTOOLS_SCRIPT_ACTION={action}", f"CRTOOLS_INIT_PID={pid}")
    return bench.time("env", "-C", work, *settings, f"CRTOOLS_IMAGE_DIR={work}", script)


def _await_stored(work: Path, runs: int) -> None:
    # CRIU has its answer before the database has the run.
    end = time.monotonic() + _STORED_S
    while _runs_in(work / "irmap.db") < runs:
        if time.monotonic() > end:
            raise BenchError(f"{work}: the hook has stored nothing; see irmapdb.log there")
        time.sleep(0.02)


def _runs_in(path: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM run").fetchone()[0])
    except sqlite3.Error:
        return 0


@contextlib.contextmanager
def _overlay(place: Path) -> Iterator[Path]:
    """A container's root: its files lie in a lower layer."""
    lower, upper, work, top = (place / name for name in ("lower", "upper", "work", "top"))
    for directory in (lower, upper, work, top):
        directory.mkdir()
    for number in range(_WATCHES):
        (lower / f"d{number}").mkdir()
        (lower / f"d{number}" / "file").touch()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", top], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", "--lazy", top], check=True)
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _cgroup(pid: int) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A cgroup for one task, which freezes it as an engine does. OSError if there is none."""
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    directory = freezer_hierarchy() / f"irmapdb-bench-{os.getpid()}"
    directory.mkdir()
    procs = directory / "cgroup.procs"
    try:
        procs.write_text(str(pid))
        yield functools.partial(frozen, directory)
    finally:
        (directory.parent / "cgroup.procs").write_text(str(pid))
        directory.rmdir()
