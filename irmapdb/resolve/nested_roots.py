"""Opens the roots of nested mount namespaces, and of chroots in them.

If the main root does not show an inode, and a task in a nested mount namespace watches it, the
search continues in the root of that namespace. If all tasks of that namespace are in chroots, it
continues in the watching task's own root.
"""

from __future__ import annotations

import contextlib

from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import mountinfo
from irmapdb.kernel.proc.namespaces import open_namespace
from irmapdb.kernel.root import open_root
from irmapdb.model import Tried
from irmapdb.resolve.root_search import NO_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import TypeAlias

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity
    from irmapdb.resolve.engine import Resolution
    from irmapdb.resolve.root_search import RootSearch

    _Key: TypeAlias = tuple[int, ...]
    """The key of a nested root: its mount namespace; for a chroot also its directory."""

__all__ = ["NestedRoots"]


class NestedRoots:
    """The searches in nested roots. Opens each root when it is first needed."""

    def __init__(
        self, main: Root, open_search: Callable[[Root], RootSearch], over: Callable[[], bool]
    ) -> None:
        self._main = main
        self._open_search = open_search
        self._over = over
        self._opened = contextlib.ExitStack()
        self._searches: dict[_Key, RootSearch] = {}
        self._chroots_only: set[int] = set()
        self.found_in: dict[Identity, RootSearch] = {}
        """The nested root of each inode that was not found in the main root."""

    def close(self) -> None:
        """Close the roots."""
        self._opened.close()

    @property
    def searches(self) -> Collection[RootSearch]:
        """One for each root that was opened."""
        return self._searches.values()

    def resolve(
        self,
        watchers: Mapping[Identity, tuple[int, ...]],
        holders: Iterable[int],
        outcome: Resolution,
        ask: Callable[[RootSearch, list[Identity]], Resolution],
    ) -> None:
        """Look for the unresolved inodes of `outcome` in the nested roots; update `outcome`.

        `watchers` are the tasks that watch an inode, `holders` those that may have mounted it.
        """
        for search, batch in self._by_root(watchers, holders, outcome).items():
            wanted = [identity for identity in batch if identity in outcome.unresolved]
            found = ask(search, wanted)
            for identity in [one for one, failure in found.unresolved.items() if failure.cut]:
                _cut(outcome, identity)
            # Otherwise the reason from the main root is the better one.
            found.unresolved = {i: why for i, why in found.unresolved.items() if why.deleted}
            self.found_in.update(dict.fromkeys(found.resolved, search))
            outcome.update(found)

    def _by_root(
        self,
        watchers: Mapping[Identity, tuple[int, ...]],
        holders: Iterable[int],
        outcome: Resolution,
    ) -> dict[RootSearch, list[Identity]]:
        by_pid: dict[int, RootSearch | None] = {}
        by_root: dict[RootSearch, list[Identity]] = {}
        for identity, watching in watchers.items():
            if identity not in outcome.unresolved:
                continue  # also deleted ones: a nested root may have them mounted
            pids: Collection[int] = watching
            if not self._main.mounts.of_device(identity.kdev):
                # Any task may have mounted it; the watching one got there through /proc/PID/fd.
                pids = dict.fromkeys((*watching, *holders))
            for pid in pids:
                if pid not in by_pid and not self._over():
                    by_pid[pid] = self._search_of(pid)
            for search in dict.fromkeys(by_pid[pid] for pid in pids if pid in by_pid):
                if search is not None:
                    by_root.setdefault(search, []).append(identity)
            if any(pid not in by_pid for pid in pids):
                _cut(outcome, identity)
        return by_root

    def _search_of(self, pid: int) -> RootSearch | None:
        # None for a task in the main mount namespace, and for one that cannot be read.
        try:
            mntns = mountinfo.mount_namespace(pid)
            if mntns == self._main.mntns:
                return None
            return self._searches.get((mntns,)) or self._open(pid)
        except (OSError, TaskError):
            return None

    def _open(self, pid: int) -> RootSearch:
        # A task in a chroot does not show the namespace's own root; another task may. We prefer
        # that one: otherwise a path's meaning would depend on which task comes first. If all tasks
        # are in chroots, each task's own root is searched.
        with contextlib.ExitStack() as opened:
            root = opened.enter_context(open_root(pid))
            if not root.is_namespaces_own and root.mntns not in self._chroots_only:
                whole = open_namespace(root.mntns)
                if whole is None:
                    self._chroots_only.add(root.mntns)
                else:
                    opened.close()
                    root = opened.enter_context(whole)
            key: _Key = (root.mntns,)
            if not root.is_namespaces_own:
                directory = syscalls.statx(root.fd)
                key = (root.mntns, directory.mnt_id or 0, directory.st_kdev, directory.ino)
            if key not in self._searches:
                self._searches[key] = self._open_search(root)
                self._opened.push(opened.pop_all())
            return self._searches[key]


def _cut(outcome: Resolution, identity: Identity) -> None:
    failure = outcome.unresolved[identity]
    if not failure.cut:
        tried = (*failure.tried, Tried("engine", NO_TIME))
        outcome.unresolved[identity] = failure._replace(tried=tried, cut=True)
