"""Schedules the work on the containers in the queue: new proofs, and repeated proofs."""

from __future__ import annotations

import os
import time

from irmapdb.errors import IrmapError
from irmapdb.log import Log
from irmapdb.model import printable
from irmapdb.node.answer import confirm
from irmapdb.node.keep import KeepOptions, Kept, keep
from irmapdb.node.known import RETRY_MOST_S, waits_for_server
from irmapdb.node.state import KEEP, SLOW, VERIFY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.config import Config
    from irmapdb.node.cpu_budget import CpuBudget
    from irmapdb.node.known import Known
    from irmapdb.node.pool import Ended
    from irmapdb.node.state import State

__all__ = ["WorkSchedule"]

_log = Log(__name__)

_QUICK_S, _LONG_S = 20.0, 240.0
"""The time limits of the work on one container; the long one is for slow containers."""
_GRACE_S = 10.0
"""The further time for writing the proved paths."""
_KEEP_MEMORY_BYTES = 2 << 30
_VERIFY_LIMIT_S = 10.0
_VERIFY_MEMORY_BYTES = 1 << 30
_MOST_VERIFIED_AT_ONCE = 16
"""The number of containers for one child: a fork takes longer than the proofs of a container."""
_MOST_AT_ONCE = {VERIFY: 2, KEEP: 2, SLOW: 1}
_MOST_ANSWERS = 200_000


class WorkSchedule:
    """Starts the work on the containers in the queue, and takes its results."""

    def __init__(self, state: State, budget: CpuBudget) -> None:
        self._state = state
        self._budget = budget

    def start(self) -> None:
        """Start as much of the work as the budget and the limits allow."""
        queue, pool = self._state.queue, self._state.pool
        for key in [*queue]:
            if self._budget.over_s() > 0:
                return
            kind = self._kind(key)
            if key not in queue or pool.count(kind) >= _MOST_AT_ONCE[kind]:
                continue
            if kind == VERIFY:
                self._start_verify(key)
            else:
                del queue[key]
                self._start_keep(kind, self._state.known[key])

    def may_start(self) -> bool:
        """Whether the limits allow to start work on a container in the queue."""
        kinds = {self._kind(key) for key in self._state.queue}
        return any(self._state.pool.count(kind) < _MOST_AT_ONCE[kind] for kind in kinds)

    def is_working(self) -> bool:
        """Whether a child works on a container, or a container waits for work."""
        return bool(self._state.queue) or any(
            child.kind in _MOST_AT_ONCE for child in self._state.pool
        )

    def _kind(self, key: tuple[int, int]) -> str:
        known = self._state.known[key]
        if known.slow:
            return SLOW
        kept, seen = known.kept, known.seen
        same = kept is not None and seen is not None and kept.digest == seen.digest
        return VERIFY if same and not known.touched else KEEP

    def _start_keep(self, kind: str, known: Known) -> None:
        state, seen = self._state, known.seen
        assert seen is not None  # noqa: S101 a container that was not seen is not due
        time_s = _LONG_S if known.slow else _QUICK_S
        options = KeepOptions(
            state.run,
            state.settings.directory,
            state.options.config,
            time_s,
            ask_servers=not waits_for_server(known),
        )
        try:
            state.pool.start(
                kind,
                known.container.key,
                lambda: (keep(seen, options, state.monitor), state.monitor.kdevs),
                limit_s=time_s + _GRACE_S,
                memory_bytes=_KEEP_MEMORY_BYTES,
            )
        except OSError as error:
            self._note_failure(known, f"no child: {error.strerror}")
        else:
            known.touched = False

    def take_kept(self, ended: Ended) -> None:
        """Take the result of the work on one container."""
        known = self._state.known.get(ended.child.key)
        if known is None:
            return  # it has ended meanwhile
        if ended.result is None:
            self._note_failure(known, ended.why)
            known.slow = known.slow or ended.child.killed
            return
        kept, kdevs = ended.result
        self._state.monitor.kdevs |= kdevs
        known.kept, known.problem = kept, kept.problem
        known.stuck = kept.stuck or known.stuck
        known.verified_s = time.monotonic()
        known.slow = kept.cut or kept.took_s > _QUICK_S / 2
        if kept.cut:
            self._note_failure(known, "not all were looked for in the time for one container")
        elif kept.problem:
            known.store_s, known.retry_s = self._next_try_s(known, kept.problem), 0.0
        else:
            known.failures, known.retry_s = 0, 0.0
        self._trim_answers()

    def _start_verify(self, first: tuple[int, int]) -> None:
        all_known, queue = self._state.known, self._state.queue
        keys = [first]
        if not all_known[first].apart:
            others = (key for key in queue if key != first and self._kind(key) == VERIFY)
            keys += (key for key in others if not all_known[key].apart)
        keys = keys[:_MOST_VERIFIED_AT_ONCE]
        for key in keys:
            del queue[key]
        remembered = [kept for key in keys if (kept := all_known[key].kept) is not None]

        def verify() -> frozenset[tuple[int, int]]:
            config = self._state.options.config
            return frozenset(kept.container.key for kept in remembered if not _holds(kept, config))

        try:
            self._state.pool.start(
                VERIFY,
                frozenset(keys),
                verify,
                limit_s=_VERIFY_LIMIT_S,
                memory_bytes=_VERIFY_MEMORY_BYTES,
            )
        except OSError as error:
            for key in keys:
                self._note_failure(all_known[key], f"no child: {error.strerror}")

    def take_verified(self, ended: Ended) -> None:
        """Take the keys of the containers with a wrong path."""
        for key in ended.child.key & self._state.known.keys():
            known = self._state.known[key]
            if ended.result is None and len(ended.child.key) > 1:
                known.apart = True  # the next child has only one container
                self._state.queue.setdefault(key)
                continue
            known.verified_s = time.monotonic()
            known.apart = ended.result is None
            if ended.result is None or key in ended.result:
                known.touched = True
                self._state.queue.setdefault(key)

    def _note_failure(self, known: Known, why: str) -> None:
        known.retry_s = self._next_try_s(known, why)
        known.touched = True

    def _next_try_s(self, known: Known, why: str) -> float:
        known.problem = why
        known.failures += 1
        wait_s: float = min(self._state.interval_s * 2 ** min(known.failures, 10), RETRY_MOST_S)
        _log.warning("%s: %s", printable(os.fsencode(known.container.name.id)), why)
        return time.monotonic() + wait_s

    def _trim_answers(self) -> None:
        # The largest are forgotten first: the database has them.
        held = [one for one in self._state.known.values() if one.kept and one.kept.answers]
        held.sort(key=lambda one: len(one.kept.answers or ()) if one.kept else 0)
        total = sum(len(one.kept.answers or ()) for one in held if one.kept)
        while total > _MOST_ANSWERS and held:
            kept = held.pop().kept
            assert kept is not None  # noqa: S101 as asked above
            total -= len(kept.answers or ())
            self._state.known[kept.container.key].kept = kept._replace(answers=None, parts=None)


def _holds(kept: Kept, config: Config) -> bool:
    # Whether every remembered path is still right.
    try:
        found = confirm(kept, config)
    except IrmapError:
        return False  # for example, it has ended
    return not (found.lost or found.new)
