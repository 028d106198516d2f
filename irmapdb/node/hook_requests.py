"""Answers the requests of the hook, each in a child that is forked in advance if possible."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter

from irmapdb import garbage_collector
from irmapdb.criu.hook_runs import HookRun, append_run
from irmapdb.errors import FileError
from irmapdb.log import Log
from irmapdb.node.answer import (
    DONE,
    NOT_SERVED,
    SEARCHES,
    Reply,
    Request,
    answer,
    parse_request,
    send,
)
from irmapdb.node.spare import Spare
from irmapdb.node.state import ANSWER, SPARE
from irmapdb.node.whole_search import search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.node.keep import Kept
    from irmapdb.node.pool import Ended
    from irmapdb.node.state import State

__all__ = ["HookRequests"]

_log = Log(__name__)

_ANSWER_LIMIT_S = 2.0
"""The time limit of an answer. The script waits for a shorter time."""
_SEARCH_LIMIT_S = 9.5
"""The same if the script has no program to start; `whole_search` ends before."""
_ANSWER_MEMORY_BYTES = 1 << 30
_MOST_ANSWERED_AT_ONCE = 16
_AFTER_REQUEST_S = 30.0
"""After a request, the service does not work on the container for this time: CRIU does."""
_REQUEST_BYTES = 1 << 16


class HookRequests:
    """Reads the requests of the hook, and starts children that answer them."""

    def __init__(self, state: State) -> None:
        self.answers: Counter[int] = Counter()
        """The number of replies, by their codes."""
        self._state = state
        self._unread = b""
        self._spare: Spare | None = None

    def read(self, fifo: int) -> None:
        """Read requests from the FIFO, which does not block, and start their answers."""
        try:
            self._unread += os.read(fifo, _REQUEST_BYTES)
        except BlockingIOError:
            return
        *lines, self._unread = self._unread.split(b"\n")
        self._unread = self._unread[-_REQUEST_BYTES:]
        for line in lines:
            request = parse_request(line)
            if request is not None:
                self._take_request(request)

    def _take_request(self, request: Request) -> None:
        known = self._state.find(request.pid)
        if (known is None or known.kept is None) and not request.alone:
            self._refuse(request, "the tree is not known yet")
        elif self._state.pool.count(ANSWER) >= _MOST_ANSWERED_AT_ONCE:
            self._refuse(request, "too many requests at once")
        else:
            if known is not None:
                # A child that works on it may have its database open, or a directory in it.
                known.retry_s = time.monotonic() + _AFTER_REQUEST_S
                self._state.stop_work(known)
            self._start_answer(request, known.kept if known is not None else None)

    def _refuse(self, request: Request, why: str) -> None:
        send(self._state.run, request.reply, Reply(NOT_SERVED, why))

    def _start_answer(self, request: Request, kept: Kept | None) -> None:
        key = kept.container.key if kept is not None else None
        limit_s = _SEARCH_LIMIT_S if request.alone else _ANSWER_LIMIT_S
        spare, self._spare = self._spare, None
        if spare is not None and key is not None and spare.knows.get(key) is kept:
            spare.ask(request, key, limit_s)
            return
        self._spare = spare
        try:
            child = self._state.pool.start(
                ANSWER,
                (request, key),
                lambda: self._answer(request, kept),
                limit_s=limit_s,
                memory_bytes=_ANSWER_MEMORY_BYTES,
            )
        except OSError as error:
            self._refuse(request, f"no child: {error.strerror}")
        else:
            _log.debug("request of %d: child %d", request.pid, child.pid)

    def _answer(self, request: Request, kept: Kept | None) -> Reply:
        # In the child.
        garbage_collector.stop()
        config, run = self._state.options.config, self._state.run

        def tell(reply: Reply) -> None:
            send(run, request.reply, reply)

        if not request.alone and kept is not None:
            return answer(request, kept, config, run, tell)
        begun_s = time.monotonic()
        # First of all: without this, the script would wait only as long as for an answer.
        tell(Reply(SEARCHES, "the service searches"))
        if kept is not None:
            # If it cannot serve the request, the search does.
            reply = answer(
                request,
                kept,
                config,
                run,
                lambda reply: None if reply.code == NOT_SERVED else tell(reply),
            )
            if reply.code != NOT_SERVED:
                return reply
        return search(request, config, run, tell, begun_s)

    def take_answered(self, ended: Ended) -> None:
        """Count a reply; send one if the child has not sent any."""
        request, key = ended.child.key
        reply = ended.result
        if reply is None:
            reply = Reply(NOT_SERVED, ended.why, changed=True)
            send(self._state.run, request.reply, reply)
        _log.info("task %d: %d %s", request.pid, reply.code, reply.text)
        self.answers[reply.code] += 1
        if reply.code == DONE:
            self._note_run(request, reply, time.monotonic() - ended.child.begun_s)
        if reply.changed and key in self._state.known:
            self._state.known[key].touched = True

    def _note_run(self, request: Request, reply: Reply, lived_s: float) -> None:
        # For `irmapdb hook --status`. The hook or its script notes the others.
        known = self._state.find(request.pid)
        container = known.container.name.id if known is not None else ""
        run = HookRun(
            time.time(),
            "service",
            "done",
            reply.took_s or lived_s,
            reply.paused,
            reply.watches,
            reply.resolved,
            request.pid,
            container,
            reply.work,
            reply.text,
        )
        with contextlib.suppress(OSError, FileError):
            append_run(self._state.run.path, run)

    def drop_spare(self) -> None:
        """The child that was forked beforehand has ended."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def renew_spare(self) -> None:
        """Keep a child ready with our present data, so that a request does not wait for a fork."""
        state = self._state
        knows = {key: one.kept for key, one in state.known.items() if one.kept is not None}
        if self._spare is not None:
            if self._spare.knows == knows:
                return
            state.pool.kill(lambda child: child.kind == SPARE)
            self.drop_spare()
        if knows:
            with contextlib.suppress(OSError):
                self._spare = Spare.start(
                    state.pool, SPARE, ANSWER, knows, state.options.config, self._answer
                )
