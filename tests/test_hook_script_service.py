"""The script that CRIU executes asks the service: its replies, its silence, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from irmapdb.criu.hook_runs import read_runs
from irmapdb.files import replace_whole
from irmapdb.kernel.proc.tasks import read_task
from tests.support.features import require_root
from tests.support.shell_hook import (
    FAILURES,
    LINE,
    SHELLS,
    Hook,
    Searching,
    read_starttime,
    service,
)


@pytest.fixture(params=SHELLS)
def hook(request: pytest.FixtureRequest, tmp_path: Path) -> Hook:
    return Hook(tmp_path, request.param)


def test_the_service_answers(hook: Hook) -> None:
    hook.write_program()
    with service(hook, "0 3 watches: 3 proved") as requests:
        done = hook(pid=4711, CRTOOLS_IMAGE_DIR="/proc/99/fd/7")
        assert (done.returncode, done.stderr) == (0, "irmapdb-hook: 3 watches: 3 proved\n")
        hook(pid=4711)  # the second call
    assert hook.starts() == 0
    ((version, action, init, criu, criu_start, images, name),) = requests
    assert (version, action, init, images) == ("1", "pre-dump", "4711", "7")
    assert (int(criu), int(criu_start)) == (os.getpid(), read_starttime(os.getpid()))
    assert name.startswith("reply-")
    assert not list(hook.run_dir.glob("reply-*"))


@pytest.mark.parametrize(("code", "exit_code", "starts"), [(0, 0, 0), (1, 1, 0), (2, 0, 1)])
def test_the_services_code(hook: Hook, code: int, exit_code: int, starts: int) -> None:
    hook.write_program()
    with service(hook, f"{code} text"):
        assert hook().returncode == exit_code
    assert hook.starts() == starts


SEARCHED = "3 the service searches\n0 the service: 3 watches"


@pytest.mark.parametrize("state", ["missing", "no interpreter", "not executable"])
def test_a_host_without_python_waits_for_the_search(hook: Hook, state: str) -> None:
    hook.write_program()
    FAILURES[state](hook.program)
    with service(hook, SEARCHED) as requests:
        done = hook()
    assert (done.returncode, done.stderr) == (0, "irmapdb-hook: the service: 3 watches\n")
    ((_, action, *_),) = requests
    assert action == "search"
    with service(hook, "3 the service searches\n2 why"):
        hook.forget()
        done = hook()
    assert done.stderr.startswith(LINE)
    assert len(done.stderr.splitlines()) == 1


def who_has_open(directory: Path) -> set[str]:
    """The processes that have a file of this directory open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(f"{directory}/"):
                found.add(link.parent.parent.name)
    return found - {str(os.getpid())}


@pytest.mark.parametrize("trap", ["", "trap '' PIPE; "], ids=["default", "SIGPIPE ignored"])
def test_no_process_is_left(hook: Hook, trap: str) -> None:
    """No process keeps CRIU's descriptors open for 10 s."""
    with service(hook, SEARCHED):
        subprocess.run(
            ["/bin/sh", "-c", f'{trap}"$0"; exit $?', hook.script],
            env={"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": "1"},
            cwd=hook.work,
            check=True,
        )
        deadline_s = time.monotonic() + 5
        while left := who_has_open(hook.run_dir):
            assert time.monotonic() < deadline_s, left
            time.sleep(0.01)


@pytest.mark.parametrize("reply", ["", "garbage", "0x1 y", "-1 z"])
def test_a_service_that_sends_nonsense(hook: Hook, reply: str) -> None:
    hook.write_program()
    with service(hook, reply):
        assert hook().returncode == 0
    assert hook.starts() == 1


def test_a_slow_service_and_its_last_image(hook: Hook) -> None:
    require_root()
    hook.write_program()
    pid = os.getpid()
    with service(hook, None):
        hook()
        assert hook.starts() == 1  # it has no image of that tree
        hook.forget()
        (hook.run_dir / f"image-{pid}-{read_starttime(pid)}").write_bytes(b"image")
        (hook.work / "irmap-cache").write_bytes(b"old")
        done = hook()
        assert (done.returncode, hook.starts()) == (0, 1)
        assert "last is used" in done.stderr
        assert (hook.work / "irmap-cache").read_bytes() == b"image"
        (run,) = read_runs(hook.run_dir).last
        assert (run.by, run.outcome, run.pid) == ("script", "last image", pid)
        assert "last is used" in run.text
        assert [path.name for path in hook.work.iterdir()] == ["irmap-cache"]
        # In a directory that others own or can write, the script makes no file.
        (hook.work / "irmap-cache").unlink()
        for number, change in enumerate(
            (
                lambda: hook.work.chmod(0o777),
                lambda: hook.work.chmod(0o770),
                lambda: (hook.work.chmod(0o700), os.chown(hook.work, 1, 1)),
            )
        ):
            hook.forget()
            change()
            hook()
            assert hook.starts() == 2 + number
            assert list(hook.work.iterdir()) == []


def test_a_script_that_is_killed_leaves_nothing_that_is_not_removed(hook: Hook) -> None:
    require_root()
    pid = os.getpid()
    with service(hook, None):
        image = hook.run_dir / f"image-{pid}-{read_starttime(pid)}"
        image.touch()
        os.truncate(image, 64 << 30)  # takes longer than the test
        script = subprocess.Popen(
            [hook.script],
            cwd=hook.work,
            env={"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": str(pid)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not any(hook.work.iterdir()):
                assert script.poll() is None
        finally:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()
    assert any(hook.work.iterdir())
    replace_whole(hook.work / "irmap-cache", b"image")
    assert [path.name for path in hook.work.iterdir()] == ["irmap-cache"]


def test_without_a_service_no_script_blocks(hook: Hook) -> None:
    hook.write_program()
    with service(hook, "0 never read"):
        pass
    # The FIFO is left, and no service reads it: its process is gone, or another one.
    os.mkfifo(hook.run_dir / "warm.fifo")
    for starts, text in enumerate(("", "x y", "4194304 1", f"{os.getpid()} 1"), 1):
        (hook.run_dir / "warm.pid").write_text(text + "\n")
        assert hook().returncode == 0
        assert hook.starts() == starts
        hook.forget()


def test_a_stopped_service_whose_fifo_is_full(hook: Hook) -> None:
    hook.write_program()
    hook.run_dir.mkdir(mode=0o700)
    fifo = hook.run_dir / "warm.fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    stopped = subprocess.Popen(["sleep", "1000"])
    try:
        stopped.send_signal(signal.SIGSTOP)
        text = f"{stopped.pid} {read_starttime(stopped.pid)}\n"
        (hook.run_dir / "warm.pid").write_text(text)
        assert hook().returncode == 0
        assert hook.starts() == 1
        assert not list(hook.run_dir.glob("reply-*"))
    finally:
        os.close(fd)
        stopped.kill()
        stopped.wait()


def take_number(pid: int) -> subprocess.Popen[bytes] | None:
    """A process with this number; None if another process has it."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    while not Path(f"/proc/{pid}").exists():
        last.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "1000"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    return None


def has_ended(pid: int) -> bool:
    task = read_task(pid)
    return task is None or task.state == "Z"


def test_a_process_with_the_number_of_an_ended_child_is_not_killed(hook: Hook) -> None:
    require_root()
    with Searching(hook) as service:
        first = service.wait_for_sleep()
        service.say("3 the service searches")
        service.wait_for_sleep(other_than=first)
        end_s = time.monotonic() + 60
        while not has_ended(first):
            assert time.monotonic() < end_s
            time.sleep(0.01)
        other = take_number(first)  # None: this shell keeps the number of an ended child
        try:
            service.say("0 done")
            _, said = service.script.communicate(timeout=60)
            assert said == "irmapdb-hook: done\n"
            assert other is None or other.poll() is None
        finally:
            if other is not None:
                other.kill()
                other.wait()


def test_a_removed_reply_leaves_no_file(hook: Hook) -> None:
    """The service, or another hook, removes the FIFO of a script that it takes for an old one."""
    with Searching(hook) as service:
        first = service.wait_for_sleep()
        service.reply.unlink()
        service.say("3 the service searches")
        service.wait_for_sleep(other_than=first)
        service.say("0 done")
        _, said = service.script.communicate(timeout=60)
        assert said == "irmapdb-hook: done\n"
    assert not list(hook.run_dir.glob("reply-*"))


def test_a_service_that_ends_at_the_request_leaves_no_file(hook: Hook, tmp_path: Path) -> None:
    hook.write_program()
    programs = tmp_path / "bin"
    programs.mkdir()
    fifo = hook.run_dir / "warm.fifo"
    (programs / "mkfifo").write_text(f'#!/bin/sh\nrm -f {fifo}\nexec /usr/bin/mkfifo "$@"\n')
    (programs / "mkfifo").chmod(0o755)
    text = hook.script.read_text()
    assert text.count("\nPATH=") == 1
    hook.script.write_text(text.replace("\nPATH=", f"\nPATH={programs}:"))
    hook.run_dir.mkdir(mode=0o700)
    os.mkfifo(fifo)
    (hook.run_dir / "warm.pid").write_text(f"{os.getpid()} {read_starttime(os.getpid())}\n")
    done = hook()
    assert (done.returncode, done.stderr, hook.starts()) == (0, "", 1)
    assert not fifo.exists()
    assert not list(hook.run_dir.glob("reply-*"))
