"""Target: whole database files, through each function that opens one.

The first byte of an input says how the file is made: 0, the rest is the file; 1, the rest are
changes of a good one (3 bytes place, 1 byte length, then the new bytes); 2, the rest is SQL that a
person with the file could run on it. Bit 7 opens the directory to others, so that irmapdb works on
a copy; bit 6 opens the database also for writing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from irmapdb.config import Retention
from irmapdb.errors import DatabaseError, FileError, SqlError
from irmapdb.image.cache import decode_cache, encode_cache
from irmapdb.model import CacheEntry, printable
from irmapdb.store.ask import Ask
from irmapdb.store.database import Store
from irmapdb.store.entries import read_entries
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target, check, refusal
from tests.support.scenario import write_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TARGETS"]

_PAGE_BYTES = 512  # the smallest: more pages to damage
_STEPS = 100
_ASKED = """
SELECT * FROM mapping; SELECT * FROM live_mappings; SELECT * FROM run; SELECT * FROM watch
"""
_MAY_BE_THERE = {"irmap.db", "irmap.db-wal", "irmap.db-shm", "irmap.db-journal"}
_MAX_PATH_BYTES = 1 << 16

_COPIED, _WRITTEN, _HOW = 0x80, 0x40, 0x3F


class _Databases:
    """Makes a file of each input, and opens it in every way."""

    def __init__(self) -> None:
        logging.getLogger("irmapdb").addHandler(logging.NullHandler())
        logging.getLogger("irmapdb").propagate = False
        self._base = good_database()
        directory = scratch()
        self._directory = directory / "work"
        self._directory.mkdir(mode=0o700)
        self._path = self._directory / "irmap.db"
        self._victim = directory / "victim"
        self._victim.write_bytes(b"not to be touched")

    def __call__(self, data: bytes) -> None:
        how = data[0] if data else 0
        self._clear()
        # A database in a directory of others is copied, and never opened in place.
        self._directory.chmod(0o777 if how & _COPIED else 0o700)
        self._make(how & _HOW, data[1:])
        before = _digest(self._path)
        self._read()
        check(_digest(self._path) == before, "a reader changed the file")
        check(set(os.listdir(self._directory)) <= _MAY_BE_THERE, "a reader made a file")
        if how & _WRITTEN:
            self._write()
        check(self._victim.read_bytes() == b"not to be touched", "another file was changed")

    def _clear(self) -> None:
        for name in os.listdir(self._directory):
            (self._directory / name).unlink()

    def _make(self, how: int, data: bytes) -> None:
        if how == 0:
            self._path.write_bytes(data)
        elif how == 1:
            self._path.write_bytes(_changed(self._base, data))
        else:
            self._path.write_bytes(self._base)
            _run_sql(self._path, data)
        self._path.chmod(0o600)

    def _read(self) -> None:
        with refusal(DatabaseError, FileError):
            entries = tuple(read_entries(self._path, wait_s=0))
            check(all(len(one.path) <= _MAX_PATH_BYTES for one in entries), "too long a path")
            check(decode_cache(encode_cache(entries), "image") == entries, "another list")
        with (
            refusal(DatabaseError, FileError, SqlError),
            Ask.open(self._path, path_text=printable, wait_s=0) as ask,
        ):
            for answer in ask.ask(_ASKED, limit=20, timeout_s=2):
                check(len(answer.rows) <= 20, "more rows than the limit")

    def _write(self) -> None:
        now = datetime.now(UTC)
        with (
            refusal(DatabaseError, FileError),
            Store.open(self._path, create=False, wait_s=0) as store,
        ):
            for mapping in store.all_mappings():
                check(len(mapping.path) <= _MAX_PATH_BYTES, "too long a path")
            with store.step() as step:
                new = step.import_entries([CacheEntry(1, 2, b"/new")], now)
                step.prune(Retention(), now, new)
        with refusal(DatabaseError, FileError):
            read_entries(self._path, wait_s=0)


def good_database() -> bytes:
    """A whole database without a log, of small pages."""
    path = scratch() / "good.db"
    write_scenario(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        database.execute("VACUUM")
    return path.read_bytes()


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _changed(base: bytes, changes: bytes) -> bytes:
    data = bytearray(base)
    at = 0
    while len(changes) - at > 4:
        place = int.from_bytes(changes[at : at + 3], "little") % len(base)
        length = changes[at + 3] % 64
        new = changes[at + 4 : at + 4 + length]
        data[place : place + len(new)] = new
        at += 4 + length
    return bytes(data[: len(base)])


def _allow(action: int, one: str | None, two: str | None, *_where: str | None) -> int:
    # No other file than this one.
    if action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and two == "load_extension":
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and one not in {"user_version", "application_id"}:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _run_sql(path: Path, script: bytes) -> None:
    """Run the valid statements of a script, in memory and for a moment."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("PRAGMA journal_mode = MEMORY")
        database.execute("PRAGMA synchronous = OFF")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4 << 20)
        database.set_authorizer(_allow)
        left = [_STEPS]

        def is_over() -> bool:
            left[0] -= 1
            return left[0] < 0

        database.set_progress_handler(is_over, 1000)
        for statement in script.decode("utf-8", "replace").split(";"):
            with suppress(sqlite3.Error, sqlite3.Warning, ValueError, MemoryError):
                database.execute(statement).close()


_ENDLESS = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT i FROM c"
_STATEMENTS = (
    "CREATE TRIGGER t AFTER INSERT ON mapping BEGIN DELETE FROM run; END",
    "CREATE VIEW v AS SELECT * FROM mapping",
    f"DROP VIEW live_mappings;CREATE VIEW live_mappings AS {_ENDLESS}",
    "DROP VIEW live_mappings;CREATE VIEW live_mappings AS SELECT * FROM live_mappings",
    "CREATE INDEX i ON mapping (length(path))",
    "UPDATE mapping SET path = zeroblob(2000000)",
    "UPDATE mapping SET dev = 'word', ino = 1.5, path = NULL",
    "UPDATE run SET started_at = 'never'",
    "ALTER TABLE mapping ADD COLUMN more GENERATED ALWAYS AS (randomblob(1000000)) VIRTUAL",
    "UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', 'CHECK (1)')",
    "UPDATE sqlite_schema SET rootpage = 2",
    "DELETE FROM sqlite_schema WHERE name = 'run'",
    "INSERT INTO sqlite_schema VALUES ('view', x'ff41', x'ff41', 0, 'CREATE VIEW x AS SELECT 1')",
    "DELETE FROM alembic_version",
    "UPDATE alembic_version SET version_num = '0001'",
    "PRAGMA user_version = 5;PRAGMA application_id = 7",
    "CREATE TABLE image_entry_2 AS SELECT * FROM image_entry",
)


def _seeds() -> Iterator[bytes]:
    yield b"\x00" + b"SQLite format 3\0"
    yield b"\x00"
    for flags in (0, _COPIED, _WRITTEN, _COPIED | _WRITTEN):
        yield bytes((flags | 1,)) + b"\x00\x00\x00\x00\x00"
    # In the header: the page size, the versions of the format, the number of pages, the encoding.
    for place in (16, 18, 19, 20, 28, 32, 44, 56, 60, 68, 100, 105, 512, 1024):
        yield b"\x01" + place.to_bytes(3, "little") + b"\x02\xff\x00"
    for number, statement in enumerate(_STATEMENTS):
        flags = (0, _COPIED, _WRITTEN)[number % 3]
        yield bytes((flags | 2,)) + statement.encode()


_WORDS = (
    *(statement.encode()[:40] for statement in _STATEMENTS),
    *(b"sqlite_schema", b"mapping", b"image_entry", b"watch", b"run", b"tried", b"change"),
    *(b"alembic_version", b"UPDATE ", b" SET ", b"path", b"CHECK (", b"CREATE TRIGGER ", b"; "),
    *(b"randomblob(", b"zeroblob(", b"WITH RECURSIVE ", b"x'ff'", b"9223372036854775807"),
)


class _Lazy:
    """Built at the first input."""

    def __init__(self) -> None:
        self._made: _Databases | None = None

    def __call__(self, data: bytes) -> None:
        if self._made is None:
            self._made = _Databases()
        self._made(data)


TARGETS = (Target("database", _Lazy(), _seeds, _WORDS, short_runs=300),)
