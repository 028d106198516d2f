"""The changes of the database by a finding of the audit, if a second proof agrees."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from irmapdb.audit.findings import AuditFinding, AuditVerdict, Evidence
from irmapdb.audit.repairs import proved_again, repair_of
from irmapdb.model import FileHandle, Identity, Mapping, Resolved, Source, StaleReason

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_HANDLE = FileHandle(1, b"12345678")
_INODE = Identity(8 << 20, 12, _HANDLE)
_NUMBER = Identity(8 << 20, 12, None)


def mapping(identity: Identity = _INODE, *, stale: StaleReason | None = None) -> Mapping:
    return Mapping(
        identity=identity,
        path=b"/old",
        source=Source.HANDLE,
        revalidate=True,
        first_seen_at=_NOW,
        id=1,
        mntns=7,
        stale_at=None if stale is None else _NOW,
        stale_reason=stale,
    )


def moved(row: Mapping, *names: bytes) -> AuditFinding:
    evidence = Evidence(StaleReason.GONE, moved_to=names, source=Source.HANDLE)
    return AuditFinding(row, AuditVerdict.MOVED, evidence)


_GONE = AuditVerdict.GONE
_NOWHERE = Evidence(StaleReason.GONE)


@pytest.mark.parametrize(
    "finding",
    [
        AuditFinding(mapping(), AuditVerdict.VALID),
        AuditFinding(mapping(), AuditVerdict.UNREACHABLE, Evidence(StaleReason.UNREACHABLE)),
        AuditFinding(mapping(stale=StaleReason.GONE), _GONE, _NOWHERE),
        AuditFinding(mapping(_NUMBER, stale=StaleReason.GONE), AuditVerdict.VALID),
        moved(mapping(_NUMBER, stale=StaleReason.GONE), b"/new"),
    ],
    ids=["holds", "not-seen", "stale-already", "revived-by-number", "moved-by-number"],
)
def test_nothing_to_change(finding: AuditFinding) -> None:
    assert repair_of(finding) is None


@pytest.mark.parametrize(
    ("finding", "again", "stored"),
    [
        (AuditFinding(mapping(), _GONE, _NOWHERE), StaleReason.GONE, StaleReason.GONE),
        (
            AuditFinding(mapping(), AuditVerdict.DELETED, _NOWHERE),
            StaleReason.GONE,
            StaleReason.DELETED,
        ),
        (moved(mapping()), StaleReason.GONE, StaleReason.MOVED),
        (moved(mapping()), StaleReason.REPLACED, StaleReason.REPLACED),
        (moved(mapping()), StaleReason.UNREACHABLE, None),
        (moved(mapping()), None, None),
    ],
    ids=["gone", "deleted", "moved", "replaced-meanwhile", "not-seen-now", "back"],
)
def test_the_reason_that_is_stored(
    finding: AuditFinding, again: StaleReason | None, stored: StaleReason | None
) -> None:
    repair = repair_of(finding)
    assert repair is not None
    outcome = proved_again([repair], {(_INODE, b"/old"): again})
    assert [one.reason for one in outcome.disproved] == ([] if stored is None else [stored])
    assert outcome.resolved == {}


def test_only_names_that_are_proved_again_are_stored() -> None:
    repair = repair_of(moved(mapping(), b"/new", b"/lost", b"/link"))
    assert repair is not None
    assert repair.paths == (b"/old", b"/new", b"/lost", b"/link")
    reasons = dict.fromkeys(((_INODE, path) for path in repair.paths), None)
    reasons |= dict.fromkeys([(_INODE, b"/old"), (_INODE, b"/lost")], StaleReason.GONE)
    outcome = proved_again([repair], reasons)
    assert outcome.resolved == {_INODE: Resolved(_INODE, b"/new", Source.HANDLE, (b"/link",), 7)}
    assert [(one.path, one.mntns) for one in outcome.disproved] == [(b"/old", 7)]


def test_a_stale_row_that_holds_is_live_again() -> None:
    repair = repair_of(AuditFinding(mapping(stale=StaleReason.GONE), AuditVerdict.VALID))
    assert repair is not None
    outcome = proved_again([repair], {(_INODE, b"/old"): None})
    assert outcome.resolved == {_INODE: Resolved(_INODE, b"/old", Source.STORED, (), 7)}
    assert proved_again([repair], {(_INODE, b"/old"): StaleReason.GONE}).resolved == {}
