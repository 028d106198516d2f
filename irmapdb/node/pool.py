"""Runs work in child processes with a time limit, so that a slow or crashing one harms no other.

A child is forked, so it has all data of its parent and starts within milliseconds. Its result comes
back through a pipe. The kernel kills it when its parent ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import sys
import time
from dataclasses import dataclass, field

from irmapdb import garbage_collector
from irmapdb.errors import IrmapError
from irmapdb.kernel.priority import be_killed_first
from irmapdb.kernel.syscalls import die_with_parent
from irmapdb.model import one_line
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["Child", "Ended", "Pool"]

_CHUNK_BYTES = 1 << 20
_RESULT_LIMIT_BYTES = 256 << 20
_MOST_FDS = 1024
_REAP_S = 0.02


@dataclass(slots=True)
class Child:
    """A child that runs."""

    kind: str
    key: Any
    pid: int
    pipe: int
    """The pipe with its result."""
    begun_s: float
    limit_s: float
    """Its time limit, from `begun_s` (time.monotonic())."""
    killed: bool = False
    data: bytearray = field(default_factory=bytearray)


class Ended(Record):
    """A child that has ended."""

    child: Child
    result: Any
    """The return value of its function; None if it did not return."""
    why: str
    """Why there is no result; "" if there is one."""
    cpu_s: float
    """CPU time of the child and of its own children."""


class Pool:
    """The children of one process."""

    def __init__(self, in_child: Callable[[str], None] = lambda _kind: None) -> None:
        """`in_child` is called in each child first, with its kind."""
        self._in_child = in_child
        self._by_pipe: dict[int, Child] = {}
        self._left: list[Child] = []

    def __iter__(self) -> Iterator[Child]:
        return iter(self._by_pipe.values())

    def __len__(self) -> int:
        return len(self._by_pipe)

    def count(self, kind: str) -> int:
        """The number of running children of a kind."""
        return sum(child.kind == kind for child in self)

    def start(
        self,
        kind: str,
        key: Any,  # noqa: ANN401 the caller's
        call: Callable[[], Any],
        *,
        limit_s: float,
        memory_bytes: int,
    ) -> Child:
        """Run `call` in a child. OSError if no process can be made."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(readable)
            os.close(writable)
            raise
        if pid == 0:
            self._run(kind, call, writable, parent, memory_bytes)
        os.close(writable)
        os.set_blocking(readable, False)
        child = Child(kind, key, pid, readable, time.monotonic(), limit_s)
        self._by_pipe[readable] = child
        return child

    def next_limit_s(self) -> float | None:
        """The time when the next child must be killed (time.monotonic()); None if none runs."""
        limits = [child.begun_s + child.limit_s for child in self if not child.killed]
        return min(limits, default=None)

    def take(self, ready: set[int]) -> list[Ended]:
        """Read from the `ready` pipes, kill children that run too long, reap ended ones."""
        now_s = time.monotonic()
        ended = []
        for child in [*self]:
            if not child.killed and now_s > child.begun_s + child.limit_s:
                self._kill(child)
                ended.append(self._end(child, f"not done in {child.limit_s:g} s"))
            elif child.pipe in ready and self._is_over(child):
                ended.append(self._end(child, ""))
        self._left = [child for child in self._left if not _reap(child)[0]]
        return ended

    def kill(self, is_meant: Callable[[Child], bool]) -> bool:
        """Kill the chosen children and forget them; returns whether there was any."""
        found = [child for child in self if is_meant(child)]
        for child in found:
            self._kill(child)
            self._end(child, "killed")
        return bool(found)

    def close(self) -> None:
        """Kill all of them."""
        for child in [*self]:
            self._kill(child)
            self._end(child, "killed")

    def _is_over(self, child: Child) -> bool:
        # Whether the pipe is at its end. A child that sends too much is killed.
        try:
            while part := os.read(child.pipe, _CHUNK_BYTES):
                child.data += part
                if len(child.data) > _RESULT_LIMIT_BYTES:
                    self._kill(child)
                    return True
        except BlockingIOError:
            return False
        return True

    def _kill(self, child: Child) -> None:
        child.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)

    def _end(self, child: Child, why: str) -> Ended:
        del self._by_pipe[child.pipe]
        os.close(child.pipe)
        # It is on its way out; one that hangs in the kernel is left to it, and reaped later.
        deadline_s = time.monotonic() + _REAP_S
        reaped, cpu_s, status = _reap(child)
        while not reaped and time.monotonic() < deadline_s:
            time.sleep(0.001)
            reaped, cpu_s, status = _reap(child)
        if not reaped:
            self._left.append(child)
        result = None
        if not why:
            try:
                result, why = pickle.loads(child.data)  # noqa: S301 our own child wrote it
            except (EOFError, pickle.UnpicklingError, ValueError):
                why = f"the child ended with status {status} and without a result"
        return Ended(child, result, why, cpu_s)

    def _run(
        self, kind: str, call: Callable[[], Any], writable: int, parent: int, memory_bytes: int
    ) -> None:
        # Never returns.
        status = 1
        try:
            die_with_parent(parent)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for other in self:
                os.close(other.pipe)
            garbage_collector.run_rarely()
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
            _limit(resource.RLIMIT_NOFILE, _MOST_FDS)
            _limit(resource.RLIMIT_CORE, 0)
            be_killed_first()  # the service itself is not large, and knows all containers
            self._in_child(kind)
            try:
                answer = call(), ""
            except Exception as error:  # noqa: BLE001 - the parent has to hear of any
                answer = None, _in_words(error)
            with os.fdopen(writable, "wb") as pipe:
                pickle.dump(answer, pipe)
            status = 0
        except BaseException:  # noqa: BLE001 a child has no caller to return to
            status = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)


def _in_words(error: Exception) -> str:
    text = str(error) if isinstance(error, IrmapError) else f"{type(error).__name__}: {error}"
    return one_line(text)[:1000]


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(which, (most, hard))


def _reap(child: Child) -> tuple[bool, float, int]:
    # Whether it is reaped, its CPU time, and how it ended.
    try:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    except ChildProcessError:
        return True, 0.0, 0
    if pid == 0:
        return False, 0.0, 0
    return True, usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status)
