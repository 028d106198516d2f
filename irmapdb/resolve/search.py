"""Searches for the paths of one task tree's inodes, in every root that shows them.

It first searches in the root of the root task's mount namespace: CRIU's cache has only paths in
that root. Nested roots come next (`nested_roots`).
"""

from __future__ import annotations

import time

from irmapdb.kernel.proof import disproof, disproof_of_watch
from irmapdb.kernel.root import adopt_from
from irmapdb.model import StaleReason
from irmapdb.resolve import engine
from irmapdb.resolve.engine import Disproved
from irmapdb.resolve.nested_roots import NestedRoots
from irmapdb.resolve.rename_retry import RenameRetry, last_of
from irmapdb.resolve.root_search import RootSearch, SearchOptions
from irmapdb.resolve.stored import nothing_stored
from irmapdb.resolve.watchers import Watchers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Mapping as MappingABC
    from typing import Self

    from irmapdb.config import Config
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, InodeKey, Mapping, WatchFile
    from irmapdb.resolve.engine import Resolution
    from irmapdb.resolve.mount_fds import MountFds
    from irmapdb.resolve.root_search import Paused
    from irmapdb.resolve.stored import Load

__all__ = ["Search"]

_MOST_HELD_OPEN = 128
"""The largest number of mount descriptors of all roots: a process may open 1,024."""


class Search:
    """Resolves batches and proves answers again. A context manager that keeps the roots open."""

    def __init__(
        self,
        root: Root,
        load: Load = nothing_stored,
        *,
        config: Config,
        scan_paths: Iterable[bytes] = (),
        scan: bool = True,
        ask_servers: Callable[[], bool] = lambda: True,
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        scan_paths = tuple(scan_paths)
        self.paused: Paused | None = None
        """Set if the tasks are paused already."""
        self.freeze_follows = False
        """Whether a freeze follows: moving files can wait for it."""
        self.outcome = engine.Resolution()
        self.resolve_us = 0
        self._options = SearchOptions(load, config, scan_paths, scan, ask_servers, progress, over)
        self._watchers = Watchers(root, over)
        self._mount_fds: list[MountFds] = []
        root.adopt(config, scan_paths)
        self._main = RootSearch(root, self._options, self._watchers, self._mount_fds)
        self.proved = self._main.proved
        """In the main root. It has a path as soon as that is proved, before its batch ends."""

        def search_nested(nested: Root) -> RootSearch:
            adopt_from(nested, root)
            return RootSearch(
                nested, self._options, self._watchers, self._mount_fds, mntns=nested.mntns
            )

        self._nested = NestedRoots(root, search_nested, over)
        self._retry = RenameRetry(self.outcome, self._nested.found_in)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._mount_fds:
            one.close()
        self._nested.close()

    @property
    def rows(self) -> dict[InodeKey, list[Mapping]]:
        """Every stored row that was read, in its old state."""
        rows: dict[InodeKey, list[Mapping]] = {}
        for search in self._searches():
            for key, found in search.stored.rows.items():
                rows.setdefault(key, []).extend(found)
        return rows

    @property
    def scanned(self) -> int:
        """The number of directory entries compared."""
        return sum(search.scanned for search in self._searches())

    @property
    def nested_roots(self) -> list[Root]:
        """The opened roots of other mount namespaces, without chroots in them."""
        roots = (search.root for search in self._nested.searches)
        return [root for root in roots if root.is_namespaces_own]

    def add_owners(self, owners: MappingABC[tuple[int, int], Iterable[int]]) -> None:
        """The other tasks with the descriptors that are resolved next, by (pid, fd)."""
        self._watchers.add_owners(owners)

    def add_holders(self, pids: Iterable[int]) -> None:
        """Other tasks that may have watched files open: all of the tree."""
        self._watchers.holders.update(dict.fromkeys(pids))

    def hold_open(self) -> None:
        """Open the directories for `at_once`: until the end, no other directory is opened."""
        everything = (*self.outcome.resolved, *self.outcome.unresolved)
        kdevs = {self._main: {identity.kdev for identity in everything}}
        for identity, search in self._nested.found_in.items():
            kdevs.setdefault(search, set()).add(identity.kdev)
        left = _MOST_HELD_OPEN
        for search in self._searches():
            left -= search.hold_open(kdevs.get(search, ()), left)

    def resolve(self, files: Iterable[WatchFile], *, at_once: bool = False) -> None:
        """Resolve the watched inodes that are neither resolved nor given up yet.

        `at_once`, for the freeze: it walks no directory, does not wait for a server that may be
        frozen, and uses only directories that are already open. The next call searches for the
        inodes without an answer. It also searches for inodes that had a path just before: they are
        given up only after the freeze.
        """
        start = time.monotonic_ns()
        if at_once:
            self.freeze_follows = False
        else:
            self._retry.catch_up()
        known = self.outcome.resolved.keys() | self.outcome.unresolved.keys()
        watchers = self._watchers.of(files, known)
        if watchers:
            self.outcome.update(self._ask(self._main, watchers, at_once=at_once))
            if not at_once:
                self._nested.resolve(watchers, self._watchers.holders, self.outcome, self._ask)
        if at_once:
            self._retry.look_again(self._searches())
        self.resolve_us += (time.monotonic_ns() - start) // 1000

    def prove_again(self, identities: Iterable[Identity], *, at_once: bool = False) -> None:
        """Prove answers again, and resolve those that are wrong now.

        Not on filesystems that may block. `at_once` as in `resolve`.
        """
        start = time.monotonic_ns()
        lost: dict[RootSearch, dict[Identity, list[Disproved]]] = {}
        for identity in identities:
            nested = self.outcome.resolved[identity].mntns
            search = self._nested.found_in[identity] if nested else self._main
            if not search.root.may_block(identity.kdev):
                failures = self._prove_paths(search, identity)
                if identity not in self.outcome.resolved:
                    lost.setdefault(search, {})[identity] = failures
        for search, batch in lost.items():
            self.outcome.update(self._ask(search, batch, at_once=at_once))
            if not at_once:
                for identity, failures in batch.items():
                    known = search.failed.get(identity, [])
                    search.failed[identity] = last_of([*known, *failures])
        self.resolve_us += (time.monotonic_ns() - start) // 1000

    def disprove(self, identity: Identity, path: bytes) -> StaleReason | None:
        """Why a path in the main root is not that inode; None if it is, or a lookup may block."""
        if self._main.root.may_block(identity.kdev):
            return None
        if self._options.over():
            return StaleReason.UNREACHABLE  # not looked up: it may still be right
        return disproof(self._main.root, identity, path)

    def _prove_paths(self, search: RootSearch, identity: Identity) -> list[Disproved]:
        # Keeps the proved paths, or removes the answer; returns the failed paths.
        answer = self.outcome.resolved[identity]
        paths = (answer.path, *answer.other_paths)
        held, failures = [], []
        for path in paths:
            reason = disproof_of_watch(search.root, identity, path)
            if reason is None:
                held.append(path)
            else:
                failures.append(Disproved(identity, path, answer.source, reason, answer.mntns))
        self.outcome.disproved += failures
        if not held:
            del self.outcome.resolved[identity]
        elif failures:
            self.outcome.resolved[identity] = answer._replace(
                path=held[0], other_paths=tuple(held[1:])
            )
        return failures

    def _searches(self) -> tuple[RootSearch, ...]:
        return (self._main, *self._nested.searches)

    def _ask(
        self, search: RootSearch, identities: Iterable[Identity], *, at_once: bool = False
    ) -> Resolution:
        if at_once:
            return search.resolve_at_once(identities)
        follows = self.freeze_follows
        if self.paused is not None:
            return search.resolve_paused(identities, self.paused, freeze_follows=follows)
        return search.resolve(identities, freeze_follows=follows)
