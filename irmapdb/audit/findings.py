"""Defines the verdict on a stored mapping, its evidence, and the choice of mappings to audit."""

from __future__ import annotations

import enum
import fnmatch

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from irmapdb.model import Identity, Mapping, Source, StaleReason

__all__ = ["AuditFinding", "AuditVerdict", "Evidence", "Selection"]


class AuditVerdict(enum.StrEnum):
    """The state of a mapping now, in the order of the tables."""

    VALID = "valid"
    """The path names the inode."""
    MOVED = "moved"
    """The path does not name the inode, but the inode has another name."""
    REPLACED = "replaced"
    """The path names another inode, or leads through a symbolic link. The old inode is not known in
    this root."""
    REUSED = "reused"
    """The path names another inode with the same number: its handle differs."""
    DELETED = "deleted"
    """The path does not exist, and the inode has no name or does not exist any more."""
    GONE = "gone"
    """The path does not exist, and the state of the inode is unknown."""
    UNMOUNTED = "unmounted"
    """The device is not mounted in this root, or hidden there, or not at the path any more."""
    UNREACHABLE = "unreachable"
    """We may not look up the path, or got no answer, or it is in another mount namespace."""


class Evidence(Record):
    """The evidence that a mapping is wrong."""

    reason: StaleReason | None = None
    """The result of the proof of the path; None if it could not be looked up."""
    found: Identity | None = None
    """The inode at the path now."""
    changed_at: datetime | None = None
    """The time of its last change (st_ctime). If the path does not exist: the time when a name was
    last added to or removed from the nearest existing directory (st_mtime)."""
    moved_to: tuple[bytes, ...] = ()
    """Proved paths of the inode, the best one first. May be empty for `moved`, if the new name is
    not known."""
    source: Source | None = None
    """The source of the new path."""
    unseen: str = ""
    """Why the path could not be looked up; empty if it was."""
    note: str = ""


class AuditFinding(Record):
    """A stored mapping, and the verdict on it."""

    mapping: Mapping
    verdict: AuditVerdict
    evidence: Evidence | None = None
    """None for `valid`."""

    @property
    def by_number(self) -> bool:
        """Whether there was no handle to compare, only device and inode number."""
        return self.mapping.identity.handle is None

    @property
    def is_news(self) -> bool:
        """Whether it is live in the database, but wrong or not checked."""
        return self.verdict is not AuditVerdict.VALID and not self.mapping.stale


class Selection(Record):
    """The choice of mappings; the default is all."""

    paths: tuple[bytes, ...] = ()
    """Shell patterns; one of them has to match. `*` matches `/` too."""
    kdevs: frozenset[int] = frozenset()
    unproved_since: datetime | None = None
    """Only mappings whose last proof was before this time."""
    verdicts: frozenset[AuditVerdict] = frozenset()

    def takes(self, mapping: Mapping) -> bool:
        """Whether a mapping is to be checked."""
        if self.kdevs and mapping.identity.kdev not in self.kdevs:
            return False
        if self.unproved_since is not None:
            proved = mapping.validated_at
            if proved is not None and proved >= self.unproved_since:
                return False
        path = mapping.path
        return not self.paths or any(fnmatch.fnmatchcase(path, one) for one in self.paths)

    def shows(self, finding: AuditFinding) -> bool:
        """Whether the finding is shown."""
        return not self.verdicts or finding.verdict in self.verdicts
