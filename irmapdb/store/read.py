"""Has the queries of the library: whole tables as iterators, and the lookups of a step.

Long answers are read in pages, by the row's id. So no cursor stays open, and no writer waits while
the caller works on a row.
"""

from __future__ import annotations

from sqlalchemy import bindparam, select

from irmapdb.model import Tried
from irmapdb.store import rows, tables
from irmapdb.store.connect import raw_of
from irmapdb.store.entries import fetch_entries
from irmapdb.store.failures import translated
from irmapdb.store.mappings import StoredMappings, read_all
from irmapdb.store.values import check_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    from sqlalchemy import Column, Connection, Executable, Select

    from irmapdb.model import CacheEntry, InodeKey, Mapping
    from irmapdb.store.file import AnyPath
    from irmapdb.store.records import ChangeRow, FileStamp, RunRow, WatchRow

    T = TypeVar("T")

__all__ = ["Reader"]

_PAGE = 2000
_BEFORE_ALL_IDS = -(1 << 63)

_mapping = tables.mapping.c

_LIVE = (_mapping.stale_at.is_(None), _mapping.mntns == bindparam("of_mntns"))
_TRIED = (
    select(tables.tried.c.watch_id, tables.tried.c.resolver, tables.tried.c.note)
    .where(tables.tried.c.watch_id.between(bindparam("first_id"), bindparam("last_id")))
    .order_by(tables.tried.c.watch_id, tables.tried.c.position)
)
_RUN_SOURCES = select(tables.run_source.c.source, tables.run_source.c.identities).where(
    tables.run_source.c.run_id == bindparam("of_run")
)


def _read_device(row: Sequence[Any]) -> int:
    check_number("the device", row[0], 0, (1 << 32) - 1)
    return int(row[0])


class Reader:
    """The queries, outside of a step (committed rows) or inside one (its own rows too)."""

    def __init__(self, connection: Connection, path: bytes, wait_s: float) -> None:
        self._connection = connection
        self.path = path
        """The file, absolute."""
        self._wait_s = wait_s

    def load(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        """Every mapping of each inode, the stale ones too, in the order they were first seen.

        An inode without one has no item.
        """
        return self._stored().load(keys, mntns)

    def live_devices(self, mntns: int = 0) -> set[int]:
        """The devices of the mappings that are not stale, of one mount namespace."""
        devices = select(_mapping.dev).where(*_LIVE).distinct()
        return set(self._read(_read_device, self._fetch(devices, {"of_mntns": mntns})))

    def live_on(self, kdevs: Iterable[int], mntns: int = 0) -> list[Mapping]:
        """The same mappings, of these devices."""
        found: list[Mapping] = []
        for dev in sorted(kdevs):
            of_dev = select(*rows.MAPPING_COLUMNS).where(*_LIVE, _mapping.dev == dev)
            answer = self._fetch(of_dev.order_by(_mapping.id), {"of_mntns": mntns})
            found += self._read(rows.read_mapping, answer)
        return found

    def image_entries(self) -> list[CacheEntry]:
        """The entries for `irmap-cache`, in its order: the image list without stale mappings."""
        with translated(self.path, self._wait_s):
            return fetch_entries(raw_of(self._connection), self.path)

    def image_seen(self, path: AnyPath) -> FileStamp | None:
        """The stamp of an image file at its last import or write; None if there was none."""
        return self._stored().image_seen(path)

    def _stored(self) -> StoredMappings:
        return StoredMappings(raw_of(self._connection), self.path, self._wait_s)

    def all_mappings(self) -> Iterator[Mapping]:
        """Every mapping, the stale ones too, by id."""
        for page in self._pages(select(*rows.MAPPING_COLUMNS), _mapping.id):
            yield from self._read(rows.read_mapping, page)

    def runs(self) -> Iterator[RunRow]:
        """Every run, oldest first."""

        def read(row: Sequence[Any]) -> RunRow:
            sources = self._fetch(_RUN_SOURCES, {"of_run": row[0]})
            return rows.read_run(row, dict(map(tuple, sources)))

        for page in self._pages(select(*rows.RUN_COLUMNS), tables.run.c.id):
            yield from self._read(read, page)

    def watches(self, run_id: int) -> Iterator[WatchRow]:
        """The watches of one run, in their order; none for an unknown run."""
        of_run = select(*rows.WATCH_COLUMNS).where(tables.watch.c.run_id == run_id)
        for page in self._pages(of_run, tables.watch.c.id):
            yield from self._read_watches(page)

    def changes(self) -> Iterator[ChangeRow]:
        """The changes of the mappings, oldest first."""
        for page in self._pages(select(*rows.CHANGE_COLUMNS), tables.change.c.id):
            yield from self._read(rows.read_change, page)

    def _read_watches(self, page: Sequence[Sequence[Any]]) -> Iterator[WatchRow]:
        tried: dict[int, tuple[Tried, ...]] = {}
        ids = {"first_id": page[0][0], "last_id": page[-1][0]}
        for watch_id, *said in self._fetch(_TRIED, ids):
            tried[watch_id] = (*tried.get(watch_id, ()), Tried(*said))
        return self._read(lambda row: rows.read_watch(row, tried.get(row[0], ())), page)

    def _fetch(
        self, statement: Executable, values: dict[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        with translated(self.path, self._wait_s):
            if self._connection.in_transaction():
                return self._connection.execute(statement, values).all()
            with self._connection.begin():
                return self._connection.execute(statement, values).all()

    def _pages(self, statement: Select[Any], key: Column[int]) -> Iterator[Sequence[Sequence[Any]]]:
        page = statement.where(key > bindparam("last_id")).order_by(key).limit(_PAGE)
        last_id = _BEFORE_ALL_IDS
        while found := self._fetch(page, {"last_id": last_id}):
            yield found
            last_id = found[-1][0]

    def _read(
        self, read: Callable[[Sequence[Any]], T], found: Sequence[Sequence[Any]]
    ) -> Iterator[T]:
        return read_all(read, found, self.path, _TABLE_OF.get(read, ""))


_TABLE_OF: dict[object, str] = {
    rows.read_mapping: "mapping",
    rows.read_change: "change",
}
