"""Has the queries of the library: whole tables as iterators, and the lookups of a step.

Long answers are read in pages, by the row's id. So no cursor stays open, and no writer waits while
the caller works on a row.
"""

from __future__ import annotations

from irmapdb.model import Tried
from irmapdb.store import compiled, rows
from irmapdb.store.entries import fetch_entries
from irmapdb.store.failures import check_order, translated
from irmapdb.store.mappings import StoredMappings, read_all
from irmapdb.store.values import check_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    from irmapdb.model import CacheEntry, InodeKey, Mapping
    from irmapdb.store.file import AnyPath
    from irmapdb.store.records import ChangeRow, FileStamp, RunRow, WatchRow
    from irmapdb.store.statement import Statement

    T = TypeVar("T")

__all__ = ["Reader"]

_BEFORE_ALL_IDS = -(1 << 63)


def _read_device(row: Sequence[Any]) -> int:
    check_number("the device", row[0], 0, (1 << 32) - 1)
    return int(row[0])


class Reader:
    """The queries, outside of a step (committed rows) or inside one (its own rows too)."""

    def __init__(self, raw: sqlite3.Connection, path: bytes, wait_s: float) -> None:
        self._raw = raw
        self.path = path
        """The file, absolute."""
        self._wait_s = wait_s

    def load(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        """The mappings of each inode: StoredMappings.load."""
        return StoredMappings(self._raw, self.path, self._wait_s).load(keys, mntns)

    def live_devices(self, mntns: int = 0) -> set[int]:
        """The devices of the mappings that are not stale, of one mount namespace."""
        return set(self._read(_read_device, self._fetch(compiled.LIVE_DEVICES, mntns=mntns)))

    def live_on(self, kdevs: Iterable[int], mntns: int = 0, *, at_most: int) -> list[Mapping]:
        """The same mappings, of these devices, but no more than `at_most`."""
        found: list[Mapping] = []
        for dev in sorted(kdevs):
            if len(found) >= at_most:
                break
            left = at_most - len(found)
            answer = self._fetch(compiled.LIVE_ON_DEVICE, mntns=mntns, dev=dev, at_most=left)
            found += self._read(rows.read_mapping, answer)
        return found

    def image_entries(self) -> list[CacheEntry]:
        """The entries for `irmap-cache`, in its order: the image list without stale mappings."""
        with translated(self.path, self._wait_s):
            return fetch_entries(self._raw, self.path)

    def image_seen(self, path: AnyPath) -> FileStamp | None:
        """The stamp of an image file at its last import or write; None if there was none."""
        return StoredMappings(self._raw, self.path, self._wait_s).image_seen(path)

    def all_mappings(self) -> Iterator[Mapping]:
        """Every mapping, the stale ones too, by id."""
        for page in self._pages(compiled.MAPPINGS_AFTER):
            yield from self._read(rows.read_mapping, page)

    def runs(self) -> Iterator[RunRow]:
        """Every run, oldest first."""

        def read(row: Sequence[Any]) -> RunRow:
            sources = self._fetch(compiled.SOURCES_OF_RUN, run_id=row[0])
            return rows.read_run(row, dict(sources))

        for page in self._pages(compiled.RUNS_AFTER):
            yield from self._read(read, page)

    def last_step(self) -> int | None:
        """The id of the last pre-dump or dump that has not failed."""
        found = self._fetch(compiled.LAST_STEP)
        return int(found[0][0]) if found else None

    def watches(self, run_id: int) -> Iterator[WatchRow]:
        """The watches of one run, in their order; none for an unknown run."""
        for page in self._pages(compiled.WATCHES_OF_RUN_AFTER, run_id=run_id):
            yield from self._read_watches(page)

    def changes(self) -> Iterator[ChangeRow]:
        """The changes of the mappings, oldest first."""
        for page in self._pages(compiled.CHANGES_AFTER):
            yield from self._read(rows.read_change, page)

    def _read_watches(self, page: Sequence[Sequence[Any]]) -> Iterator[WatchRow]:
        tried: dict[int, list[Tried]] = {}
        ids = {"first_id": page[0][0], "last_id": page[-1][0]}
        for watch_id, *said in self._fetch(compiled.TRIED_BETWEEN, **ids):
            tried.setdefault(watch_id, []).append(Tried(*said))
        return self._read(lambda row: rows.read_watch(row, tuple(tried.get(row[0], ()))), page)

    def _fetch(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401
        with translated(self.path, self._wait_s):
            return statement.fetch(self._raw, **values)

    def _pages(self, statement: Statement, **values: Any) -> Iterator[list[tuple[Any, ...]]]:  # noqa: ANN401
        last_id = _BEFORE_ALL_IDS
        while found := self._fetch(statement, **values, last_id=last_id):
            check_order(self.path, last_id, found)
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
