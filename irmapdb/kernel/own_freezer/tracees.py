"""Seizes threads, asks them to stop, and waits until they have stopped.

Facts: ptrace(2); kernel/ptrace.c, kernel/signal.c, kernel/fork.c (wait_for_vfork_done), fs/exec.c
(de_thread).
"""

from __future__ import annotations

import contextlib
import time

from irmapdb.errors import FreezeError
from irmapdb.kernel import syscalls
from irmapdb.kernel.own_freezer import ptrace
from irmapdb.kernel.own_freezer.ptrace import Phase
from irmapdb.kernel.proc import tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["FIRST_PAUSE_S", "LONGEST_PAUSE_S", "SLOW_S", "Tracees"]

# A sleeping thread needs some microseconds until its stop; a thread in a system call needs longer.
FIRST_PAUSE_S = 20e-6
LONGEST_PAUSE_S = 2e-3
SLOW_S = 0.5e-3
"""After this pause, check the threads that have not stopped for the cause."""
_ATTEMPTS = 3

_CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h

_GONE = frozenset("ZXx")


class Tracees:
    """The threads that one thread traces. Only that thread may call it, except `unblock`."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        """The process of each seized thread, both by number."""
        self.seizing: tuple[int, float] | None = None
        """The process that is being seized, and since when (time.monotonic())."""

    def seize(self, tid: int, pid: int) -> bool:
        """Trace a thread of a process from now on; False if it has ended. FreezeError: refused."""
        self.seizing = (pid, time.monotonic())
        try:
            refusal: FreezeError | None = None
            for _ in range(_ATTEMPTS):
                try:
                    ptrace.seize(tid)
                except ProcessLookupError:
                    return False
                except PermissionError as error:
                    phase, _ = ptrace.look(tid)
                    if phase is Phase.FOREIGN:
                        refusal = _refusal(tid, pid, error)
                        if refusal is None:
                            return False
                        continue
                    # Ours since its birth.
                except OSError as error:  # ENOSYS: so may a sandbox answer
                    raise _untraceable(pid, error) from error
                self.held[tid] = pid
                return True
            raise refusal or AssertionError
        finally:
            self.seizing = None

    def interrupt(self, tids: Iterable[int]) -> None:
        """Ask threads to stop."""
        for tid in tids:
            with contextlib.suppress(ProcessLookupError):  # the next look shows it
                ptrace.interrupt(tid)

    def await_stop(self, tids: Iterable[int], check: Callable[[Collection[int]], None]) -> None:
        """Wait until threads that were asked have stopped. `check` gets those that have not."""
        pending = set(tids)
        pause_s = FIRST_PAUSE_S
        while True:
            for tid in tuple(pending):
                if self._settled(tid, pending):
                    pending.discard(tid)
            if not pending:
                return
            if pause_s > SLOW_S:
                self.reap()
                pending.intersection_update(self.held)
                # Asked again: a thread that took its process's number by execve was not asked.
                self.interrupt(pending)
                pending -= {tid for tid in tuple(pending) if self._still(tid, pending)}
            check(pending)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _settled(self, tid: int, pending: set[int]) -> bool:
        phase, number = ptrace.look(tid)
        if phase is Phase.RUNS:
            return False
        if phase is Phase.SIGNALLED:
            # On its way to a handler, and stopped before the handler's first instruction. The
            # request is renewed, because this stop may have used it up (ptrace_stop).
            with contextlib.suppress(ProcessLookupError):
                ptrace.interrupt(tid)
                ptrace.resume(tid, number)
            return False
        if phase is not Phase.STANDS:
            pid = self.held.pop(tid, tid)
            if pid != tid:
                if phase is Phase.DEAD:
                    ptrace.reap(tid)
                # Reaped by execve, or it is that one which called it: then it is the first now.
                elif pid in self.held:
                    pending.add(pid)
        return True

    def _still(self, tid: int, pending: Collection[int]) -> bool:
        """Whether a thread that does not reach its stop cannot run either."""
        pid = self.held[tid]
        task = tasks.read_thread(pid, tid)
        if task is not None and task.state in _GONE and tid == pid:
            # The first thread has ended, others have not; the kernel reports it with the last.
            del self.held[tid]
            return True
        if task is None or task.state != "D":
            return False  # the next look shows it
        # After vfork a thread sleeps until its child has other memory, and the child is stopped. A
        # child that has not stopped itself does not count, although it shares its memory.
        moving = {self.held.get(other) for other in pending}  # None: ended in this very round
        return any(
            child in self.held and child not in moving and syscalls.same_memory(tid, child)
            for child in tasks.thread_children(pid, tid)
        )

    def reap(self) -> None:
        """Reap the dead threads that we trace, because execve of their process waits for them."""
        for tid, pid in tuple(self.held.items()):
            if tid != pid and ptrace.look(tid)[0] is Phase.DEAD:
                del self.held[tid]
                ptrace.reap(tid)

    def unblock(self) -> None:
        """Reap dead threads from another thread: the tracing one may wait for execve of a process.

        That waits in turn for its dead threads that we trace.
        """
        for tid, pid in self.held.copy().items():
            if tid != pid:
                ptrace.reap(tid)


def _refusal(tid: int, pid: int, error: OSError) -> FreezeError | None:
    """Why a thread may not be seized; None if it has ended."""
    try:
        with open(f"/proc/{pid}/task/{tid}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if status[b"State"].split()[0].decode() in _GONE:
        return None
    task = tasks.read_task(pid)
    name = f"task {pid}" if task is None else task.name
    tracer_pid = int(status[b"TracerPid"])
    if tracer_pid:
        tracer = tasks.read_task(tracer_pid)
        return FreezeError(
            f"{name} is traced by {f'task {tracer_pid}' if tracer is None else tracer.name}",
            advice="a task has one tracer at most: end that one first",
        )
    return _untraceable(pid, error)


def _untraceable(pid: int, error: OSError) -> FreezeError:
    task = tasks.read_task(pid)
    name = f"task {pid}" if task is None else task.name
    return FreezeError(f"{name} may not be traced: {error.strerror}", advice=_permission())


def _permission() -> str:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
            scope = int(file.read())
    except OSError:
        scope = 0
    if scope == 3:  # noqa: PLR2004 - Documentation/admin-guide/LSM/Yama.rst
        return "kernel.yama.ptrace_scope is 3: no process may trace until the next boot"
    if scope:
        return f"run with CAP_SYS_PTRACE: kernel.yama.ptrace_scope is {scope}"
    if _may_trace_all():
        return "allow ptrace(2) in the seccomp profile or security module of this sandbox"
    return "run with CAP_SYS_PTRACE, or as the user of the task"


def _may_trace_all() -> bool:
    with open("/proc/self/status", "rb") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith(b"CapEff:"))
    return bool(effective >> _CAP_SYS_PTRACE & 1)
