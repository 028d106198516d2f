"""Writes one step: everything in one transaction, in batches."""

from __future__ import annotations

from itertools import islice
from operator import itemgetter
from typing import cast

from sqlalchemy import bindparam, func, insert, null, select, text, update
from sqlalchemy.dialects import sqlite

from irmapdb.store import image_list, retention, rows, tables
from irmapdb.store.file import absolute
from irmapdb.store.read import Reader
from irmapdb.store.records import FileStamp
from irmapdb.store.values import new_uuid, to_time, to_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy import ClauseElement, ColumnElement, Connection, ScalarSelect
    from sqlalchemy.sql.compiler import SQLCompiler

    from irmapdb.config import Retention
    from irmapdb.model import (
        CacheEntry,
        Change,
        Event,
        Mapping,
        Resolved,
        RunStats,
        StaleReason,
    )
    from irmapdb.store.file import AnyPath
    from irmapdb.store.records import WatchRow
    from irmapdb.store.retention import Pruned

__all__ = ["Step"]

_BATCH = 2000

_mapping = tables.mapping.c
_UNIQUE = (_mapping.dev, _mapping.ino, _mapping.path, _mapping.mntns)


class _Bulk:
    """A statement that is run for many rows, compiled once.

    SQLAlchemy writes the SQL. The rows go directly to the driver as tuples, in the form of
    irmapdb.store.values, because SQLAlchemy's work on each row would take longer than SQLite's.
    """

    def __init__(
        self, statement: ClauseElement, fields: Sequence[str], columns: Sequence[str] = ()
    ) -> None:
        dialect = sqlite.dialect(paramstyle="qmark")
        compiled = cast("SQLCompiler", statement.compile(dialect=dialect, column_keys=columns))
        self.sql = str(compiled)
        self._arrange = itemgetter(*map(fields.index, compiled.positiontup or ()))

    def run(self, connection: Connection, values: Iterable[tuple[Any, ...]]) -> None:
        """Run it for each row, in batches. Fields without a column or parameter are left out."""
        tuples = map(self._arrange, values)
        while batch := list(islice(tuples, _BATCH)):
            connection.exec_driver_sql(self.sql, batch)


def _is_key() -> tuple[ColumnElement[bool], ...]:
    return (
        _mapping.dev == bindparam("key_dev"),
        _mapping.ino == bindparam("key_ino"),
        _mapping.path == bindparam("key_path"),
        _mapping.mntns == bindparam("key_mntns"),
    )


def _mapping_id() -> ScalarSelect[int]:
    return select(_mapping.id).where(*_is_key()).scalar_subquery()


_FLAG_ALL = (
    update(tables.mapping)
    .where(_mapping.stale_at.is_(None), _mapping.revalidate == 0)
    .values(revalidate=1)
)

_prove = sqlite.insert(tables.mapping).values(
    revalidate=text("0"),
    first_seen_at=bindparam("now"),
    validated_at=bindparam("now"),
    last_used_at=bindparam("now"),
)
_PROVED = {
    "handle_type": _prove.excluded.handle_type,
    "handle": _prove.excluded.handle,
    "revalidate": text("0"),
    "validated_at": _prove.excluded.validated_at,
    "stale_at": null(),
    "stale_reason": null(),
}
_USED = {"last_used_at": _prove.excluded.last_used_at}
_PROVE_COLUMNS = rows.RESOLVED_FIELDS[:-1]  # the time is a parameter
_PROVE = _Bulk(
    _prove.on_conflict_do_update(index_elements=_UNIQUE, set_={**_PROVED, **_USED}),
    rows.RESOLVED_FIELDS,
    _PROVE_COLUMNS,
)
_PROVE_UNUSED = _Bulk(
    _prove.values(last_used_at=null()).on_conflict_do_update(index_elements=_UNIQUE, set_=_PROVED),
    rows.RESOLVED_FIELDS,
    _PROVE_COLUMNS,
)
_MARK_STALE = _Bulk(
    update(tables.mapping)
    .where(*_is_key(), _mapping.stale_at.is_(None))
    .values(stale_at=bindparam("now"), stale_reason=bindparam("reason")),
    rows.STALE_FIELDS,
)
_COUNT_MAPPINGS = select(func.count()).select_from(tables.mapping)

_image_seen = sqlite.insert(tables.image_seen)
_IMAGE_SEEN = _image_seen.on_conflict_do_update(
    index_elements=[tables.image_seen.c.path],
    set_={name: _image_seen.excluded[name] for name in FileStamp._fields},
)

_WATCH = _Bulk(insert(tables.watch), rows.WATCH_FIELDS, tables.watch.c.keys())
_TRIED = _Bulk(insert(tables.tried), rows.TRIED_FIELDS, tables.tried.c.keys())
_LAST_WATCH = select(func.coalesce(func.max(tables.watch.c.id), 0))
_CHANGE = _Bulk(
    insert(tables.change).values(mapping_id=_mapping_id()),
    rows.CHANGE_FIELDS,
    [column.name for column in tables.change.c if column.name not in {"id", "mapping_id"}],
)


class Step(Reader):
    """An open step; made by Store.step, which commits it."""

    def flag_all(self) -> None:
        """Flag every live mapping, so that it is proved before use."""
        self._connection.execute(_FLAG_ALL)

    def import_entries(self, entries: Sequence[CacheEntry], now: datetime) -> int:
        """Add an image's entries, as mappings that must be proved before use.

        They go to the end of the list of `irmap-cache`, in their order and with their duplicates.
        Earlier places of the same mappings are removed. A stale mapping becomes live again. Returns
        the number of new mappings.
        """
        before = self._count_mappings()
        image_list.take_in(self._connection, entries, now, self.path)
        return self._count_mappings() - before

    def prove(self, resolved: Iterable[Resolved], now: datetime, *, used: bool = True) -> None:
        """Store each proved path: proved now, live, with its present handle.

        `used`: whether it is also the path of a watch.
        """
        statement = _PROVE if used else _PROVE_UNUSED
        statement.run(self._connection, rows.resolved_values(resolved, now))

    def mark_stale(self, items: Iterable[tuple[Mapping, StaleReason]], now: datetime) -> None:
        """Mark mappings as stale. A mapping that is stale already keeps its time and reason."""
        _MARK_STALE.run(self._connection, rows.stale_values(items, now))

    def set_image(self, entries: Iterable[CacheEntry]) -> None:
        """Replace the list of `irmap-cache` by these entries, in this order.

        Each must be a mapping: DatabaseError otherwise.
        """
        image_list.replace(self._connection, entries, self.path)

    def set_image_seen(self, path: AnyPath, stamp: FileStamp) -> None:
        """Remember an image file as imported or written."""
        where = absolute(path)
        self._connection.execute(_IMAGE_SEEN, rows.stamp_values(where, stamp))

    def add_run(
        self,
        event: Event,
        *,
        pid: int | None,
        comm: bytes | None,
        started_at: datetime,
        finished_at: datetime,
        stats: RunStats,
        outcome: str,
    ) -> int:
        """Store one step's figures; returns the run's id."""
        row: dict[str, Any] = {
            "event": event.value,
            "pid": pid,
            "comm": rows.maybe_text(comm),
            "started_at": to_time(started_at),
            "finished_at": to_time(finished_at),
            "outcome": to_words(outcome),
            "uuid": new_uuid(),
            **{name: getattr(stats, name) for name in rows.STATS},
        }
        run_id = self._connection.execute(insert(tables.run), row).lastrowid
        for source, count in stats.sources.items():
            of_source = {"run_id": run_id, "source": source, "identities": count}
            self._connection.execute(insert(tables.run_source), of_source)
        return run_id

    def add_watches(self, run_id: int, watches: Iterable[WatchRow]) -> None:
        """Store the watches of a run, and the answers of the resolvers for those without a path."""
        first_id = self._connection.scalars(_LAST_WATCH).one() + 1
        numbered = list(enumerate(watches, first_id))
        _WATCH.run(self._connection, rows.watch_values(run_id, numbered))
        _TRIED.run(self._connection, rows.tried_values(numbered))

    def add_changes(self, run_id: int, changes: Iterable[Change], now: datetime) -> None:
        """Store the changes of a run, after its mappings, because a change refers to a mapping."""
        _CHANGE.run(self._connection, rows.change_values(run_id, changes, now))

    def prune(self, keep: Retention, now: datetime, wrote: int) -> Pruned:
        """Delete old rows, a few more than the step has written."""
        return retention.prune(self._connection, keep, now, wrote)

    def _count_mappings(self) -> int:
        return self._connection.scalars(_COUNT_MAPPINGS).one()
