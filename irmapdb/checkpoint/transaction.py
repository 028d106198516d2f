"""Stores the results of a step, in one transaction of the database.

The hook imports it only after CRIU has its answer.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from irmapdb import files
from irmapdb.checkpoint import work_dir
from irmapdb.checkpoint.changes import add_unmounted
from irmapdb.checkpoint.findings import FSNOTIFY_NAMES, Begun
from irmapdb.errors import FreezeError
from irmapdb.kernel.proc.namespaces import mounted_anywhere
from irmapdb.log import Log
from irmapdb.model import Event, RunStats
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.checkpoint.findings import Findings, MarkRow
    from irmapdb.checkpoint.steps import StepOptions
    from irmapdb.checkpoint.work_dir import News, WorkDir
    from irmapdb.kernel.proc.survey import Denied
    from irmapdb.model import Change, Mapping, Resolved
    from irmapdb.store.records import WatchRow
    from irmapdb.store.write import Step

__all__ = [
    "StepReport",
    "Transaction",
    "import_news",
    "load_cache",
    "open_transaction",
    "store",
    "write",
]

_log = Log(__name__)

_MOST_UNMOUNTED = 50_000
"""The largest number of rows that a step marks as unmounted; the next step marks the others."""


class StepReport(Record):
    """The result of a step."""

    event: Event
    pid: int
    run_id: int
    watches: tuple[WatchRow, ...]
    marks: tuple[MarkRow, ...]
    denied: tuple[Denied, ...]
    changes: tuple[Change, ...]
    stats: RunStats
    loaded: int
    """The number of entries loaded from an irmap-cache that was newer than the database."""
    cut: int
    """Watches without a path because the time was up."""
    unread: int
    """Tasks whose descriptors were not all read because the time was up."""
    written: tuple[bytes, ...]
    """The files that were replaced, the cache image first."""
    resolved: tuple[Resolved, ...] = ()
    """The proved paths, with every name."""
    private_copy: str = ""
    """Why SQLite worked on a private copy of the database; "" if it did not."""


class Transaction(Begun):
    """A step that has begun, with the transaction that all its changes go into."""

    def __init__(
        self,
        event: Event,
        place: WorkDir,
        started_at: datetime,
        *,
        tx: Step,
        until_committed: contextlib.ExitStack,
        private_copy: str,
    ) -> None:
        super().__init__(event, place, started_at)
        self.tx = tx
        self.until_committed = until_committed
        """Undoes the changes outside of the database if the transaction is not committed."""
        self.private_copy = private_copy


@contextlib.contextmanager
def open_transaction(options: StepOptions, event: Event) -> Iterator[Transaction]:
    """Open the database for a step, and make it if there is none.

    FileError if a file of the step cannot be replaced; DatabaseError. After a FreezeError, the
    database gets a row for the failed step.
    """
    from irmapdb.store.database import Store  # noqa: PLC0415 not before the answer

    place = options.open_work_dir()
    images = FSNOTIFY_NAMES if event is Event.DUMP else ()
    for target in (*(work_dir.within(place.images, name) for name in images), place.cache):
        files.check_replaceable(target)
    started_at = datetime.now(UTC)
    with Store.open(place.database, create=True, wait_s=options.wait_s) as store:
        try:
            with contextlib.ExitStack() as until_committed, store.step() as tx:
                yield Transaction(
                    event,
                    place,
                    started_at,
                    tx=tx,
                    until_committed=until_committed,
                    private_copy=store.why_copied,
                )
        except FreezeError as error:
            if store.made:
                raise  # nothing is left behind, not even the database
            # The tasks were frozen, so a failed dump gets a row too.
            with store.step() as tx:
                tx.add_run(
                    event,
                    pid=options.pid,
                    comm=None,
                    started_at=started_at,
                    finished_at=datetime.now(UTC),
                    stats=RunStats(),
                    outcome=f"failed: {error}",
                )
            raise


def import_news(step: Transaction, news: News | None, at: datetime) -> int:
    """Add the entries of an irmap-cache that is newer than the database; returns their number."""
    if news is None:
        return 0
    step.tx.import_entries(news.entries, at)
    step.tx.set_image_seen(news.path, news.stamp)
    return len(news.entries)


def load_cache(options: StepOptions, step: Transaction) -> int:
    """The same of the irmap-cache in the work dir, unless the step is to leave it out."""
    news = work_dir.read_news(step.tx.image_seen, step.place) if options.take_cache else None
    loaded = import_news(step, news, step.started_at)
    _log.info("entries taken over from an irmap-cache: %d", loaded)
    return loaded


def write(options: StepOptions, step: Transaction, found: Findings, loaded: int) -> StepReport:
    """Store the results, and replace the images."""
    report = store(options, step, found, loaded)
    work_dir.save_images(
        step.tx, step.place, found.entries, found.images.items(), step.until_committed
    )
    return report


def store(options: StepOptions, step: Transaction, found: Findings, loaded: int) -> StepReport:
    """Store the results in the database."""
    now = found.finished_at
    change_set = add_unmounted(found.change_set, _unmounted(step.tx, found.mounted))
    stats = found.stats._replace(stale=len(change_set.stale))
    step.tx.flag_all()
    step.tx.mark_stale(change_set.stale, now)
    step.tx.prove(found.proved, now)
    run_id = step.tx.add_run(
        found.event,
        pid=found.pid,
        comm=found.comm,
        started_at=found.started_at,
        finished_at=now,
        stats=stats,
        outcome=_in_words(stats, found.cut, found.unread),
    )
    step.tx.add_watches(run_id, found.watches)
    step.tx.add_changes(run_id, change_set.changes, now)
    if options.config.retention.automatic:
        step.tx.prune(options.config.retention, now, len(found.watches) + len(change_set.changes))
    current = {row.watch.identity for row in found.watches}
    return StepReport(
        event=found.event,
        pid=found.pid,
        run_id=run_id,
        watches=found.watches,
        marks=found.marks,
        denied=found.denied,
        changes=change_set.changes,
        stats=stats,
        loaded=loaded,
        cut=found.cut,
        unread=found.unread,
        written=(found.place.cache, *found.images),
        resolved=tuple(answer for answer in found.proved if answer.identity in current),
        private_copy=step.private_copy,
    )


def _in_words(stats: RunStats, cut: int, unread: int) -> str:
    words = [f"{stats.unresolved} unresolved"] if stats.unresolved else []
    if cut:
        words.append(f"{cut} of them for lack of time")
    if unread:
        words.append(f"{unread} tasks not read for lack of time")
    return ", ".join(words) or "done"


def _unmounted(tx: Step, mounted: dict[int, frozenset[int]]) -> Iterator[Mapping]:
    """The live rows of devices that are mounted nowhere.

    A device that is not mounted in our tree's namespace may belong to another tree with the same
    database, and no row has its tree. So the row stays live if its device is still mounted in any
    namespace of the machine. A wrong row is detected when it is used.

    The rows of a nested namespace have its number, so mounts of other namespaces do not count for
    them. A namespace that was not read may still have its mounts, and a chroot does not show all.
    """
    left = _MOST_UNMOUNTED
    for mntns, kdevs in mounted.items():
        absent = tx.live_devices(mntns) - kdevs
        if absent and not mntns:
            absent -= mounted_anywhere(absent)
        gone = tx.live_on(absent, mntns, at_most=left)
        left -= len(gone)
        yield from gone
