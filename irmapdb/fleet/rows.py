"""Sends rows to the server: arrays for a few thousand, COPY for watches.

An array for each column needs one statement and no temporary table. Watches are by far the most
rows, so their lines for COPY are made here.

PushSource: https://www.postgresql.org/docs/15/sql-copy.html (the text format).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from itertools import islice

from sqlalchemy import BigInteger, Boolean, Date, DateTime, Integer, LargeBinary, Text, Uuid

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from psycopg import Cursor
    from sqlalchemy import Table

    from irmapdb.store.snapshot import RunRows

__all__ = ["WatchList", "add_rows", "array_of", "copy_lines"]

_BATCH = 5000
_COPY_BYTES = 1 << 18
_ARRAYS = {
    BigInteger: "bigint[]",
    Boolean: "boolean[]",
    Date: "date[]",
    DateTime: "timestamptz[]",
    Integer: "integer[]",
    LargeBinary: "bytea[]",
    Text: "text[]",
    Uuid: "uuid[]",
}
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL = "\\N"
_DIGEST_BYTES = 16


def array_of(table: Table, column: str) -> str:
    """The type of an array with values of this column."""
    return _ARRAYS[type(table.c[column].type)]


def add_rows(
    cursor: Cursor[Any],
    table: Table,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    on_conflict: str = "",
) -> int:
    """Insert rows in batches; returns the number of rows that were inserted or updated.

    `on_conflict` is SQL of ours, put at the end of the statement.
    """
    arrays = ", ".join(f"%s::{array_of(table, name)}" for name in columns)
    names = ", ".join(columns)
    sql = f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {on_conflict}"  # noqa: S608 our own names
    iterator = iter(rows)
    added = 0
    while batch := list(islice(iterator, _BATCH)):
        cursor.execute(sql, [list(column) for column in zip(*batch, strict=True)])
        added += cursor.rowcount
    return added


class WatchList(Record):
    """The watches of one run, as lines for COPY. Equal lists have equal digests."""

    digest: str
    """32 hex digits, for a UUID."""
    watches: list[str]
    """Lines without the columns before `number`, and without the newline."""
    tried: list[str]

    @classmethod
    def of(cls, rows: RunRows) -> WatchList:
        watches = [_watch_line(number, row) for number, row in enumerate(rows.watches, 1)]
        tried = [
            f"{number}\t{position}\t{_words(resolver)}\t{_words(note)}"
            for number, position, resolver, note in rows.tried
        ]
        digest = blake2b("\n".join(watches).encode(), digest_size=_DIGEST_BYTES)
        digest.update("\n\n".join(("", *tried)).encode())
        return cls(digest.hexdigest(), watches, tried)


def _watch_line(number: int, row: tuple[Any, ...]) -> str:
    pid, comm, fd, kind, wd, dev, ino, handle_type, handle, mask, ignored, mflags, *rest = row
    path, why, mntns = rest
    return (
        f"{number}\t{pid}\t{_raw(comm)}\t{fd}\t{_words(kind)}\t{wd}\t{dev}\t{ino}\t"
        f"{_NULL if handle_type is None else handle_type}\t{_raw(handle)}\t"
        f"{mask}\t{ignored}\t{mflags}\t{_raw(path)}\t{_words(why)}\t{mntns}"
    )


def _raw(value: bytes | None) -> str:
    return _NULL if value is None else f"\\\\x{value.hex()}"


@lru_cache(maxsize=1024)  # a few words that every row repeats
def _words(value: str | None) -> str:
    return _NULL if value is None else value.translate(_ESCAPES)


def copy_lines(cursor: Cursor[Any], table: str, prefix_lines: Iterable[tuple[str, str]]) -> None:
    """COPY lines into a table: each is a prefix and the rest of the columns."""
    with cursor.copy(f"COPY {table} FROM STDIN") as copy:
        part: list[str] = []
        size = 0
        for prefix, line in prefix_lines:
            part.append(f"{prefix}{line}\n")
            size += len(line)
            if size > _COPY_BYTES:
                copy.write("".join(part))
                part, size = [], 0
        copy.write("".join(part))
