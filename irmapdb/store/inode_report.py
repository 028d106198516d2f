"""Collects everything about one inode: its paths, its watches and its changes.

It reads whole tables if there is no index: a million rows in a fraction of a second.
"""

from __future__ import annotations

from sqlalchemy import or_, select, union

from irmapdb.model import InodeKey
from irmapdb.record import Record
from irmapdb.store import rows, tables
from irmapdb.store.read import Reader
from irmapdb.store.values import check_number, from_ino, from_time, to_ino, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy import ColumnElement, Table

    from irmapdb.model import Mapping
    from irmapdb.store.records import ChangeRow, WatchRow

__all__ = ["InodeReport", "InodeReports", "Sighting"]


class Sighting(Record):
    """A watch, and the run that saw it."""

    run_id: int
    event: str
    at: datetime
    """The end of the run."""
    row: WatchRow


class InodeReport(Record):
    """The rows of one (device, inode number), which is usually one inode."""

    key: InodeKey
    mappings: tuple[Mapping, ...]
    """The mappings of every mount namespace, also stale ones, the first stored one first."""
    sightings: tuple[Sighting, ...]
    """Oldest run first."""
    changes: tuple[ChangeRow, ...]
    """Oldest first."""


class InodeReports(Reader):
    """The queries for one inode."""

    def find_by_ino(self, ino: int) -> list[InodeKey]:
        """The inodes of this number, on any device."""
        return self._keys(lambda table: table.c.ino == to_ino(ino))

    def find_by_path(self, path: bytes) -> list[InodeKey]:
        """The inodes that have, or had, this path."""
        stored = to_text(path)

        def has_path(table: Table) -> ColumnElement[bool]:
            named = table.c.path == stored
            return or_(named, table.c.old_path == stored) if "old_path" in table.c else named

        return self._keys(has_path)

    def inode_report(self, key: InodeKey) -> InodeReport | None:
        """Everything about an inode; None if the database does not know it."""
        mappings = self._of(tables.mapping, rows.MAPPING_COLUMNS, key)
        changes = self._of(tables.change, rows.CHANGE_COLUMNS, key)
        sightings = self._sightings(key)
        if not (mappings or changes or sightings):
            return None
        return InodeReport(
            key,
            tuple(self._read(rows.read_mapping, mappings)),
            sightings,
            tuple(self._read(rows.read_change, changes)),
        )

    def _keys(self, condition: Callable[[Table], ColumnElement[bool]]) -> list[InodeKey]:
        found = union(
            *(
                select(table.c.dev, table.c.ino).where(condition(table))
                for table in (tables.mapping, tables.watch, tables.change)
            )
        )
        return sorted(self._read(_read_key, self._fetch(found)))

    def _of(
        self, table: Table, columns: Sequence[ColumnElement[Any]], key: InodeKey
    ) -> Sequence[Sequence[Any]]:
        return self._fetch(select(*columns).where(*_is(table, key)).order_by(table.c.id))

    def _sightings(self, key: InodeKey) -> tuple[Sighting, ...]:
        run = tables.run.c
        seen = (
            select(run.id, run.event, run.finished_at, *rows.WATCH_COLUMNS)
            .join_from(tables.watch, tables.run)
            .where(*_is(tables.watch, key))
            .order_by(tables.watch.c.id)
        )

        def read(row: Sequence[Any]) -> Sighting:
            run_id, event, at, *watch = row
            return Sighting(run_id, event, from_time(at), rows.read_watch(watch, ()))

        return tuple(self._read(read, self._fetch(seen)))


def _is(table: Table, key: InodeKey) -> tuple[ColumnElement[bool], ...]:
    return table.c.dev == key.kdev, table.c.ino == to_ino(key.ino)


def _read_key(row: Sequence[Any]) -> InodeKey:
    dev, ino = row
    check_number("the device", dev, 0, (1 << 32) - 1)
    return InodeKey(dev, from_ino(ino))
