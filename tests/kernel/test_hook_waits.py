"""The hook stores its results when CRIU has ended, and the tasks run again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.freezing import until
from tests.support.hook import hook_program, log_until_stored
from tests.support.warm import write_hook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.watcher import Watcher

_LONGER_THAN_A_RUN_S = 1.5
_CRIU = """
"$0" || exit 1
: >answered
read -r line
"""


class Criu:
    """A process that executes the hook's script as CRIU does, and ends when the test ends it."""

    def __init__(self, work: Path, script: Path, pid: int) -> None:
        self._work = work
        environment = {
            **os.environ,
            "CRTOOLS_SCRIPT_ACTION": "pre-dump",
            "CRTOOLS_INIT_PID": str(pid),
        }
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _CRIU, script], cwd=work, env=environment, stdin=subprocess.PIPE
        )
        until((work / "answered").exists, "answered")

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.communicate(b"\n", timeout=60)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def has_stored(self) -> bool:
        return (self._work / "irmap.db").exists()


@pytest.fixture
def criu(watcher: Watcher, tmp_path: Path) -> Iterator[Criu]:
    watcher.add_inotify(tmp_path)
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    criu = Criu(tmp_path, write_hook(tmp_path, run, hook_program(tmp_path)), watcher.pid)
    yield criu
    criu.end()


def test_nothing_is_stored_while_criu_runs(criu: Criu, tmp_path: Path) -> None:
    assert (tmp_path / "irmap-cache").exists()
    time.sleep(_LONGER_THAN_A_RUN_S)
    assert not criu.has_stored()
    criu.end()
    assert log_until_stored(tmp_path)[-1].endswith("as run 1")


def test_nothing_is_stored_while_the_tasks_are_still_paused(
    criu: Criu, watcher: Watcher, tmp_path: Path
) -> None:
    watcher.signal(signal.SIGSTOP)
    until(lambda: watcher.state() == "T", "stopped")
    criu.end()
    time.sleep(_LONGER_THAN_A_RUN_S)
    assert not criu.has_stored()
    watcher.signal(signal.SIGCONT)
    assert log_until_stored(tmp_path)[-1].endswith("as run 1")


def test_the_results_are_stored_if_criu_has_ended_the_tasks(
    criu: Criu, watcher: Watcher, tmp_path: Path
) -> None:
    watcher.signal(signal.SIGKILL)
    criu.end()
    assert log_until_stored(tmp_path)[-1].endswith("as run 1")


def test_the_results_are_stored_if_criu_was_killed(criu: Criu, tmp_path: Path) -> None:
    criu.kill()
    assert log_until_stored(tmp_path)[-1].endswith("as run 1")
