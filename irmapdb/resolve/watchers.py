"""Lists the tasks of a search: those with watches, and others with the same files open."""

from __future__ import annotations

from irmapdb.kernel.proc import open_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, WatchFile

__all__ = ["Watchers"]


class Watchers:
    """The tasks that watch each inode, and the names that the tasks have open."""

    def __init__(self, root: Root, over: Callable[[], bool]) -> None:
        self._root = root
        self._over = over
        self.pids: dict[int, None] = {}
        """Tasks with watches, in the order of the survey."""
        self.holders: dict[int, None] = {}
        """Tasks whose open files may be the watched inodes."""
        self._owners: dict[tuple[int, int], tuple[int, ...]] = {}
        self._open_names: set[bytes | None] | None = None

    def add_owners(self, owners: Mapping[tuple[int, int], Iterable[int]]) -> None:
        """Tasks that share a watching descriptor, by (pid, fd) of the one that was read."""
        for key, pids in owners.items():
            known = self._owners.get(key, ())
            self._owners[key] = (*known, *(pid for pid in pids if pid not in known))

    def of(
        self, files: Iterable[WatchFile], known: Collection[Identity]
    ) -> dict[Identity, tuple[int, ...]]:
        """The tasks that watch each inode of these files that is not `known`."""
        watchers: dict[Identity, tuple[int, ...]] = {}
        for file in files:
            self.pids[file.pid] = self.holders[file.pid] = None
            # A child that inherited the descriptor may see the inode in a root of its own.
            mine = (file.pid, *self._owners.get((file.pid, file.fd), ()))
            for watch in file.watches:
                if watch.identity not in known:
                    others = watchers.setdefault(watch.identity, mine)
                    if others is not mine:
                        watchers[watch.identity] = tuple(dict.fromkeys(others + mine))
        return watchers

    def prefer(self, paths: Sequence[bytes]) -> Sequence[bytes]:
        """Several names of one inode: a name that a task has open first, then the shortest."""
        if self._open_names is None:
            self._open_names = set()
            for pid in self.pids:
                if self._over():
                    break
                for file in open_files.open_files(pid):
                    self._open_names.add(self._root.strip(file.path))
        names = self._open_names
        return sorted(paths, key=lambda path: (path not in names, len(path), path))
