"""Compares the stored rows before a step with the results of the step.

Pure: rows and outcome in, stale rows and changes out.
"""

from __future__ import annotations

from irmapdb.model import Change, ChangeKind, Source, StaleReason
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Mapping as MappingABC

    from irmapdb.model import Identity, InodeKey, Mapping, Resolved
    from irmapdb.resolve.engine import Disproved, Resolution

__all__ = ["ChangeSet", "add_unmounted", "diff"]


class ChangeSet(Record):
    """The changes for the store."""

    stale: tuple[tuple[Mapping, StaleReason], ...]
    changes: tuple[Change, ...]
    hits: int
    """Identities that a stored row answered."""


def diff(
    rows: MappingABC[InodeKey, Iterable[Mapping]],
    outcome: Resolution,
    disprove: Callable[[Identity, bytes], StaleReason | None],
) -> ChangeSet:
    """Compare the stored rows with the proved paths.

    `disprove` checks a row (in the root task's own namespace) if it failed for another inode than
    its own. Two inodes of one (kdev, ino) are normal on btrfs and overlayfs, and only a failed
    proof for its own inode makes a row stale.
    """
    failed = _failed_rows(rows, outcome.disproved, disprove)
    for identity, answer in outcome.resolved.items() if failed else ():
        held = _paths(answer)
        for row in rows.get(identity.key, ()):
            if row.identity.matches(identity) and _is_held(row, answer, held):
                failed.pop(row.id, None)  # it failed for a while, and was proved in the end
    changes: list[Change] = []
    told: set[int | None] = set()
    hits = 0
    for identity, answer in outcome.resolved.items():
        hits += answer.source is Source.STORED
        known = [row for row in rows.get(identity.key, ()) if row.mntns == answer.mntns]
        if not known:
            changes.append(_found(identity, answer))
            continue
        mine = [row for row in known if row.identity.matches(identity)]
        if len(mine) != len(known):
            changes += _overwritten(known, identity, answer, failed)
        lost = [row for row in mine if row.id in failed]
        change = _how_found(identity, answer, mine, lost, failed)
        if change is not None:
            changes.append(change)
            told.update(row.id for row in lost if row.path == change.old_path)
    condemned = tuple((row, reason) for row, reason in failed.values())
    changes += [_stale(row, reason) for row, reason in condemned if row.id not in told]
    return ChangeSet(condemned, tuple(changes), hits)


def add_unmounted(change_set: ChangeSet, unmounted: Iterable[Mapping]) -> ChangeSet:
    """The same, with rows of devices that are gone."""
    known = {row.id for row, _ in change_set.stale}
    gone = [(row, StaleReason.UNMOUNTED) for row in unmounted if row.id not in known]
    return change_set._replace(
        stale=(*change_set.stale, *gone),
        changes=(*change_set.changes, *(_stale(row, reason) for row, reason in gone)),
    )


def _failed_rows(
    rows: MappingABC[InodeKey, Iterable[Mapping]],
    disproved: Iterable[Disproved],
    disprove: Callable[[Identity, bytes], StaleReason | None],
) -> dict[int | None, tuple[Mapping, StaleReason]]:
    failed: dict[int | None, tuple[Mapping, StaleReason]] = {}
    # A file may have thousands of names, and all of them may be wrong at once.
    live_rows: dict[InodeKey, dict[tuple[bytes, int], list[Mapping]]] = {}
    for one in disproved:
        if one.source is not Source.STORED:
            continue
        key = one.identity.key
        if key not in live_rows:
            live_rows[key] = _by_path(row for row in rows.get(key, ()) if not row.stale)
        for row in live_rows[key].get((one.path, one.mntns), ()):
            if row.id in failed:
                continue
            reason: StaleReason | None = None
            if _is_condemned_by(row, one):
                reason = one.reason
            elif not row.mntns:
                reason = disprove(row.identity, row.path)
            # A path that we may not or could not look up may still be right.
            if reason is not None and reason is not StaleReason.UNREACHABLE:
                failed[row.id] = (row, reason)
    return failed


def _is_condemned_by(row: Mapping, one: Disproved) -> bool:
    # A watch that shows no handle says nothing about the inode of a row that has one.
    known_better = row.identity.handle is not None and one.identity.handle is None
    return row.identity.matches(one.identity) and not known_better


def _by_path(rows: Iterable[Mapping]) -> dict[tuple[bytes, int], list[Mapping]]:
    found: dict[tuple[bytes, int], list[Mapping]] = {}
    for row in rows:
        found.setdefault((row.path, row.mntns), []).append(row)
    return found


def _paths(answer: Resolved) -> set[bytes]:
    return {answer.path, *answer.other_paths}


def _is_held(row: Mapping, answer: Resolved, held: set[bytes]) -> bool:
    return row.mntns == answer.mntns and row.path in held


def _overwritten(
    known: Iterable[Mapping],
    identity: Identity,
    answer: Resolved,
    failed: MappingABC[int | None, object],
) -> Iterator[Change]:
    # The rows of other inodes are about to be overwritten: record their old paths.
    held = _paths(answer)
    for row in known:
        live = not row.stale and row.id not in failed
        if live and not row.identity.matches(identity) and _is_held(row, answer, held):
            yield _stale(row, StaleReason.REUSED)


def _how_found(
    identity: Identity,
    answer: Resolved,
    mine: list[Mapping],
    lost: list[Mapping],
    failed: dict[int | None, tuple[Mapping, StaleReason]],
) -> Change | None:
    path, mntns = answer.path, answer.mntns
    if any(row.path == path and not row.stale for row in mine):
        return None
    # Another file may have got the same number: then one path became stale, and one was found.
    known = [row for row in lost if None not in {row.identity.handle, identity.handle}]
    if known:
        old = known[-1]
        reason = failed[old.id][1]
        return Change(ChangeKind.MOVED, identity, path, old.path, reason, mntns)
    if any(row.path == path for row in mine):
        return Change(ChangeKind.REVIVED, identity, path, mntns=mntns)
    return _found(identity, answer)


def _found(identity: Identity, answer: Resolved) -> Change:
    return Change(ChangeKind.FOUND, identity, answer.path, mntns=answer.mntns)


def _stale(row: Mapping, reason: StaleReason) -> Change:
    return Change(ChangeKind.STALE, row.identity, row.path, reason=reason, mntns=row.mntns)
