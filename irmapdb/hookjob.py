"""The hook's work: one pre-dump for CRIU, which ends with the best irmap-cache that can be had.

Where something of ours is broken it is gone around, once each: a database that cannot be used is
left for a temporary one, an old irmap-cache that CRIU would fail on is set aside, one that only
we do not understand is not read. What goes wrong is told as a problem and raises nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from irmapdb import files, steps
from irmapdb.errors import DatabaseError, FileError, ImageError, IrmapError
from irmapdb.image import cache
from irmapdb.model import ChangeKind, printable
from irmapdb.node.containers import database_name, find_database, name_by_images
from irmapdb.scratch import remove_leftovers, scratch_directory
from irmapdb.workdir import CACHE_NAME, DATABASE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irmapdb.config import Config, HookConfig
    from irmapdb.model import CacheEntry
    from irmapdb.steps import Report

__all__ = ["ASIDE_NAME", "Done", "Job", "serve"]

ASIDE_NAME = "irmap-cache.broken"
"""What an irmap-cache that CRIU would fail on is renamed to."""

_NOTES = 50
_LINE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """One dump; the cwd is CRIU's work dir."""

    pid: int
    images: str
    """CRIU's images dir; "" where it did not say."""
    config: Config
    hook: HookConfig
    started_s: float
    """time.monotonic() when CRIU called."""
    abandoned: Callable[[], bool] = lambda: False
    """Whether nobody waits for the result any more."""


class Done(NamedTuple):
    """What the job came to. Every text is one line."""

    fresh: bool
    """Whether irmap-cache is new."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    summary: str


@dataclass(slots=True)
class _State:
    job: Job
    work: Path
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What the library warned of."""
    take_cache: bool = True
    database: Path | None = None
    """None: irmap.db in the work dir."""
    scratch: bool = False
    """Whether `database` is a temporary one."""
    soft_end_s: float = 0.0

    def over(self) -> bool:
        return time.monotonic() > self.soft_end_s or self.job.abandoned()


def serve(job: Job, tell_scratch: Callable[[str], None] = lambda _path: None) -> Done:
    """Find the paths and write irmap-cache. `tell_scratch` hears of a temporary directory."""
    state = _State(job, Path.cwd())
    remove_leftovers()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_warnings_into(state.warnings))
        old = _old_entries(state)
        if job.hook.db is not None:
            _use_directory(state, job.hook.db)
        else:
            # Where the service keeps this container ready, that is more than the work dir has.
            state.database = find_database(job.config.warm.directory, job.pid)
        again = True
        while again:
            try:
                if state.scratch and state.database is None:
                    state.database = _temporary_database(stack, tell_scratch)
                return _done(state, _pre_dump(state), old)
            except Exception as error:  # noqa: BLE001 a fault of ours is no fault of the dump
                again = _make_way(state, error)
    *before, last = _lines(state.problems)
    return Done(fresh=False, problems=tuple(before), notes=(), summary=f"not done: {last}")


@contextlib.contextmanager
def _warnings_into(warnings: list[str]) -> Iterator[None]:
    # Each once, as an attempt may be repeated.
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("irmapdb")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# --- the attempts ---------------------------------------------------------------------------------


def _pre_dump(state: _State) -> Report:
    job = state.job
    budget_s = job.hook.timeout_s
    # What fails late leaves a bit for the next attempt.
    state.soft_end_s = max(job.started_s + budget_s, time.monotonic() + budget_s / 8)
    images = Path(os.path.realpath(job.images or "."))
    if not images.is_dir():
        images = state.work
    return steps.pre_dump(
        steps.Options(
            pid=job.pid,
            images_dir=images,
            work_dir=state.work,
            database=state.database,
            config=job.config,
            over=state.over,
            wait_s=budget_s / 5,
            take_cache=state.take_cache,
        )
    )


def _make_way(state: _State, error: Exception) -> bool:
    # Whether there is a way around what has failed; the next attempt takes it.
    before = state.take_cache, state.scratch
    if isinstance(error, IrmapError):
        state.problems.append(str(error))
        if isinstance(error, ImageError):
            state.take_cache = False
        elif isinstance(error, DatabaseError):
            state.scratch = True
    else:
        state.problems.append(f"{type(error).__name__}: {error}; {_where(error)}")
        state.take_cache, state.scratch = False, True
    if state.scratch and not before[1]:
        state.database = None
    return before != (state.take_cache, state.scratch)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames))


def _use_directory(state: _State, directory: Path) -> None:
    # Where it cannot be made, the store says so.
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.database = directory / database_name(state.job.pid, state.job.images)
    before = directory / name_by_images(state.job.images)
    if before.exists() and not state.database.exists():
        state.database = before  # of a version that knew fewer forms of ids


def _temporary_database(stack: contextlib.ExitStack, tell: Callable[[str], None]) -> Path:
    # For this run alone; in memory where that is possible.
    made = os.fsdecode(stack.enter_context(scratch_directory("hook")))
    tell(made)
    return Path(made) / DATABASE_NAME


# --- the old irmap-cache --------------------------------------------------------------------------


def _old_entries(state: _State) -> tuple[CacheEntry, ...]:
    """What irmap-cache holds that CRIU could use without us.

    CRIU fails on one that is broken, so that is set aside at once, whatever comes after.
    """
    path = state.work / CACHE_NAME
    try:
        data = files.read_if_there(path, limit_bytes=files.LIMIT_BYTES)
    except FileError as error:
        state.problems.append(str(error))
        state.take_cache = False
        return ()
    if data is None:
        return ()
    try:
        return cache.decode_cache(data, printable(path))
    except ImageError as error:
        state.problems.append(str(error))
    state.take_cache = False
    if not cache.loadable(data):
        try:
            os.replace(path, state.work / ASIDE_NAME)
            state.problems.append(f"{printable(path)}: renamed to {ASIDE_NAME}")
        except OSError as error:
            state.problems.append(f"cannot rename {printable(path)}: {error.strerror}")
    return ()


def _keep_old(state: _State, report: Report, old: tuple[CacheEntry, ...]) -> int:
    """Leave to CRIU the old entries of what has no proved path: it looks at them itself.

    Not those that were found to be wrong, nor any of two watched inodes with one device and
    number, of which CRIU would believe an entry of the other. Returns how many there are.
    """
    watched = {row.watch.identity for row in report.watches}
    shared = Counter(identity.key for identity in watched)
    missed = {
        row.watch.identity.key
        for row in report.watches
        if row.path is None and shared[row.watch.identity.key] == 1
    }
    wrong = {
        (change.identity.key, change.old_path or change.path)
        for change in report.changes
        if change.kind in {ChangeKind.STALE, ChangeKind.MOVED}
    }
    kept = [entry for entry in old if entry.key in missed and (entry.key, entry.path) not in wrong]
    if kept:
        path = state.work / CACHE_NAME
        try:
            data = files.read_whole(path, limit_bytes=files.LIMIT_BYTES)
            fresh = cache.decode_cache(data, printable(path))
            files.replace_whole(path, cache.encode_cache([*kept, *fresh]))
        except IrmapError as error:
            state.problems.append(str(error))
            return 0
    return len(kept)


# --- the result -----------------------------------------------------------------------------------


def _done(state: _State, report: Report, old: tuple[CacheEntry, ...]) -> Done:
    stats = report.stats
    took_ms = (time.monotonic() - state.job.started_s) * 1000
    summary = (
        f"{stats.watches} {'watch' if stats.watches == 1 else 'watches'}: "
        f"{stats.resolved} proved ({stats.hits} known before), in {took_ms:.0f} ms"
    )
    if stats.unresolved:
        summary += f"; {stats.unresolved} without a path"
        if kept := _keep_old(state, report, old):
            summary += f", {kept} old entries kept for CRIU to look at"
        if state.over():
            text = f"the time budget of {state.job.hook.timeout_s:g} s was over"
            state.problems.append(text)
    notes = [
        f"no path for {row.watch.kind} fd {row.watch.fd} of {row.watch.pid}"
        f" ({printable(row.comm or b'?')}), {row.watch.identity.key}: {row.why}"
        for row in report.watches
        if row.path is None
    ]
    dropped = [
        f"CRIU leaves out the fanotify mark on all of {printable(row.target)}, fd {row.mark.fd} of"
        f" {row.mark.pid} ({printable(row.comm)}): have the task set it again after a restore"
        for row in report.marks
        if row.is_dropped
    ]
    notes = dropped + notes
    if len(notes) > _NOTES:
        notes[_NOTES:] = [f"and {len(notes) - _NOTES} more"]
    notes[:0] = dict.fromkeys(state.warnings)
    return Done(fresh=True, problems=_lines(state.problems), notes=_lines(notes), summary=summary)


def _lines(texts: list[str]) -> tuple[str, ...]:
    # Names are printable already; an error of others may still break the line.
    whole = (text if text.isprintable() else ascii(text)[1:-1] for text in texts)
    return tuple(text[:_LINE_CHARACTERS] for text in whole)
