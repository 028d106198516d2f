"""Calls that may never return, made in a process that can be killed.

A lookup on a FUSE or network filesystem waits for a server: another machine, or a program of a
tenant, or one of the very tasks that are to be frozen. Such a wait ends by SIGKILL alone
(request_wait_answer() of fs/fuse/dev.c), so it is made in a child that we can do without.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from irmapdb.kernel.syscalls import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_aside"]

_CHUNK_BYTES = 1 << 16
_LAST_WAIT_MS = 1000


class _Failed(NamedTuple):
    """What the child has to say instead of a result."""

    why: str


def call_aside(call: Callable[[], Any], timeout_s: float) -> Any:  # noqa: ANN401 what call gives
    """What `call` returns in a forked child. TimeoutError: it did not in time, and was killed.

    The child shares nothing back but the result, which is pickled. ChildProcessError where `call`
    raised something, or the child was killed.
    """
    readable, writable = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _in_child(call, writable, parent)
    os.close(writable)
    try:
        answer = _read_until(readable, time.monotonic() + timeout_s)
    finally:
        os.close(readable)
        _end(pid)
    if not answer:
        raise ChildProcessError("the child process ended without an answer")
    try:
        result = pickle.loads(answer)  # noqa: S301 our own child wrote it
    except (EOFError, pickle.UnpicklingError) as error:
        raise ChildProcessError("the child process was killed while it answered") from error
    if isinstance(result, _Failed):
        raise ChildProcessError(f"the child process failed: {result.why}")
    return result


def _end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # SIGCHLD is ignored, so nobody has to be reaped
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        # Whoever waits killable is gone at once. The rest is left behind: a hard NFS mount may
        # hold it for ever, and must not hold us.
        if poll.poll(_LAST_WAIT_MS):
            os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
    finally:
        os.close(pidfd)


def _in_child(call: Callable[[], Any], writable: int, parent: int) -> None:
    status = 1
    try:
        # Nobody is there to kill it if the parent is killed first.
        die_with_parent(parent)
        with os.fdopen(writable, "wb") as pipe:
            try:
                answer = call()
            except Exception as error:  # noqa: BLE001 - the parent has to hear of any
                answer = _Failed(f"{type(error).__name__}: {error}")
            pickle.dump(answer, pipe)
        status = 0
    finally:
        os._exit(status)


def _read_until(readable: int, deadline: float) -> bytes:
    chunks: list[bytes] = []
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    while True:
        left_ms = max(0, int((deadline - time.monotonic()) * 1000))
        if not poll.poll(left_ms):
            raise TimeoutError("no answer in time")
        chunk = os.read(readable, _CHUNK_BYTES)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
