"""One tree's identities on the way to their paths, in every root that they can be seen from.

All are looked for in the root of the root task's mount namespace, the only one that CRIU's cache
speaks of. What cannot be seen there and is watched from a nested mount namespace is looked for
in that one.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

from irmapdb import engine
from irmapdb.engine import Disproved
from irmapdb.errors import TaskError
from irmapdb.kernel import procfs
from irmapdb.kernel.identity import disproof
from irmapdb.kernel.root import Root, open_root
from irmapdb.resolvers import Handles, OpenFiles, Scan, StoredRows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from irmapdb.config import Config
    from irmapdb.engine import Outcome, Resolver
    from irmapdb.model import Identity, InodeKey, Mapping, StaleReason, WatchFile

__all__ = ["Load", "Search"]


class Load(Protocol):
    """The store's rows for a batch of keys, of one mount namespace."""

    def __call__(
        self, keys: Collection[InodeKey], mntns: int = 0
    ) -> dict[InodeKey, list[Mapping]]: ...


class _Place:
    """A root and who is asked about it."""

    def __init__(self, root: Root, mntns: int, resolvers: Sequence[Resolver]) -> None:
        self.root = root
        self.mntns = mntns
        self.resolvers = resolvers


class Search:
    """Resolves batches and proves answers again. A context manager: holds the roots open."""

    def __init__(
        self,
        root: Root,
        load: Load,
        *,
        config: Config,
        scan_paths: Iterable[bytes] = (),
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
        over: Callable[[], bool] = lambda: False,
        proc: str = "/proc",
    ) -> None:
        self._load = load
        self._config = config
        self._scan_paths = tuple(scan_paths)
        self._progress = progress
        self._over = over
        self._proc = proc
        self._pids: list[int] = []
        self._open_names: set[bytes | None] | None = None
        self._stored: list[StoredRows] = []
        self._scans: list[Scan] = []
        self._stack = contextlib.ExitStack()
        self._main = self._place(root, 0)
        self._nested: dict[int, _Place] = {}
        self.outcome = engine.Outcome()
        self.resolve_us = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def rows(self) -> dict[InodeKey, list[Mapping]]:
        """Every stored row that was looked at, as it was before."""
        rows: dict[InodeKey, list[Mapping]] = {}
        for stored in self._stored:
            for key, found in stored.rows.items():
                rows.setdefault(key, []).extend(found)
        return rows

    @property
    def scanned(self) -> int:
        """Directory entries looked at."""
        return sum(scan.scanned for scan in self._scans)

    def resolve(self, files: Iterable[WatchFile]) -> None:
        """Resolve what the files watch and is neither resolved nor given up yet."""
        start = time.monotonic_ns()
        watchers: dict[Identity, set[int]] = {}
        known = self.outcome.resolved.keys() | self.outcome.unresolved.keys()
        for file in files:
            if file.pid not in self._pids:
                self._pids.append(file.pid)
            for watch in file.watches:
                if watch.identity not in known:
                    watchers.setdefault(watch.identity, set()).add(watch.pid)
        if watchers:
            self.outcome.update(self._run(self._main, watchers))
            self._resolve_nested(watchers)
        self.resolve_us += (time.monotonic_ns() - start) // 1000

    def prove_again(self, identities: Iterable[Identity]) -> None:
        """Prove answers again; those that no longer hold are resolved anew."""
        start = time.monotonic_ns()
        lost: dict[int, list[Identity]] = {}
        for identity in identities:
            answer = self.outcome.resolved[identity]
            place = self._nested[answer.mntns] if answer.mntns else self._main
            paths = (answer.path, *answer.other_paths)
            held = []
            for path in paths:
                reason = disproof(place.root, identity, path)
                if reason is None:
                    held.append(path)
                else:
                    failed = Disproved(identity, path, answer.source, reason, answer.mntns)
                    self.outcome.disproved.append(failed)
            if not held:
                lost.setdefault(answer.mntns, []).append(identity)
            elif len(held) < len(paths):
                self.outcome.resolved[identity] = replace(
                    answer, path=held[0], other_paths=tuple(held[1:])
                )
        for mntns, batch in lost.items():
            place = self._nested[mntns] if mntns else self._main
            self.outcome.update(self._run(place, batch))
        self.resolve_us += (time.monotonic_ns() - start) // 1000

    def disprove(self, identity: Identity, path: bytes) -> StaleReason | None:
        """Why a path in the main root is not that inode; None if it is."""
        return disproof(self._main.root, identity, path)

    def _place(self, root: Root, mntns: int) -> _Place:
        stored = StoredRows(lambda keys: self._load(keys, mntns))
        scan = Scan(
            root,
            self._config,
            paths=() if mntns else self._scan_paths,
            pids=self._pids,
            progress=self._progress,
            over=self._over,
        )
        self._stored.append(stored)
        self._scans.append(scan)
        resolvers = (stored, Handles(root), OpenFiles(root, self._pids, self._proc), scan)
        return _Place(root, mntns, resolvers)

    def _run(self, place: _Place, identities: Iterable[Identity]) -> Outcome:
        outcome = engine.resolve(
            identities,
            place.resolvers,
            lambda identity, path: disproof(place.root, identity, path),
            prefer=self._prefer,
            over=self._over,
        )
        if place.mntns:
            for identity, answer in outcome.resolved.items():
                outcome.resolved[identity] = replace(answer, mntns=place.mntns)
            outcome.disproved = [one._replace(mntns=place.mntns) for one in outcome.disproved]
        return outcome

    def _resolve_nested(self, watchers: dict[Identity, set[int]]) -> None:
        by_place: dict[int, list[Identity]] = {}
        for identity, pids in watchers.items():
            failure = self.outcome.unresolved.get(identity)
            if failure is None or failure.deleted:
                continue
            for mntns in {self._nested_namespace(pid) for pid in pids}:
                if mntns:
                    by_place.setdefault(mntns, []).append(identity)
        for mntns, batch in by_place.items():
            found = self._run(self._nested[mntns], batch)
            found.unresolved.clear()  # what the main root said is the better reason
            self.outcome.update(found)

    def _nested_namespace(self, pid: int) -> int:
        # 0: the main one, or one that cannot be looked at.
        try:
            mntns = procfs.mount_namespace(pid, self._proc)
            if mntns == self._main.root.mntns:
                return 0
            if mntns not in self._nested:
                root = self._stack.enter_context(open_root(pid, self._proc))
                self._nested[mntns] = self._place(root, mntns)
        except (OSError, TaskError):
            return 0
        return mntns

    def _prefer(self, paths: Sequence[bytes]) -> Sequence[bytes]:
        # The name that a task has open, then the shortest.
        if self._open_names is None:
            self._open_names = {
                self._main.root.strip(file.path)
                for pid in self._pids
                for file in procfs.open_files(pid, self._proc)
            }
        names = self._open_names
        return sorted(paths, key=lambda path: (path not in names, len(path), path))
