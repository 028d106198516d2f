"""Opens SQLAlchemy's connection to the file, for alembic.

Only an upgrade of the schema imports this module: the import of SQLAlchemy takes longer than a
whole pre-dump. Source: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#pysqlite.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from irmapdb.store.failures import translated
from irmapdb.store.raw import connect_raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from irmapdb.store.place import Place

__all__ = ["raw_of", "upgrading"]


@contextmanager
def upgrading(place: Place, *, wait_s: float) -> Iterator[Connection]:
    """One write transaction for an upgrade: all or nothing, and no other process writes meanwhile.

    Foreign keys are off: a table is rebuilt by dropping the old one, which would take the rows that
    refer to it along.
    """
    with connect_raw(place, write=True, wait_s=wait_s, foreign_keys=False) as raw:
        engine = create_engine("sqlite://", creator=lambda: raw, poolclass=NullPool)
        with translated(place.path, wait_s), engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


def raw_of(connection: Connection) -> sqlite3.Connection:
    """SQLite's own connection below SQLAlchemy's."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        raise TypeError(type(raw))
    return raw
