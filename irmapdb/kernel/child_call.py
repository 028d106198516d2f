"""Makes a system call that may block for ever in a child process, which can be killed.

A lookup on a FUSE or network filesystem waits for a server: another machine, a program of a tenant,
or even a task of the tree. Only SIGKILL ends such a wait (request_wait_answer() of fs/fuse/dev.c),
so the lookup runs in a child that we can kill.

The child may outlive us: a hard NFS mount holds it until the server answers. So it closes every
pipe whose end another program waits for, as in `irmapdb … | jq`.
"""

from __future__ import annotations

import fcntl
import os
import select
import time

from irmapdb.kernel.syscalls import die_with_parent
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import SIGKILL
    from typing import Any, TypeVar

    _Result = TypeVar("_Result")
    _Failure = TypeVar("_Failure")
else:
    from _signal import SIGKILL  # `import signal` takes 1 ms

__all__ = ["ask_in_child", "call_in_child", "left_behind"]

_CHUNK_BYTES = 1 << 16
_LAST_WAIT_S = 1.0
_FIRST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 10e-3
_LOOK_MS = 50
"""The interval of the checks whether the time is up."""
_STANDARD = frozenset({0, 1, 2})
_left_behind: set[int] = set()
"""Children that were killed and had not ended after `_LAST_WAIT_S`."""


class _Failed(Record):
    """The child's error instead of a result."""

    why: str


def ask_in_child(
    call: Callable[[], _Result],
    failed: Callable[[str], _Failure],
    timeout_s: float,
    over: Callable[[], bool] = lambda: False,
    *,
    queueing_s: float = 0.0,
) -> _Result | _Failure:
    """The result of `call_in_child`, or, if there is none, that of `failed` with the reason.

    `failed` runs in this process. The other arguments are those of `call_in_child`.
    """
    try:
        result: _Result = call_in_child(call, timeout_s, over, queueing_s=queueing_s)
    except (TimeoutError, ChildProcessError) as error:
        return failed(str(error))
    return result


def call_in_child(
    call: Callable[[], Any],
    timeout_s: float,
    over: Callable[[], bool] = lambda: False,
    *,
    queueing_s: float = 0.0,
) -> Any:  # noqa: ANN401 the result of call
    """The result of `call` in a forked child. TimeoutError if it was too slow; it is killed then.

    The time is up after `timeout_s`, or when `over` returns True. The time in which the child
    waits for a CPU does not count, up to `queueing_s`, because a busy machine is not a hang. Only
    the pickled result comes back. The child keeps only descriptors of directories, O_PATH
    descriptors, and files that are only read. ChildProcessError if `call` raised an error, or if
    the child could not be made or was killed.
    """
    _reap_left_behind()
    readable, writable = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(readable)
        os.close(writable)
        raise ChildProcessError(f"no child process: fork: {error.strerror}") from error
    if pid == 0:
        _in_child(call, writable, parent)
    os.close(writable)
    try:
        queued = (lambda: min(_queued_s(pid), queueing_s)) if queueing_s else (lambda: 0.0)
        answer = _read_until(readable, time.monotonic() + timeout_s, over, queued)
    finally:
        os.close(readable)
        _end(pid)
    if not answer:
        raise ChildProcessError("the child process ended without an answer")
    import _pickle as pickle  # noqa: PLC0415 pickle itself takes 5 ms, which a pause waits for

    try:
        result = pickle.loads(answer)  # our own child wrote it
    except (EOFError, pickle.UnpicklingError) as error:
        raise ChildProcessError("the child process was killed while it answered") from error
    if isinstance(result, _Failed):
        raise ChildProcessError(f"the child process failed: {result.why}")
    return result


def left_behind() -> frozenset[int]:
    """The children that were killed and still wait for a server."""
    _reap_left_behind()
    return frozenset(_left_behind)


def _end(pid: int) -> None:
    # Until we wait for it, the pid belongs to the child. No pidfd: a sandbox may deny it.
    try:
        os.kill(pid, SIGKILL)
        # A child in a killable wait ends at once. We leave any other child behind: a hard NFS mount
        # may block it for ever, and must not block us.
        deadline = time.monotonic() + _LAST_WAIT_S
        pause_s = _FIRST_PAUSE_S
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= deadline:
                _left_behind.add(pid)
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    except (ProcessLookupError, ChildProcessError):
        return  # SIGCHLD is ignored, so the kernel has reaped it


def _reap_left_behind() -> None:
    # Else each child stays a zombie until this process ends.
    for pid in tuple(_left_behind):
        try:
            ended = os.waitpid(pid, os.WNOHANG) != (0, 0)
        except ChildProcessError:
            ended = True
        if ended:
            _left_behind.discard(pid)


def _close_inherited(kept: int) -> None:
    # Replaced, not closed: a new file would get the number of a file that another part of the
    # program still writes to. No stat, because that may wait for the server too.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in {kept, null} and (fd in _STANDARD or not _is_only_looked_at(fd)):
            os.dup2(null, fd, inheritable=fd in _STANDARD)


def _is_only_looked_at(fd: int) -> bool:
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if flags & os.O_PATH:
            return True
        is_file = os.readlink(f"/proc/self/fd/{fd}").startswith("/")
    except OSError:
        return True  # the listing's own, which is closed by now
    return is_file and flags & os.O_ACCMODE == os.O_RDONLY


def _in_child(call: Callable[[], Any], writable: int, parent: int) -> None:
    status = 1
    _left_behind.clear()  # they are children of the parent
    try:
        # If the parent is killed first, no process would kill the child.
        die_with_parent(parent)
        _close_inherited(writable)
        with os.fdopen(writable, "wb") as pipe:
            try:
                answer = call()
            except Exception as error:  # noqa: BLE001 - the parent has to hear of any
                answer = _Failed(f"{type(error).__name__}: {error}")
            import _pickle as pickle  # noqa: PLC0415

            pickle.dump(answer, pipe)
        status = 0
    finally:
        os._exit(status)


def _queued_s(pid: int) -> float:
    # The second field of /proc/PID/schedstat (sched-stats.rst of the kernel), in ns: how long the
    # task was ready to run and did not. A kernel without CONFIG_SCHED_INFO has no such file.
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _read_until(
    readable: int, deadline: float, over: Callable[[], bool], queued_s: Callable[[], float]
) -> bytes:
    chunks: list[bytes] = []
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    while True:
        left_ms = max(0.0, (deadline + queued_s() - time.monotonic()) * 1000)
        if not poll.poll(min(left_ms, _LOOK_MS)):
            if over() or time.monotonic() >= deadline + queued_s():
                raise TimeoutError("no answer in time")
            continue
        chunk = os.read(readable, _CHUNK_BYTES)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
