"""The service as a process, and the hook's script that asks it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from irmapdb.criu.hook_script import script_text
from irmapdb.image.cache import decode_cache
from tests.support.hook import CHECKOUT, start_as_criu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["OURS", "WAIT_S", "Asked", "Warm", "write_hook"]

WAIT_S = 120.0

OURS = f"/irmapdb-{os.getpid()}-*"
"""The cgroups of the containers of this test run."""


class Warm:
    """`irmapdb warm` for the containers of the tests, with directories of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.run = directory / "run"
        config = directory / "warm.toml"
        config.write_text(f'[warm]\ndirectory = "{directory}/databases"\nshare = 8\n')
        self.options = ("--run-dir", self.run, "--config", config, *arguments)
        self._started_s = time.time()
        self.start()

    def start(self) -> None:
        """Start it; once more, after its end."""
        self._started_s = time.time()
        command = [sys.executable, "-m", "irmapdb", "warm", "--interval", "0.2"]
        options = ("--cgroup", OURS, *self.options)
        self.process = subprocess.Popen([*command, *options], cwd=CHECKOUT)

    def containers(self) -> list[dict[str, Any]]:
        """The status."""
        try:
            status = json.loads((self.run / "status.json").read_text())
        except FileNotFoundError:
            return []
        mine: bool = status["begun_at"] >= self._started_s
        return list(status["containers"]) if mine else []

    def wait_for(
        self, is_so: Callable[[list[dict[str, Any]]], bool], within_s: float = WAIT_S
    ) -> list[dict[str, Any]]:
        """Wait until the status is so."""
        deadline_s = time.monotonic() + within_s
        while not is_so(self.containers()):
            assert self.process.poll() is None, "the service has ended"
            assert time.monotonic() < deadline_s, self.containers()
            time.sleep(0.02)
        return self.containers()

    def wait_ready(self, watches: int) -> None:
        """Wait until the only container has this number of watches, each with a proved path."""
        self.wait_for(
            lambda seen: [(one["resolved"], one["state"]) for one in seen] == [(watches, "ready")]
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


class Asked(NamedTuple):
    """One call of the hook's script."""

    code: int
    said: str
    alone: bool
    """Whether the script started the program, which did nothing."""
    paths: list[bytes] | None
    """The content of `irmap-cache` in the work dir; None where there is none."""

    @classmethod
    def ask(cls, script: Path, pid: int, work: Path) -> Asked:
        """Call it as CRIU would, which is this process, with `work` as the cwd of both."""
        work.mkdir(mode=0o700, exist_ok=True)
        called = work / "called"
        called.unlink(missing_ok=True)
        script_run = start_as_criu(
            script, pid, work, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _, said = script_run.communicate()
        image = work / "irmap-cache"
        paths = None
        if image.exists():
            paths = [entry.path for entry in decode_cache(image.read_bytes(), "irmap-cache")]
        return cls(script_run.returncode, said, called.exists(), paths)


def write_hook(
    directory: Path, run: Path, program: Path | None = None, *, patient: bool = True
) -> Path:
    """The hook's script for a service in `run`.

    Without a `program` it starts one that only leaves a file behind. `patient`: it waits longer
    for the service than the installed script, because the test is not about a busy machine.
    """
    if program is None:
        program = directory / "program"
        program.write_text('#!/bin/sh\n: >"$CALLED"\n')
        program.chmod(0o755)
    script = directory / "irmapdb-hook"
    text = script_text(program, run=run)
    assert text.count(b"\nwait_s=1\n") == 1
    script.write_bytes(text.replace(b"\nwait_s=1\n", b"\nwait_s=30\n") if patient else text)
    script.chmod(0o755)
    os.chown(script, 0, 0)
    return script
