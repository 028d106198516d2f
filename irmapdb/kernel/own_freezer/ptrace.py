"""Uses ptrace(2) on one thread at a time: attach, ask it to stop, read its state, resume it.

Facts: ptrace(2); ptrace_attach, ptrace_request and exit_ptrace in kernel/ptrace.c, ptrace_stop in
kernel/signal.c, wait_task_stopped in kernel/exit.c.

A tracee belongs to one thread of the tracer, and only that thread may call these functions (`reap`
excepted). When that thread ends for any reason, the kernel detaches every tracee. It also detaches
one that has not reached its stop yet; PTRACE_DETACH cannot do that.
"""

from __future__ import annotations

import ctypes
import enum
import os

__all__ = [
    "Phase",
    "interrupt",
    "look",
    "reap",
    "resume",
    "seize",
]

_libc = ctypes.CDLL(None, use_errno=True)

_ptrace = ctypes.CFUNCTYPE(
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_ulong,
    ctypes.c_ulong,
    use_errno=True,
)(("ptrace", _libc))

# include/uapi/linux/ptrace.h
_PTRACE_CONT = 7
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
# PTRACE_O_TRACEFORK | _TRACEVFORK | _TRACECLONE: a forking thread stops, and its child is traced.
_FOLLOW = 0x02 | 0x04 | 0x08

_WALL = 0x40000000  # also threads, and children that do not signal SIGCHLD
_WNOTHREAD = 0x20000000  # not the children and tracees of our other threads
_LOOK = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD
_REAP = os.WEXITED | os.WNOHANG | _WALL
_STOPPED = frozenset({os.CLD_TRAPPED, os.CLD_STOPPED})


def _check(result: int, tid: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"task {tid}")
    return result


class Phase(enum.Enum):
    """The state of a seized thread."""

    RUNS = enum.auto()
    """No stop yet: running, asleep in the kernel, or the first of several threads, ended."""
    STANDS = enum.auto()
    """In a stop that changes nothing for the thread: PTRACE_EVENT_STOP, a fork, group-stop."""
    SIGNALLED = enum.auto()
    """In a signal-delivery-stop: the signal reaches the thread by `resume` only."""
    DEAD = enum.auto()
    FOREIGN = enum.auto()
    """Not traced by this thread: never was, is reaped, or took another number by execve."""


def seize(tid: int) -> None:
    """PTRACE_SEIZE: attach. The thread continues; its new children are seized and stopped.

    A signal for it is held back from now on, see `look`. EPERM: not allowed, traced already, or
    a zombie; ESRCH: gone. Blocks while the task is in execve(2), and as long as a task in
    group-stop is frozen by a cgroup (v1).
    """
    _check(_ptrace(_PTRACE_SEIZE, tid, 0, _FOLLOW), tid)


def interrupt(tid: int) -> None:
    """PTRACE_INTERRUPT: ask a seized thread to stop. ESRCH: not ours.

    A system call that the thread sleeps in is restarted afterwards, as after SIGSTOP and SIGCONT;
    the few that are not (epoll_wait, sigtimedwait and others) are listed in signal(7).
    """
    _check(_ptrace(_PTRACE_INTERRUPT, tid, 0, 0), tid)


def resume(tid: int, signal: int) -> None:
    """PTRACE_CONT: end a stop, with the signal that it was for. ESRCH: not in a stop, or gone."""
    _check(_ptrace(_PTRACE_CONT, tid, 0, signal), tid)


def look(tid: int) -> tuple[Phase, int]:
    """The state of a thread, without waiting, and the signal of its stop (0: none).

    No report is consumed. If we consumed the report of a signal-delivery-stop and died before
    `resume`, the signal would be lost (wait_task_stopped clears the code that ptrace_stop reads).
    If we consumed an exit, the parent would not get it. The calling thread must have no children of
    its own: they would look like tracees.
    """
    try:
        report = os.waitid(os.P_PID, tid, _LOOK)
    except ChildProcessError:
        return Phase.FOREIGN, 0
    if report is None:
        return Phase.RUNS, 0
    if report.si_code not in _STOPPED:
        return Phase.DEAD, 0
    event, signal = report.si_status >> 8, report.si_status & 0xFF
    return (Phase.STANDS if event else Phase.SIGNALLED), signal


def reap(tid: int) -> None:
    """Reap a dead thread that is not the first of its process: only the tracer can do it.

    execve(2) in another of its threads and the end of the process wait until this is done. May
    be called from any thread of the tracer. Nothing happens if it lives or is not ours.
    """
    try:
        # Check first: wait(2) would also consume the report of a stop, with any options.
        report = os.waitid(os.P_PID, tid, _REAP | os.WNOWAIT)
        if report is not None and report.si_code not in _STOPPED:
            os.waitid(os.P_PID, tid, _REAP)
    except ChildProcessError:
        return
