"""Stores the result of an audit: marks stale mappings, and stores new paths.

The check itself holds no lock on the database. So the transaction reads and proves each row again
before it changes the row. A row that a step has corrected meanwhile stays as it is.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from irmapdb.audit.check import open_audit
from irmapdb.audit.repairs import proved_again, repair_of
from irmapdb.checkpoint.changes import ChangeSet, diff
from irmapdb.kernel.proc import tasks
from irmapdb.model import ChangeKind, Event, RunStats
from irmapdb.record import Record
from irmapdb.store.database import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.audit.check import Audit, AuditOptions, AuditReport
    from irmapdb.audit.repairs import Repair
    from irmapdb.model import CacheEntry, Change, Identity, InodeKey, Mapping
    from irmapdb.resolve.engine import Resolution
    from irmapdb.store.write import Step

__all__ = ["Mended", "mend"]


class Mended(Record):
    """The findings, and the changes in the database."""

    report: AuditReport
    run_id: int | None
    """None if there was nothing to write."""
    changes: tuple[Change, ...]


def mend(options: AuditOptions) -> Mended:
    """Audit, then write. Mappings that could not be checked stay as they are.

    A stale mapping that is right again becomes live.
    """
    started_at = datetime.now(UTC)
    with open_audit(options) as auditing:
        report = auditing.report()
        repairs = [one for one in map(repair_of, report.shown) if one is not None]
        if not repairs:
            return Mended(report, None, ())
        with (
            Store.open(options.database, create=False, wait_s=options.wait_s) as store,
            store.step() as tx,
        ):
            rows = _rows_now(tx, repairs)
            outcomes = _prove_again(auditing, repairs, rows)
            return _write(tx, options, report, rows, outcomes, started_at)


def _write(
    tx: Step,
    options: AuditOptions,
    report: AuditReport,
    rows: dict[InodeKey, list[Mapping]],
    outcomes: list[Resolution],
    started_at: datetime,
) -> Mended:
    change_set = _change_set(rows, outcomes)
    resolved = [answer for outcome in outcomes for answer in outcome.resolved.values()]
    if not change_set.changes and not change_set.stale:
        return Mended(report, None, ())
    now = datetime.now(UTC)
    held = tx.image_entries()
    tx.mark_stale(change_set.stale, now)
    tx.prove(resolved, now, used=False)
    entries = _entries(held, change_set)
    if entries != held:
        tx.set_image(entries)
    pid = options.pid
    task = tasks.read_task(pid) if pid is not None else None
    run_id = tx.add_run(
        Event.AUDIT_FIX,
        pid=pid,
        comm=None if task is None else task.comm,
        started_at=started_at,
        finished_at=now,
        stats=RunStats(
            resolve_us=report.took_us,
            resolved=len(resolved),
            stale=len(change_set.stale),
            scanned=report.scanned,
            sources=dict(Counter(str(one.source) for one in resolved)),
        ),
        outcome=_outcome(change_set.changes),
    )
    tx.add_changes(run_id, change_set.changes, now)
    keep = options.config.retention
    if keep.automatic:
        tx.prune(keep, now, len(change_set.changes))
    return Mended(report, run_id, change_set.changes)


def _rows_now(tx: Step, repairs: Iterable[Repair]) -> dict[InodeKey, list[Mapping]]:
    # All of them: `load` leaves rows out.
    rows: dict[InodeKey, list[Mapping]] = {repair.mapping.identity.key: [] for repair in repairs}
    for row in tx.all_mappings():
        if row.identity.key in rows:
            rows[row.identity.key].append(row)
    return rows


def _change_set(rows: dict[InodeKey, list[Mapping]], outcomes: Iterable[Resolution]) -> ChangeSet:
    told = [diff(rows, outcome, lambda _identity, _path: None) for outcome in outcomes]
    return ChangeSet(
        tuple(one for change_set in told for one in change_set.stale),
        tuple(one for change_set in told for one in change_set.changes),
        sum(change_set.hits for change_set in told),
    )


def _prove_again(
    auditing: Audit, repairs: Iterable[Repair], rows: dict[InodeKey, list[Mapping]]
) -> list[Resolution]:
    """One for each mount namespace: an inode may have a path in several."""
    stored = {row.id: row for some in rows.values() for row in some}
    by_mntns: dict[int, list[Repair]] = {}
    for repair in repairs:
        if _is_unchanged(repair.mapping, stored.get(repair.mapping.id)):
            by_mntns.setdefault(repair.mapping.mntns, []).append(repair)
    outcomes: list[Resolution] = []
    for mntns, some in by_mntns.items():
        asked: dict[tuple[Identity, bytes], None] = dict.fromkeys(
            (repair.mapping.identity, path) for repair in some for path in repair.paths
        )
        outcomes.append(proved_again(some, auditing.disproofs(mntns, [*asked])))
    return outcomes


def _is_unchanged(then: Mapping, now: Mapping | None) -> bool:
    return now is not None and (now.identity, now.path, now.stale_at) == (
        then.identity,
        then.path,
        then.stale_at,
    )


def _entries(entries: Iterable[CacheEntry], change_set: ChangeSet) -> list[CacheEntry]:
    """The new content of irmap-cache: a new path takes the place of the old one."""
    moved: dict[tuple[InodeKey, bytes | None], bytes] = {
        (change.identity.key, change.old_path): change.path
        for change in change_set.changes
        if change.kind is ChangeKind.MOVED and not change.mntns
    }
    return [
        entry._replace(path=moved.get((entry.key, entry.path), entry.path)) for entry in entries
    ]


def _outcome(changes: Iterable[Change]) -> str:
    counts = Counter(str(change.kind) for change in changes)
    return ", ".join(f"{counts[kind]} {kind}" for kind in ChangeKind if kind in counts)
