"""SIGTERM ends the tests in the way of Ctrl-C: each fixture removes all that it made.

Without it, tasks that wait at named pipes live on, and so do mounts and frozen cgroups.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["interrupt_on_sigterm"]


def interrupt_on_sigterm() -> None:
    """At SIGTERM, raise KeyboardInterrupt in this process. Forked children end at once."""
    tests = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> Never:
        if os.getpid() != tests:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
