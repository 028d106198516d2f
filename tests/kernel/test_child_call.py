"""A call that never returns costs only its time budget."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from irmapdb.kernel import child_call, syscalls
from irmapdb.kernel.child_call import call_in_child
from irmapdb.model import FileHandle, Identity

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_the_result_comes_back() -> None:
    identity = Identity(1, 2**64 - 1, FileHandle(1, b"\xff"))
    assert call_in_child(lambda: {identity: [b"/x" * 100_000]}, 60) == {identity: [b"/x" * 100_000]}


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A FIFO: a reader sees whether a process has it open for writing."""
    path = tmp_path / "line"
    os.mkfifo(path)
    return path


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The children that this process has forked, of which there may be others."""
    pids: list[int] = []
    fork = os.fork

    def recorded() -> int:
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", recorded)
    return pids


def is_reaped(pid: int) -> bool:
    """Whether the child has ended and was waited for."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def hang(line: Path) -> None:
    """Write a byte, keep the pipe open, and never return."""
    os.write(os.open(line, os.O_WRONLY), b".")
    time.sleep(600)


def test_a_call_that_hangs_is_killed(line: Path) -> None:
    read = os.open(line, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(read, True)
    with pytest.raises(TimeoutError):
        call_in_child(lambda: hang(line), 1)
    os.read(read, 1)
    assert os.read(read, 1) == b"", "the child is gone: no process holds the other end"
    os.close(read)


def test_waiting_for_a_cpu_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    queued = iter([0.0, *[3600.0] * 10_000])
    monkeypatch.setattr(child_call, "_queued_s", lambda _pid: next(queued))
    assert call_in_child(lambda: time.sleep(0.3) or 1, 0.05, queueing_s=3600.0) == 1


def test_waiting_for_a_cpu_has_a_limit(monkeypatch: pytest.MonkeyPatch, line: Path) -> None:
    monkeypatch.setattr(child_call, "_queued_s", lambda _pid: 3600.0)
    with pytest.raises(TimeoutError):
        call_in_child(lambda: os.open(line, os.O_RDONLY), 0.05, queueing_s=0.05)


def test_a_call_that_hangs_waits_for_no_cpu(line: Path) -> None:
    with pytest.raises(TimeoutError):
        call_in_child(lambda: os.open(line, os.O_RDONLY), 0.3, queueing_s=3600.0)


def test_the_time_that_a_task_waited_for_a_cpu() -> None:
    """Two that want the same CPU: one of them waits."""
    cpu = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nprint(flush=True)\nwhile True: pass"
    command = [sys.executable, "-I", "-S", "-c", spin]
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in "ab"
        ]
        for one in both:
            stack.callback(one.kill)
            assert one.stdout is not None
            one.stdout.readline()
        until = time.monotonic() + 60
        while not all(child_call._queued_s(one.pid) > 0.1 for one in both):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_the_time_may_be_up_sooner(line: Path) -> None:
    read = os.open(line, os.O_RDONLY | os.O_NONBLOCK)
    asked = []

    def over() -> bool:
        # As soon as the child is there.
        asked.append(1)
        try:
            return os.read(read, 1) == b"."
        except BlockingIOError:
            return False

    with pytest.raises(TimeoutError):
        call_in_child(lambda: hang(line), 3600, over)
    assert asked
    os.close(read)


def test_a_call_holds_nothing_that_others_wait_for(line: Path, tmp_path: Path) -> None:
    """A left-behind child keeps no pipe, socket, terminal or lock of ours."""
    looked_at = os.open(tmp_path, os.O_PATH)
    listed = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    table = os.open("/proc/self/mountinfo", os.O_RDONLY)
    written = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    ends = [*os.pipe(), *(end.detach() for end in socket.socketpair()), *pty.openpty()]
    inotify = syscalls.inotify_init()

    def links() -> dict[int, str]:
        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue
        return found

    before = links()
    inside = call_in_child(links, 60)
    for fd in (looked_at, listed, table):
        assert inside[fd] == before[fd]
    for fd in (0, 1, 2, written, inotify, *ends):
        assert inside[fd] == os.devnull
    for fd in (looked_at, listed, table, written, inotify, *ends):
        os.close(fd)


def test_it_works_where_pidfd_open_is_denied(
    monkeypatch: pytest.MonkeyPatch, forked: list[int]
) -> None:
    def deny(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "pidfd_open", deny)
    monkeypatch.setattr(child_call, "_LAST_WAIT_S", 60)
    assert call_in_child(lambda: 1, 60) == 1
    with pytest.raises(TimeoutError):
        call_in_child(lambda: time.sleep(600), 0.05)
    assert list(map(is_reaped, forked)) == [True, True]


def test_a_child_that_ends_late_is_reaped_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch, forked: list[int]
) -> None:
    with monkeypatch.context() as patch:
        # As a child that waits for a server of a hard NFS mount.
        patch.setattr(os, "kill", lambda *_: None)
        patch.setattr(child_call, "_LAST_WAIT_S", 0)
        with pytest.raises(TimeoutError):
            call_in_child(lambda: time.sleep(600), 0.05)
    (late,) = forked
    assert call_in_child(lambda: 1, 60) == 1
    assert not is_reaped(late)
    os.kill(late, signal.SIGKILL)
    os.waitid(os.P_PID, late, os.WEXITED | os.WNOWAIT)
    assert call_in_child(lambda: 2, 60) == 2
    assert is_reaped(late)


def test_no_child_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", fail)
    with pytest.raises(ChildProcessError, match="fork: Resource temporarily unavailable"):
        call_in_child(lambda: 1, 60)
    assert os.listdir("/proc/self/fd") == before


def test_a_call_that_fails_raises_its_error() -> None:
    def fail() -> None:
        os._exit(7)

    with pytest.raises(ChildProcessError):
        call_in_child(fail, 60)


class _Killing:
    """An object that ends the process that pickles it."""

    def __reduce__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def test_an_answer_that_is_cut_off_does_not_count() -> None:
    with pytest.raises(ChildProcessError, match="killed while it answered"):
        call_in_child(lambda: [b"x" * 1_000_000, _Killing()], 60)


def test_the_child_ends_with_its_parent(line: Path) -> None:
    asking = os.fork()
    if not asking:
        call_in_child(lambda: hang(line), 600)
        os._exit(0)
    read = os.open(line, os.O_RDONLY)
    assert os.read(read, 1) == b"."
    os.kill(asking, signal.SIGKILL)
    os.waitpid(asking, 0)
    assert os.read(read, 1) == b"", "no process holds the other end"
    os.close(read)
