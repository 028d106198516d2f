"""Writes one step: everything in one transaction, in batches."""

from __future__ import annotations

from irmapdb.store import compiled, image_list, retention, rows
from irmapdb.store.file import absolute
from irmapdb.store.read import Reader
from irmapdb.store.values import new_uuid, to_time, to_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from irmapdb.config import Retention
    from irmapdb.model import (
        CacheEntry,
        Change,
        Event,
        Mapping,
        Resolved,
        RunStats,
        StaleReason,
    )
    from irmapdb.store.file import AnyPath
    from irmapdb.store.records import FileStamp, WatchRow
    from irmapdb.store.retention import Pruned

__all__ = ["Step"]


class Step(Reader):
    """An open step; made by Store.step, which commits it."""

    def flag_all(self) -> None:
        """Flag every live mapping, so that it is proved before use."""
        compiled.FLAG_ALL.run(self._raw)

    def import_entries(self, entries: Sequence[CacheEntry], now: datetime) -> int:
        """Add an image's entries, as mappings that must be proved before use.

        They go to the end of the list of `irmap-cache`, in their order and with their duplicates.
        Earlier places of the same mappings are removed. A stale mapping becomes live again. Returns
        the number of new mappings.
        """
        before = self._count_mappings()
        image_list.take_in(self._raw, entries, now, self.path)
        return self._count_mappings() - before

    def prove(self, resolved: Iterable[Resolved], now: datetime, *, used: bool = True) -> None:
        """Store each proved path: proved now, live, with its present handle.

        `used`: whether it is also the path of a watch.
        """
        statement = compiled.PROVE if used else compiled.PROVE_UNUSED
        statement.run_for_each(self._raw, rows.RESOLVED_FIELDS, rows.resolved_values(resolved, now))

    def mark_stale(self, items: Iterable[tuple[Mapping, StaleReason]], now: datetime) -> None:
        """Mark mappings as stale. A mapping that is stale already keeps its time and reason."""
        compiled.MARK_STALE.run_for_each(
            self._raw, rows.STALE_FIELDS, rows.stale_values(items, now)
        )

    def set_image(self, entries: Iterable[CacheEntry]) -> None:
        """Replace the list of `irmap-cache` by these entries, in this order.

        Each must be a mapping: DatabaseError otherwise.
        """
        image_list.replace(self._raw, entries, self.path)

    def set_image_seen(self, path: AnyPath, stamp: FileStamp) -> None:
        """Remember an image file as imported or written."""
        compiled.ADD_IMAGE_SEEN.run(self._raw, **rows.stamp_values(absolute(path), stamp))

    def add_run(
        self,
        event: Event,
        *,
        pid: int | None,
        comm: bytes | None,
        started_at: datetime,
        finished_at: datetime,
        stats: RunStats,
        outcome: str,
    ) -> int:
        """Store one step's figures; returns the run's id."""
        added = compiled.ADD_RUN.run(
            self._raw,
            event=event.value,
            pid=pid,
            comm=rows.maybe_text(comm),
            started_at=to_time(started_at),
            finished_at=to_time(finished_at),
            outcome=to_words(outcome),
            uuid=new_uuid(),
            **{name: getattr(stats, name) for name in rows.STATS},
        )
        run_id = int(added.lastrowid or 0)
        for source, count in stats.sources.items():
            compiled.ADD_RUN_SOURCE.run(self._raw, run_id=run_id, source=source, identities=count)
        return run_id

    def add_watches(self, run_id: int, watches: Iterable[WatchRow]) -> None:
        """Store the watches of a run, and the answers of the resolvers for those without a path."""
        first_id = compiled.LAST_WATCH.first(self._raw) + 1
        numbered = list(enumerate(watches, first_id))
        compiled.ADD_WATCH.run_for_each(
            self._raw, rows.WATCH_FIELDS, rows.watch_values(run_id, numbered)
        )
        compiled.ADD_TRIED.run_for_each(self._raw, rows.TRIED_FIELDS, rows.tried_values(numbered))

    def add_changes(self, run_id: int, changes: Iterable[Change], now: datetime) -> None:
        """Store the changes of a run, after its mappings, because a change refers to a mapping."""
        compiled.ADD_CHANGE.run_for_each(
            self._raw, rows.CHANGE_FIELDS, rows.change_values(run_id, changes, now)
        )

    def prune(self, keep: Retention, now: datetime, wrote: int) -> Pruned:
        """Delete old rows, a few more than the step has written."""
        return retention.prune(self._raw, keep, now, wrote)

    def _count_mappings(self) -> int:
        return int(compiled.COUNT_MAPPINGS.first(self._raw))
