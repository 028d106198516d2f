"""Runs the service: it looks at the containers at intervals, and proves changed paths.

The process itself only schedules and remembers. Each look and each container's work runs in a child
at idle priority (`pool`). The CPU time of looks and of all work is limited.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from irmapdb.errors import FileError
from irmapdb.kernel.priority import be_idle
from irmapdb.log import Log
from irmapdb.node import databases
from irmapdb.node.cpu_budget import CpuBudget
from irmapdb.node.hook_requests import HookRequests
from irmapdb.node.look_schedule import LookSchedule
from irmapdb.node.metrics_requests import MetricsRequests
from irmapdb.node.pool import Pool
from irmapdb.node.push_schedule import PushSchedule
from irmapdb.node.rundir import RunDirectory
from irmapdb.node.service_lock import ServiceLock
from irmapdb.node.state import (
    ANSWER,
    KEEP,
    LOOK,
    METRICS,
    PUSH,
    SLOW,
    SPARE,
    VERDICTS,
    VERIFY,
    ServiceOptions,
    State,
)
from irmapdb.node.status import notify, status_document
from irmapdb.node.stop_signals import is_readable, stop_signals
from irmapdb.node.work_schedule import WorkSchedule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from irmapdb.node.pool import Ended

__all__ = ["Service", "ServiceOptions"]

_log = Log(__name__)

_SLEEP_S = 60.0
_CALM_S = 2.0


class Service:
    """The service. A context manager that acquires and releases its resources."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._stack = contextlib.ExitStack()
        self._pool = Pool(self._in_child)
        self._begun_at_s = time.time()
        self._own_fds: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._run = RunDirectory(self._options.run)
            self._lock = self._stack.enter_context(ServiceLock(self._run.path))
            self._state = State(self._options, self._run, self._pool)
            databases.make_directory(self._state.settings.directory)
            self._stack.enter_context(self._state.monitor)
            self._run.remove_work()
            self._stack.callback(self._run.remove_work)
            self._stack.callback(self._pool.close)
        except BaseException:
            self._stack.close()
            raise
        self._budget = CpuBudget(self._state.settings.share)
        self._looks = LookSchedule(self._state)
        self._work = WorkSchedule(self._state, self._budget)
        self._requests = HookRequests(self._state)
        self._metrics = MetricsRequests(self._state, self._status)
        self._pushes = PushSchedule(self._state)
        self._takers: dict[str, Callable[[Ended], None]] = {
            LOOK: self._looks.take,
            VERIFY: self._work.take_verified,
            KEEP: self._work.take_kept,
            SLOW: self._work.take_kept,
            ANSWER: self._requests.take_answered,
            SPARE: lambda _: self._requests.drop_spare(),
            METRICS: self._metrics.take,
            VERDICTS: self._metrics.take_check,
            PUSH: self._pushes.take,
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def once(self) -> dict[str, Any]:
        """One look, and all work that it finds; the status afterwards.

        OSError if no process can be made.
        """
        self._looks.start(everything=True)
        while len(self._pool) or self._state.queue:
            self._step(self._wait_s())
        return self._write_status()

    def run(self) -> None:
        """Look again and again, and answer the hook, until SIGTERM, SIGINT or SIGHUP."""
        with stop_signals() as stop_fd:
            self._metrics.open()
            self._stack.callback(self._metrics.close)
            fifo = self._lock.announce()
            self._own_fds = [fifo, stop_fd]
            sources = {stop_fd: lambda: None, fifo: lambda: self._requests.read(fifo)}
            notify("READY=1")
            shown_s = 0.0
            changed = True
            while not is_readable(stop_fd):
                is_look = self._looks.start_if_due()
                if not is_look and changed and self._is_calm(time.monotonic() - shown_s):
                    self._show_status()
                    self._requests.renew_spare()
                    changed, shown_s = False, time.monotonic()
                until_s = max(self._looks.wait_s(), 0.05)
                wait_s = min(self._wait_s(), until_s, _CALM_S if changed else _SLEEP_S)
                self._pushes.start()
                for left_s in (self._metrics.wait_s(), self._pushes.wait_s()):
                    wait_s = wait_s if left_s is None else min(wait_s, left_s)
                changed |= self._step(wait_s, {**sources, **self._metrics.sources()})
            notify("STOPPING=1")

    def _is_calm(self, since_s: float) -> bool:
        # Whether no work runs; or the last status is old, because work on one container may take
        # long.
        return since_s > _CALM_S or not (self._pool.count(LOOK) or self._work.is_working())

    def _step(self, wait_s: float, fds: dict[int, Callable[[], None]] | None = None) -> bool:
        # Waits for the first event and handles it. Returns whether a child has ended.
        others = fds or {}
        poll = select.poll()
        for fd in [*others, *(child.pipe for child in self._pool)]:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, wait_s) * 1000)}
        for fd in ready & others.keys():
            others[fd]()
        all_ended = self._pool.take(ready)
        for ended in all_ended:
            if ended.child.kind not in {METRICS, VERDICTS, PUSH}:
                # Clients and the server must not use up the time for the containers.
                self._budget.use(ended.cpu_s)
            self._takers[ended.child.kind](ended)
        self._work.start()
        return bool(all_ended)

    def _wait_s(self) -> float:
        limit_s = self._pool.next_limit_s()
        wait_s = _SLEEP_S if limit_s is None else min(limit_s - time.monotonic(), _SLEEP_S)
        if self._state.queue and self._work.may_start():
            wait_s = min(wait_s, max(0.05, self._budget.over_s()))
        return wait_s

    def _in_child(self, kind: str) -> None:
        # A child that hangs in the kernel must not keep the next service from starting.
        self._lock.forget()
        for fd in self._own_fds:
            os.close(fd)
        if kind != METRICS:
            self._metrics.forget()
        if kind not in {ANSWER, SPARE}:
            be_idle()

    def _show_status(self) -> None:
        try:
            self._write_status()
        except FileError as error:  # /run is full
            _log.warning("%s", error)

    def _write_status(self) -> dict[str, Any]:
        document = self._status()
        self._run.write_status(document)
        return document

    def _status(self) -> dict[str, Any]:
        known = self._state.known.values()
        return status_document(
            [(one.container, one.seen, one.kept, one.problem) for one in known],
            begun_at_s=self._begun_at_s,
            interval_s=self._state.interval_s,
            looks=self._looks.done,
            answered=self._requests.answers,
            cpu_s=self._budget.used_s,
            push=self._pushes.status(),
        )
