"""The stored mappings, read by SQLite alone.

For the hook, which answers CRIU before SQLAlchemy could be imported. The same questions as those of
irmapdb.store.read, and the same answers; the SQL is written out.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

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
    "StoredMappings",
    "open_mappings",
    "read_identity",
    "read_mapping",
    "read_stamp",
]

_KEYS_A_QUERY = 500

MAPPING_NAMES = (
    *("id", "dev", "ino", "handle_type", "handle", "path", "source", "revalidate"),
    *("first_seen_at", "validated_at", "last_used_at", "stale_at", "stale_reason", "mntns"),
)
"""The columns that `read_mapping` takes; `path` as a BLOB."""

# A few words that every row repeats: the look-up is dearer than the rest of the row.
_source = lru_cache(Source)
_stale_reason = lru_cache(StaleReason)


_KDEV_MAX = (1 << 32) - 1
MNTNS_MAX = (1 << 32) - 1  # an inode number of nsfs
INT_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ in include/linux/exportfs.h


def read_identity(dev: int, ino: int, handle_type: int | None, handle: bytes | None) -> Identity:
    """The identity of a row. ValueError or TypeError for what irmapdb does not write."""
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
    """A row of MAPPING_COLUMNS."""
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


def read_stamp(row: Sequence[Any]) -> FileStamp:
    """A row of STAMP_COLUMNS."""
    st_dev, ino, size, mtime_ns = row
    for name, value in zip(("st_dev", "ino", "size", "mtime_ns"), row, strict=True):
        check_number(name, value, -INT64_MAX - 1, INT64_MAX)
    return FileStamp(from_ino(st_dev), from_ino(ino), size, mtime_ns)


_COLUMNS = ", ".join(f"CAST({name} AS BLOB)" if name == "path" else name for name in MAPPING_NAMES)
_LOAD = f"SELECT {_COLUMNS} FROM mapping WHERE dev = ? AND mntns = ? AND ino IN (%s) ORDER BY id"  # noqa: S608 fixed words
_ANY = "SELECT 1 FROM mapping LIMIT 1"
_SEEN = "SELECT st_dev, ino, size, mtime_ns FROM image_seen WHERE path = ?"


class StoredMappings:
    """An open database, for reading. Without one: nothing is stored."""

    def __init__(self, raw: sqlite3.Connection | None = None, path: bytes = b"") -> None:
        self._raw = raw
        self._path = path
        self._is_empty = raw is None or not self._fetch(_ANY)

    def load(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        """Every mapping of each inode, the stale ones too, in the order they were first seen."""
        found: dict[InodeKey, list[Mapping]] = {}
        if self._is_empty:
            return found
        by_kdev: dict[int, dict[int, InodeKey]] = {}
        for key in keys:
            by_kdev.setdefault(key.kdev, {})[to_ino(key.ino)] = key
        for kdev, key_of in by_kdev.items():
            inos = sorted(key_of)
            for start in range(0, len(inos), _KEYS_A_QUERY):
                some = inos[start : start + _KEYS_A_QUERY]
                question = _LOAD % ", ".join("?" * len(some))
                for row in self._fetch(question, kdev, mntns, *some):
                    found.setdefault(key_of[row[2]], []).append(self._read(read_mapping, row))
        return found

    def image_seen(self, path: AnyPath) -> FileStamp | None:
        """How an image file was when it was last imported or written; None if it never was."""
        for row in self._fetch(_SEEN, to_text(absolute(path))):
            return self._read(read_stamp, row)
        return None

    def _fetch(self, question: str, *values: str | bytes | int) -> list[tuple[Any, ...]]:
        if self._raw is None:
            return []
        with translated(self._path, 0):
            return self._raw.execute(question, values).fetchall()

    def _read(self, read: Callable[[Sequence[Any]], T], row: tuple[Any, ...]) -> T:
        try:
            return read(row)
        except (TypeError, ValueError, OverflowError) as error:
            raise DatabaseError(
                show(self._path),
                f"a row that irmapdb did not write: {error}",
                advice="put back what was changed by hand, or move the file away",
            ) from error


@contextmanager
def open_mappings(path: AnyPath, *, wait_s: float) -> Iterator[StoredMappings]:
    """The mappings of a database of this or an older schema, also while another process writes it.

    Raises DatabaseError for what is there and is none. An empty one has no mappings.
    """
    with (
        open_place(path, write=False) as place,
        connect_raw(place, write=False, wait_s=wait_s) as raw,
    ):
        with translated(place.path, wait_s):
            raw.execute("BEGIN")  # one state of it, whoever writes meanwhile
            revision = read_revision(raw, place)
        yield StoredMappings(raw if revision else None, place.path)
