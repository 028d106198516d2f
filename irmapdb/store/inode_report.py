"""Collects everything about one inode: its paths, its watches and its changes.

It reads whole tables if there is no index: a million rows in a fraction of a second.
"""

from __future__ import annotations

from irmapdb.model import InodeKey
from irmapdb.record import Record
from irmapdb.store import compiled, rows
from irmapdb.store.read import Reader
from irmapdb.store.values import check_number, from_ino, from_time, to_ino, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from irmapdb.model import Mapping
    from irmapdb.store.records import ChangeRow, WatchRow

__all__ = ["InodeReport", "InodeReports", "Sighting"]


class Sighting(Record):
    """A watch, and the run that saw it."""

    run_id: int
    event: str
    at: datetime
    """The end of the run."""
    row: WatchRow


class InodeReport(Record):
    """The rows of one (device, inode number), which is usually one inode."""

    key: InodeKey
    mappings: tuple[Mapping, ...]
    """The mappings of every mount namespace, also stale ones, the first stored one first."""
    sightings: tuple[Sighting, ...]
    """Oldest run first."""
    changes: tuple[ChangeRow, ...]
    """Oldest first."""


class InodeReports(Reader):
    """The queries for one inode."""

    def find_by_ino(self, ino: int) -> list[InodeKey]:
        """The inodes of this number, on any device."""
        return self._keys(self._fetch(compiled.INODES_OF_NUMBER, ino=to_ino(ino)))

    def find_by_path(self, path: bytes) -> list[InodeKey]:
        """The inodes that have, or had, this path."""
        return self._keys(self._fetch(compiled.INODES_OF_PATH, path=to_text(path)))

    def inode_report(self, key: InodeKey) -> InodeReport | None:
        """Everything about an inode; None if the database does not know it."""
        which = {"dev": key.kdev, "ino": to_ino(key.ino)}
        mappings = self._fetch(compiled.MAPPINGS_OF_INODE, **which)
        changes = self._fetch(compiled.CHANGES_OF_INODE, **which)
        sightings = tuple(
            self._read(_read_sighting, self._fetch(compiled.WATCHES_OF_INODE, **which))
        )
        if not (mappings or changes or sightings):
            return None
        return InodeReport(
            key,
            tuple(self._read(rows.read_mapping, mappings)),
            sightings,
            tuple(self._read(rows.read_change, changes)),
        )

    def _keys(self, found: Sequence[Sequence[Any]]) -> list[InodeKey]:
        return sorted(self._read(_read_key, found))


def _read_sighting(row: Sequence[Any]) -> Sighting:
    run_id, event, at, *watch = row
    return Sighting(run_id, event, from_time(at), rows.read_watch(watch, ()))


def _read_key(row: Sequence[Any]) -> InodeKey:
    dev, ino = row
    check_number("the device", dev, 0, (1 << 32) - 1)
    return InodeKey(dev, from_ino(ino))
