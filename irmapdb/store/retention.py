"""Deletes old rows, so that a database stops growing.

- `run`, with its rows in `watch` and `tried`: the newest `keep_runs` are kept, and of these as many
  as together have no more than `keep_rows` watches; the newest pre-dump or dump is always kept.
  Later runs (imports, audits that wrote) count like all others.
- `change`: kept as long as stale mappings, and no more than `keep_rows`.
- `mapping`, stale: kept for `stale_older_than` since it went stale.
- `mapping`, live: kept if it is in `irmap-cache` or the newest run used it; the others are kept for
  `unused_older_than` since their last use. The others and the stale ones together are at most
  `keep_rows`.

A step deletes a few thousand rows, or twice as many as it wrote itself, so the old rows cannot
accumulate. Old runs and changes are the first of their tables, so kept rows need not be read. Old
mappings are anywhere in their table. So a step reads that table only if it writes many rows, or
every 32nd time.

SQLite uses the free pages again, so the file does not become smaller. `PRAGMA auto_vacuum` would
make it smaller after each step, but it would move pages all the time that the next step needs
again. `Store.vacuum` does it once, on request.
"""

from __future__ import annotations

from irmapdb.durations import before
from irmapdb.record import Record
from irmapdb.store import compiled
from irmapdb.store.values import to_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime
    from typing import Any

    from irmapdb.config import Retention

__all__ = ["Pruned", "count", "prune"]


class Pruned(Record):
    """The number of rows that were deleted, or would be."""

    runs: int = 0
    watches: int = 0
    changes: int = 0
    mappings: int = 0

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self)

    def plus(self, more: Pruned) -> Pruned:
        """Both together."""
        return Pruned(*map(sum, zip(self, more, strict=True)))


_FEW = 2000
_EVERY = 32
_ALL = -1  # no LIMIT, https://www.sqlite.org/lang_select.html#limitoffset


def prune(raw: sqlite3.Connection, keep: Retention, now: datetime, wrote: int) -> Pruned:
    """Delete old rows, the oldest first, at the end of a step.

    `wrote`: the number of rows that the step has written. It deletes a run with all its watches, so
    it may delete more rows than the limit.
    """
    at_most = _FEW + 2 * wrote
    runs, watches = _prune_runs(raw, keep, at_most)
    until = _last_change(raw, keep, now, at_most)
    changes = compiled.DELETE_CHANGES_UNTIL.run(raw, until=until).rowcount
    newest = compiled.LAST_RUN.first(raw) or 0
    mappings = 0
    if wrote >= _FEW:
        mappings = _prune_mappings(raw, keep, now, at_most)
    elif newest % _EVERY == 0:
        mappings = _prune_mappings(raw, keep, now, at_most * _EVERY)
    return Pruned(runs, watches, changes, mappings)


def count(raw: sqlite3.Connection, keep: Retention, now: datetime) -> Pruned:
    """The number of rows that repeated calls of `prune` would delete."""
    old = _old_runs(raw, keep)
    until = _last_change(raw, keep, now, _ALL)
    return Pruned(
        compiled.COUNT_RUNS_UNTIL.first(raw, **old),
        compiled.COUNT_WATCHES_UNTIL.first(raw, **old),
        compiled.COUNT_CHANGES_UNTIL.first(raw, until=until),
        _count_old_mappings(raw, keep, _since(keep, now)),
    )


def _old_runs(raw: sqlite3.Connection, keep: Retention) -> dict[str, int]:
    # The runs to delete, as parameters: all up to `newest` (0: none) except `kept`, the newest
    # step.
    last = compiled.RUN_BEFORE_NEWEST.first(raw, runs=keep.keep_runs) or 0
    crowded = compiled.RUN_BEFORE_WATCHES.first(raw, watches=keep.keep_rows) or 0
    return {"newest": max(last, crowded), "kept": compiled.LAST_STEP.first(raw) or 0}


def _prune_runs(raw: sqlite3.Connection, keep: Retention, at_most: int) -> tuple[int, int]:
    old = _old_runs(raw, keep)
    runs = watches = rows = 0
    for run_id, of_run in compiled.RUNS_UNTIL.fetch(raw, **old, at_most=at_most):
        if runs and rows + 1 + of_run > at_most:
            break
        runs, rows, old["newest"] = runs + 1, rows + 1 + of_run, run_id
    if runs:
        watches = compiled.DELETE_WATCHES_UNTIL.run(raw, **old).rowcount
        compiled.DELETE_RUNS_UNTIL.run(raw, **old)
    return runs, watches


def _last_change(raw: sqlite3.Connection, keep: Retention, now: datetime, at_most: int) -> int:
    """The newest change to delete, of the oldest `at_most`; 0 if all are kept.

    Changes are numbered in the order of time, and taken out in that order.
    """
    first = compiled.FIRST_CHANGE.first(raw) or 0
    newest = compiled.LAST_CHANGE.first(raw) or 0
    until = newest if at_most == _ALL else first + at_most - 1
    since = to_time(before(now, keep.stale_older_than))
    young = compiled.YOUNG_CHANGE.first(raw, since=since, until=until)
    old = (young or until + 1) - 1
    return int(min(until, max(old, newest - keep.keep_rows)))


def _prune_mappings(raw: sqlite3.Connection, keep: Retention, now: datetime, at_most: int) -> int:
    since = _since(keep, now)
    number = min(at_most, _count_old_mappings(raw, keep, since))
    if not number:
        return 0
    return compiled.DELETE_OLD_MAPPINGS.run(raw, **since, at_most=number).rowcount


def _count_old_mappings(raw: sqlite3.Connection, keep: Retention, since: dict[str, Any]) -> int:
    # The number of mappings to delete.
    ((candidates, expired),) = compiled.COUNT_OLD_MAPPINGS.fetch(raw, **since)
    return int(max(0, expired, candidates - keep.keep_rows))


def _since(keep: Retention, now: datetime) -> dict[str, Any]:
    # Stale and unused mappings are kept since these times.
    return {
        "stale_since": to_time(before(now, keep.stale_older_than)),
        "used_since": to_time(before(now, keep.unused_older_than)),
    }
