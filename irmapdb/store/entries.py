"""What `irmap-cache` should hold, read from the database by SQLite alone.

An export is over before SQLAlchemy would be imported; so here, and for what people ask
(irmapdb.store.ask), the SQL is written out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irmapdb.errors import DatabaseError
from irmapdb.model import CacheEntry
from irmapdb.store.failures import show, translated
from irmapdb.store.place import open_place
from irmapdb.store.raw import connect_raw
from irmapdb.store.values import from_ino
from irmapdb.store.version import check_newest

if TYPE_CHECKING:
    import sqlite3

    from irmapdb.store.file import AnyPath

__all__ = ["fetch_entries", "read_entries"]

_ENTRIES = """
SELECT mapping.dev, mapping.ino, CAST(mapping.path AS BLOB)
FROM image_entry
JOIN mapping ON mapping.id = image_entry.mapping_id
WHERE mapping.stale_at IS NULL
ORDER BY image_entry.position
"""


def read_entries(path: AnyPath, *, wait_s: float = 10.0) -> list[CacheEntry]:
    """The image list of a database, in its order, without stale mappings.

    Also while another process writes. Nothing is changed: an older schema is refused with
    DatabaseError.
    """
    with (
        open_place(path, write=False) as place,
        connect_raw(place, write=False, wait_s=wait_s) as raw,
        translated(place.path, wait_s),
    ):
        check_newest(raw, place)
        return fetch_entries(raw, place.path)


def fetch_entries(raw: sqlite3.Connection, path: bytes) -> list[CacheEntry]:
    """The same from an open database, in the transaction that it is in."""
    try:
        return [CacheEntry(dev, from_ino(ino), entry) for dev, ino, entry in raw.execute(_ENTRIES)]
    except TypeError as error:  # a number where somebody has put a word
        raise DatabaseError(
            f"{show(path)}: a row that irmapdb did not write: {error}",
            advice="put back what was changed by hand, or move the file away",
        ) from error
