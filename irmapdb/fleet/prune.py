"""Deletes old rows from the server: whole weeks of them, as partitions.

The server keeps a row until `prune` deletes it, also if the node has deleted it long ago. `prune`
drops a week if all its rows are older. It deletes stale mappings by the time when they went stale,
a database that was not pushed since then with its mappings, and a node without databases.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from irmapdb.fleet.schema import PARTITIONED, check_newest
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import date

    from sqlalchemy import Connection

    from irmapdb.fleet.server import Server

__all__ = ["FleetPruned", "prune"]

_PARTITION_LOCK = text("SELECT pg_advisory_xact_lock(1230130512, 1)")  # irmapdb_add_period
_HORIZON = text(
    "SELECT date_trunc('week', (now() - CAST(:age AS interval)) AT TIME ZONE 'UTC')::date"
)
_OLD_PARTITIONS = text("""
SELECT parent.relname, child.relname
FROM pg_inherits
JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
JOIN pg_class AS parent ON parent.oid = pg_inherits.inhparent
WHERE parent.relname = ANY (:parents) AND parent.relnamespace = current_schema()::regnamespace
    AND child.relname ~ '_[0-9]{4}w[0-9]{2}$'
    AND right(child.relname, 7) < to_char(CAST(:before AS date), 'IYYY"w"IW')
ORDER BY child.relname
""")


class FleetPruned(Record):
    """The rows that were deleted, or would be."""

    before: date
    """A Monday. All rows of older weeks are deleted."""
    partitions: tuple[str, ...]
    mappings: int
    """Stale ones, and those of databases that are deleted."""
    databases: int
    nodes: int


def prune(server: Server, keep: timedelta, *, dry_run: bool) -> FleetPruned:
    """Delete rows that are older. Each step is committed by itself; a later call goes on."""
    with server.connect() as connection:
        with connection.begin():
            check_newest(connection, server)
            age = f"{keep // timedelta(seconds=1)} seconds"
            before: date = connection.scalars(_HORIZON, {"age": age}).one()
        if dry_run:
            with connection.begin():
                return _count(connection, before)
        with connection.begin():
            # Before anything is deleted: pushes must not send it again.
            connection.execute(
                text("UPDATE retention SET pruned_before = greatest(pruned_before, :before)"),
                {"before": before},
            )
        partitions = _old_partitions(connection, before)
        for parent, name in partitions:
            # One table at a time: pushes lock several.
            with connection.begin():
                connection.execute(_PARTITION_LOCK)
                connection.exec_driver_sql(f"ALTER TABLE {parent} DETACH PARTITION {name}")
                connection.exec_driver_sql(f"DROP TABLE {name}")
        names = tuple(name for _, name in partitions)
        with connection.begin():
            return _delete(connection, before, names)


def _old_partitions(connection: Connection, before: date) -> list[tuple[str, str]]:
    values = {"parents": [*PARTITIONED], "before": before}
    with connection.begin() if not connection.in_transaction() else connection.begin_nested():
        return [(parent, name) for parent, name in connection.execute(_OLD_PARTITIONS, values)]


_DATABASES = "FROM database WHERE last_push_at < :before"
_MAPPINGS = f"FROM mapping WHERE stale_at < :before OR database_id IN (SELECT id {_DATABASES})"
_NODES = (
    "FROM node WHERE last_push_at < :before"
    " AND NOT EXISTS (SELECT FROM database WHERE node_id = node.id AND last_push_at >= :before)"
)


def _count(connection: Connection, before: date) -> FleetPruned:
    mappings, databases, nodes = (
        int(connection.scalars(text(f"SELECT count(*) {rows}"), {"before": before}).one())
        for rows in (_MAPPINGS, _DATABASES, _NODES)
    )
    names = tuple(name for _, name in _old_partitions(connection, before))
    return FleetPruned(before, names, mappings, databases, nodes)


def _delete(connection: Connection, before: date, partitions: tuple[str, ...]) -> FleetPruned:
    mappings, databases, nodes = (
        connection.execute(text(f"DELETE {rows}"), {"before": before}).rowcount
        for rows in (_MAPPINGS, _DATABASES, _NODES)
    )
    return FleetPruned(before, partitions, mappings, databases, nodes)
