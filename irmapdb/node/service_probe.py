"""Asks the service as the script of the hook does, to find out whether it answers.

The request is about this very process, which is no container: the service refuses it at once.
"""

from __future__ import annotations

import os
import select
import time

from irmapdb.kernel.proc import tasks
from irmapdb.node.service_lock import ServiceLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ask_service"]

_REPLY_BYTES = 4096


def ask_service(run: Path, wait_s: float = 5.0) -> float | None:
    """The seconds until the service replied; None if it did not reply in time. OSError."""
    me = tasks.require_task(os.getpid())
    name = f"reply-{me.pid}-{me.starttime}"
    reply = run / name
    begun_s = time.monotonic()
    os.mkfifo(reply, 0o600)
    try:
        # Also for writing: else it would be at its end at once.
        fd = os.open(reply, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            line = f"1 pre-dump {me.pid} {me.pid} {me.starttime} - {name}\n"
            if not ServiceLock(run).request(line.encode()):
                return None
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(wait_s * 1000) or not os.read(fd, _REPLY_BYTES):
                return None
        finally:
            os.close(fd)
    finally:
        reply.unlink(missing_ok=True)
    return time.monotonic() - begun_s
