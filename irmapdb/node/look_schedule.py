"""Schedules the looks at the containers, and the work that they find."""

from __future__ import annotations

import contextlib
import math
import time

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.image.cache import encode_cache
from irmapdb.log import Log
from irmapdb.node import databases
from irmapdb.node.keep import nothing_to_keep
from irmapdb.node.known import RETRY_MOST_S, Known, is_touched
from irmapdb.node.look import Look, Seen, look_around
from irmapdb.node.state import LOOK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.node.pool import Ended
    from irmapdb.node.state import State

__all__ = ["LookSchedule"]

_log = Log(__name__)

_LOOK_LIMIT_S = 120.0
_LOOK_MEMORY_BYTES = 1 << 30
_UNHEARD_INTERVALS = 60
"""After this number of intervals, paths without reports of renames are proved again."""
_LOOK_SHARE = 0.02
"""The largest share of the time for looks at one container: slow looks are less frequent."""


class LookSchedule:
    """Starts the looks at the containers, and puts those that need work into the queue."""

    def __init__(self, state: State) -> None:
        self.done = 0
        """The number of successful looks."""
        self._state = state
        self._blind_keys: set[tuple[int, int]] = set()
        self._next_s = 0.0

    def wait_s(self) -> float:
        """The time until the next look, in seconds."""
        return self._next_s - time.monotonic()

    def start_if_due(self) -> bool:
        """Start a look if the interval is over and none runs; whether it is over.

        If that is not possible, log why.
        """
        if self.wait_s() > 0 or self._state.pool.count(LOOK):
            return False
        self._next_s = time.monotonic() + self._state.interval_s
        try:
            self.start()
        except OSError as error:
            _log.warning("the look at the containers failed: no child: %s", error.strerror)
        return True

    def start(self, *, everything: bool = False) -> None:
        """Start a look at all containers that are due, or at `everything`.

        OSError if no child can be made.
        """
        state = self._state
        now_s = math.inf if everything else time.monotonic()
        waits = {key for key, known in state.known.items() if known.next_look_s > now_s}

        def look() -> tuple[Look, frozenset[bytes], bool]:
            seen = look_around(state.options.cgroup, lambda one: one.key not in waits)
            return seen, state.monitor.names(), state.monitor.blind

        state.pool.start(LOOK, None, look, limit_s=_LOOK_LIMIT_S, memory_bytes=_LOOK_MEMORY_BYTES)
        # The running work may or may not have seen these renames.
        self._blind_keys = {key for key in state.known if state.is_worked_on(key)}

    def take(self, ended: Ended) -> None:
        """Take the result of a look: containers that are new, that ended, and that need work."""
        state = self._state
        if ended.result is None:
            _log.warning("the look at the containers failed: %s", ended.why)
            for known in state.known.values():
                known.touched = True  # the names that it took from the kernel are lost
            return
        self.done += 1
        look, names, blind = ended.result
        now_s = time.monotonic()
        alive = {one.container.key for one in look.seen} | set(look.skipped)
        for key in state.known.keys() - alive:
            state.forget(key)
        for seen in look.seen:
            known = state.known.setdefault(seen.container.key, Known(seen.container))
            known.container, known.seen = seen.container, seen
            known.next_look_s = now_s + min(seen.cost_s / _LOOK_SHARE, RETRY_MOST_S)
        for key, known in state.known.items():
            if blind or (names and (key in self._blind_keys or is_touched(known, names))):
                known.touched = True
            if self._is_due(known, now_s):
                state.queue.setdefault(key)
        state.run.clean(alive)
        databases.care(
            state.settings.directory,
            {known.container.name.file_stem for known in state.known.values()},
            state.settings.keep_gone,
        )

    def _is_due(self, known: Known, now_s: float) -> bool:
        kept, seen = known.kept, known.seen
        if seen is not None and seen.digest and not seen.watches:
            self._keep_nothing(known, seen)
            return False
        if seen is None or now_s < known.retry_s or self._state.is_worked_on(known.container.key):
            return False
        if kept is not None and kept.problem and now_s >= known.store_s:
            known.touched = True  # a proof of the paths alone writes no database
        if kept is None or known.touched or kept.cut or not seen.digest:
            return True
        if kept.digest != seen.digest or not self._state.run.image(*known.container.key).exists():
            return True
        # Without reports of renames, paths are proved again at intervals.
        old_s = _UNHEARD_INTERVALS * self._state.interval_s
        return kept.unheard and now_s - known.verified_s > old_s

    def _keep_nothing(self, known: Known, seen: Seen) -> None:
        # A container without watches needs no work, but an image without entries.
        if known.kept is None or known.kept.watches:
            known.kept = nothing_to_keep(seen)
            known.problem = ""
        image = self._state.run.image(*known.container.key)
        if not image.exists():
            with contextlib.suppress(FileError):
                files.replace_whole(image, encode_cache([]))
