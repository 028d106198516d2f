"""The service (`irmapdb warm`): its CPU time while nothing happens, and the time of its answer.

The containers are tasks in cgroups and mount namespaces of their own, each on an overlay. The
service looks at them more often than by default, so that the measure takes a minute and not an
hour: a look at every container, and in so many looks the paths on overlays are proved once more.
Its share of a core at the default interval follows from the CPU time of a look.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.cgroups import frozen
from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped
from bench.made_containers import made_containers

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from bench.figures import Timing
    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "warm"

_CONTAINERS, _A_FEW = 200, 4
_WATCHES = 50
_LOOKS, _FEW_LOOKS = 60, 4
_INTERVAL_S = 0.5
_READY_S = 1200.0
_CALM_S = 3.0
_IDLE_GOAL_PERCENT = 0.5
_ANSWER_GOAL = 1.5
_HERE = Path(__file__).parent.parent
_PYTHON = "python -c pass"
_ANSWERED = f"pre-dump in a pause, {_WATCHES} watches on overlay, answered by the service"
_LOOK, _BARE = "one look at all containers", "the same calls, bare"


class _Node(NamedTuple):
    """Containers, and a service that has proved all their paths."""

    service: subprocess.Popen[bytes]
    run: Path
    cgroup: Path
    """The parent of the cgroups of the containers."""

    def status(self) -> dict[str, Any]:
        """The status of the service; {} before its first look."""
        try:
            found: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def cpu_s(self) -> float:
        """CPU time of the service and its children."""
        stat = Path(f"/proc/{self.service.pid}/stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(bench: Bench) -> Iterator[Figure]:
    """First idle, then asked."""
    containers, looks = (_CONTAINERS, _LOOKS) if bench.full_size else (_A_FEW, _FEW_LOOKS)
    what = f"{containers} idle containers with {_WATCHES} watches each"
    if os.geteuid():
        yield Skipped(NAME, what, "making containers needs root")
        return
    with contextlib.ExitStack() as stack:
        try:
            cgroup = stack.enter_context(made_containers(bench, containers, _WATCHES))
        except OSError as error:
            yield Skipped(NAME, what, f"no container can be made here: {error}")
            return
        node = stack.enter_context(_service(bench, cgroup))
        pids = _wait_ready(node, containers)
        yield from _idle(bench, node, pids, looks, what)
        yield from _answers(bench, node)


def _idle(bench: Bench, node: _Node, pids: list[int], looks: int, what: str) -> Iterator[Figure]:
    before, used_s = node.status()["looks"], node.cpu_s()
    while (done := node.status()["looks"] - before) < looks:
        time.sleep(_INTERVAL_S / 5)
    look_s = (node.cpu_s() - used_s) / done
    bare, look = Samples(), Samples()
    for _ in range(bench.settings.repeats):
        script = str(_HERE / "bare_look.py")
        bare.add(float(bench.output(sys.executable, "-I", "-S", script, *map(str, pids))))
    look.add(look_s)
    row = bare.row(NAME, _BARE, len(pids), note="CPU time")
    yield row
    note = f"CPU time, mean of {done}, with all that follows from them"
    yield look.row(NAME, _LOOK, len(pids), beside=Beside(_BARE, row.median), note=note)
    percent = look_s / _default_interval_s(bench) * 100
    if bench.full_size:
        yield Goal(NAME, f"{what}, at the default interval", _IDLE_GOAL_PERCENT, percent, "% CPU")


def _answers(bench: Bench, node: _Node) -> Iterator[Figure]:
    from irmapdb.image.cache import decode_cache  # noqa: PLC0415 of the checkout

    script = _script(bench, node.run)
    group = node.cgroup / "c0"
    pid = int((group / "cgroup.procs").read_text())
    samples = {_PYTHON: Samples(), _ANSWERED: Samples()}
    with frozen(group):
        for _ in range(bench.settings.start_repeats):
            samples[_PYTHON].add_command(bench.time("env", sys.executable, "-c", "pass"))
            work = bench.new_directory()
            samples[_ANSWERED].add_command(_call(bench, script, pid, work))
            paths = {one.path for one in decode_cache((work / "irmap-cache").read_bytes(), "")}
            if paths != {b"/srv/d%d/file" % number for number in range(_WATCHES)}:
                raise BenchError(f"{work}: the service wrote {len(paths)} paths")
            time.sleep(_CALM_S)  # until it has a child ready for the next request
    bare = samples[_PYTHON].row(NAME, _PYTHON)
    answered = samples[_ANSWERED].row(
        NAME, _ANSWERED, _WATCHES, beside=Beside(_PYTHON, bare.median)
    )
    yield bare
    yield answered
    ratio = answered.median / bare.median
    yield Goal(NAME, f"{_ANSWERED}, of {_PYTHON}", _ANSWER_GOAL, ratio, "times")


def _call(bench: Bench, script: Path, pid: int, work: Path) -> Timing:
    # The stopwatch is CRIU: a new process each time, in the work dir.
    settings = ("CRTOOLS_SCRIPT_ACTION=pre-dump", f"CRTOOLS_INIT_PID={pid}")
    return bench.time("env", *settings, f"CRTOOLS_IMAGE_DIR={work}", script, cwd=work)


def _script(bench: Bench, run: Path) -> Path:
    from irmapdb.criu.hook_script import script_text  # noqa: PLC0415 of the checkout

    place = bench.new_directory()
    script = place / "hook"
    # No program: without an answer there is no irmap-cache.
    script.write_bytes(script_text(place / "none", config_file=place / "none", run=run))
    script.chmod(0o755)
    return script


def _default_interval_s(bench: Bench) -> float:
    sys.path.insert(0, str(bench.checkout))
    from irmapdb.config import WarmConfig  # noqa: PLC0415 of the checkout

    return WarmConfig().interval_s


@contextlib.contextmanager
def _service(bench: Bench, cgroup: Path) -> Iterator[_Node]:
    place = bench.new_directory()
    config, run = place / "irmapdb.toml", place / "run"
    config.write_text(f'[warm]\ndirectory = "{place / "databases"}"\nshare = 8\n')
    options = ("--interval", str(_INTERVAL_S), "--cgroup", f"*/{cgroup.name}/*")
    service = bench.start_irmapdb("warm", *options, "--run-dir", run, "--config", config)
    try:
        yield _Node(service, run, cgroup)
    finally:
        service.terminate()
        service.wait()


def _wait_ready(node: _Node, count: int) -> list[int]:
    # The root tasks of all containers, when each path is proved.
    end = time.monotonic() + _READY_S
    while True:
        found = node.status().get("containers", [])
        states = [(one["state"], one["resolved"]) for one in found]
        if states == [("ready", _WATCHES)] * count:
            break
        if node.service.poll() is not None or time.monotonic() > end:
            raise BenchError(f"the service has proved {states.count(('ready', _WATCHES))} of them")
        time.sleep(_INTERVAL_S)
    time.sleep(_CALM_S)
    return [one["pid"] for one in found]
