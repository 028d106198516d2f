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

from sqlalchemy import Integer, and_, case, cast, delete, exists, func, or_, select

from irmapdb.durations import before
from irmapdb.model import Event
from irmapdb.record import Record
from irmapdb.store import tables
from irmapdb.store.values import to_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Select

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


_run, _watch, _change, _mapping = (
    table.c for table in (tables.run, tables.watch, tables.change, tables.mapping)
)
_STEPS = (Event.PRE_DUMP.value, Event.DUMP.value)
_FEW = 2000
_EVERY = 32
_ALL = -1  # no LIMIT, https://www.sqlite.org/lang_select.html#limitoffset


class _OldRuns(Record):
    """The runs to delete: all up to the newest of them, except one."""

    newest: int
    """0 if all are kept."""
    step: int
    """The newest step, which is always kept."""

    def have(self, run_id: ColumnElement[int]) -> ColumnElement[bool]:
        """Whether one of them has this id."""
        return and_(run_id <= self.newest, run_id != self.step)


_is_step = and_(_run.event.in_(_STEPS), _run.outcome.not_like("failed:%"))
_last_step = select(_run.id).where(_is_step).order_by(_run.id.desc()).limit(1)


def prune(connection: Connection, keep: Retention, now: datetime, wrote: int) -> Pruned:
    """Delete old rows, the oldest first, at the end of a step.

    `wrote`: the number of rows that the step has written. It deletes a run with all its watches, so
    it may delete more rows than the limit.
    """
    at_most = _FEW + 2 * wrote
    runs, watches = _prune_runs(connection, keep, at_most)
    last = _last_change(connection, keep, now, at_most)
    changes = connection.execute(delete(tables.change).where(_change.id <= last)).rowcount
    newest = connection.scalar(select(func.max(_run.id))) or 0
    mappings = 0
    if wrote >= _FEW:
        mappings = _prune_mappings(connection, keep, now, at_most)
    elif newest % _EVERY == 0:
        mappings = _prune_mappings(connection, keep, now, at_most * _EVERY)
    return Pruned(runs, watches, changes, mappings)


def _prune_mappings(connection: Connection, keep: Retention, now: datetime, at_most: int) -> int:
    some = _old_mappings(connection, keep, now, at_most)
    if some is None:
        return 0
    return connection.execute(delete(tables.mapping).where(_mapping.id.in_(some))).rowcount


def count(connection: Connection, keep: Retention, now: datetime) -> Pruned:
    """The number of rows that repeated calls of `prune` would delete."""
    old = _old_runs(connection, keep)
    last_change = _last_change(connection, keep, now, _ALL)
    some = _old_mappings(connection, keep, now, _ALL)
    runs, watches, changes = (
        connection.scalars(select(func.count()).where(condition)).one()
        for condition in (
            old.have(_run.id),
            old.have(_watch.run_id),
            _change.id <= last_change,
        )
    )
    mappings = 0 if some is None else len(connection.scalars(some).all())
    return Pruned(runs, watches, changes, mappings)


def _old_runs(connection: Connection, keep: Retention) -> _OldRuns:
    over = select(_run.id).order_by(_run.id.desc()).limit(1).offset(keep.keep_runs)
    last: int = connection.scalar(over) or 0
    # Watches are numbered in the order of their runs and taken out in that order, so that there
    # is none missing between the first and the last. Only steps have any.
    newest = select(func.max(_watch.id)).scalar_subquery()
    crowded = (
        select(_watch.run_id)
        .where(_watch.id <= newest - keep.keep_rows)
        .order_by(_watch.id.desc())
        .limit(1)
    )
    last = max(last, connection.scalar(crowded) or 0)
    return _OldRuns(last, connection.scalar(_last_step) or 0)


def _prune_runs(connection: Connection, keep: Retention, at_most: int) -> tuple[int, int]:
    old = _old_runs(connection, keep)
    oldest = select(_run.id, _run.watches).where(old.have(_run.id)).order_by(_run.id)
    runs = watches = rows = cut = 0
    for run_id, of_run in connection.execute(oldest.limit(at_most)):
        if runs and rows + 1 + of_run > at_most:
            break
        runs, rows, cut = runs + 1, rows + 1 + of_run, run_id
    if runs:
        old = old._replace(newest=cut)
        watches = connection.execute(delete(tables.watch).where(old.have(_watch.run_id))).rowcount
        connection.execute(delete(tables.run).where(old.have(_run.id)))
    return runs, watches


def _last_change(connection: Connection, keep: Retention, now: datetime, at_most: int) -> int:
    """The newest change to delete, of the oldest `at_most`; 0 if all are kept.

    Changes are numbered in the order of time, and taken out in that order.
    """
    # Two questions: asked in one, SQLite looks through the whole table.
    first = connection.scalar(select(func.min(_change.id))) or 0
    newest = connection.scalar(select(func.max(_change.id))) or 0
    until = newest if at_most == _ALL else first + at_most - 1
    since = to_time(before(now, keep.stale_older_than))
    # From the oldest on: as few rows are looked at as are taken out.
    young = (
        select(_change.id)
        .where(_change.at >= since, _change.id <= until)
        .order_by(_change.id)
        .limit(1)
    )
    old = (connection.scalar(young) or until + 1) - 1
    return min(until, max(old, newest - keep.keep_rows))


def _old_mappings(
    connection: Connection, keep: Retention, now: datetime, at_most: int
) -> Select[tuple[int]] | None:
    """The mappings to delete, the oldest `at_most`, as a query for ids; None if all are kept."""
    used = func.coalesce(_mapping.last_used_at, _mapping.first_seen_at)
    stale = _mapping.stale_at.is_not(None)
    latest = select(func.max(_run.finished_at)).where(_is_step).scalar_subquery()
    in_image = exists().where(tables.image_entry.c.mapping_id == _mapping.id)
    idle = and_(~stale, used < latest, ~in_image)
    expired = case(
        (stale, _mapping.stale_at < to_time(before(now, keep.stale_older_than))),
        else_=used < to_time(before(now, keep.unused_older_than)),
    )
    numbers = select(func.count(), func.coalesce(func.sum(cast(expired, Integer)), 0)).where(
        or_(stale, idle)
    )
    candidates, too_old = connection.execute(numbers).one()
    number = max(too_old, candidates - keep.keep_rows)
    if number <= 0:
        return None
    if at_most != _ALL:
        number = min(number, at_most)
    age = func.coalesce(_mapping.stale_at, used)
    oldest_first = select(_mapping.id).where(or_(stale, idle))
    return oldest_first.order_by(expired.desc(), age, _mapping.id).limit(number)
