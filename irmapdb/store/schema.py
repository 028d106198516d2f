"""Which schema a file has, and the making of a new one.

The revision stands in alembic's own table; `application_id` tells our files from those of
others who use alembic too. Source: https://www.sqlite.org/pragma.html#pragma_application_id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import column, insert, select, table

from irmapdb.errors import DatabaseError
from irmapdb.store import tables, views
from irmapdb.store.connect import immediate
from irmapdb.store.failures import show

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["check_newest", "create", "read_revision", "refuse_empty"]

_sqlite_master = table("sqlite_master", column("name"), column("type"))


def read_revision(connection: Connection, path: bytes) -> str | None:
    """The revision of the schema, one of tables.REVISIONS; None for an empty database.

    A foreign database, or one with a newer schema, raises DatabaseError.
    """
    names = set(
        connection.scalars(
            select(_sqlite_master.c.name).where(_sqlite_master.c.type.in_(["table", "view"]))
        )
    )
    application_id = connection.exec_driver_sql("PRAGMA application_id").scalar()
    if not names and application_id == 0:
        return None
    if application_id != tables.APPLICATION_ID or "alembic_version" not in names:
        has = f"it has the tables {', '.join(sorted(names))}" if names else "it has no tables"
        raise DatabaseError(
            f"{show(path)}: a database, but not one of irmapdb: {has}",
            advice="name another file with --db",
        )
    found = connection.scalars(select(tables.alembic_version.c.version_num)).all()
    if len(found) != 1:
        raise DatabaseError(
            f"{show(path)}: the database is damaged: it names {len(found)} schema revisions",
            advice="move it away, or put back a backup: it is only a cache",
        )
    revision = str(found[0])
    if revision not in tables.REVISIONS:
        raise DatabaseError(
            f"{show(path)}: has schema {revision}, newer than {tables.HEAD}, "
            "the newest that this irmapdb knows",
            advice=f"use an irmapdb that knows schema {revision}, or name another file with --db",
        )
    return revision


def check_newest(connection: Connection, path: bytes) -> None:
    """Raise DatabaseError unless it is a database of ours, with the newest schema."""
    revision = read_revision(connection, path)
    if revision is None:
        raise refuse_empty(path)
    if revision != tables.HEAD:
        raise DatabaseError(
            f"{show(path)}: has the older schema {revision}",
            advice="run `irmapdb db upgrade` on it",
        )


def refuse_empty(path: bytes) -> DatabaseError:
    """The error for an empty database where one with data is needed."""
    return DatabaseError(
        f"{show(path)}: an empty database",
        advice="`irmapdb pre-dump` and `irmapdb import` fill it",
    )


def create(connection: Connection, path: bytes) -> None:
    """Make the newest schema, unless another process has just made one."""
    with immediate(connection):
        if read_revision(connection, path) is not None:
            return
        tables.metadata.create_all(connection, checkfirst=False)
        tables.version_metadata.create_all(connection, checkfirst=False)
        views.create(connection)
        connection.execute(insert(tables.alembic_version), {"version_num": tables.HEAD})
        connection.exec_driver_sql(f"PRAGMA application_id = {tables.APPLICATION_ID}")
