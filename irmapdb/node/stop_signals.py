"""Makes SIGTERM, SIGINT and SIGHUP pollable, so that they interrupt no step of the service."""

from __future__ import annotations

import contextlib
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_readable", "stop_signals"]


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """A descriptor that can be read from when a signal has asked this process to end."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: None) for number in wanted]
    wakeup_before = signal.set_wakeup_fd(writable)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)


def is_readable(fd: int) -> bool:
    """Whether a read would not block."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
