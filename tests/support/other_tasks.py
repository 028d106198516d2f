"""Tasks that CRIU cannot dump for a reason that has nothing to do with watches.

Each is a Python program that takes one resource, then makes the file `ready`, and waits.

Sources: criu(8), OPTIONS of dump.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PROGRAMS", "other_task"]

_TCP = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer = server.accept()[0]
"""
_UNIX = """
import socket
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[2])
"""
_GHOST = """
file = open("ghost", "wb")
file.write(bytes(3 << 20))
file.flush()
os.unlink("ghost")
"""
_LINK_REMAP = """
open("one", "w").close()
os.link("one", "two")
file = open("one")
os.unlink("one")
"""
_LOCK = """
import fcntl
file = open("locked", "w")
fcntl.flock(file, fcntl.LOCK_EX)
"""
_DEVICE = """
file = open("/dev/fuse", "rb+", buffering=0)
"""
_IO_URING = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))
if ring < 0:
    sys.exit(f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
"""
_PIDFD = """
pidfd = os.pidfd_open(os.getppid())
"""
_QUEUE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
name = f"/irmapdb-{os.getpid()}".encode()
if libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None) < 0:
    sys.exit(f"mq_open: {os.strerror(ctypes.get_errno())}")
libc.mq_unlink(name)
"""
_NESTED = """
import ctypes
if ctypes.CDLL(None, use_errno=True).unshare(0x20000000):  # CLONE_NEWPID
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
if os.fork() == 0:
    time.sleep(1000)
"""

_SHELL_JOB = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if os.fork() == 0:
    time.sleep(1000)
"""
_SESSION_OUTSIDE = """
import ctypes
os.setsid()
if ctypes.CDLL(None, use_errno=True).unshare(0x20000000):  # CLONE_NEWPID
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
if os.fork() == 0:
    time.sleep(1000)
"""

PROGRAMS = {
    "tcp-established": _TCP,
    "unix-external": _UNIX,
    "ghost-limit": _GHOST,
    "link-remap": _LINK_REMAP,
    "file-locks": _LOCK,
    "external-device": _DEVICE,
    "io-uring": _IO_URING,
    "pidfd": _PIDFD,
    "file-mount": _QUEUE,
    "nested-namespace": _NESTED,
    "shell-job": _SHELL_JOB,
    "session-outside": _SESSION_OUTSIDE,
}
"""The program by the name of the cause."""
_THE_CHILD = {"shell-job", "session-outside"}
"""The cases in which the child is dumped: its session has another leader."""

_FRAME = """
import os, sys, time
os.chdir(sys.argv[1])
{program}
open("ready", "w").close()
time.sleep(1000)
"""
_PATIENCE_S = 30


@contextmanager
def other_task(name: str, directory: Path, unix_socket: Path) -> Iterator[int]:
    """The PID of the task to dump; `unix_socket` is the socket that `unix-external` connects to.

    No task depends on the session of this process, whose leader may be outside the PID namespace.
    Their stdio is on /dev/null, except for `shell-job`: its terminal belongs to this process.
    Raises AssertionError with the task's last words if it ends at once.
    """
    directory.mkdir(exist_ok=True)
    master, slave = pty.openpty()
    stdio = slave if name == "shell-job" else subprocess.DEVNULL
    program = _FRAME.format(program=PROGRAMS[name])
    words = directory / "words"
    with words.open("wb") as stderr:
        task = subprocess.Popen(
            [sys.executable, "-IS", "-c", program, directory, unix_socket],
            start_new_session=name != "session-outside",
            stdin=stdio,
            stdout=stdio,
            stderr=stdio if name == "shell-job" else stderr,
        )
    try:
        end_s = time.monotonic() + _PATIENCE_S
        while not (directory / "ready").exists():
            assert task.poll() is None, words.read_text()
            assert time.monotonic() < end_s, "it is not ready"
            time.sleep(0.01)
        yield _children(task.pid)[0] if name in _THE_CHILD else task.pid
    finally:
        children = _children(task.pid) if task.poll() is None else []
        for pid in (*children, task.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        task.wait()
        for fd in (master, slave):
            os.close(fd)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return list(map(int, file.read().split()))
