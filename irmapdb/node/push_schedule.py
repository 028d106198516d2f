"""Starts `irmapdb fleet push` at an interval, as a program in a child of the service.

The service imports no module of the push, and never waits for it. If the server does not answer,
the service kills the child after a time. The next push sends the rows that this one did not.
"""

from __future__ import annotations

import os
import subprocess
import time

from irmapdb.kernel.syscalls import die_with_parent
from irmapdb.log import Log
from irmapdb.node.state import PUSH
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from irmapdb.node.pool import Ended
    from irmapdb.node.state import State

__all__ = ["PushSchedule"]

_log = Log(__name__)

_LIMIT_S = 600.0
_MEMORY_BYTES = 2 << 30
_FIRST_S = 10.0
"""After the start: the containers are proved first."""
_DONE = {0, 3}


class _Outcome(Record):
    code: int
    said: str
    """The last line on stderr."""


class PushSchedule:
    """Starts the pushes, if the configuration names a server."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._command = state.options.push_command
        self._interval_s = state.options.config.fleet.interval_s
        self._next_s = time.monotonic() + min(_FIRST_S, self._interval_s)
        self._at_s: float | None = None
        self._problem = ""

    def start(self) -> None:
        """Start a push if it is time, and none runs."""
        if not self._command or time.monotonic() < self._next_s or self._state.pool.count(PUSH):
            return
        self._next_s = time.monotonic() + self._interval_s
        try:
            self._state.pool.start(
                PUSH,
                None,
                lambda: _push(self._command),
                limit_s=_LIMIT_S,
                memory_bytes=_MEMORY_BYTES,
            )
        except OSError as error:
            self._note(f"no child: {error.strerror}")

    def wait_s(self) -> float | None:
        """The time until the next push; None: there is none, or one runs."""
        if not self._command or self._state.pool.count(PUSH):
            return None
        return max(self._next_s - time.monotonic(), 0.0)

    def take(self, ended: Ended) -> None:
        """A push has ended."""
        outcome: _Outcome | None = ended.result
        if outcome is None:
            self._note(ended.why)
        elif outcome.code not in _DONE:
            self._note(outcome.said or f"exit code {outcome.code}")
        else:
            self._at_s = time.time()
            self._note("")

    def status(self) -> dict[str, Any] | None:
        """The state for `irmapdb warm --status`; None without a server."""
        if not self._command:
            return None
        return {"pushed_at": self._at_s, "problem": self._problem}

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:  # once, and not at each interval
            _log.warning("push: %s", problem)
        self._problem = problem


def _push(command: Sequence[str]) -> _Outcome:
    parent = os.getpid()
    done = subprocess.run(  # noqa: S603 our own program
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        preexec_fn=lambda: die_with_parent(parent),
    )
    lines = done.stderr.decode("utf-8", "backslashreplace").splitlines()
    return _Outcome(done.returncode, lines[-1] if lines else "")
