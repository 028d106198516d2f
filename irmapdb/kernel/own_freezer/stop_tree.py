"""Stops a task and its descendants inside `with frozen(pid):`, and resumes them afterwards.

A thread of our own traces them (tracer.py). When that thread ends, also by kill -9, the kernel
detaches every tracee in any state.

Facts: ptrace(2), signal(7), kernel/ptrace.c.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from irmapdb.errors import FreezeError, UsageError
from irmapdb.kernel.own_freezer import cgroup as cgroups
from irmapdb.kernel.own_freezer.tracer import Frozen, Tracer
from irmapdb.kernel.proc import tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from irmapdb.kernel.own_freezer.cgroup import Freezer
    from irmapdb.kernel.proc.tasks import Task

__all__ = ["Frozen", "check", "frozen"]

_ATTEMPTS = 3
_PAUSE_S = 2e-3
# A hundred times the frozen time of a dump with 100,000 watches.
_LONGEST_HOLD_S = 30.0
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})


@contextlib.contextmanager
def frozen(
    root_pid: int,
    *,
    cgroup: Path | None = None,
    timeout_s: float = 10.0,
    hold_s: float = _LONGEST_HOLD_S,
    leave_stopped: bool = False,
) -> Iterator[Frozen]:
    """Stop a task and all of its descendants. They run again when the block ends for any reason.

    They also run again if the block takes longer than `hold_s`; the block then ends with
    FreezeError.

    With `cgroup`, its freezer keeps all tasks in it from forking meanwhile; the root task must be
    in it. A cgroup that is frozen already stays so. With `leave_stopped`, the tasks stay stopped as
    by SIGSTOP if the block ends without an exception.

    Pending signals are kept. System calls are restarted as after SIGSTOP and SIGCONT. A task that
    was stopped before stays stopped. Raises TaskError if the root does not exist; UsageError for
    this process, its ancestors, and a path that is no cgroup; FreezeError if a task is traced
    already, may not be traced or does not stop in time. No task stays stopped then.

    The root may be a child of this process. Do not call wait(2) or Popen.poll for it before the
    block has ended, because they would report the stop.
    """
    root, freezer = _admitted(root_pid, cgroup)
    with contextlib.ExitStack() as stack:
        guard = None
        if freezer is not None and not cgroups.is_held(freezer):
            with _signals_held():
                guard = stack.enter_context(cgroups.guarded(freezer))
        tracer = Tracer(root, freezer, guard, timeout_s, hold_s)
        try:
            with _signals_held():
                tracer.start()
            held = tracer.wait()
            yield held
            tracer.confirm()
            if leave_stopped:
                _leave_stopped(held.pids)
        finally:
            # One call into C, before anything else: no signal handler can run before it.
            tracer.go.release()
            with _signals_held():
                tracer.finish()
                stack.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    # ^C in the start or end of a library can break it, or can be lost there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kin() -> list[int]:
    # We and our ancestors, as far as our pid namespace shows them.
    pids: list[int] = []
    task = tasks.read_task(os.getpid())
    while task is not None and task.pid not in pids:
        pids.append(task.pid)
        task = tasks.read_task(task.ppid) if task.ppid else None
    return pids


def check(root_pid: int, *, cgroup: Path | None = None) -> None:
    """Raise the errors that `frozen` raises before it does anything."""
    _admitted(root_pid, cgroup)


def _admitted(root_pid: int, cgroup: Path | None) -> tuple[Task, Freezer | None]:
    root = tasks.require_task(root_pid)
    kin = _kin()
    if root.pid in kin:
        raise UsageError(
            f"{root.name} is this process, or has started it",
            advice="name the task to be dumped, and run this from outside of its tree",
        )
    if cgroup is None:
        return root, None
    freezer = cgroups.open_freezer(cgroup)
    _admit(freezer, root, kin)
    return root, freezer


def _admit(freezer: Freezer, root: Task, kin: Collection[int]) -> None:
    for _ in range(_ATTEMPTS):
        inside = cgroups.members(freezer)
        if root.pid in inside:
            break
        time.sleep(_PAUSE_S)  # a task in execve is not listed for a moment
    else:
        raise FreezeError(
            f"{root.name} is not in the cgroup {freezer.name}",
            advice=f"see /proc/{root.pid}/cgroup for where it is",
        )
    if any(pid in inside for pid in kin):
        raise UsageError(
            f"this process, or one that has started it, is in the cgroup {freezer.name}",
            advice="run it from another cgroup: it cannot freeze itself",
        )


def _leave_stopped(pids: Sequence[int]) -> None:
    # They are in a ptrace stop: the signal waits until they are detached.
    done: list[int] = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                done.append(pid)
                os.kill(pid, signal.SIGSTOP)
    except BaseException:
        for pid in done:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        raise
