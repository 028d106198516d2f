"""Decides the changes in the database for a finding, if a second proof agrees. Pure."""

from __future__ import annotations

from irmapdb.audit.findings import AuditVerdict
from irmapdb.model import Resolved, Source, StaleReason
from irmapdb.record import Record
from irmapdb.resolve.engine import Disproved, Resolution

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Mapping as MappingABC

    from irmapdb.audit.findings import AuditFinding
    from irmapdb.model import Identity, Mapping

__all__ = ["Repair", "proved_again", "repair_of"]


class Repair(Record):
    """The changes for one mapping."""

    mapping: Mapping
    """The row as the audit read it."""
    disproof: StaleReason | None
    """The result of the audit's proof of its path; None if it is right."""
    stale_reason: StaleReason | None
    """The reason to store if a second proof gives the same; None for a row that stays as it is."""
    names: tuple[bytes, ...]
    """Other paths of the inode to store, the best one first, each if it is proved again."""
    source: Source
    """The source of the names."""

    @property
    def paths(self) -> tuple[bytes, ...]:
        """All paths that must be proved again."""
        return (self.mapping.path, *self.names)


def repair_of(finding: AuditFinding) -> Repair | None:
    """The changes for a finding. None if it agrees with the database, or could not be checked."""
    if finding.verdict is AuditVerdict.UNREACHABLE:
        return None
    mapping, evidence = finding.mapping, finding.evidence
    if evidence is None:
        # It is right. A stale mapping becomes live again, but not by its number alone.
        is_revived = mapping.stale and not finding.by_number
        return Repair(mapping, None, None, (), Source.STORED) if is_revived else None
    names = () if finding.by_number else evidence.moved_to
    if mapping.stale and not names:
        return None
    stale_reason = None if mapping.stale else _reason_to_store(finding)
    return Repair(mapping, evidence.reason, stale_reason, names, evidence.source or Source.STORED)


def proved_again(
    repairs: Iterable[Repair],
    reasons: MappingABC[tuple[Identity, bytes], StaleReason | None],
) -> Resolution:
    """The confirmed repairs of one mount namespace.

    `reasons`: why each path of a repair is not its inode, by a second proof; None if it is.
    """
    outcome = Resolution()
    proved: dict[Identity, dict[bytes, tuple[Source, int]]] = {}
    for repair in repairs:
        row = repair.mapping
        reason = reasons[row.identity, row.path]
        if reason is StaleReason.UNREACHABLE:
            continue
        names, source = repair.names, repair.source
        if reason is None:
            is_revived = row.stale and row.identity.handle is not None
            names, source = (row.path,) if is_revived else (), Source.STORED
        elif not row.stale:
            why = repair.stale_reason if reason is repair.disproof else reason
            failed = Disproved(row.identity, row.path, Source.STORED, why or reason, row.mntns)
            outcome.disproved.append(failed)
        for name in names:
            if reasons[row.identity, name] is None:
                known = proved.setdefault(row.identity, {})
                known.setdefault(name, (source, row.mntns))
    for identity, known in proved.items():
        best, *others = known
        source, mntns = known[best]
        outcome.resolved[identity] = Resolved(identity, best, source, tuple(others), mntns)
    return outcome


def _reason_to_store(finding: AuditFinding) -> StaleReason | None:
    # The state of the inode is more useful than the file at its path.
    evidence = finding.evidence
    if finding.verdict is AuditVerdict.DELETED:
        return StaleReason.DELETED
    if finding.verdict is AuditVerdict.MOVED and evidence is not None and not evidence.moved_to:
        return StaleReason.MOVED
    return None if evidence is None else evidence.reason
