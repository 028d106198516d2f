"""Reads the stored mappings, as little of the store as the hook needs before it answers CRIU.

So it imports no other SQL than its own.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter

from irmapdb.errors import DatabaseError
from irmapdb.model import FileHandle, Identity, Mapping, Source, StaleReason
from irmapdb.store.failures import show, translated
from irmapdb.store.file import absolute
from irmapdb.store.place import open_place
from irmapdb.store.raw import connect_raw
from irmapdb.store.records import FileStamp
from irmapdb.store.values import (
    MAX_PATH_BYTES,
    check_number,
    check_path,
    from_ino,
    from_time,
    to_ino,
    to_text,
)
from irmapdb.store.version import read_revision

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Any, TypeVar

    from irmapdb.model import InodeKey
    from irmapdb.store.file import AnyPath

    T = TypeVar("T")

__all__ = [
    "INT64_MAX",
    "INT_MAX",
    "MAPPING_NAMES",
    "MNTNS_MAX",
    "ROWS_OF_INODE",
    "StoredMappings",
    "most_rows",
    "open_mappings",
    "read_all",
    "read_identity",
    "read_mapping",
]

_KEYS_A_QUERY = 500
ROWS_OF_INODE = 1000
"""The largest number of rows of one inode that are read: the live ones that were proved last.

Another user can have put any number into the file, and rows are only candidates.
"""
_ROWS_OF_EACH = 20
"""The same for each of many inodes that are read together."""
_LOOKED_AT = 20 * ROWS_OF_INODE
"""The largest number of rows of one inode among which the last proved ones are chosen."""
_COPY_LIMIT_BYTES = 256 << 20
"""The largest database of another user that is copied while CRIU waits."""

MAPPING_NAMES = (
    *("id", "dev", "ino", "handle_type", "handle", "path", "source", "revalidate"),
    *("first_seen_at", "validated_at", "last_used_at", "stale_at", "stale_reason", "mntns"),
)
"""The columns that `read_mapping` takes; `path` as a BLOB."""

# A few words that every row repeats: without this cache they would take most of the time.
_source = lru_cache(Source)
_stale_reason = lru_cache(StaleReason)


_KDEV_MAX = (1 << 32) - 1
MNTNS_MAX = (1 << 32) - 1  # an inode number of nsfs
INT_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ in include/linux/exportfs.h


def most_rows(inodes: int) -> int:
    """The largest number of rows of these inodes together. If there are more, each has its share.

    So the work grows with the number of inodes, and not with the rows of a hostile database.
    """
    return max(ROWS_OF_INODE, _ROWS_OF_EACH * inodes)


def read_identity(dev: int, ino: int, handle_type: int | None, handle: bytes | None) -> Identity:
    """The identity of a row. ValueError or TypeError for values that irmapdb does not write."""
    if type(dev) is not int or type(ino) is not int or not 0 <= dev <= _KDEV_MAX:
        check_number("the device", dev, 0, _KDEV_MAX)
        check_number("the inode number", ino, -INT64_MAX - 1, INT64_MAX)
    if handle is not None and (type(handle) is not bytes or len(handle) > _HANDLE_BYTES):
        raise ValueError(f"the handle is no BLOB of up to {_HANDLE_BYTES} bytes")
    if handle_type is not None:
        check_number("the handle's type", handle_type, -INT_MAX - 1, INT_MAX)
    if handle_type is None or handle is None:
        return Identity(dev, from_ino(ino), None)
    return Identity(dev, from_ino(ino), FileHandle(handle_type, handle))


def read_mapping(row: Sequence[Any]) -> Mapping:
    """A row of MAPPING_NAMES."""
    row_id, dev, ino, handle_type, handle, path, source, revalidate, first_seen_at, *rest = row
    validated_at, last_used_at, stale_at, stale_reason, mntns = rest
    if type(path) is not bytes or len(path) > MAX_PATH_BYTES:  # else the call takes longer
        check_path(path)
    if mntns:
        check_number("the mount namespace", mntns, 0, MNTNS_MAX)
    return Mapping(
        read_identity(dev, ino, handle_type, handle),
        path,
        _source(source),
        revalidate != 0,
        from_time(first_seen_at),
        validated_at and from_time(validated_at),
        last_used_at and from_time(last_used_at),
        stale_at and from_time(stale_at),
        stale_reason and _stale_reason(stale_reason),
        mntns,
        row_id,
    )


def _read_stamp(row: Sequence[Any]) -> FileStamp:
    for name, value in zip(FileStamp._fields, row, strict=True):
        check_number(name, value, -INT64_MAX - 1, INT64_MAX)
    stamp = FileStamp(*row)
    return stamp._replace(st_dev=from_ino(stamp.st_dev), ino=from_ino(stamp.ino))


_BAD = (TypeError, ValueError, OverflowError)


def read_all(
    read: Callable[[Sequence[Any]], T], found: Sequence[Sequence[Any]], path: bytes, table: str = ""
) -> Iterator[T]:
    """Read each row. A DatabaseError names the first bad row, and counts the others.

    `table` is that of the rows, which begin with their id; "" for other rows.
    """
    for index, row in enumerate(found):
        try:
            yield read(row)
        except _BAD as error:
            which = f"{table} {row[0]}" if table else "a row"
            others = sum(_is_bad(read, other) for other in found[index + 1 :])
            more = f" ({others} more like it)" if others else ""
            raise DatabaseError(
                show(path),
                f"{which}: a row that irmapdb did not write: {error}{more}",
                advice="put back what was changed by hand, or move the file away: it is only a "
                "cache",
            ) from error


def _is_bad(read: Callable[[Sequence[Any]], object], row: Sequence[Any]) -> bool:
    try:
        read(row)
    except _BAD:
        return True
    return False


_COLUMNS = ", ".join(f"CAST({name} AS BLOB)" if name == "path" else name for name in MAPPING_NAMES)
# The unique index, by dev and ino: a file with another user's indexes and statistics
# (sqlite_stat1) could make SQLite read all rows.
_OF_INODES = "mapping INDEXED BY sqlite_autoindex_mapping_1 WHERE dev = ? AND +mntns = ? AND ino"
_LOAD = f"SELECT {_COLUMNS} FROM {_OF_INODES} IN (%s) LIMIT ?"  # noqa: S608 fixed words
# Looks at a part of the rows only, so that the time does not depend on their number.
_LAST_PROVED = f"""
SELECT {_COLUMNS} FROM mapping WHERE id IN (
    SELECT id FROM (
        SELECT id, stale_at, validated_at, first_seen_at FROM {_OF_INODES} = ?
        LIMIT {_LOOKED_AT}
    )
    ORDER BY stale_at IS NOT NULL, coalesce(validated_at, first_seen_at) DESC, id DESC LIMIT ?
)"""  # noqa: S608 fixed words
_ANY = "SELECT 1 FROM mapping LIMIT 1"
_SEEN = f"SELECT {', '.join(FileStamp._fields)} FROM image_seen WHERE path = ?"  # noqa: S608 fixed words


class StoredMappings:
    """An open database, for reading. Without a file it has no rows."""

    def __init__(
        self, raw: sqlite3.Connection | None = None, path: bytes = b"", wait_s: float = 0
    ) -> None:
        self._raw = raw
        self._path = path
        self._wait_s = wait_s
        self._is_empty = raw is None or not self._fetch(_ANY)

    def load(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        """The mappings of each inode, also stale ones, in the order of their first storage.

        An inode without one has no item. Of an inode with very many, those proved last.
        """
        found: dict[InodeKey, list[Mapping]] = {}
        if self._is_empty:
            return found
        by_kdev: dict[int, dict[int, InodeKey]] = {}
        for key in keys:
            by_kdev.setdefault(key.kdev, {})[to_ino(key.ino)] = key
        for kdev, key_of in by_kdev.items():
            # In the order of the index: one page of it after the other.
            inos = sorted(key_of)
            for start in range(0, len(inos), _KEYS_A_QUERY):
                rows = self._rows_of(kdev, mntns, inos[start : start + _KEYS_A_QUERY])
                mappings = read_all(read_mapping, rows, self._path, "mapping")
                for row, mapping in zip(rows, mappings, strict=True):
                    found.setdefault(key_of[row[2]], []).append(mapping)
        return found

    def _rows_of(self, kdev: int, mntns: int, inos: Sequence[int]) -> list[tuple[Any, ...]]:
        most = most_rows(len(inos))
        rows = self._fetch(_LOAD % ", ".join("?" * len(inos)), kdev, mntns, *inos, most + 1)
        if len(rows) > most:
            of_each = most // len(inos)
            each = (self._fetch(_LAST_PROVED, kdev, mntns, ino, of_each) for ino in inos)
            rows = [row for some in each for row in some]
        rows.sort(key=itemgetter(0))
        return rows

    def image_seen(self, path: AnyPath) -> FileStamp | None:
        """The stamp of an image file at its last import or write; None if there was none."""
        rows = self._fetch(_SEEN, to_text(absolute(path)))
        return next(read_all(_read_stamp, rows, self._path), None)

    def _fetch(self, question: str, *values: str | bytes | int) -> list[tuple[Any, ...]]:
        if self._raw is None:
            return []
        with translated(self._path, self._wait_s):
            return self._raw.execute(question, values).fetchall()


@contextmanager
def open_mappings(path: AnyPath, *, wait_s: float) -> Iterator[StoredMappings]:
    """The mappings of a database of this or an older schema, also while another process writes it.

    The caller writes the database later, or leaves SQLite's empty log beside it. Raises
    DatabaseError if the file is no database of ours, if a private copy would take too long, and if
    a statement takes longer than `wait_s`. An empty database has no mappings.
    """
    with (
        open_place(path, write=False, copy_limit_bytes=_COPY_LIMIT_BYTES) as place,
        connect_raw(place, write=False, wait_s=wait_s, tidy=False, limit_s=wait_s) as raw,
    ):
        with translated(place.path, wait_s):
            raw.execute("BEGIN")  # one state of it, also if another process writes
            revision = read_revision(raw, place)
        yield StoredMappings(raw if revision else None, place.path)
