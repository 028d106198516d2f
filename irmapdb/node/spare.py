"""Forks a child in advance, so that it can answer one request at once.

After a fork, the first write to each page copies the page, and this takes longer than all proofs of
a small container. So the child does the work once in advance, on a watch of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import time
from dataclasses import dataclass

from irmapdb import garbage_collector
from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import fdinfo, tasks
from irmapdb.kernel.proc.containers import Container, ContainerName
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import Resolved, Source, WatchKind
from irmapdb.node.answer import Reply, Request, confirm
from irmapdb.node.keep import nothing_to_keep
from irmapdb.node.look import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from irmapdb.config import Config
    from irmapdb.node.keep import Kept
    from irmapdb.node.pool import Child, Pool

__all__ = ["Spare"]

_MEMORY_BYTES = 1 << 30
_REQUEST_BYTES = 4096
_IN_DELETE_SELF = 0x400


@dataclass(frozen=True, slots=True)
class Spare:
    """A child that waits for a request."""

    knows: Mapping[tuple[int, int], Kept]
    """The containers that it knows, as they were when it was forked."""
    _child: Child
    _pipe: int
    _busy_kind: str

    @classmethod
    def start(
        cls,
        pool: Pool,
        kind: str,
        busy_kind: str,
        knows: Mapping[tuple[int, int], Kept],
        config: Config,
        answer: Callable[[Request, Kept], Reply],
    ) -> Spare:
        """Fork one; from its request on it has the `busy_kind`. OSError if that fails."""
        readable, writable = os.pipe2(os.O_CLOEXEC)

        def wait() -> Reply:
            os.close(writable)
            garbage_collector.stop()
            with contextlib.suppress(Exception):  # then the answer is only slower
                _rehearse(config)
            data = os.read(readable, _REQUEST_BYTES)
            if not data:
                os._exit(0)  # not needed any more
            request, key = pickle.loads(data)  # noqa: S301 our parent wrote it
            return answer(request, knows[key])

        try:
            child = pool.start(kind, None, wait, limit_s=math.inf, memory_bytes=_MEMORY_BYTES)
        except OSError:
            os.close(writable)
            raise
        finally:
            os.close(readable)
        return cls(knows, child, writable, busy_kind)

    def ask(self, request: Request, key: tuple[int, int], limit_s: float) -> None:
        """Give it its only request."""
        child = self._child
        child.kind, child.key = self._busy_kind, (request, key)
        child.begun_s, child.limit_s = time.monotonic(), limit_s
        with contextlib.suppress(BrokenPipeError):  # killed: the pool reports it
            os.write(self._pipe, pickle.dumps((request, key)))
        os.close(self._pipe)

    def close(self) -> None:
        """End it, if it is not needed any more."""
        os.close(self._pipe)


def _rehearse(config: Config) -> None:
    # One watch of this process on a directory of ours.
    me = tasks.require_task(os.getpid())
    path = os.fsencode(os.path.realpath(config.warm.directory))
    with Descriptor(syscalls.inotify_init()) as inotify:
        syscalls.inotify_add_watch(inotify, path, _IN_DELETE_SELF)
        raw = fdinfo.read_raw(me.pid, inotify, WatchKind.INOTIFY)
        assert raw is not None  # noqa: S101 it is open
        (watch,) = raw.parse().watches
        name = ContainerName("rehearsal", "rehearsal")
        container = Container(name, me.pid, me.starttime, 0, (), (me.pid,))
        answers = (Resolved(watch.identity, path, Source.STORED),)
        kept = nothing_to_keep(Seen(container, b"", 1, 0.0))._replace(answers=answers)
        confirm(kept, config)
