"""Opens SQLAlchemy's connection to the file.

Source: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#pysqlite.
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

__all__ = ["connect", "immediate", "raw_of"]


@contextmanager
def connect(
    place: Place, *, write: bool, wait_s: float, foreign_keys: bool = True
) -> Iterator[Connection]:
    """SQLAlchemy's connection to a database, closed at the end.

    Begins no transaction by itself; see `immediate`.
    """
    with connect_raw(place, write=write, wait_s=wait_s, foreign_keys=foreign_keys) as raw:
        engine = create_engine("sqlite://", creator=lambda: raw, poolclass=NullPool)
        with translated(place.path, wait_s):
            connection = engine.connect()
        with connection:
            yield connection


def raw_of(connection: Connection) -> sqlite3.Connection:
    """SQLite's own connection below SQLAlchemy's."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        raise TypeError(type(raw))
    return raw


@contextmanager
def immediate(connection: Connection) -> Iterator[None]:
    """The one write transaction: all or nothing, and no other process writes meanwhile."""
    with connection.begin():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield
