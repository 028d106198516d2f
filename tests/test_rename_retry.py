"""The inodes that count as renamed during the search, and those that are tried again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from irmapdb.model import FileHandle, Identity, Source, StaleReason, Unresolved
from irmapdb.resolve import engine
from irmapdb.resolve.engine import Disproved, Resolution
from irmapdb.resolve.rename_retry import last_of, once_more, were_moving

A, B = (Identity(7, ino, FileHandle(1, b"%d" % ino)) for ino in (1, 2))


def _root(kdev: int | None) -> SimpleNamespace:
    mount = None if kdev is None else SimpleNamespace(kdev=kdev)
    return SimpleNamespace(mounts=SimpleNamespace(of_path=lambda _path: mount))


def _failed(path: bytes, source: Source, reason: StaleReason) -> Disproved:
    return Disproved(A, path, source, reason)


def _outcome(*disproved: Disproved, deleted: bool = False) -> Resolution:
    return Resolution(unresolved={A: Unresolved(A, (), deleted=deleted)}, disproved=[*disproved])


@pytest.mark.parametrize("reason", list(StaleReason))
@pytest.mark.parametrize("source", [Source.HANDLE, Source.SCAN, Source.STORED])
def test_a_name_that_was_lost_during_the_search(source: Source, reason: StaleReason) -> None:
    outcome = _outcome(_failed(b"/a", source, reason))
    moved = reason in {StaleReason.GONE, StaleReason.REPLACED, StaleReason.SYMLINK}
    expected = moved and source is not Source.STORED
    for kdev in (7, None):
        assert bool(were_moving(_root(kdev), outcome)) == expected
    assert not were_moving(_root(8), outcome), "a mount lies over it"


def test_a_deleted_or_found_inode_is_not_retried() -> None:
    gone = _failed(b"/a", Source.SCAN, StaleReason.GONE)
    assert not were_moving(_root(7), _outcome(gone, deleted=True))
    assert not were_moving(_root(7), Resolution(disproved=[gone]))


def test_the_last_paths_are_tried_again_until_one_is_right() -> None:
    paths = [_failed(b"/%d" % number, Source.SCAN, StaleReason.GONE) for number in range(20)]
    stored = _failed(b"/stored", Source.STORED, StaleReason.GONE)
    failed = were_moving(_root(7), _outcome(stored, *paths))
    assert failed == {A: last_of(paths)}
    assert failed[A][-1] == paths[-1]
    failed[A].insert(0, stored)
    asked = []

    def prove(_identity: Identity, path: bytes) -> StaleReason | None:
        asked.append(path)
        return None if path == b"/18" else StaleReason.GONE

    outcome = engine.resolve([A, B], once_more(failed, [A]), prove)
    assert outcome.resolved[A].path == b"/18"
    assert outcome.resolved[A].source is Source.SCAN
    assert asked[0] == b"/stored"
    assert asked[-1] == b"/18"
    assert B in outcome.unresolved
