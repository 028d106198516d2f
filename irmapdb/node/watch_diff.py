"""Compares the watches of two sources: archives, images, databases, task trees.

Two watches are the same if they are on the same inode, or, where that is not known, at the same
path: a restore on another filesystem gives every watch another inode. An identity with a handle is
compared before the path, so a file that was renamed is one watch with another path. An identity
without a handle is compared after it, because inode numbers of two machines can be equal.
"""

from __future__ import annotations

import enum

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from irmapdb.node.watch_lists import ListedWatch, WatchSource

    Key = Callable[[ListedWatch], Hashable | None]

__all__ = ["DiffKind", "WatchDiff", "WatchDifference", "compare"]


class DiffKind(enum.StrEnum):
    """The kind of a difference."""

    ADDED = "added"
    """Only the second source has it."""
    REMOVED = "removed"
    """Only the first source has it."""
    PATH = "other-path"
    MASK = "other-mask"


class WatchDifference(Record):
    """One difference."""

    kind: DiffKind
    before: ListedWatch | None
    """None: added."""
    after: ListedWatch | None
    """None: removed."""


class WatchDiff(Record):
    """The differences between two sources."""

    before: WatchSource
    after: WatchSource
    differences: tuple[WatchDifference, ...]
    same: int
    """Watches that both sources have, without a difference."""


def compare(before: WatchSource, after: WatchSource) -> WatchDiff:
    """Find the watches that differ.

    If a source has no kinds (`irmap-cache`), a watch counts once for each inode and path.
    """
    left, right = list(before.watches), list(after.watches)
    with_kind = all(one.kind is not None for one in (*left, *right))
    if not with_kind:
        left, right = _once(left), _once(right)
    pairs: list[tuple[ListedWatch, ListedWatch]] = []
    for key in _keys(with_kind=with_kind):
        left, right = _match(left, right, key, pairs)
    found = [WatchDifference(DiffKind.REMOVED, one, None) for one in left]
    found += [WatchDifference(DiffKind.ADDED, None, one) for one in right]
    same = 0
    for old, new in pairs:
        differences = _between(old, new)
        found += differences
        same += not differences
    found.sort(key=_order)
    return WatchDiff(before, after, tuple(found), same)


def _keys(*, with_kind: bool) -> Iterable[Key]:
    def kind(one: ListedWatch) -> Hashable:
        return one.kind if with_kind else None

    def by_handle(one: ListedWatch) -> Hashable | None:
        handle = one.identity.handle
        return None if handle is None else (kind(one), one.identity.kdev, handle)

    def by_number(one: ListedWatch) -> Hashable:
        return kind(one), one.identity.key

    def by_path(one: ListedWatch) -> Hashable | None:
        return None if one.path is None else (kind(one), one.path)

    def both(first: Key, second: Key) -> Key:
        def key(one: ListedWatch) -> Hashable | None:
            parts = first(one), second(one)
            return None if None in parts else parts

        return key

    def mask(one: ListedWatch) -> Hashable | None:
        return one.mask

    return (
        both(both(by_handle, by_path), mask),
        both(by_handle, by_path),
        both(by_handle, mask),
        by_handle,
        both(both(by_number, by_path), mask),
        both(by_number, by_path),
        both(by_path, mask),
        by_path,
        both(by_number, mask),
        by_number,
    )


def _match(
    left: list[ListedWatch],
    right: list[ListedWatch],
    key: Key,
    pairs: list[tuple[ListedWatch, ListedWatch]],
) -> tuple[list[ListedWatch], list[ListedWatch]]:
    """Move those with equal keys to the pairs; the rest of both."""
    waiting: dict[Hashable, list[int]] = {}
    for number in range(len(right) - 1, -1, -1):
        wanted = key(right[number])
        if wanted is not None:
            waiting.setdefault(wanted, []).append(number)
    taken = set()
    rest = []
    for one in left:
        found = waiting.get(key(one))
        if found:
            number = found.pop()
            taken.add(number)
            pairs.append((one, right[number]))
        else:
            rest.append(one)
    return rest, [one for number, one in enumerate(right) if number not in taken]


def _once(watches: Iterable[ListedWatch]) -> list[ListedWatch]:
    return list({(one.identity.key, one.path): one for one in watches}.values())


def _between(old: ListedWatch, new: ListedWatch) -> list[WatchDifference]:
    found = []
    if old.is_path_known and new.is_path_known and old.path != new.path:
        found.append(WatchDifference(DiffKind.PATH, old, new))
    if old.mask is not None and new.mask is not None and old.mask != new.mask:
        found.append(WatchDifference(DiffKind.MASK, old, new))
    return found


def _order(one: WatchDifference) -> tuple[str, bytes]:
    watch = one.before or one.after
    path = b"" if watch is None or watch.path is None else watch.path
    return str(one.kind), path
