"""Tries again for files that were renamed between the search and the proof.

The search for such an inode continues until the tasks are frozen.
"""

from __future__ import annotations

import time

from irmapdb.model import Source, StaleReason
from irmapdb.resolve.engine import Candidate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Unresolved
    from irmapdb.resolve.engine import Disproved, Resolution, Resolver, Wanted
    from irmapdb.resolve.root_search import RootSearch

__all__ = ["RenameRetry", "last_of", "once_more", "were_moving"]

_MOVED = frozenset({StaleReason.GONE, StaleReason.REPLACED, StaleReason.SYMLINK})
"""The results of a proof for a path that was just renamed or replaced."""

_PATHS = 8
"""The largest number of failed paths of an inode that are proved again, the last ones."""

_LOOK_AGAIN_S = 0.1
"""The time in the freeze for the questions of `look_again`."""

_BATCH = 16
"""If none of this number of inodes is found in the freeze, the others wait until after it."""


def last_of(failures: Sequence[Disproved]) -> list[Disproved]:
    """The failed paths of an inode that are proved again."""
    return list(failures[-_PATHS:])


def were_moving(root: Root, outcome: Resolution) -> dict[Identity, list[Disproved]]:
    """The inodes without a path that had one just before, with the failed paths.

    A path below a mount of another device does not count: that is no rename, and the next proof
    would fail too. A stored path alone does not count: it may have been wrong for years, and a
    database of such paths must not make the freeze longer. A file that is being renamed is in the
    kernel's cache of names, or a scan meets it, so another source has given a path too.
    """
    failed: dict[Identity, list[Disproved]] = {}
    for one in outcome.disproved:
        failure = outcome.unresolved.get(one.identity)
        if failure is not None and not failure.deleted:
            failed.setdefault(one.identity, []).append(one)
    return {
        identity: last_of(failures)
        for identity, failures in failed.items()
        if any(_was_moving(root, one) for one in failures)
    }


def _was_moving(root: Root, one: Disproved) -> bool:
    if one.source is Source.STORED or one.reason not in _MOVED:
        return False
    if one.reason is StaleReason.GONE and one.path.endswith(b" (deleted)"):
        return False  # one of several names of the file, which was removed: d_path() of fs/d_path.c
    mount = root.mounts.of_path(one.path)
    return mount is None or mount.kdev == one.identity.kdev


def once_more(
    failed: Mapping[Identity, Sequence[Disproved]], identities: Collection[Identity]
) -> list[Resolver]:
    """Resolvers that give the failed paths of these inodes once more, one for each source."""
    by_source: dict[Source, list[Disproved]] = {}
    for identity in identities:
        for one in failed[identity]:
            by_source.setdefault(one.source, []).append(one)
    return [_OnceMore(source, paths) for source, paths in by_source.items()]


class _OnceMore:
    def __init__(self, source: Source, paths: Sequence[Disproved]) -> None:
        self.source = source
        self._paths = paths

    def __call__(self, wanted: Wanted) -> Iterator[Candidate]:
        for one in self._paths:
            if one.identity in wanted:
                yield Candidate(one.identity, one.path)


class RenameRetry:
    """Asks once more, in the freeze, for the inodes that were being renamed during the search.

    It updates the `outcome` of the search, and `found_in`: the nested root of each inode that it
    finds in one.
    """

    def __init__(self, outcome: Resolution, found_in: dict[Identity, RootSearch]) -> None:
        self._outcome = outcome
        self._found_in = found_in
        self._put_off: dict[RootSearch, list[Identity]] = {}

    def look_again(self, searches: Iterable[RootSearch]) -> None:
        """Ask while the tasks stand still, for a short time; `catch_up` asks for the others.

        An inode that may be found later is no longer unresolved: the next search looks for it.
        """
        left: set[Identity] = set()
        until = time.monotonic() + _LOOK_AGAIN_S
        for search in searches:
            missing = [one for one in search.failed if self._is_missing(one)]
            kdevs = {one.kdev for one in missing}
            blocking = {kdev for kdev in kdevs if search.root.may_block(kdev)}
            left.update(one for one in missing if one.kdev in blocking)
            failed = [one for one in missing if one.kdev not in blocking]
            for start in range(0, len(failed), _BATCH):
                batch = failed[start : start + _BATCH]
                left |= self._ask_at_rest(search, batch)
                if all(map(self._is_missing, batch)) or time.monotonic() > until:
                    self._put_off[search] = failed[start + _BATCH :]
                    break
        self._leave(left)

    def catch_up(self) -> None:
        """Ask for the inodes that `look_again` had no time for."""
        left: set[Identity] = set()
        for search, batch in self._put_off.items():
            left |= self._ask_at_rest(search, [one for one in batch if self._is_missing(one)])
        self._put_off.clear()
        self._leave(left)

    def _leave(self, identities: Iterable[Identity]) -> None:
        # The next search looks for every inode that is not known to be unresolved.
        for identity in identities:
            self._outcome.unresolved.pop(identity, None)

    def _is_missing(self, identity: Identity) -> bool:
        failure = self._outcome.unresolved.get(identity)
        return failure is not None and not failure.deleted

    def _ask_at_rest(self, search: RootSearch, batch: Collection[Identity]) -> set[Identity]:
        # Gives the inodes that are still to be looked for. Only the kernel is asked: a renamed
        # inode is in its cache of names, or has one of the paths that failed. The tasks have too
        # many open files to look through. If a handle gives the path that failed before, the inode
        # is not being renamed, but covered by a mount: a second scan would find no more.
        with search.mount_fds.only_kept():
            outcome = search.ask(batch, search.by_handle)
        covered = {
            one.identity
            for one in outcome.disproved
            if one.path in {before.path for before in search.failed[one.identity]}
        }
        outcome.unresolved, open_ended = _by_deleted(outcome.unresolved)
        moving = [one for one in open_ended if one not in covered]
        outcome.update(search.ask(moving, once_more(search.failed, moving)))
        outcome.unresolved, _ = _by_deleted(outcome.unresolved)
        if search.is_nested:
            self._found_in.update(dict.fromkeys(outcome.resolved, search))
        self._outcome.update(outcome)
        return {one for one in batch if self._is_missing(one)} - covered


def _by_deleted(
    unresolved: dict[Identity, Unresolved],
) -> tuple[dict[Identity, Unresolved], dict[Identity, Unresolved]]:
    # The deleted ones, and the others.
    deleted = {i: why for i, why in unresolved.items() if why.deleted}
    return deleted, {i: why for i, why in unresolved.items() if not why.deleted}
