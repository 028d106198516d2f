"""Has the statements of the store, in SQLAlchemy Core.

The import of SQLAlchemy takes longer than a whole pre-dump, so the package does not have this
module. `make sql` writes the SQL of each statement to `irmapdb/store/compiled.py`, under the same
name. The hook needs two more before it answers CRIU: they are in `irmapdb.store.mappings`.

A `bindparam` without a value is a parameter there. Any other value is a part of the SQL. The tables
are those of `irmapdb/store/schemas`, as SQLite has them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    and_,
    bindparam,
    case,
    cast,
    create_engine,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    text,
    true,
    union,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from irmapdb.model import Event, Source
from irmapdb.store import rows
from irmapdb.store.mappings import MAPPING_NAMES
from irmapdb.store.objects import creations
from irmapdb.store.records import FileStamp
from irmapdb.store.version import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import BindParameter, ColumnElement, Insert, Select

__all__ = [
    "ADD_CHANGE",
    "ADD_IMAGE_SEEN",
    "ADD_INCOMING",
    "ADD_INCOMING_TO_IMAGE",
    "ADD_INCOMING_TO_MAPPINGS",
    "ADD_ORIGIN",
    "ADD_RUN",
    "ADD_RUN_SOURCE",
    "ADD_TRIED",
    "ADD_VERSION",
    "ADD_WATCH",
    "CHANGES_AFTER",
    "CHANGES_OF_INODE",
    "COUNT_CHANGES_UNTIL",
    "COUNT_MAPPINGS",
    "COUNT_OLD_MAPPINGS",
    "COUNT_RUNS_UNTIL",
    "COUNT_WATCHES_UNTIL",
    "DELETE_CHANGES_UNTIL",
    "DELETE_IMAGE",
    "DELETE_INCOMING",
    "DELETE_INCOMING_FROM_IMAGE",
    "DELETE_OLD_MAPPINGS",
    "DELETE_RUNS_UNTIL",
    "DELETE_WATCHES_UNTIL",
    "FIRST_CHANGE",
    "FLAG_ALL",
    "IMAGE_ENTRIES",
    "INODES_OF_NUMBER",
    "INODES_OF_PATH",
    "LAST_CHANGE",
    "LAST_POSITION",
    "LAST_RUN",
    "LAST_STEP",
    "LAST_WATCH",
    "LIVE_DEVICES",
    "LIVE_ON_DEVICE",
    "MAKE_INCOMING",
    "MAPPINGS_AFTER",
    "MAPPINGS_OF_INODE",
    "MARK_STALE",
    "PROVE",
    "PROVE_UNUSED",
    "RUNS_AFTER",
    "RUNS_UNTIL",
    "RUN_BEFORE_NEWEST",
    "RUN_BEFORE_WATCHES",
    "SOURCES_OF_RUN",
    "TRIED_BETWEEN",
    "WATCHES_OF_INODE",
    "WATCHES_OF_RUN_AFTER",
    "YOUNG_CHANGE",
]


def _tables() -> SimpleNamespace:
    found = MetaData()
    with create_engine("sqlite://").connect() as connection:
        for creation in creations(HEAD).values():
            connection.exec_driver_sql(creation)
        found.reflect(connection)
    return SimpleNamespace(**found.tables)


tables = _tables()
_run, _watch, _tried, _change, _mapping, _image = (
    table.c
    for table in (
        *(tables.run, tables.watch, tables.tried),
        *(tables.change, tables.mapping, tables.image_entry),
    )
)
_UNIQUE = (_mapping.dev, _mapping.ino, _mapping.path, _mapping.mntns)
_RAW = {"path", "old_path", "comm"}
_ROWS_A_PAGE = 2000
# irmapdb writes fewer. Another user may have written more, and the time of a page must not depend
# on that.
_MOST_TRIED = 100
_MOST_SOURCES = 100


def _columns(table: Table, *names: str) -> tuple[ColumnElement[Any], ...]:
    # The bytes of a name or path, which SQLite may have stored as text, bytes or a number.
    return tuple(
        cast(table.c[name], LargeBinary).label(name) if name in _RAW else table.c[name]
        for name in names
    )


_MAPPING = _columns(tables.mapping, *MAPPING_NAMES)
_RUN = _columns(tables.run, *rows.RUN_NAMES)
_WATCH = _columns(tables.watch, *rows.WATCH_NAMES)
_CHANGE = _columns(tables.change, *rows.CHANGE_NAMES)


def _adding(table: Table, fields: Iterable[str] | None = None) -> Insert:
    # A parameter for each column; `fields`: for those alone.
    return insert(table).values({name: bindparam(name) for name in fields or table.c.keys()})


# --- a new database -------------------------------------------------------------------------------

ADD_ORIGIN = _adding(tables.origin)
ADD_VERSION = _adding(tables.alembic_version)

# --- a step ---------------------------------------------------------------------------------------

_has_key = and_(
    _mapping.dev == bindparam("key_dev"),
    _mapping.ino == bindparam("key_ino"),
    _mapping.path == bindparam("key_path"),
    _mapping.mntns == bindparam("key_mntns"),
)

FLAG_ALL = (
    update(tables.mapping)
    .where(_mapping.stale_at.is_(None), _mapping.revalidate == 0)
    .values(revalidate=text("1"))
)

_prove = sqlite.insert(tables.mapping).values(
    {name: bindparam(name) for name in rows.RESOLVED_FIELDS if name != "now"}
    | {
        "revalidate": text("0"),
        "first_seen_at": bindparam("now"),
        "validated_at": bindparam("now"),
        "last_used_at": bindparam("now"),
    }
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
PROVE = _prove.on_conflict_do_update(index_elements=_UNIQUE, set_={**_PROVED, **_USED})
PROVE_UNUSED = _prove.values(last_used_at=null()).on_conflict_do_update(
    index_elements=_UNIQUE, set_=_PROVED
)
MARK_STALE = (
    update(tables.mapping)
    .where(_has_key, _mapping.stale_at.is_(None))
    .values(stale_at=bindparam("now"), stale_reason=bindparam("reason"))
)
COUNT_MAPPINGS = select(func.count()).select_from(tables.mapping)

_image_seen = sqlite.insert(tables.image_seen).values(
    {column.name: bindparam(column.name) for column in tables.image_seen.c}
)
ADD_IMAGE_SEEN = _image_seen.on_conflict_do_update(
    index_elements=[tables.image_seen.c.path],
    set_={name: _image_seen.excluded[name] for name in FileStamp._fields},
)

ADD_RUN = _adding(tables.run, [column.name for column in _run if column.name != "id"])
ADD_RUN_SOURCE = _adding(tables.run_source)
ADD_WATCH = _adding(tables.watch)
ADD_TRIED = _adding(tables.tried)
ADD_CHANGE = _adding(
    tables.change, [column.name for column in _change if column.name not in {"id", "mapping_id"}]
).values(mapping_id=select(_mapping.id).where(_has_key).scalar_subquery())
LAST_WATCH = select(func.coalesce(func.max(_watch.id), 0))

# --- queries --------------------------------------------------------------------------------------

_is_live = and_(_mapping.stale_at.is_(None), _mapping.mntns == bindparam("mntns"))
LIVE_DEVICES = select(_mapping.dev).where(_is_live).distinct()
LIVE_ON_DEVICE = (
    select(*_MAPPING).where(_is_live, _mapping.dev == bindparam("dev")).limit(bindparam("at_most"))
)


def _page(rows_of: Select[Any], key: Column[int]) -> Select[Any]:
    # The next rows after the last one that was read.
    return rows_of.where(key > bindparam("last_id")).order_by(key).limit(_ROWS_A_PAGE)


MAPPINGS_AFTER = _page(select(*_MAPPING), _mapping.id)
RUNS_AFTER = _page(select(*_RUN), _run.id)
CHANGES_AFTER = _page(select(*_CHANGE), _change.id)
WATCHES_OF_RUN_AFTER = _page(select(*_WATCH).where(_watch.run_id == bindparam("run_id")), _watch.id)
TRIED_BETWEEN = (
    select(_tried.watch_id, _tried.resolver, _tried.note)
    .where(
        _tried.watch_id.between(bindparam("first_id"), bindparam("last_id")),
        _tried.position.between(text("1"), text(str(_MOST_TRIED))),
    )
    .order_by(_tried.watch_id, _tried.position)
)
SOURCES_OF_RUN = (
    select(tables.run_source.c.source, tables.run_source.c.identities)
    .where(tables.run_source.c.run_id == bindparam("run_id"))
    .limit(_MOST_SOURCES)
)

IMAGE_ENTRIES = (
    select(_image.position, _mapping.dev, _mapping.ino, cast(_mapping.path, LargeBinary))
    .join_from(tables.image_entry, tables.mapping)
    .where(_mapping.stale_at.is_(None))
    .order_by(_image.position)
)

# --- everything about one inode -------------------------------------------------------------------


def _inodes(*conditions: ColumnElement[bool]) -> Any:
    # Of the tables that have inodes.
    return union(
        *(
            select(table.dev, table.ino).where(condition)
            for table, condition in zip((_mapping, _watch, _change), conditions, strict=True)
        )
    ).limit(bindparam("at_most"))


def _is_inode(table: Table) -> ColumnElement[bool]:
    return and_(table.c.dev == bindparam("dev"), table.c.ino == bindparam("ino"))


_ino: BindParameter[Any] = bindparam("ino")
_path: BindParameter[Any] = bindparam("path")
INODES_OF_NUMBER = _inodes(_mapping.ino == _ino, _watch.ino == _ino, _change.ino == _ino)
INODES_OF_PATH = _inodes(
    _mapping.path == _path,
    _watch.path == _path,
    or_(_change.path == _path, _change.old_path == _path),
)
# Live ones first, then those that were proved last.
MAPPINGS_OF_INODE = (
    select(*_MAPPING)
    .where(_is_inode(tables.mapping))
    .order_by(
        _mapping.stale_at.is_not(None),
        func.coalesce(_mapping.validated_at, _mapping.first_seen_at).desc(),
        _mapping.id.desc(),
    )
    .limit(bindparam("at_most"))
)
CHANGES_OF_INODE = (
    select(*_CHANGE)
    .where(_is_inode(tables.change))
    .order_by(_change.id.desc())
    .limit(bindparam("at_most"))
)
WATCHES_OF_INODE = (
    select(*_WATCH, _run.id, _run.event, _run.finished_at)
    .join_from(tables.watch, tables.run)
    .where(_is_inode(tables.watch))
    .order_by(_watch.id.desc())
    .limit(bindparam("at_most"))
)

# --- the list of irmap-cache ----------------------------------------------------------------------

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
_is_incoming = and_(
    _mapping.dev == _incoming.c.dev,
    _mapping.ino == _incoming.c.ino,
    _mapping.path == _incoming.c.path,
    _mapping.mntns == 0,
)
MAKE_INCOMING = CreateTable(_incoming, if_not_exists=True)
DELETE_INCOMING = delete(_incoming)
ADD_INCOMING = _adding(_incoming)

LAST_POSITION = select(func.coalesce(func.max(_image.position), 0))
DELETE_IMAGE = delete(tables.image_entry)
DELETE_INCOMING_FROM_IMAGE = delete(tables.image_entry).where(
    _image.mapping_id.in_(select(_mapping.id).join_from(_incoming, tables.mapping, _is_incoming))
)
ADD_INCOMING_TO_IMAGE = insert(tables.image_entry).from_select(
    ["position", "mapping_id"],
    select(_incoming.c.position + bindparam("after"), _mapping.id).join_from(
        _incoming, tables.mapping, _is_incoming
    ),
)
ADD_INCOMING_TO_MAPPINGS = (
    sqlite.insert(tables.mapping)
    .from_select(
        ["dev", "ino", "path", "mntns", "revalidate", "source", "first_seen_at"],
        select(
            *(_incoming.c.dev, _incoming.c.ino, _incoming.c.path),
            *(text("0"), text("1"), text(f"'{Source.IMAGE.value}'"), bindparam("now")),
        )
        .where(true())  # else SQLite takes ON CONFLICT for a join's condition
        .order_by(_incoming.c.position),
        include_defaults=False,
    )
    .on_conflict_do_update(
        index_elements=_UNIQUE,
        set_={"revalidate": text("1"), "stale_at": null(), "stale_reason": null()},
    )
)

# --- old rows -------------------------------------------------------------------------------------

_is_step = and_(
    _run.event.in_([Event.PRE_DUMP.value, Event.DUMP.value]), _run.outcome.not_like("failed:%")
)
LAST_STEP = select(_run.id).where(_is_step).order_by(_run.id.desc()).limit(1)
LAST_RUN = select(func.max(_run.id))

RUN_BEFORE_NEWEST = select(_run.id).order_by(_run.id.desc()).limit(1).offset(bindparam("runs"))
# Watches are numbered in the order of their runs and taken out in that order, so that there is
# none missing between the first and the last. Only steps have any.
RUN_BEFORE_WATCHES = (
    select(_watch.run_id)
    .where(_watch.id <= select(func.max(_watch.id)).scalar_subquery() - bindparam("watches"))
    .order_by(_watch.id.desc())
    .limit(1)
)


def _is_old(run_id: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(run_id <= bindparam("newest"), run_id != bindparam("kept"))


RUNS_UNTIL = (
    select(_run.id, _run.watches)
    .where(_is_old(_run.id))
    .order_by(_run.id)
    .limit(bindparam("at_most"))
)
COUNT_RUNS_UNTIL = select(func.count()).where(_is_old(_run.id))
COUNT_WATCHES_UNTIL = select(func.count()).where(_is_old(_watch.run_id))
DELETE_RUNS_UNTIL = delete(tables.run).where(_is_old(_run.id))
DELETE_WATCHES_UNTIL = delete(tables.watch).where(_is_old(_watch.run_id))

# Two questions: asked in one, SQLite looks through the whole table.
FIRST_CHANGE = select(func.min(_change.id))
LAST_CHANGE = select(func.max(_change.id))
# From the oldest on: as few rows are looked at as are taken out.
YOUNG_CHANGE = (
    select(_change.id)
    .where(_change.at >= bindparam("since"), _change.id <= bindparam("until"))
    .order_by(_change.id)
    .limit(1)
)
COUNT_CHANGES_UNTIL = select(func.count()).where(_change.id <= bindparam("until"))
DELETE_CHANGES_UNTIL = delete(tables.change).where(_change.id <= bindparam("until"))

_used_at = func.coalesce(_mapping.last_used_at, _mapping.first_seen_at)
_is_stale = _mapping.stale_at.is_not(None)
_last_step_at = select(func.max(_run.finished_at)).where(_is_step).scalar_subquery()
_in_image = exists().where(_image.mapping_id == _mapping.id)
_is_candidate = or_(_is_stale, and_(~_is_stale, _used_at < _last_step_at, ~_in_image))
_is_expired = case(
    (_is_stale, _mapping.stale_at < bindparam("stale_since")),
    else_=_used_at < bindparam("used_since"),
)
COUNT_OLD_MAPPINGS = select(
    func.count(), func.coalesce(func.sum(cast(_is_expired, Integer)), 0)
).where(_is_candidate)
_oldest = (
    select(_mapping.id)
    .where(_is_candidate)
    .order_by(_is_expired.desc(), func.coalesce(_mapping.stale_at, _used_at), _mapping.id)
    .limit(bindparam("at_most"))
)
DELETE_OLD_MAPPINGS = delete(tables.mapping).where(_mapping.id.in_(_oldest))
