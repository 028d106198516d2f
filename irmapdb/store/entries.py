"""Reads the entries for `irmap-cache` from the database."""

from __future__ import annotations

from irmapdb.errors import DatabaseError
from irmapdb.model import CacheEntry
from irmapdb.store import compiled
from irmapdb.store.failures import show, translated
from irmapdb.store.place import open_place
from irmapdb.store.raw import connect_raw
from irmapdb.store.values import MAX_PATH_BYTES, check_number, from_ino
from irmapdb.store.version import check_newest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

    from irmapdb.store.file import AnyPath

__all__ = ["fetch_entries", "read_entries"]

_ROWS_AT_ONCE = 5000
_MOST_BYTES = 256 << 20
"""The largest size of a list, with `_ENTRY_BYTES` for each entry besides its path. Many entries of
a list can refer to one mapping with a long path, so the file may be much smaller."""
_ENTRY_BYTES = 100


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
    cursor = compiled.IMAGE_ENTRIES.run(raw)
    found: list[CacheEntry] = []
    bad: list[str] = []
    size = 0
    while some := cursor.fetchmany(_ROWS_AT_ONCE):
        size += sum(_ENTRY_BYTES + len(row[-1] or b"") for row in some)
        if size > _MOST_BYTES:
            raise DatabaseError(
                show(path),
                f"its list for irmap-cache has more than {_MOST_BYTES >> 20} MiB",
                advice="move the file away: it is only a cache",
            )
        for position, dev, ino, entry in some:
            if type(entry) is bytes and len(entry) <= MAX_PATH_BYTES:
                try:
                    found.append(CacheEntry(_checked(dev), from_ino(ino), entry))
                except (TypeError, ValueError) as error:
                    bad.append(f"image_entry {position}: {error}")
            else:
                bad.append(f"image_entry {position}: no path of up to {MAX_PATH_BYTES} bytes")
    if bad:
        more = f" ({len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise DatabaseError(
            show(path),
            f"{bad[0]}: a row that irmapdb did not write{more}",
            advice="put back what was changed by hand, or move the file away: it is only a cache",
        )
    return found


def _checked(dev: object) -> int:
    if type(dev) is not int or not 0 <= dev < 1 << 32:
        check_number("the device", dev, 0, (1 << 32) - 1)
        raise ValueError(dev)
    return dev
