"""The audit that writes: what does not hold is marked stale, what was found is stored.

The check itself holds no lock on the database. So each row that is to be changed is read again in
the transaction that changes it, and proved again: what a step has mended in between is left alone.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from irmapdb.audit.check import AuditVerdict, open_audit
from irmapdb.checkpoint.changes import ChangeSet, diff
from irmapdb.kernel.proc import tasks
from irmapdb.model import ChangeKind, Event, Resolved, RunStats, Source, StaleReason
from irmapdb.record import Record
from irmapdb.resolve.engine import Disproved, Resolution
from irmapdb.store.database import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.audit.check import Audit, AuditFinding, AuditOptions, AuditReport
    from irmapdb.model import CacheEntry, Change, Identity, InodeKey, Mapping
    from irmapdb.store.write import Step

__all__ = ["Mended", "mend"]


class Mended(Record):
    """What was found, and what was done about it."""

    report: AuditReport
    run_id: int | None
    """None where there was nothing to do: then nothing was written."""
    changes: tuple[Change, ...]


def mend(options: AuditOptions) -> Mended:
    """Audit, then write. What could not be looked at stays as it is.

    A mapping that was marked stale and holds again is live again.
    """
    started_at = datetime.now(UTC)
    with open_audit(options) as auditing:
        report = auditing.report()
        todo = [finding for finding in report.shown if _is_to_be_written(finding)]
        if not todo:
            return Mended(report, None, ())
        with (
            Store.open(options.database, create=False, wait_s=options.wait_s) as store,
            store.step() as tx,
        ):
            return _write(tx, auditing, report, todo, started_at)


def _is_to_be_written(finding: AuditFinding) -> bool:
    if finding.verdict is AuditVerdict.UNREACHABLE:
        return False
    return finding.is_news or _is_found(finding)


def _is_found(finding: AuditFinding) -> bool:
    # A stale one that holds again, or whose inode has a path. Not by its number alone.
    if finding.by_number:
        return False
    if finding.evidence is None:
        return finding.mapping.stale
    return bool(finding.evidence.moved_to)


def _write(
    tx: Step, auditing: Audit, report: AuditReport, todo: list[AuditFinding], started_at: datetime
) -> Mended:
    rows = _rows_now(tx, auditing, todo)
    outcomes = _prove_again(auditing, todo, {row.id: row for some in rows.values() for row in some})
    change_set = _story(rows, outcomes)
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
    pid = auditing.options.pid
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
    keep = auditing.options.config.retention
    if keep.automatic:
        tx.prune(keep, now, len(change_set.changes))
    return Mended(report, run_id, change_set.changes)


def _rows_now(
    tx: Step, auditing: Audit, todo: Iterable[AuditFinding]
) -> dict[InodeKey, list[Mapping]]:
    keys = {finding.mapping.identity.key for finding in todo}
    rows: dict[InodeKey, list[Mapping]] = {}
    for mntns in (0, auditing.root.mntns, *auditing.nested):
        for key, some in tx.load(keys, mntns).items():
            rows.setdefault(key, []).extend(some)
    return rows


def _story(rows: dict[InodeKey, list[Mapping]], outcomes: Iterable[Resolution]) -> ChangeSet:
    told = [diff(rows, outcome, lambda _identity, _path: None) for outcome in outcomes]
    return ChangeSet(
        tuple(one for change_set in told for one in change_set.stale),
        tuple(one for change_set in told for one in change_set.changes),
        sum(change_set.hits for change_set in told),
    )


def _prove_again(
    auditing: Audit, todo: list[AuditFinding], rows: dict[int | None, Mapping]
) -> list[Resolution]:
    """One for each mount namespace: an inode may have a path in several."""
    same = [finding for finding in todo if _is_unchanged(finding, rows)]
    asked: dict[int, list[tuple[Identity, bytes]]] = {}
    for finding in same:
        row = finding.mapping
        paths = [row.path]
        if finding.evidence is not None and _is_found(finding):
            paths += finding.evidence.moved_to
        asked.setdefault(row.mntns, []).extend((row.identity, path) for path in paths)
    answers = {mntns: auditing.of(mntns).disproofs(some) for mntns, some in asked.items()}
    outcomes = {mntns: Resolution() for mntns in asked}
    for finding in same:
        row = finding.mapping
        outcome = outcomes[row.mntns]
        reasons = answers[row.mntns]
        reason = reasons[row.identity, row.path]
        if reason is None:
            if row.stale and not finding.by_number:
                _add(outcome, row, [row.path], Source.STORED)
        elif reason is not StaleReason.UNREACHABLE:
            if not row.stale:
                why = _what_to_store(finding, reason)
                failed = Disproved(row.identity, row.path, Source.STORED, why, row.mntns)
                outcome.disproved.append(failed)
            evidence = finding.evidence
            if evidence is not None and _is_found(finding):
                names = [one for one in evidence.moved_to if reasons[row.identity, one] is None]
                _add(outcome, row, names, evidence.source or Source.STORED)
    return list(outcomes.values())


def _what_to_store(finding: AuditFinding, reason: StaleReason) -> StaleReason:
    # What became of the inode says more than what is at its path, if that is still the same.
    evidence = finding.evidence
    if evidence is None or evidence.reason is not reason:
        return reason
    if finding.verdict is AuditVerdict.DELETED:
        return StaleReason.DELETED
    nameless = finding.verdict is AuditVerdict.MOVED and not evidence.moved_to
    return StaleReason.MOVED if nameless else reason


def _is_unchanged(finding: AuditFinding, rows: dict[int | None, Mapping]) -> bool:
    then, now = finding.mapping, rows.get(finding.mapping.id)
    return now is not None and (now.identity, now.path, now.stale_at) == (
        then.identity,
        then.path,
        then.stale_at,
    )


def _add(outcome: Resolution, row: Mapping, names: list[bytes], source: Source) -> None:
    if not names:
        return
    known = outcome.resolved.get(row.identity)
    if known is not None:
        names = [known.path, *known.other_paths, *names]
        source = known.source
    best, *others = dict.fromkeys(names)
    outcome.resolved[row.identity] = Resolved(row.identity, best, source, tuple(others), row.mntns)


def _entries(entries: Iterable[CacheEntry], change_set: ChangeSet) -> list[CacheEntry]:
    """What irmap-cache is to hold: the new path of what moved in the place of the old one."""
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
