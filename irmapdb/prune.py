"""Deletes all old rows of a database at once, and not a few with each step."""

from __future__ import annotations

from datetime import UTC, datetime

from irmapdb.config import Retention
from irmapdb.model import Event, RunStats
from irmapdb.record import Record
from irmapdb.store.database import Store
from irmapdb.store.retention import Pruned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["PruneOptions", "PruneReport", "describe", "prune"]

_ROWS_A_TRANSACTION = 20_000
"""A limit for one transaction, so that other writers do not wait for long, and the log does not
become as large as the database."""


class PruneOptions(Record):
    """The options of prune."""

    database: Path
    keep: Retention = Retention()
    dry_run: bool = False
    """Count, and write nothing."""
    vacuum: bool = False
    """Write the file anew at the end, without its free pages."""
    progress: Callable[[int], None] = lambda _rows: None
    """Called with the number of rows deleted so far."""
    wait_s: float = 10.0
    """The longest wait for another process's step in the database."""


class PruneReport(Record):
    """The deleted rows; with `dry_run`, the rows that would be deleted."""

    pruned: Pruned
    run_id: int | None
    """None if nothing was deleted, or only one run."""
    size: int
    """Bytes of the file afterwards."""
    free: int
    """Those of them that new rows will use."""
    private_copy: str = ""
    """Why SQLite worked on a private copy of the database; "" if it did not."""
    upgraded_from: str | None = None
    """The old revision of the schema; None if that is the newest."""


def prune(options: PruneOptions) -> PruneReport:
    """Delete old rows, in several transactions; the last one adds a run for it."""
    now = datetime.now(UTC)
    if options.dry_run:
        with Store.open_readonly(options.database, wait_s=options.wait_s) as store:
            pruned = store.prunable(options.keep, now)
            return PruneReport(pruned, None, *store.size(), private_copy=store.why_copied)
    with Store.open(options.database, create=False, wait_s=options.wait_s) as store:
        pruned = _prune_all(store, options, now)
        # No run for one deleted run: it can be the run of the last prune, and so on without end.
        nothing = (Pruned(), Pruned(runs=1))
        run_id = None if pruned in nothing else _add_run(store, pruned, now)
        if options.vacuum:
            store.vacuum()
        old = None if store.upgraded is None else store.upgraded.old
        return PruneReport(pruned, run_id, *store.size(), store.why_copied, old)


def _prune_all(store: Store, options: PruneOptions, now: datetime) -> Pruned:
    total = Pruned()
    while True:
        with store.step(more=True) as tx:
            some = tx.prune(options.keep, now, _ROWS_A_TRANSACTION)
        if not some.rows:
            return total
        total = total.plus(some)
        options.progress(total.rows)


def _add_run(store: Store, pruned: Pruned, started_at: datetime) -> int:
    with store.step() as tx:
        return tx.add_run(
            Event.PRUNE,
            pid=None,
            comm=None,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            stats=RunStats(),
            outcome=describe(pruned),
        )


_NOUNS = {
    "runs": "run",
    "watches": "watch",
    "changes": "change",
    "mappings": "mapping",
}


def describe(pruned: Pruned) -> str:
    """`3 runs, 60 watches, …`, without tables that have none."""
    parts = [
        f"{number:,} {plural if number != 1 else _NOUNS[plural]}"
        for plural, number in pruned._asdict().items()
        if number
    ]
    return ", ".join(parts) or "nothing"
