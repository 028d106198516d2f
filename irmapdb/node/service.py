"""The service: looks at the containers every now and then, and makes ready what has changed.

The process itself only schedules, and remembers; each look and each container's work is a child
at idle priority (`pool`). What a look costs in CPU time, and what all work does, is bounded.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections import Counter

from irmapdb import collector, files
from irmapdb.config import Config
from irmapdb.errors import FileError, IrmapError
from irmapdb.image.cache import encode_cache
from irmapdb.kernel.priority import be_idle
from irmapdb.kernel.proc.tasks import read_task
from irmapdb.kernel.rename_monitor import RenameMonitor
from irmapdb.log import Log
from irmapdb.model import printable
from irmapdb.node import databases
from irmapdb.node.answer import NOT_SERVED, Reply, Request, answer, confirm, parse_request, send
from irmapdb.node.keep import KeepOptions, Kept, keep, nothing_to_keep
from irmapdb.node.known import Known, is_touched
from irmapdb.node.look import Look, Seen, look_around
from irmapdb.node.notify import notify
from irmapdb.node.pool import Pool
from irmapdb.node.rundir import RUN_DIRECTORY, RunDirectory
from irmapdb.node.spare import Spare
from irmapdb.node.status import status_document
from irmapdb.node.stop_signals import is_readable, stop_signals
from irmapdb.node.whole_search import search
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any, Self

    from irmapdb.node.pool import Child, Ended

__all__ = ["Service", "ServiceOptions"]

_log = Log(__name__)

_LOOK, _VERIFY, _KEEP, _SLOW = "look", "verify", "keep", "keep slow"
_ANSWER, _SPARE = "answer", "spare"
_LOOK_LIMIT_S = 120.0
_LOOK_MEMORY_BYTES = 1 << 30
_QUICK_S, _LONG_S = 20.0, 240.0
"""How long the work on one container may take; the long time for those that needed more once."""
_GRACE_S = 10.0
"""To write what was proved, after that time."""
_KEEP_MEMORY_BYTES = 2 << 30
_VERIFY_LIMIT_S = 10.0
_MOST_VERIFIED_AT_ONCE = 16
"""In one child, as to fork one takes longer than to prove the paths of one container again."""
_ANSWER_LIMIT_S = 2.0
"""The script does not wait for as long."""
_SEARCH_LIMIT_S = 9.5
"""The same if the script has no program to start; `whole_search` ends before."""
_ANSWER_MEMORY_BYTES = 1 << 30
_MOST_ANSWERED_AT_ONCE = 16
_AFTER_REQUEST_S = 30.0
"""After a request nothing else is done with its container: CRIU works on it."""
_REQUEST_BYTES = 1 << 16
_MOST_AT_ONCE = {_VERIFY: 2, _KEEP: 2, _SLOW: 1}
_SLEEP_S = 60.0
_CALM_S = 2.0
_RETRY_MOST_S = 3600.0
_UNHEARD_INTERVALS = 60
"""In every so many intervals what lies where renames are not heard is proved again."""
_LOOK_SHARE = 0.02
"""Of the time, for the looks at one container: one that takes longer is looked at less often."""
_MOST_ANSWERS = 200_000
_BURST_S = 30.0


class ServiceOptions(Record):
    """How the service works."""

    run: Path = RUN_DIRECTORY
    config: Config = Config()
    interval_s: float | None = None
    """Between two looks; None: as the configuration has it."""
    cgroup: str | None = None
    """A shell pattern for the cgroups of the root tasks; None: all containers."""


class Service:
    """The service. A context manager: takes what it needs, and gives it back."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._settings = options.config.warm
        self._interval_s = options.interval_s or self._settings.interval_s
        self._known: dict[tuple[int, int], Known] = {}
        self._queue: dict[tuple[int, int], None] = {}
        self._stack = contextlib.ExitStack()
        self._pool = Pool(self._in_child)
        self._monitor = RenameMonitor()
        self._debt_s = 0.0
        self._debt_at_s = time.monotonic()
        self._begun_at_s = time.time()
        self._looks = 0
        self._cpu_s = 0.0
        self._own_fds: list[int] = []
        self._unread = b""
        self._answers: Counter[int] = Counter()
        self._spare: Spare | None = None
        self._blind_keys: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        try:
            self._run = self._stack.enter_context(RunDirectory(self._options.run))
            self._run.lock()
            databases.make_directory(self._settings.directory)
            self._stack.enter_context(self._monitor)
            self._stack.callback(self._pool.close)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def once(self) -> dict[str, Any]:
        """One look, and all work that it finds; the status afterwards.

        OSError where no process can be made to look.
        """
        self._look(everything=True)
        while len(self._pool) or self._queue:
            self._step(self._wait_s())
        return self._write_status()

    def run(self) -> None:
        """Look again and again, and answer the hook, until SIGTERM, SIGINT or SIGHUP."""
        with stop_signals() as stop_fd:
            fifo = self._run.announce()
            self._own_fds = [fifo, stop_fd]
            sources = {stop_fd: _nothing, fifo: lambda: self._take_requests(fifo)}
            notify("READY=1")
            next_look_s = shown_s = 0.0
            changed = True
            while not is_readable(stop_fd):
                now_s = time.monotonic()
                if now_s >= next_look_s and not self._pool.count(_LOOK):
                    self._start_look()
                    next_look_s = now_s + self._interval_s
                elif changed and self._is_calm(now_s - shown_s):
                    self._show_status()
                    self._renew_spare()
                    changed, shown_s = False, time.monotonic()
                until_s = next_look_s - time.monotonic()
                wait_s = min(self._wait_s(), max(until_s, 0.05), _CALM_S if changed else _SLEEP_S)
                changed |= self._step(wait_s, sources)
            notify("STOPPING=1")

    def _is_calm(self, since_s: float) -> bool:
        # Whether nothing is being done; or it has been a while, as work on one may take long.
        working = any(child.kind in {_LOOK, *_MOST_AT_ONCE} for child in self._pool)
        return since_s > _CALM_S or not (working or self._queue)

    # --- one step ---------------------------------------------------------------------------------

    def _step(self, wait_s: float, fds: dict[int, Callable[[], None]] | None = None) -> bool:
        # Waits for whatever comes first, and deals with it. Whether a child has ended.
        others = fds or {}
        poll = select.poll()
        for child in self._pool:
            poll.register(child.pipe, select.POLLIN)
        for fd in others:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, wait_s) * 1000)}
        for fd in ready & others.keys():
            others[fd]()
        all_ended = self._pool.take(ready)
        for ended in all_ended:
            self._cpu_s += ended.cpu_s
            self._debt_s += ended.cpu_s
            if ended.child.kind == _LOOK:
                self._take_look(ended)
            elif ended.child.kind == _VERIFY:
                self._take_verified(ended)
            elif ended.child.kind == _ANSWER:
                self._take_answered(ended)
            elif ended.child.kind == _SPARE:
                self._drop_spare()
            else:
                self._take_kept(ended)
        self._start_work()
        return bool(all_ended)

    def _wait_s(self) -> float:
        limit_s = self._pool.next_limit_s()
        wait_s = _SLEEP_S if limit_s is None else min(limit_s - time.monotonic(), _SLEEP_S)
        if self._queue:
            wait_s = min(wait_s, max(0.05, self._over_budget_s()) if self._may_start() else wait_s)
        return wait_s

    def _in_child(self, kind: str) -> None:
        # A child that hangs in the kernel must not keep the next service from starting.
        self._run.forget_lock()
        for fd in self._own_fds:
            os.close(fd)
        if kind not in {_ANSWER, _SPARE}:
            be_idle()

    # --- looking ----------------------------------------------------------------------------------

    def _start_look(self) -> None:
        try:
            self._look()
        except OSError as error:  # the next look is tried all the same
            _log.warning("the look at the containers failed: no child: %s", error.strerror)

    def _look(self, *, everything: bool = False) -> None:
        now_s = math.inf if everything else time.monotonic()
        waits = {key for key, known in self._known.items() if known.next_look_s > now_s}

        def look() -> tuple[Look, frozenset[bytes], bool]:
            seen = look_around(self._options.cgroup, lambda one: one.key not in waits)
            return seen, self._monitor.names(), self._monitor.blind

        self._pool.start(_LOOK, None, look, limit_s=_LOOK_LIMIT_S, memory_bytes=_LOOK_MEMORY_BYTES)
        # What is worked on meanwhile cannot tell which of the names it has seen.
        self._blind_keys = {key for key in self._known if self._is_worked_on(key)}

    def _take_look(self, ended: Ended) -> None:
        if ended.result is None:
            _log.warning("the look at the containers failed: %s", ended.why)
            for known in self._known.values():
                known.touched = True  # the names that it took from the kernel are lost
            return
        self._looks += 1
        look, names, blind = ended.result
        now_s = time.monotonic()
        alive = {one.container.key for one in look.seen} | set(look.skipped)
        for key in self._known.keys() - alive:
            self._forget(key)
        for seen in look.seen:
            known = self._known.setdefault(seen.container.key, Known(seen.container))
            known.container, known.seen = seen.container, seen
            known.next_look_s = now_s + min(seen.cost_s / _LOOK_SHARE, _RETRY_MOST_S)
        for key, known in self._known.items():
            if blind or (names and (key in self._blind_keys or is_touched(known, names))):
                known.touched = True
            if self._is_due(known, now_s):
                self._queue.setdefault(key)
        self._run.clean(alive)
        databases.care(
            self._settings.directory,
            {known.container.name.file_stem for known in self._known.values()},
            self._settings.keep_gone,
        )

    def _forget(self, key: tuple[int, int]) -> None:
        del self._known[key]
        self._queue.pop(key, None)
        used = {kdev for known in self._known.values() if known.kept for kdev in known.kept.kdevs}
        self._monitor.kdevs &= used  # the next filesystem may get the number

    def _is_due(self, known: Known, now_s: float) -> bool:
        kept, seen = known.kept, known.seen
        if seen is not None and seen.digest and not seen.watches:
            self._keep_nothing(known, seen)
            return False
        if seen is None or now_s < known.retry_s or self._is_worked_on(known.container.key):
            return False
        if kept is None or known.touched or kept.cut or not seen.digest:
            return True
        if kept.digest != seen.digest or not self._run.image(*known.container.key).exists():
            return True
        return self._is_old(known, now_s)

    def _is_old(self, known: Known, now_s: float) -> bool:
        # Where renames are not heard, paths are proved again every now and then.
        old_s = _UNHEARD_INTERVALS * self._interval_s
        kept = known.kept
        return kept is not None and kept.unheard and now_s - known.verified_s > old_s

    def _keep_nothing(self, known: Known, seen: Seen) -> None:
        # A container that watches nothing needs no work, and an image without entries.
        if known.kept is None or known.kept.watches:
            known.kept = nothing_to_keep(seen)
            known.problem = ""
        image = self._run.image(*known.container.key)
        if not image.exists():
            with contextlib.suppress(FileError):
                files.replace_whole(image, encode_cache([]))

    # --- the work on a container ------------------------------------------------------------------

    def _over_budget_s(self) -> float:
        # How long until the CPU time that was used fits into our share.
        now_s = time.monotonic()
        share = self._settings.share
        self._debt_s = max(0.0, self._debt_s - (now_s - self._debt_at_s) * share)
        self._debt_at_s = now_s
        return max(0.0, (self._debt_s - _BURST_S * share) / share)

    def _may_start(self) -> bool:
        return any(
            self._pool.count(self._kind(key)) < _MOST_AT_ONCE[self._kind(key)]
            for key in self._queue
        )

    def _kind(self, key: tuple[int, int]) -> str:
        known = self._known[key]
        if known.slow:
            return _SLOW
        kept, seen = known.kept, known.seen
        same = kept is not None and seen is not None and kept.digest == seen.digest
        return _VERIFY if same and not known.touched else _KEEP

    def _start_work(self) -> None:
        for key in [*self._queue]:
            if self._over_budget_s() > 0:
                return
            kind = self._kind(key)
            if key not in self._queue or self._pool.count(kind) >= _MOST_AT_ONCE[kind]:
                continue
            if kind == _VERIFY:
                self._start_verify(key)
            else:
                del self._queue[key]
                self._start_keep(kind, self._known[key])

    def _is_worked_on(self, key: tuple[int, int]) -> bool:
        return any(_works_on(child, key) for child in self._pool)

    def _start_keep(self, kind: str, known: Known) -> None:
        seen = known.seen
        assert seen is not None  # noqa: S101 what was not seen is not due
        time_s = _LONG_S if known.slow else _QUICK_S
        options = KeepOptions(self._run, self._settings.directory, self._options.config, time_s)
        try:
            self._pool.start(
                kind,
                known.container.key,
                lambda: (keep(seen, options, self._monitor), self._monitor.kdevs),
                limit_s=time_s + _GRACE_S,
                memory_bytes=_KEEP_MEMORY_BYTES,
            )
        except OSError as error:
            self._note_failure(known, f"no child: {error.strerror}")
        else:
            known.touched = False

    def _take_kept(self, ended: Ended) -> None:
        known = self._known.get(ended.child.key)
        if known is None:
            return  # it has ended meanwhile
        if ended.result is None:
            self._note_failure(known, ended.why)
            known.slow = known.slow or ended.child.killed
            return
        kept, kdevs = ended.result
        self._monitor.kdevs |= kdevs
        known.kept, known.problem = kept, kept.problem
        known.verified_s = time.monotonic()
        if kept.cut:
            known.slow = True
            self._note_failure(known, "not all were looked for in the time for one container")
        else:
            known.failures, known.retry_s = 0, 0.0
            known.slow = kept.took_s > _QUICK_S / 2
        self._trim_answers()

    def _start_verify(self, first: tuple[int, int]) -> None:
        keys = [first]
        if not self._known[first].apart:
            others = (key for key in self._queue if key != first and self._kind(key) == _VERIFY)
            keys += (key for key in others if not self._known[key].apart)
        keys = keys[:_MOST_VERIFIED_AT_ONCE]
        for key in keys:
            del self._queue[key]
        remembered = [kept for key in keys if (kept := self._known[key].kept) is not None]

        def verify() -> frozenset[tuple[int, int]]:
            config = self._options.config
            return frozenset(kept.container.key for kept in remembered if not _holds(kept, config))

        try:
            self._pool.start(
                _VERIFY,
                frozenset(keys),
                verify,
                limit_s=_VERIFY_LIMIT_S,
                memory_bytes=_ANSWER_MEMORY_BYTES,
            )
        except OSError as error:
            for key in keys:
                self._note_failure(self._known[key], f"no child: {error.strerror}")

    def _take_verified(self, ended: Ended) -> None:
        keys = ended.child.key & self._known.keys()
        for key in keys:
            known = self._known[key]
            if ended.result is None and len(ended.child.key) > 1:
                known.apart = True  # which of them it was will be seen
                self._queue.setdefault(key)
                continue
            known.verified_s = time.monotonic()
            known.apart = ended.result is None
            if ended.result is None or key in ended.result:
                known.touched = True
                self._queue.setdefault(key)

    # --- requests of the hook ---------------------------------------------------------------------

    def _take_requests(self, fifo: int) -> None:
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
        known = self._find(request.pid)
        if (known is None or known.kept is None) and not request.alone:
            send(self._run, request.reply, Reply(NOT_SERVED, "the tree is not known yet"))
        elif self._pool.count(_ANSWER) >= _MOST_ANSWERED_AT_ONCE:
            send(self._run, request.reply, Reply(NOT_SERVED, "too many requests at once"))
        else:
            if known is not None:
                self._leave_alone(known)
            self._start_answer(request, known.kept if known is not None else None)

    def _find(self, pid: int) -> Known | None:
        for (known_pid, starttime), known in self._known.items():
            if known_pid == pid:
                task = read_task(pid)
                return known if task is not None and task.starttime == starttime else None
        return None

    def _leave_alone(self, known: Known) -> None:
        # Who works on it may hold its database, or a directory in it.
        key = known.container.key
        self._queue.pop(key, None)
        known.retry_s = time.monotonic() + _AFTER_REQUEST_S
        if self._pool.kill(lambda child: _works_on(child, key)):
            known.touched = True

    def _start_answer(self, request: Request, kept: Kept | None) -> None:
        key = kept.container.key if kept is not None else None
        limit_s = _SEARCH_LIMIT_S if request.alone else _ANSWER_LIMIT_S
        spare, self._spare = self._spare, None
        if spare is not None and key is not None and spare.knows.get(key) is kept:
            spare.ask(request, key, limit_s)
            return
        self._spare = spare
        try:
            child = self._pool.start(
                _ANSWER,
                (request, key),
                lambda: self._answer(request, kept),
                limit_s=limit_s,
                memory_bytes=_ANSWER_MEMORY_BYTES,
            )
        except OSError as error:
            send(self._run, request.reply, Reply(NOT_SERVED, f"no child: {error.strerror}"))
        else:
            _log.debug("request of %d: child %d", request.pid, child.pid)

    def _answer(self, request: Request, kept: Kept | None) -> Reply:
        collector.stop()
        config = self._options.config

        def tell(reply: Reply) -> None:
            send(self._run, request.reply, reply)

        if not request.alone and kept is not None:
            return answer(request, kept, config, self._run, tell)
        if kept is not None:
            # What it cannot serve is for the search.
            reply = answer(
                request,
                kept,
                config,
                self._run,
                lambda reply: None if reply.code == NOT_SERVED else tell(reply),
            )
            if reply.code != NOT_SERVED:
                return reply
        return search(request, config, self._run, tell)

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _renew_spare(self) -> None:
        """Have a child ready that knows what we know: a request does not wait for the fork."""
        knows = {key: one.kept for key, one in self._known.items() if one.kept is not None}
        if self._spare is not None:
            if self._spare.knows == knows:
                return
            self._pool.kill(lambda child: child.kind == _SPARE)
            self._drop_spare()
        if knows:
            with contextlib.suppress(OSError):
                self._spare = Spare.start(
                    self._pool, _SPARE, _ANSWER, knows, self._options.config, self._answer
                )

    def _take_answered(self, ended: Ended) -> None:
        request, key = ended.child.key
        reply = ended.result
        if reply is None:
            reply = Reply(NOT_SERVED, ended.why, changed=True)
            send(self._run, request.reply, reply)
        _log.info("task %d: %d %s", request.pid, reply.code, reply.text)
        self._answers[reply.code] += 1
        if reply.changed and key in self._known:
            self._known[key].touched = True

    def _note_failure(self, known: Known, why: str) -> None:
        known.problem = why
        known.failures += 1
        wait_s = min(self._interval_s * 2 ** min(known.failures, 10), _RETRY_MOST_S)
        known.retry_s = time.monotonic() + wait_s
        known.touched = True
        _log.warning("%s: %s", printable(os.fsencode(known.container.name.id)), why)

    def _trim_answers(self) -> None:
        # The largest go first: the database has them.
        held = [one for one in self._known.values() if one.kept and one.kept.answers]
        held.sort(key=lambda one: len(one.kept.answers or ()) if one.kept else 0)
        total = sum(len(one.kept.answers or ()) for one in held if one.kept)
        while total > _MOST_ANSWERS and held:
            kept = held.pop().kept
            assert kept is not None  # noqa: S101 as asked above
            total -= len(kept.answers or ())
            self._known[kept.container.key].kept = kept._replace(answers=None, parts=None)

    # --- what is shown ----------------------------------------------------------------------------

    def _show_status(self) -> None:
        try:
            self._write_status()
        except FileError as error:  # /run is full
            _log.warning("%s", error)

    def _write_status(self) -> dict[str, Any]:
        document = status_document(
            [(one.container, one.seen, one.kept, one.problem) for one in self._known.values()],
            begun_at_s=self._begun_at_s,
            interval_s=self._interval_s,
            looks=self._looks,
            answered=self._answers,
            cpu_s=self._cpu_s,
        )
        self._run.write_status(document)
        return document


def _nothing() -> None:
    pass


def _holds(kept: Kept, config: Config) -> bool:
    # Whether every path is as it is remembered.
    try:
        found = confirm(kept, config)
    except IrmapError:
        return False  # it has ended, say
    return not (found.lost or found.new)


def _works_on(child: Child, key: tuple[int, int]) -> bool:
    # Whether a child may hold a container's database, or a directory in it.
    if child.kind == _VERIFY:
        return key in child.key
    return child.kind in {_KEEP, _SLOW} and child.key == key
