"""Stores the ordered list of `irmap-cache` entries, which is read and replaced as a whole.

A list goes into a temporary table first, and from there by three statements into `mapping` and
`image_entry`: a statement for each entry, with a look-up in it, takes twice as long.
"""

from __future__ import annotations

from itertools import islice

from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    text,
    true,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from irmapdb.errors import DatabaseError
from irmapdb.log import Log
from irmapdb.model import Source
from irmapdb.store import tables
from irmapdb.store.failures import show
from irmapdb.store.values import MAX_PATH_BYTES, to_ino, to_text, to_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from irmapdb.model import CacheEntry

__all__ = ["replace", "take_in"]

_log = Log(__name__)

_BATCH = 5000

# BLOB has no affinity: text stays text, and bytes bytes.
_incoming = Table(
    "incoming",
    MetaData(),
    Column("position", Integer, primary_key=True),
    Column("dev", Integer, nullable=False),
    Column("ino", Integer, nullable=False),
    Column("path", LargeBinary, nullable=False),
    prefixes=["TEMPORARY"],
)
_CREATE = CreateTable(_incoming, if_not_exists=True)

_mapping = tables.mapping.c
_SAME = and_(
    _mapping.dev == _incoming.c.dev,
    _mapping.ino == _incoming.c.ino,
    _mapping.path == _incoming.c.path,
    _mapping.mntns == 0,
)
_LAST_POSITION = select(func.coalesce(func.max(tables.image_entry.c.position), 0))
_ALL_OF_IT = delete(tables.image_entry)
_THOSE_OF_IT = delete(tables.image_entry).where(
    tables.image_entry.c.mapping_id.in_(
        select(_mapping.id).join_from(_incoming, tables.mapping, _SAME)
    )
)
_APPEND = insert(tables.image_entry).from_select(
    ["position", "mapping_id"],
    select(_incoming.c.position + bindparam("after"), _mapping.id).join_from(
        _incoming, tables.mapping, _SAME
    ),
)
_TAKE_IN = (
    sqlite.insert(tables.mapping)
    .from_select(
        ["dev", "ino", "path", "mntns", "revalidate", "source", "first_seen_at"],
        select(
            _incoming.c.dev,
            _incoming.c.ino,
            _incoming.c.path,
            literal_column("0"),
            literal_column("1"),
            bindparam("source"),
            bindparam("now"),
        )
        .where(true())  # else SQLite takes ON CONFLICT for a join's condition
        .order_by(_incoming.c.position),
        include_defaults=False,
    )
    .on_conflict_do_update(
        index_elements=(_mapping.dev, _mapping.ino, _mapping.path, _mapping.mntns),
        set_={"revalidate": text("1"), "stale_at": null(), "stale_reason": null()},
    )
)


def take_in(
    connection: Connection, entries: Iterable[CacheEntry], now: datetime, path: bytes
) -> None:
    """Append the entries to the list, as mappings that must be proved before use.

    A stale mapping becomes live again. Their earlier places in the list are removed.
    """
    count = _fill(connection, entries)
    connection.execute(_TAKE_IN, {"source": Source.IMAGE.value, "now": to_time(now)})
    after = connection.scalars(_LAST_POSITION).one()
    if after:
        connection.execute(_THOSE_OF_IT)
    _put(connection, count, after, path)


def replace(connection: Connection, entries: Iterable[CacheEntry], path: bytes) -> None:
    """Replace the list by these entries. DatabaseError if one is no mapping."""
    count = _fill(connection, entries)
    connection.execute(_ALL_OF_IT)
    _put(connection, count, 0, path)


def _put(connection: Connection, count: int, after: int, path: bytes) -> None:
    done = connection.execute(_APPEND, {"after": after})
    if done.rowcount != count:
        raise DatabaseError(
            show(path),
            f"{count - done.rowcount} of {count} entries are no mappings",
            advice="this is an error of irmapdb's own; please report it",
        )


def _fill(connection: Connection, entries: Iterable[CacheEntry]) -> int:
    connection.execute(_CREATE)
    connection.execute(delete(_incoming))
    sql = str(insert(_incoming).compile(dialect=sqlite.dialect(paramstyle="qmark")))
    rows = _rows(entries)
    count = 0
    while batch := list(islice(rows, _BATCH)):
        connection.exec_driver_sql(sql, batch)
        count += len(batch)
    return count


def _rows(entries: Iterable[CacheEntry]) -> Iterator[tuple[int, int, int, str | bytes]]:
    left_out = 0
    for position, (kdev, ino, path) in enumerate(entries, 1):
        if len(path) > MAX_PATH_BYTES:
            left_out += 1
        else:
            yield position, kdev, to_ino(ino), to_text(path)
    if left_out:
        _log.warning(
            "%d entries are left out: their paths have more than %d bytes", left_out, MAX_PATH_BYTES
        )
