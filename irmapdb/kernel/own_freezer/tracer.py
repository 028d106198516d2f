"""Seizes, stops and holds a task tree in a thread. When the thread ends, the tasks run again.

It seizes every thread of every task while they run, asks all to stop, and searches for new tasks
until there are none. With a cgroup, the freezer is on only for a short time, as with CRIU: the
tasks go from the freezer directly to their ptrace stop.

Facts: kernel/signal.c, fs/exec.c (de_thread), kernel/cgroup/legacy_freezer.c.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

from irmapdb.errors import FreezeError, TaskError
from irmapdb.kernel.own_freezer import cgroup as cgroups
from irmapdb.kernel.own_freezer.tracees import FIRST_PAUSE_S, LONGEST_PAUSE_S, SLOW_S, Tracees
from irmapdb.kernel.proc import tasks
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from irmapdb.kernel.own_freezer.cgroup import Freezer, Guard
    from irmapdb.kernel.proc.tasks import Process, Task

__all__ = ["Frozen", "Tracer"]

_FREEZER_S = 0.25
"""The longest wait for a cgroup's freezer. With v1, execve and the freezer can wait for each other
for ever: frozen threads do not die of the SIGKILL that execve sends to them."""
_WATCH_S = 0.02
"""The interval at which the caller's thread checks the tracing thread."""
_GRACE_S = 1.0
"""The further time for the tracing thread, before the caller gives up."""


class Frozen(Record):
    """A frozen task tree."""

    pids: tuple[int, ...]
    """The whole frozen tree: the root first, parents before children, no zombies."""
    freezing_us: int
    """The time from the first seized task to the last stopped one."""
    since_ns: int
    """time.monotonic_ns() when all were stopped."""
    confirm: Callable[[], None]
    """FreezeError if the tasks are not stopped any more. The end of the block checks it too."""


class _AbandonedError(Exception):
    """The caller has left before all tasks were stopped."""


class Tracer:
    """The tracing thread, and the operations of its owner.

    No threading.Thread: that has parts in Python which an exception in the owner's thread (^C)
    can break, at its start and at its end.
    """

    def __init__(
        self,
        root: Task,
        freezer: Freezer | None,
        guard: Guard | None,
        timeout_s: float,
        hold_s: float,
    ) -> None:
        self._root = root
        self._freezer = freezer
        self._guard = guard
        self._timeout_s = timeout_s
        self._hold_s = hold_s
        self._held_too_long = False
        self._deadline = time.monotonic() + timeout_s
        # A task that another process has frozen with v1 cannot reach a ptrace stop, and need not.
        self._frozen_elsewhere = bool(freezer and not freezer.v2 and guard is None)
        self._exempt: frozenset[int] = frozenset()
        self._tracees = Tracees()
        self._outcome: Frozen | BaseException | None = None
        self._started = False
        self._tid: int | None = None
        self._done = threading.Lock()
        self._done.acquire()
        self.go = threading.Lock()
        """The owner releases all tasks, once."""
        self.go.acquire()

    # In the owner's thread.

    def start(self) -> None:
        """Begin to stop the tasks."""
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            raise FreezeError(f"cannot stop {self._root.name}: {error}") from error
        self._started = True

    def wait(self) -> Frozen:
        """Wait until all tasks are stopped; FreezeError or TaskError if they do not stop."""
        while not self._done.acquire(timeout=_WATCH_S):
            self._unblock()
            self._give_up_late()
        if isinstance(self._outcome, Frozen):
            return self._outcome
        raise self._outcome or FreezeError("the thread that stops the tasks was lost")

    def confirm(self) -> None:
        """FreezeError if the tasks are not stopped any more."""
        if self._held_too_long:
            raise FreezeError(
                f"{self._root.name} and its descendants run again after {self._hold_s:g} s: "
                "a lookup or a disk did not answer in this time",
                advice="look for a mount in their tree that does not answer, or a slow disk",
            )
        if self._frozen_elsewhere and self._freezer and not cgroups.is_frozen(self._freezer):
            raise FreezeError(
                f"{self._freezer.name} was thawed by another process meanwhile",
                advice="leave it frozen, or thaw it before",
            )

    def finish(self) -> None:
        """Wait until the kernel has detached the tasks; `go` was released before."""
        self._deadline = time.monotonic()
        # Python reports the end of the thread a little before the kernel ends it and detaches the
        # tasks.
        while self._started and (
            self._tid is None or os.path.exists(f"/proc/self/task/{self._tid}")
        ):
            time.sleep(FIRST_PAUSE_S)
            self._unblock()
            self._give_up_late()

    def _unblock(self) -> None:
        # Attaching waits for execve, which waits for dead threads that we trace; or for a stopped
        # task that a v1 freezer holds. Both can only be undone from another thread.
        seizing = self._tracees.seizing
        if seizing is None or time.monotonic() - seizing[1] < _WATCH_S:
            return
        if self._guard is not None:
            self._guard.thaw()
        self._tracees.unblock()

    def _give_up_late(self) -> None:
        if time.monotonic() > self._deadline + _GRACE_S:
            seizing = self._tracees.seizing
            pid = seizing[0] if seizing else self._root.pid
            raise self._stuck(
                pid,
                f"{_describe(pid)} cannot be traced",
                "it hangs in execve, perhaps of a file on a dead network filesystem",
            )

    # In the tracing thread.

    def _run(self) -> None:
        # Signals are the caller's. SIGCHLD is not blocked: it would be kept instead of ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
        self._tid = threading.get_native_id()
        try:
            self._outcome = self._stop()
        except BaseException as error:  # noqa: BLE001 - it is raised in the owner's thread
            self._outcome = error
            self._done.release()
            return
        self._done.release()
        # A new mount may block the owner. The tasks must not stay stopped then: the end of this
        # thread detaches them.
        self._held_too_long = not self.go.acquire(timeout=self._hold_s)

    def _stop(self) -> Frozen:
        begun_ns = time.monotonic_ns()
        if self._frozen_elsewhere and self._freezer:
            if not self._comes_to_rest(self._freezer, self._deadline):
                raise FreezeError(
                    f"{self._freezer.name} is being frozen by another process and does not come to "
                    f"rest within {self._timeout_s:g} s",
                    advice="thaw it, or freeze it again",
                )
            self._exempt = frozenset(cgroups.members(self._freezer))
        fresh, _ = self._sweep()  # all run on
        if self._guard and self._freezer:
            self._guard.freeze()
            # If a task is not frozen by then, ptrace continues without the freezer, and can name
            # the task.
            limit = min(time.monotonic() + _FREEZER_S, self._deadline)
            self._comes_to_rest(self._freezer, limit)
            fresh |= self._sweep()[0]
            self._tracees.interrupt(fresh)
            self._guard.thaw()
        else:
            self._tracees.interrupt(fresh)
        self._tracees.await_stop(fresh, self._check_time)
        while True:
            fresh, pids = self._sweep()
            if not fresh:
                break
            self._tracees.interrupt(fresh)
            self._tracees.await_stop(fresh, self._check_time)
        now_ns = time.monotonic_ns()
        return Frozen(pids, (now_ns - begun_ns) // 1000, now_ns, self.confirm)

    def _comes_to_rest(self, freezer: Freezer, deadline: float) -> bool:
        pause_s = FIRST_PAUSE_S
        while not cgroups.is_frozen(freezer):
            if time.monotonic() > deadline:
                return False
            self._check_left()
            if self._guard is not None:
                # Again: v1 forgets a task that came to a ptrace stop on its way to the freezer.
                self._guard.freeze()
            if pause_s > SLOW_S:
                self._tracees.reap()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return True

    def _sweep(self) -> tuple[set[int], tuple[int, ...]]:
        """Seize every new thread of these tasks and of the processes of the tree."""
        index = tasks.children_index()
        fresh: set[int] = set()
        tree: list[int] = []
        queue = [(self._root.pid, 0)]
        seen = {self._root.pid}
        for pid, ppid in queue:  # grows as we go
            process = self._seize_process(pid, index, fresh)
            if process is None:
                continue
            if ppid and process.task.ppid != ppid:
                continue  # it has another parent now: outside of the tree, or found again in it
            if not ppid and process.task.starttime != self._root.starttime:
                break
            tree.append(pid)
            queue.extend((child, pid) for child in process.children if child not in seen)
            seen.update(process.children)
        if not tree:
            raise TaskError(f"{self._root.name} ended before it could be stopped")
        if self._freezer:
            for pid in cgroups.members(self._freezer):
                if pid not in seen:
                    self._seize_process(pid, index, fresh)
        return fresh, tuple(tree)

    def _seize_process(
        self, pid: int, index: Mapping[int, Sequence[int]] | None, fresh: set[int]
    ) -> Process | None:
        # Read the process again when all its threads are seized: their new children are traced too.
        while True:
            self._check_time(())
            process = tasks.read_process(pid, index=index)
            if process is None or process.dead:
                return None
            if pid in self._exempt:
                return process
            strange = [tid for tid in process.tids if tid not in self._tracees.held]
            taken = [tid for tid in strange if self._tracees.seize(tid, pid)]
            fresh.update(taken)
            if not taken:
                if len(strange) < len(process.tids):
                    return process
                # All about to end, or one is taking the number of the first by execve.
                time.sleep(FIRST_PAUSE_S)

    def _check_left(self) -> None:
        if self.go.acquire(blocking=False):
            raise _AbandonedError

    def _check_time(self, pending: Collection[int]) -> None:
        self._check_left()
        if time.monotonic() > self._deadline:
            tid = min(pending, default=self._root.pid)
            pid = self._tracees.held.get(tid, tid)
            raise self._stuck(
                pid,
                f"{_describe(pid, tid)} did not stop within {self._timeout_s:g} s",
                "wait until it does, or allow more time",
            )

    def _stuck(self, pid: int, message: str, advice: str) -> FreezeError:
        frozen = cgroups.find_frozen(pid)
        ours = self._freezer.path if self._freezer else None
        if frozen not in {None, ours}:
            message = f"{message}: its cgroup {frozen} is frozen"
            return FreezeError(message, advice="thaw it, or name it", remedy="freeze cgroup")
        return FreezeError(message, advice=advice)


def _describe(pid: int, tid: int | None = None) -> str:
    """`task PID (comm)`, with the known reason why it does not stop."""
    task = tasks.read_task(pid)
    text = f"task {pid}" if task is None else task.name
    where = f"/proc/{pid}/task/{tid or pid}"
    if tid not in (None, pid):
        text = f"thread {tid} of {text}"
    try:
        with open(f"{where}/wchan", "rb") as file:
            wchan = os.fsdecode(file.read())
    except OSError:
        wchan = "0"
    thread = tasks.read_thread(pid, tid or pid)
    state = "" if thread is None else f", state {thread.state}"
    return text + state + (f" in {wchan}" if wchan not in ("", "0") else "")
