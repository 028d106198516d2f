"""A connection to the file: in which mode, with which journal and pragmas.

Source: https://www.sqlite.org/uri.html, https://www.sqlite.org/wal.html,
https://www.sqlite.org/pragma.html.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from irmapdb.store.failures import primary_code, translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

__all__ = ["connect", "immediate", "open_raw", "use_wal"]

# What SQLite says of a WAL database where there can be no shared memory.
_NO_SHARED_MEMORY = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL}
_CACHE_KIB = 16 * 1024


def open_raw(path: bytes, *, write: bool, wait_s: float) -> sqlite3.Connection:
    """SQLite's own connection to an absolute path; a transaction is only what is begun."""
    query = "mode=rw" if write else "mode=ro"
    if not write and _never_changes(path):
        query = "mode=ro&immutable=1"
    # Two slashes: else a path that begins with two would name a host.
    return sqlite3.connect(
        f"file://{quote(path)}?{query}", uri=True, timeout=wait_s, isolation_level=None
    )


def _never_changes(path: bytes) -> bool:
    # A WAL database on a read-only filesystem can be read only so: there is no place for the
    # shared memory. Not with a log beside it, which would be left out.
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        return False
    return bool(read_only) and not os.path.lexists(path + b"-wal")


def _leave_wal(path: bytes) -> None:
    # Back to the rollback journal. Without shared memory a WAL can only be read by who has the
    # whole file, so this fails while another process has it open.
    raw = open_raw(path, write=True, wait_s=0)
    try:
        raw.execute("PRAGMA locking_mode = EXCLUSIVE")
        raw.execute("PRAGMA journal_mode = DELETE")
    finally:
        raw.close()


def _configured(raw: sqlite3.Connection, pragmas: Iterable[str]) -> sqlite3.Connection:
    try:
        for pragma in pragmas:
            raw.execute(pragma)
    except BaseException:
        raw.close()
        raise
    return raw


@contextmanager
def connect(
    path: bytes, *, write: bool, wait_s: float, foreign_keys: bool = True
) -> Iterator[Connection]:
    """SQLAlchemy's connection to an absolute path, closed at the end.

    Begins no transaction by itself; see `immediate`.
    """
    pragmas = (
        # A schema is data: no function runs because a view or a trigger of the file says so.
        "PRAGMA trusted_schema = OFF",
        f"PRAGMA query_only = {'OFF' if write else 'ON'}",
        f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        # The first to read the file: what is no database fails here.
        f"PRAGMA cache_size = -{_CACHE_KIB}",
        "PRAGMA temp_store = MEMORY",
    )

    def creator() -> sqlite3.Connection:
        try:
            return _configured(open_raw(path, write=write, wait_s=wait_s), pragmas)
        except sqlite3.OperationalError as error:
            if not write or primary_code(error) not in _NO_SHARED_MEMORY:
                raise
        # A WAL database that was brought here from a filesystem with shared memory.
        _leave_wal(path)
        return _configured(open_raw(path, write=write, wait_s=wait_s), pragmas)

    engine = create_engine("sqlite://", creator=creator, poolclass=NullPool)
    with translated(path, wait_s):
        connection = engine.connect()
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def immediate(connection: Connection) -> Iterator[None]:
    """The one write transaction: all or nothing, and no one else writes meanwhile."""
    with connection.begin():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield


def use_wal(path: bytes) -> None:
    """Switch to the write-ahead log where the filesystem allows it, so that readers never wait.

    Where it has no shared memory (some FUSE filesystems), or somebody else is at work in the
    database at this moment, it stays in rollback mode.
    """
    raw = open_raw(path, write=True, wait_s=0)
    try:
        raw.execute("PRAGMA journal_mode = WAL")
        # The switch itself needs no shared memory; the first transaction does.
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
    except sqlite3.Error as error:
        raw.close()
        if primary_code(error) != sqlite3.SQLITE_BUSY:
            _leave_wal(path)
    finally:
        raw.close()
