"""The downtime of a container at a checkpoint by containerd, by the container's own clock.

containerd pauses the container, then calls runc, CRIU and the hook. Three containers take turns:
one without a watch and without a hook, one with watches on its overlay and the hook, which has no
database there and starts Python, and one of the same kind that the service has made ready.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench
    from tests.support.containerd import ContainerdContainer, ContainerdDaemon

__all__ = ["NAME", "measure"]

NAME = "containerd"

_ROUNDS = 3
"""Checkpoints of each container for one repeat of the benchmark, where it is whole."""
_BARE = "standstill, no watch, no hook"
_HOOK = "standstill, 60 watches, hook"
_SERVICE = "standstill, 60 watches, hook and service"
_GOAL = {_HOOK: 1.5, _SERVICE: 1.2}
_LOOKS = 5
_WAIT_S = 60.0
_CLOCK = Path(__file__).parent.parent / "clock.py"


def measure(bench: Bench) -> Iterator[Figure]:
    """The longest gap between two looks at the clock, in `ctr containers checkpoint --task`."""
    sys.path.insert(0, str(bench.checkout))
    from tests.support import packages  # noqa: PLC0415 fetches packages: only where it is asked
    from tests.support.programs import ProgramError  # noqa: PLC0415

    what = "a container's standstill"
    missing = _missing()
    if missing:
        yield Skipped(NAME, what, missing)
        return
    try:
        rig = packages.rig()
        with contextlib.ExitStack() as stack:
            yield from _figures(_measure(bench, stack, rig))
    except (packages.RigError, ProgramError) as error:
        yield Skipped(NAME, what, str(error))


def _missing() -> str:
    from tests.support.programs import find_program  # noqa: PLC0415

    if os.geteuid():
        return "a container engine needs root"
    for program in ("containerd", "ctr", "containerd-shim-runc-v2", "runc"):
        if find_program(program) is None:
            return f"no program {program}: see tools/system-deps.sh"
    return ""


def _measure(bench: Bench, stack: contextlib.ExitStack, rig: Path) -> dict[str, Samples]:
    from tests.support.containerd import ContainerdDaemon  # noqa: PLC0415
    from tests.support.programs import SYSTEM_PATH  # noqa: PLC0415

    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    daemon = stack.enter_context(ContainerdDaemon(bench.new_directory(), path))
    clocks = {what: _start(bench, stack, daemon, what) for what in (_BARE, _HOOK, _SERVICE)}
    samples = {what: Samples() for what in clocks}
    # The first checkpoint of each reads programs and libraries from disk.
    rounds = _ROUNDS if bench.full_size else 1
    for turn in range(1 + bench.settings.repeats * rounds):
        for what, clock in clocks.items():
            seconds = clock.standstill(f"turn-{turn}")
            _await_hooks_end()  # the next checkpoint is not to share the core with it
            if turn:
                samples[what].add(seconds)
    return samples


def _await_hooks_end() -> None:
    # The hook stores its run when CRIU has gone on; containerd has removed its log by then.
    end = time.monotonic() + _WAIT_S
    while any(map(_is_hook, Path("/proc").glob("[0-9]*"))) and time.monotonic() < end:
        time.sleep(0.02)


def _is_hook(process: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(word) == b"irmapdb-hook" for word in words[:3])


def _figures(samples: dict[str, Samples]) -> Iterator[Figure]:
    bare = samples[_BARE].row(NAME, _BARE)
    yield bare
    for what, limit in _GOAL.items():
        row = samples[what].row(NAME, what, beside=Beside("neither", bare.median))
        yield row
        yield Goal(NAME, f"{what}, of neither", limit, row.median / bare.median, "times")


class _Clock:
    """A container whose program watches its own clock."""

    def __init__(self, container: ContainerdContainer, file: Path) -> None:
        self._container = container
        self._file = file

    def standstill(self, name: str) -> float:
        """The longest gap during one checkpoint, in seconds. BenchError if it failed."""
        from tests.support.programs import ProgramError  # noqa: PLC0415

        self._await_looks(_LOOKS)
        with self._file.open("r+b") as file:
            file.seek(8)
            file.write(struct.pack("=d", 0.0))
        try:
            self._container.checkpoint(name)
        except ProgramError as error:
            log = self._container.log().splitlines()
            said = [line for line in log if "Error" in line or "irmapdb-hook:" in line]
            raise BenchError(f"{error}: {said}") from error
        self._await_looks(_LOOKS)
        self._container.daemon.ctr("images", "rm", name)
        return self._read()[1]

    def _read(self) -> tuple[float, float]:
        looks, gap_s = struct.unpack("=dd", self._file.read_bytes())
        return looks, gap_s

    def _await_looks(self, more: int) -> None:
        end = time.monotonic() + _WAIT_S
        wanted = self._read()[0] + more
        while self._read()[0] < wanted:
            if time.monotonic() > end:
                raise BenchError(f"{self._container.id}: its clock stands still")
            time.sleep(0.005)


def _start(
    bench: Bench, stack: contextlib.ExitStack, daemon: ContainerdDaemon, what: str
) -> _Clock:
    from tests.support.containerd import WATCHABLE, ContainerdContainer  # noqa: PLC0415
    from tests.support.hook import hook_program  # noqa: PLC0415
    from tests.support.warm import Warm, write_hook  # noqa: PLC0415

    directory = bench.new_directory()
    file = directory / "clock"
    file.write_bytes(bytes(16))
    program = directory / _CLOCK.name
    program.write_bytes(_CLOCK.read_bytes())
    watched = [] if what == _BARE else [f"/srv/file{number}" for number in range(WATCHABLE)]
    python = [os.path.realpath(sys.executable), "-I", "-S", str(program)]
    container = stack.enter_context(
        ContainerdContainer(daemon, directory, [*python, str(file), *watched])
    )
    if what != _BARE:
        own = bench.new_directory()
        run = own / "run"
        run.mkdir(mode=0o700)
        container.call_hook(write_hook(own, run, hook_program(own)))
        if what == _SERVICE:
            run.rmdir()
            service = Warm(own, "--interval", "60")
            stack.callback(service.end)
            service.wait_for(
                lambda seen: any(
                    container.id in one["id"] and one["resolved"] == WATCHABLE for one in seen
                )
            )
    return _Clock(container, file)
