"""Does the work of the hook: one pre-dump for CRIU, with the best possible irmap-cache.

CRIU gets its answer as soon as that is written; the database gets the results later
(`Served.keep`). So this module imports nothing that only the second part needs.

If a file of ours is broken, the job works without it. It skips a database that it cannot read,
renames an old irmap-cache that CRIU would fail on, and skips one that only irmapdb cannot read. It
reports errors as problems, and raises none.
"""

from __future__ import annotations

import os
import time
from _thread import (  # threading takes 1 ms to import
    allocate_lock,
    get_native_id,
    start_new_thread,
)
from collections import Counter

from irmapdb import files
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.work_dir import CACHE_NAME, DATABASE_NAME, within
from irmapdb.errors import DatabaseError, FileError, ImageError, IrmapError
from irmapdb.image.cache_bytes import NO_ENTRIES, cache_bytes, cache_entries
from irmapdb.kernel.pause_detection import find_pause
from irmapdb.kernel.proc import tasks
from irmapdb.log import warnings_into
from irmapdb.model import ChangeKind, StaleReason, one_line, printable
from irmapdb.record import Record
from irmapdb.store.mappings import StoredMappings, open_mappings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from irmapdb.checkpoint.findings import Findings
    from irmapdb.config import Config, HookConfig
    from irmapdb.model import AnyPath, CacheEntry
    from irmapdb.store.records import FileStamp

__all__ = ["ASIDE_NAME", "Done", "Job", "Served", "serve"]

ASIDE_NAME = "irmap-cache.broken"
"""The new name of an irmap-cache that CRIU would fail on."""

_NOTES = 50
_LINE_CHARACTERS = 1000
_TO_SEARCH = 0.8  # of the time; the rest is for writing the proved paths
_TO_WRITE = 0.95  # of the time: then the proved paths are written in any case
_EARLIEST_TO_WRITE = 0.5  # of the time, with many watches
_WRITE_S = 150e-6
"""The time for each watch to write the proved paths, beside the thread that searches."""
_NICE = -20
_KEEP_WAIT_S = 20.0  # for another process's step in the database, after CRIU has continued
_DECODED_BYTES = 4 << 20  # of an irmap-cache; on a busy machine this takes some seconds
_WATCHES_A_SECOND = 1000
"""Without a `timeout`, the limit grows by 1 s for this number of watches: a tenth of our speed."""


class Job(Record):
    """One dump; the cwd is CRIU's work dir."""

    pid: int
    images: str
    """CRIU's images dir; "" if CRIU did not name it."""
    config: Config
    hook: HookConfig
    started_s: float
    """time.monotonic() at CRIU's call."""
    abandoned: Callable[[], bool] = lambda: False
    """Returns True if the result is not needed any more."""
    tell_budget: Callable[[float], None] = lambda _seconds: None
    """Called when the time limit grows with the number of watches."""
    too_late: Callable[[Done], None] = lambda _done: None
    """Called by another thread if the time is up and `serve` has not returned. The paths proved
    until then are in irmap-cache."""
    work: AnyPath | None = None
    """A name of the cwd; None: the one that getcwd(2) gives, which another mount namespace's
    directory does not have."""


class Done(Record):
    """The result of the job. Every text is one line."""

    fresh: bool
    """Whether irmap-cache is new."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    summary: str
    paused: bool = False
    """Whether the tasks are paused."""
    watches: int | None = None
    """None: they were not read."""
    resolved: int | None = None


class Served(Record):
    """The answer to CRIU, and the remaining work after CRIU has continued."""

    done: Done
    keep: Callable[[], tuple[str, ...]]
    """Stores the results; returns lines for the log."""


class _State:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.work = os.fsencode(job.work) if job.work else os.getcwdb()
        self.problems: list[str] = []
        self.warnings: list[str] = []
        """The warnings of the library."""
        self.take_cache = True
        self.read_database = True
        self.database = _named(self.work, DATABASE_NAME)
        self.old: tuple[CacheEntry, ...] = ()
        self.large = b""
        """An irmap-cache that is too large to be decoded in the time. If a watch has no path, ours
        goes behind it; else it is replaced."""
        self.budget_s = job.hook.timeout_s
        self.soft_end_s = 0.0
        self.pause = find_pause(job.pid, lambda: _tree_of(job.pid))
        """The cause of the pause; "" if the tasks run."""
        self.writing = allocate_lock()
        """Held while irmap-cache is written. The last writer never releases it."""
        self.survey: steps.Survey | None = None
        self.is_late = False
        """Whether the time for the search is over."""

    def over(self) -> bool:
        if time.monotonic() <= self.soft_end_s:
            return self.job.abandoned()
        if not self.is_late:
            self.is_late = True
            _hurry(os.getpid())
        return True

    def surveyed(self, survey: steps.Survey) -> None:
        self.survey = survey
        if not self.job.hook.timeout_is_set:
            more_s = survey.watches / _WATCHES_A_SECOND
            self.budget_s = self.job.hook.timeout_s + more_s
            self.soft_end_s += more_s
            self.job.tell_budget(self.budget_s)


def serve(job: Job) -> Served:
    """Find the paths and write irmap-cache."""
    state = _State(job)
    state.old = _old_entries(state)
    _choose_database(state)
    with warnings_into(state.warnings):
        return _serve(state)


def _serve(state: _State) -> Served:
    if _left_s(state) <= 0:
        _end(state)
    start_new_thread(_watch_the_time, (state,))
    again = True
    while again:
        try:
            return _attempt(state)
        except Exception as error:  # noqa: BLE001 a fault of ours is no fault of the dump
            again = _make_way(state, error)
    _take_over(state)
    *before, last = _lines(state.problems)
    done = Done(
        fresh=False,
        problems=tuple(before),
        notes=(),
        summary=f"not done: {last}",
        paused=bool(state.pause),
    )
    return Served(done, tuple)


# --- the attempts ---------------------------------------------------------------------------------


def _attempt(state: _State) -> Served:
    found, options = _find(state)
    _take_over(state)
    try:
        kept = _to_keep(state, found)
        stamp = steps.hand_over(found, kept, state.large if _lacks_paths(found) else b"")
        if state.pause:
            paused_us = int((time.monotonic() - state.job.started_s) * 1_000_000)
            found = found._replace(stats=found.stats._replace(paused_us=paused_us))
    except BaseException:
        state.writing.release()
        raise
    answered_s = time.time()
    return Served(_done(state, found, kept), lambda: _keep(options, found, stamp, answered_s))


def _take_over(state: _State) -> None:
    # If the time is up just now, the other thread writes it, and ends the process.
    state.writing.acquire()


def _tree_of(pid: int) -> list[int]:
    try:
        return [task.pid for task in tasks.task_tree(pid)]
    except IrmapError:
        return []


def _find(state: _State) -> tuple[Findings, steps.StepOptions]:
    job = state.job
    # After a late failure, there is a little time for the next attempt.
    budget_s = state.budget_s * _TO_SEARCH
    state.soft_end_s = max(job.started_s + budget_s, time.monotonic() + budget_s / 8)
    images = os.fsencode(os.path.realpath(job.images)) if job.images else state.work
    if not os.path.isdir(images):
        images = state.work
    options = steps.StepOptions(
        pid=job.pid,
        images_dir=images,
        work_dir=state.work,
        database=state.database,
        config=job.config,
        over=state.over,
        wait_s=_KEEP_WAIT_S,
        take_cache=state.take_cache,
        surveyed=state.surveyed,
        paused_for_s=job.hook.paused_timeout_s if state.pause else None,
    )
    if not (state.read_database and os.path.lexists(state.database)):
        return steps.find(options, StoredMappings()), options
    with open_mappings(state.database, wait_s=state.budget_s / 5) as stored:
        return steps.find(options, stored), options


def _make_way(state: _State, error: Exception) -> bool:
    # Whether the next attempt can work without the failed part.
    before = state.take_cache, state.read_database
    if isinstance(error, IrmapError):
        state.problems.append(str(error))
        if isinstance(error, ImageError):
            state.take_cache = False
        elif isinstance(error, DatabaseError):
            state.read_database = False
    else:
        state.problems.append(_in_words(error))
        state.take_cache = state.read_database = False
    return before != (state.take_cache, state.read_database)


def _keep(
    options: steps.StepOptions, found: Findings, stamp: FileStamp | None, answered_s: float
) -> tuple[str, ...]:
    # No module of these before the answer.
    from irmapdb.criu.dump_stats import read_dump_stats  # noqa: PLC0415
    from irmapdb.scratch import remove_leftovers  # noqa: PLC0415

    figures = read_dump_stats(found.place.work, answered_s).figures
    stats = found.stats._replace(
        criu_freezing_us=figures.get("freezing_us", 0), criu_frozen_us=figures.get("frozen_us", 0)
    )
    found = found._replace(stats=stats)
    warnings: list[str] = []
    try:
        remove_leftovers()
        with warnings_into(warnings):
            report = steps.keep(options, found, stamp)
    except IrmapError as error:
        return _lines([f"not stored: {error}"])
    except Exception as error:  # noqa: BLE001 for the log
        return _lines([f"not stored: {_in_words(error)}"])
    stored = f"stored in {printable(found.place.database)} as run {report.run_id}"
    return _lines([*dict.fromkeys(warnings), stored])


def _in_words(error: Exception) -> str:
    import traceback  # noqa: PLC0415 seldom needed

    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {error}; {where}"


def _choose_database(state: _State) -> None:
    # The configured directory of databases; else that of the service, if it knows this container;
    # else the work dir. If it cannot be made, the store reports that.
    job, directory = state.job, state.job.hook.db
    if directory is None and not os.path.isdir(job.config.warm.directory):
        return
    from irmapdb.kernel.proc.containers import database_name, find_database, name_by_images  # noqa: PLC0415

    if directory is None:
        state.database = find_database(job.config.warm.directory, job.pid) or state.database
        return
    chosen = _named(directory, database_name(job.pid, job.images))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        state.problems.append(f"cannot make {printable(directory)}: {error.strerror}")
    before = _named(directory, name_by_images(job.images))
    only_before = os.path.exists(before) and not os.path.exists(chosen)
    state.database = before if only_before else chosen


def _named(directory: AnyPath, name: str) -> bytes:
    return within(os.fsencode(directory), os.fsencode(name))


# --- the limit ------------------------------------------------------------------------------------


def _watch_the_time(state: _State) -> None:
    # Writes the proved paths before the limit, even if the other thread is blocked.
    _hurry(get_native_id())
    while True:
        left_s = _left_s(state)
        if left_s <= 0:
            _end(state)
            return
        time.sleep(min(left_s, 0.25))
        if state.writing.locked():
            return


def _left_s(state: _State) -> float:
    passed_s = time.monotonic() - state.job.started_s
    end_s = state.budget_s * _TO_WRITE
    if state.survey is not None:
        early_s = state.budget_s - state.survey.watches * _WRITE_S
        end_s = min(end_s, max(early_s, state.budget_s * _EARLIEST_TO_WRITE))
    return end_s - passed_s


def _hurry(tid: int) -> None:
    # On a busy machine a thread may wait for a CPU for longer than is left. Only root may do this.
    # The thread that searches gives the interpreter away only while it runs, so it must hurry too.
    try:
        os.setpriority(os.PRIO_PROCESS, tid, _NICE)
    except OSError:
        return


def _end(state: _State) -> None:
    if not state.writing.acquire(blocking=False):
        return
    _hurry(os.getpid())
    entries = state.survey.entries() if state.survey else []
    missed = {entry.key for entry in state.old} - {entry.key for entry in entries}
    kept = [entry for entry in state.old if entry.key in missed]
    text = f"the limit of {state.budget_s:g} s was reached while the search went on"
    if state.survey is None:
        state.job.too_late(
            Done(
                fresh=False,
                problems=(text,),
                notes=(),
                summary=f"not done: {text}",
                paused=bool(state.pause),
            )
        )
        return
    try:
        image = cache_bytes([*kept, *entries], state.large)
        files.replace_whole(_named(state.work, CACHE_NAME), image, synced=False)  # no time for it
    except IrmapError as error:
        text += f"; {error}"
    summary = (
        f"{state.survey.watches} {_plural(state.survey.watches)}: {len(entries)} entries for CRIU"
        f"; {text}"
    )
    problems = (*_lines(state.problems), text)
    state.job.too_late(
        Done(
            fresh=True,
            problems=problems,
            notes=(),
            summary=summary,
            paused=bool(state.pause),
            watches=state.survey.watches,
            resolved=min(len(entries), state.survey.watches),
        )
    )


# --- the old irmap-cache --------------------------------------------------------------------------


def _old_entries(state: _State) -> tuple[CacheEntry, ...]:
    """The entries of irmap-cache that CRIU could use without irmapdb.

    CRIU fails on a broken file, so the hook renames it at once.
    """
    path = _named(state.work, CACHE_NAME)
    try:
        # In the cwd, even if its parents were moved.
        data = files.read_if_there(os.fsencode(CACHE_NAME), limit_bytes=files.LIMIT_BYTES)
    except FileError as error:
        state.problems.append(str(error))
        state.take_cache = False
        return ()
    if data is None:
        return ()
    if len(data) > _DECODED_BYTES and data.startswith(NO_ENTRIES):
        state.large, state.take_cache = data, False
        return ()
    if (entries := cache_entries(data)) is not None:
        return entries
    from irmapdb.image import cache  # noqa: PLC0415 imports protobuf

    try:
        return cache.decode_cache(data, printable(path))
    except ImageError as error:
        state.problems.append(str(error))
    state.take_cache = False
    if not cache.loadable(data):
        try:
            os.replace(CACHE_NAME, ASIDE_NAME)
            state.problems.append(f"{printable(path)}: renamed to {ASIDE_NAME}")
        except OSError as error:
            state.problems.append(f"cannot rename {printable(path)}: {error.strerror}")
    return ()


def _lacks_paths(found: Findings) -> bool:
    # Else irmapdb knows every watch, and CRIU needs no old entry.
    return bool(found.stats.unresolved or found.unread)


def _to_keep(state: _State, found: Findings) -> list[CacheEntry]:
    """The old entries of watches without a proved path: CRIU checks each of them itself.

    If tasks were not read, also the entries of inodes without a known watch. Not the entries that
    were found wrong. Not those of two watched inodes with one device and number, because CRIU would
    use the entry of one for the other. An ambiguous entry may be right, and without irmapdb CRIU
    would have it too.
    """
    if not state.old or not _lacks_paths(found):
        return []
    watched = {row.watch.identity for row in found.watches}
    shared = Counter(identity.key for identity in watched)
    missed = {
        row.watch.identity.key
        for row in found.watches
        if row.path is None and shared[row.watch.identity.key] == 1
    }
    if found.unread:
        missed |= {entry.key for entry in state.old} - shared.keys()
    wrong = {
        (change.identity.key, change.old_path or change.path)
        for change in found.change_set.changes
        if change.kind in {ChangeKind.STALE, ChangeKind.MOVED}
        and change.reason is not StaleReason.AMBIGUOUS
    }
    return [
        entry for entry in state.old if entry.key in missed and (entry.key, entry.path) not in wrong
    ]


# --- the result -----------------------------------------------------------------------------------


def _done(state: _State, found: Findings, kept: list[CacheEntry]) -> Done:
    stats = found.stats
    took_ms = (time.monotonic() - state.job.started_s) * 1000
    summary = (
        f"{stats.watches} {_plural(stats.watches)}: "
        f"{stats.resolved} proved ({stats.hits} known before), in {took_ms:.0f} ms"
    )
    if state.pause:
        summary += f" of a pause ({state.pause})"
    notes = []
    if found.cut or found.unread or state.over():
        text = f"the time budget of {state.budget_s:g} s was over"
        if found.cut:
            text += f": {found.cut} {_plural(found.cut)} not looked for to the end"
        if found.unread:
            text += f", {found.unread} tasks not read"
        state.problems.append(text)
    if stats.unresolved:
        summary += f"; {stats.unresolved} without a path"
        if fatal := sum(row.watch.identity in found.unopenable for row in found.watches):
            summary += f", and CRIU fails on {fatal} of them"
        if kept:
            summary += f", {len(kept)} old entries kept for CRIU to look at"
        missing = (row for row in found.watches if row.path is None)
        # Those that fail the dump come first.
        rows = sorted(missing, key=lambda row: row.watch.identity not in found.unopenable)
        notes = [
            f"no path for {row.watch.kind} fd {row.watch.fd} of {row.watch.pid}"
            f" ({printable(row.comm or b'?')}), {row.watch.identity.key}: {row.why}"
            f"{'; CRIU fails on it' if row.watch.identity in found.unopenable else ''}"
            for row in rows[:_NOTES]
        ]
        if len(rows) > _NOTES:
            notes.append(f"and {len(rows) - _NOTES} more")
    dropped = [
        f"CRIU leaves out the fanotify mark on all of {printable(row.target)}, fd {row.mark.fd} of"
        f" {row.mark.pid} ({printable(row.comm)}): let the task set it again after a restore"
        for row in found.marks
        if row.is_dropped
    ]
    notes = [*dict.fromkeys(state.warnings), *dropped[:_NOTES], *notes]
    return Done(
        fresh=True,
        problems=_lines(state.problems),
        notes=_lines(notes),
        summary=summary,
        paused=bool(state.pause),
        watches=stats.watches,
        resolved=stats.resolved,
    )


def _plural(watches: int) -> str:
    return "watch" if watches == 1 else "watches"


def _lines(texts: Iterable[str]) -> tuple[str, ...]:
    # Names are printable already; a foreign error text may still break the line.
    return tuple(one_line(text)[:_LINE_CHARACTERS] for text in texts)
