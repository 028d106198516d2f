"""Defines the tables of the fleet's database at the newest revision.

`migrations/fleet` makes them; a test compares the two. The tables of irmap.db have the same names
and columns here, with `database_id` in front, and a `period`: the Monday of the week by which the
tables are partitioned. In a run, `watch_list` names a list of watches in `listed_watch`: equal
lists of one database in one week are stored once. The views `watch` and `tried` show the watches of
each run. `verdict` has every check; `current_verdict` has the rows of the last one, those whose
`at` is the `last_check_at` of the database, so that no view reads the rows of every week.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "PARTITIONED",
    "access",
    "change",
    "current_verdict",
    "database",
    "listed_tried",
    "listed_watch",
    "mapping",
    "metadata",
    "node",
    "node_limit",
    "retention",
    "run",
    "run_source",
    "verdict",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

PARTITIONED = ("run", "run_source", "listed_watch", "listed_tried", "change", "verdict")
"""The tables that are partitioned by week."""

_BY_PERIOD = "RANGE (period)"


def _numbers(names: str) -> tuple[Column[Any], ...]:
    return tuple(Column(name, BigInteger, nullable=False) for name in names.split())


def _time(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _in_period() -> tuple[Column[Any], ...]:
    return (*_numbers("database_id"), Column("period", Date, nullable=False))


def _identity() -> tuple[Column[Any], ...]:
    return (
        *_numbers("dev ino"),
        Column("handle_type", BigInteger),
        Column("handle", LargeBinary),
    )


def _verdict() -> tuple[Column[Any], ...]:
    return (
        _time("at"),
        Column("verdict", Text, nullable=False),
        *_numbers("watches"),
        Column("why", Text),
        Column("advice", Text),
        Column("fails", Boolean, nullable=False),
    )


retention = Table("retention", metadata, Column("pruned_before", Date, nullable=False))

access = Table(
    "access",
    metadata,
    Column("role", Text, primary_key=True),
    Column("namespace", Text, primary_key=True),
)

node = Table(
    "node",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("cluster", Text),
    Column("machine", Uuid),
    Column("version", Text, nullable=False),
    _time("first_push_at"),
    _time("last_push_at"),
    _time("machine_changed_at", nullable=True),
    Column("clock_offset_s", Double, nullable=False),
    Column("pushed_by", Text, nullable=False, server_default=text("CURRENT_USER")),
    UniqueConstraint("name"),
)

node_limit = Table(
    "node_limit",
    metadata,
    Column("node_id", ForeignKey("node.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    _time("at"),
    *_numbers("uid used limit"),
    PrimaryKeyConstraint("node_id", "name", "uid"),
)

database = Table(
    "database",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("node_id", ForeignKey("node.id", ondelete="CASCADE"), nullable=False),
    Column("uuid", Uuid, nullable=False),
    Column("file", LargeBinary, nullable=False),
    Column("schema", Text, nullable=False),
    Column("container", Text),
    Column("container_name", Text),
    Column("image", Text),
    Column("pod", Text),
    Column("namespace", Text),
    _time("first_push_at"),
    _time("last_push_at"),
    *_numbers("pushes last_run_id"),
    Column("last_run", Uuid),
    Column("last_run_period", Date),
    *_numbers("last_change_id"),
    Column("last_change", Uuid),
    Column("last_step", Uuid),
    Column("last_step_period", Date),
    _time("last_check_at", nullable=True),
    UniqueConstraint("node_id", "uuid"),
    Index(None, "uuid"),
    Index(None, "namespace"),
)

run = Table(
    "run",
    metadata,
    *_in_period(),
    Column("uuid", Uuid, nullable=False),
    *_numbers("id"),
    Column("event", Text, nullable=False),
    Column("pid", BigInteger),
    Column("comm", LargeBinary),
    _time("started_at"),
    _time("finished_at"),
    *_numbers("freezing_us frozen_us resolve_us watches resolved unresolved hits stale scanned"),
    *_numbers("tasks_frozen reread_us reparsed confirm_us reproved"),
    Column("reproved_why", Text, nullable=False),
    *_numbers("frozen_resolve_us paused paused_us criu_freezing_us criu_frozen_us"),
    Column("outcome", Text, nullable=False),
    Column("watch_list", Uuid),
    PrimaryKeyConstraint("database_id", "uuid", "period"),
    Index(None, "started_at"),
    postgresql_partition_by=_BY_PERIOD,
)
_stopped = func.greatest(
    run.c.frozen_us, run.c.paused_us + run.c.criu_freezing_us + run.c.criu_frozen_us
)
Index("ix_run_stopped", _stopped, postgresql_where=_stopped > text("0"))

run_source = Table(
    "run_source",
    metadata,
    *_in_period(),
    Column("run", Uuid, nullable=False),
    Column("source", Text, nullable=False),
    *_numbers("identities"),
    PrimaryKeyConstraint("database_id", "run", "source", "period"),
    postgresql_partition_by=_BY_PERIOD,
)

listed_watch = Table(
    "listed_watch",
    metadata,
    *_in_period(),
    Column("list", Uuid, nullable=False),
    *_numbers("number pid"),
    Column("comm", LargeBinary),
    *_numbers("fd"),
    Column("kind", Text, nullable=False),
    *_numbers("wd"),
    *_identity(),
    *_numbers("mask ignored_mask mflags"),
    Column("path", LargeBinary),
    Column("why", Text),
    *_numbers("mntns"),
    PrimaryKeyConstraint("database_id", "list", "number", "period"),
    postgresql_partition_by=_BY_PERIOD,
)

listed_tried = Table(
    "listed_tried",
    metadata,
    *_in_period(),
    Column("list", Uuid, nullable=False),
    *_numbers("number position"),
    Column("resolver", Text, nullable=False),
    Column("note", Text, nullable=False),
    PrimaryKeyConstraint("database_id", "list", "number", "position", "period"),
    postgresql_partition_by=_BY_PERIOD,
)

change = Table(
    "change",
    metadata,
    *_in_period(),
    Column("key", Uuid, nullable=False),
    *_numbers("id"),
    Column("run", Uuid),
    Column("run_id", BigInteger),
    _time("at"),
    Column("mapping_id", BigInteger),
    Column("kind", Text, nullable=False),
    *_identity(),
    Column("path", LargeBinary, nullable=False),
    Column("old_path", LargeBinary),
    Column("reason", Text),
    *_numbers("mntns"),
    PrimaryKeyConstraint("database_id", "key", "period"),
    Index("ix_change_at", "database_id", "at"),
    postgresql_partition_by=_BY_PERIOD,
)

verdict = Table(
    "verdict",
    metadata,
    *_in_period(),
    *_verdict(),
    PrimaryKeyConstraint("database_id", "at", "verdict", "period"),
    postgresql_partition_by=_BY_PERIOD,
)

current_verdict = Table(
    "current_verdict",
    metadata,
    Column("database_id", ForeignKey("database.id", ondelete="CASCADE"), nullable=False),
    *_verdict(),
    PrimaryKeyConstraint("database_id", "verdict"),
)

mapping = Table(
    "mapping",
    metadata,
    *_numbers("database_id"),
    Column("key", Uuid, nullable=False),
    *_numbers("id"),
    *_identity(),
    Column("path", LargeBinary, nullable=False),
    *_numbers("mntns revalidate"),
    Column("source", Text, nullable=False),
    _time("first_seen_at"),
    _time("validated_at", nullable=True),
    _time("last_used_at", nullable=True),
    _time("stale_at", nullable=True),
    Column("stale_reason", Text),
    PrimaryKeyConstraint("database_id", "key"),
    Index("ix_mapping_stale_at", "stale_at", postgresql_where=text("stale_at IS NOT NULL")),
)
