"""Collects everything about one inode: its paths, its watches and its changes.

It reads whole tables if there is no index: a million rows in a fraction of a second.
"""

from __future__ import annotations

from operator import itemgetter

from irmapdb.model import InodeKey
from irmapdb.record import Record
from irmapdb.store import compiled, rows
from irmapdb.store.mappings import ROWS_OF_INODE
from irmapdb.store.read import Reader
from irmapdb.store.values import check_number, from_ino, from_time, to_ino, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from irmapdb.model import Mapping
    from irmapdb.store.records import ChangeRow, WatchRow
    from irmapdb.store.statement import Statement

__all__ = ["MOST_INODES", "InodeReport", "InodeReports", "Sighting"]


MOST_INODES = 100
"""The most inodes of a number or a path."""


class Sighting(Record):
    """A watch, and the run that saw it."""

    run_id: int
    event: str
    at: datetime
    """The end of the run."""
    row: WatchRow


class InodeReport(Record):
    """The rows of one (device, inode number), which is usually one inode.

    The last ROWS_OF_INODE rows of each kind.
    """

    key: InodeKey
    mappings: tuple[Mapping, ...]
    """The mappings of every mount namespace, also stale ones, the first stored one first."""
    sightings: tuple[Sighting, ...]
    """Oldest run first."""
    changes: tuple[ChangeRow, ...]
    """Oldest first."""
    cut: bool
    """Whether the database has more rows."""


class InodeReports(Reader):
    """The queries for one inode."""

    def find_by_ino(self, ino: int) -> list[InodeKey]:
        """The inodes of this number, on any device; no more than MOST_INODES."""
        return self._keys(compiled.INODES_OF_NUMBER, ino=to_ino(ino))

    def find_by_path(self, path: bytes) -> list[InodeKey]:
        """The inodes that have, or had, this path; no more than MOST_INODES."""
        return self._keys(compiled.INODES_OF_PATH, path=to_text(path))

    def inode_report(self, key: InodeKey) -> InodeReport | None:
        """The rows about an inode; None if the database does not know it."""
        mappings, watches, changes = found = [
            self._last_rows(statement, key)
            for statement in (
                compiled.MAPPINGS_OF_INODE,
                compiled.WATCHES_OF_INODE,
                compiled.CHANGES_OF_INODE,
            )
        ]
        if not any(found):
            return None
        cut = any(len(some) > ROWS_OF_INODE for some in found)
        for some in found:
            del some[ROWS_OF_INODE:]
            some.sort(key=itemgetter(0))
        return InodeReport(
            key,
            tuple(self._read(rows.read_mapping, mappings)),
            tuple(self._read(_read_sighting, watches)),
            tuple(self._read(rows.read_change, changes)),
            cut,
        )

    def _last_rows(self, statement: Statement, key: InodeKey) -> list[tuple[Any, ...]]:
        which = {"dev": key.kdev, "ino": to_ino(key.ino)}
        return self._fetch(statement, **which, at_most=ROWS_OF_INODE + 1)

    def _keys(self, statement: Statement, **which: Any) -> list[InodeKey]:  # noqa: ANN401
        found = self._fetch(statement, **which, at_most=MOST_INODES)
        return sorted(self._read(_read_key, found))


def _read_sighting(row: Sequence[Any]) -> Sighting:
    *watch, run_id, event, at = row
    return Sighting(run_id, event, from_time(at), rows.read_watch(watch, ()))


def _read_key(row: Sequence[Any]) -> InodeKey:
    dev, ino = row
    check_number("the device", dev, 0, (1 << 32) - 1)
    return InodeKey(dev, from_ino(ino))
