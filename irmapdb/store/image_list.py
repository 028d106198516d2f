"""Stores the ordered list of `irmap-cache` entries, which is read and replaced as a whole.

A list goes into a temporary table first, and from there by three statements into `mapping` and
`image_entry`: a statement for each entry, with a look-up in it, takes twice as long.
"""

from __future__ import annotations

from irmapdb.errors import DatabaseError
from irmapdb.log import Log
from irmapdb.store import compiled
from irmapdb.store.failures import show
from irmapdb.store.values import MAX_PATH_BYTES, to_ino, to_text, to_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from irmapdb.model import CacheEntry

__all__ = ["replace", "take_in"]

_log = Log(__name__)

_FIELDS = ("position", "dev", "ino", "path")


def take_in(
    raw: sqlite3.Connection, entries: Iterable[CacheEntry], now: datetime, path: bytes
) -> None:
    """Append the entries to the list, as mappings that must be proved before use.

    A stale mapping becomes live again. Their earlier places in the list are removed.
    """
    count = _fill(raw, entries)
    compiled.ADD_INCOMING_TO_MAPPINGS.run(raw, now=to_time(now))
    after = compiled.LAST_POSITION.first(raw)
    if after:
        compiled.DELETE_INCOMING_FROM_IMAGE.run(raw)
    _put(raw, count, after, path)


def replace(raw: sqlite3.Connection, entries: Iterable[CacheEntry], path: bytes) -> None:
    """Replace the list by these entries. DatabaseError if one is no mapping."""
    count = _fill(raw, entries)
    compiled.DELETE_IMAGE.run(raw)
    _put(raw, count, 0, path)


def _put(raw: sqlite3.Connection, count: int, after: int, path: bytes) -> None:
    done = compiled.ADD_INCOMING_TO_IMAGE.run(raw, after=after)
    if done.rowcount != count:
        raise DatabaseError(
            show(path),
            f"{count - done.rowcount} of {count} entries are no mappings",
            advice="this is an error of irmapdb's own; please report it",
        )


def _fill(raw: sqlite3.Connection, entries: Iterable[CacheEntry]) -> int:
    compiled.MAKE_INCOMING.run(raw)
    compiled.DELETE_INCOMING.run(raw)
    return compiled.ADD_INCOMING.run_for_each(raw, _FIELDS, _rows(entries))


def _rows(entries: Iterable[CacheEntry]) -> Iterator[tuple[int, int, int, str | bytes]]:
    left_out = 0
    for position, (kdev, ino, path) in enumerate(entries, 1):
        if len(path) > MAX_PATH_BYTES:
            left_out += 1
        else:
            yield position, kdev, to_ino(ino), to_text(path)
    if left_out:
        _log.warning(
            "%d entries are left out: their paths have more than %d bytes", left_out, MAX_PATH_BYTES
        )
