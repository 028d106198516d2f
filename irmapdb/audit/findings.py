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
    """What a mapping is worth now. Their order is that of the tables."""

    VALID = "valid"
    """The path names the inode."""
    MOVED = "moved"
    """It does not; but the inode is there, under another name."""
    REPLACED = "replaced"
    """The path names another inode, or leads through a symbolic link; nobody knows the old one in
    this root."""
    REUSED = "reused"
    """The path names another inode that was given the same number: the handle tells."""
    DELETED = "deleted"
    """Nothing is at the path, and the inode has no name left or is no more."""
    GONE = "gone"
    """Nothing is at the path, and nobody can say what became of the inode."""
    UNMOUNTED = "unmounted"
    """The device is not mounted in this root, or hidden there, or not at the path any more."""
    UNREACHABLE = "unreachable"
    """We may not look, or had no answer, or the path belongs to another mount namespace."""


class Evidence(Record):
    """Why a mapping does not hold."""

    reason: StaleReason | None = None
    """What the proof says of the path; None where nobody could look."""
    found: Identity | None = None
    """What is at the path now."""
    changed_at: datetime | None = None
    """When that last changed (st_ctime); where nothing is there, when a name last came or went in
    the nearest directory that is (st_mtime)."""
    moved_to: tuple[bytes, ...] = ()
    """Proved paths of the inode, the best one first. May be empty for `moved`: its name is not
    known then."""
    source: Source | None = None
    """Who knew where to."""
    unseen: str = ""
    """Why nobody could look at what is at the path; empty where somebody did."""
    note: str = ""


class AuditFinding(Record):
    """A mapping as it is stored, and what it is worth."""

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
        """Whether the database takes it for true, and it is not, or nobody knows."""
        return self.verdict is not AuditVerdict.VALID and not self.mapping.stale


class Selection(Record):
    """Which mappings are of interest; the default is all of them."""

    paths: tuple[bytes, ...] = ()
    """Shell patterns, of which one has to match; `*` matches `/` too."""
    kdevs: frozenset[int] = frozenset()
    unproved_since: datetime | None = None
    """Those that were not proved at this time or later."""
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
        """Whether what came out is to be told."""
        return not self.verdicts or finding.verdict in self.verdicts
