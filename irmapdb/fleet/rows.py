"""Sends rows to the server: COPY for new ones, arrays for rows that may be there.

An array for each column needs one statement and no temporary table, and it can update. Watches are
by far the most rows, so they come as lines for COPY (irmapdb.store.copy_text).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from operator import add

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from psycopg import Cursor

    from irmapdb.store.snapshot import RunRows

__all__ = ["WatchList", "add_rows", "copy_lines", "copy_rows"]

_BATCH = 5000
_COPY_BYTES = 1 << 18
_TYPES = """
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = %s::regclass AND attname = ANY (%s)
"""
_DIGEST_BYTES = 16


def add_rows(
    cursor: Cursor[Any],
    table: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    on_conflict: str = "",
) -> int:
    """Insert rows in batches; returns the number of rows that were inserted or updated.

    `on_conflict` is SQL of ours, put at the end of the statement.
    """
    types = dict(cursor.execute(_TYPES, (table, list(columns))).fetchall())
    arrays = ", ".join(f"%s::{types[name]}[]" for name in columns)
    names = ", ".join(columns)
    sql = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) {on_conflict}"  # noqa: S608 our own names
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
    watches: str
    """Lines without the columns before `number`, with a newline between two."""
    tried: str

    @classmethod
    def of(cls, rows: RunRows) -> WatchList:
        watches = "\n".join(map(add, _numbers(len(rows.watches)), rows.watches))
        tried = "\n".join(rows.tried)
        digest = blake2b(watches.encode(), digest_size=_DIGEST_BYTES)
        digest.update("\n\n".join(("", *rows.tried)).encode())
        return cls(digest.hexdigest(), watches, tried)


@lru_cache(maxsize=8)  # most runs of a container have equally many
def _numbers(count: int) -> tuple[str, ...]:
    return tuple(f"{number}\t" for number in range(1, count + 1))


def copy_lines(cursor: Cursor[Any], table: str, prefix_lines: Iterable[tuple[str, str]]) -> None:
    """COPY lines into a table: each is a prefix of all lines, and the lines without it."""
    with cursor.copy(f"COPY {table} FROM STDIN") as copy:
        part: list[str] = []
        size = 0
        for prefix, lines in prefix_lines:
            part.append(prefix + lines.replace("\n", f"\n{prefix}") + "\n")
            size += len(part[-1])
            if size > _COPY_BYTES:
                copy.write("".join(part))
                part, size = [], 0
        copy.write("".join(part))


def copy_rows(
    cursor: Cursor[Any], table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """COPY rows into a table."""
    if not rows:
        return
    with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
