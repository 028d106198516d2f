"""The watches that differ, from two lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.model import FileHandle, Identity, WatchKind
from irmapdb.node.watch_diff import DiffKind, compare
from irmapdb.node.watch_lists import ListedWatch, SourceKind, WatchSource


def _watch(
    ino: int,
    path: bytes | None,
    *,
    mask: int | None = 2,
    kdev: int = 7,
    handle: bool = True,
    kind: WatchKind | None = WatchKind.INOTIFY,
    known: bool = True,
) -> ListedWatch:
    made = FileHandle(1, b"%d" % ino) if handle else None
    return ListedWatch(kind, Identity(kdev, ino, made), mask, path, known)


def _source(*watches: ListedWatch) -> WatchSource:
    return WatchSource("a source", SourceKind.IMAGE, watches)


def _told(old: WatchSource, new: WatchSource) -> list[str]:
    return [str(one.kind) for one in compare(old, new).differences]


def test_a_restore_on_another_machine_differs_in_nothing() -> None:
    here = _source(_watch(1, b"/a"), _watch(2, b"/b"))
    there = _source(_watch(2, b"/a", kdev=9), _watch(8, b"/b", kdev=9))
    found = compare(here, there)
    assert found.differences == ()
    assert found.same == 2


def test_two_names_that_were_swapped() -> None:
    before = _source(_watch(1, b"/a"), _watch(2, b"/b"))
    after = _source(_watch(1, b"/b"), _watch(2, b"/a"))
    assert _told(before, after) == ["other-path", "other-path"]


def test_equal_numbers_of_two_machines_are_no_rename() -> None:
    # Without handles, /a is more alike to /a than to the file with its number.
    here = _source(_watch(1, b"/a", handle=False), _watch(2, b"/b", handle=False))
    there = _source(_watch(2, b"/a", handle=False), _watch(1, b"/b", handle=False))
    assert _told(here, there) == []
    # If nothing else is left, the number counts.
    one, other = _source(_watch(1, b"/a", handle=False)), _source(_watch(1, b"/b", handle=False))
    assert _told(one, other) == ["other-path"]


def test_a_mask_and_a_path_that_are_not_known_do_not_differ() -> None:
    known = _source(_watch(1, b"/a"))
    assert _told(known, _source(_watch(1, None, known=False))) == []
    assert _told(known, _source(_watch(1, None))) == ["other-path"]
    assert _told(known, _source(_watch(1, b"/a", mask=None))) == []
    assert _told(known, _source(_watch(1, b"/b", mask=3))) == ["other-mask", "other-path"]


def test_one_watch_of_two_descriptors_is_gone() -> None:
    twice, once = _source(_watch(1, b"/a"), _watch(1, b"/a")), _source(_watch(1, b"/a"))
    assert _told(twice, once) == ["removed"]
    assert _told(once, twice) == ["added"]
    # The one with the same mask stays.
    masks = _source(_watch(1, b"/a", mask=1), _watch(1, b"/a", mask=2))
    (found,) = compare(masks, once).differences
    assert (found.kind, found.before.mask if found.before else None) == (DiffKind.REMOVED, 1)
    fanotify = _source(_watch(1, b"/a", kind=WatchKind.FANOTIFY))
    assert sorted(_told(once, fanotify)) == ["added", "removed"]


def test_a_cache_has_no_kinds_and_no_multiplicity() -> None:
    cache = _source(_watch(1, b"/a", kind=None, mask=None, handle=False))
    watches = _source(
        _watch(1, b"/a"), _watch(1, b"/a", mask=5), _watch(1, b"/a", kind=WatchKind.FANOTIFY)
    )
    assert _told(cache, watches) == _told(watches, cache) == []


_watches = st.lists(
    st.builds(
        _watch,
        st.integers(1, 4),
        st.sampled_from([b"/a", b"/b", b"/c", None]),
        mask=st.integers(1, 2),
        kdev=st.integers(1, 2),
        handle=st.booleans(),
        kind=st.sampled_from([WatchKind.INOTIFY, WatchKind.FANOTIFY]),
    ),
    max_size=6,
)


@pytest.mark.parametrize("handle", [True, False])
def test_watches_without_a_path_are_matched_by_their_masks(handle):
    one, other = (_watch(3, None, mask=mask, handle=handle, known=False) for mask in (1, 2))
    assert _told(_source(one, other), _source(other, one)) == []


@given(_watches, st.randoms())
def test_a_list_does_not_differ_from_itself_in_any_order(watches, random) -> None:
    shuffled = [*watches]
    random.shuffle(shuffled)
    found = compare(_source(*watches), _source(*shuffled))
    assert found.differences == ()
    assert found.same == len(watches)


@given(_watches, _watches)
def test_each_watch_is_in_one_pair_or_alone(left, right) -> None:
    found = compare(_source(*left), _source(*right))
    kinds = [one.kind for one in found.differences]
    removed, added = kinds.count(DiffKind.REMOVED), kinds.count(DiffKind.ADDED)
    assert len(left) - removed == len(right) - added
    paired = {id(one.before) for one in found.differences if one.before and one.after}
    assert found.same + len(paired) == len(left) - removed
    back = compare(_source(*right), _source(*left))
    assert [one.kind for one in back.differences].count(DiffKind.ADDED) == removed
