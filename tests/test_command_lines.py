"""The command lines of processes: any bytes, any length, and one that does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from irmapdb.kernel.proc import command_lines, procfs
from irmapdb.kernel.proc.command_lines import MOST_BYTES, read_command_lines

if TYPE_CHECKING:
    from pathlib import Path


def test_a_command_line_is_the_arguments_of_the_process() -> None:
    evil = b"\x1b[2J\n\xe9"
    command = [sys.executable.encode(), b"-c", b"input()", b"a b", evil, b"x" * (2 * MOST_BYTES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + 60
        while evil not in (found := read_command_lines([process.pid]))[process.pid]:
            assert time.monotonic() < until_s, "it has not called execve"
        process.communicate(b"\n")
    assert found[process.pid] == b" ".join(command)[:MOST_BYTES]
    assert read_command_lines([process.pid]) == {}, "it has ended"
    assert read_command_lines([]) == {}


def test_a_zombie_has_none() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert read_command_lines([pid]) == {pid: b""}
    finally:
        os.waitpid(pid, 0)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc in which process 1, 2 and 4 answer, and 3 waits for a server."""
    for pid in (1, 2, 4):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(b"program\0%d\0" % pid)
    (tmp_path / "3").mkdir()
    os.mkfifo(tmp_path / "3" / "cmdline")
    monkeypatch.setattr(procfs, "ROOT", os.fspath(tmp_path))
    monkeypatch.setattr(command_lines, "_PATIENCE_S", 0.5)
    return tmp_path


def test_a_process_that_does_not_answer_hides_no_other(proc: Path) -> None:
    assert read_command_lines([1, 2, 3, 4, 5]) == {
        1: b"program 1",
        2: b"program 2",
        4: b"program 4",
    }


def test_many_that_do_not_answer_end_the_wait(proc: Path) -> None:
    for pid in range(10, 20):
        (proc / str(pid)).mkdir()
        os.mkfifo(proc / str(pid) / "cmdline")
    children = os.listdir("/proc/self/task")
    assert read_command_lines([*range(10, 20), 1]) == {}
    assert os.listdir("/proc/self/task") == children, "no thread waits on"
