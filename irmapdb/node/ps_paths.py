"""Finds the paths that the listed processes watch, without a database."""

from __future__ import annotations

import contextlib
import os
import stat

from irmapdb.kernel.proc.holders import deleted_holders
from irmapdb.kernel.root import open_root
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import MarkKind
from irmapdb.node.ps_rows import WatchedPath
from irmapdb.resolve.search import Search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import Self

    from irmapdb.config import Config
    from irmapdb.kernel.proc.survey import Survey
    from irmapdb.kernel.root import Root
    from irmapdb.model import Mark, Watch

__all__ = ["WatchedPaths"]


class WatchedPaths:
    """Finds paths in the root of one task, and in the roots of the others."""

    def __init__(
        self,
        pid: int,
        comms: Mapping[int, bytes],
        *,
        config: Config,
        scan_paths: Collection[bytes] = (),
        search: bool = False,
        named: bool = False,
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
    ) -> None:
        """`pid` is the task with the main root; `comms` are the tasks that may have files open.

        `search`: whether to scan for inodes without a known path. `named`: whether the answers name
        the mount namespace of the main root; else they have 0. TaskError or OSError if the root may
        not be read.
        """
        self._comms = comms
        self._mntns = 0
        with contextlib.ExitStack() as opened:
            self._root = opened.enter_context(open_root(pid))
            self._search = opened.enter_context(
                Search(
                    self._root,
                    config=config,
                    scan_paths=scan_paths,
                    scan=search,
                    progress=progress,
                )
            )
            self._opened = opened.pop_all()
        if named:
            self._mntns = self._root.mntns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def directory_of(self, row: WatchedPath, depth: int) -> bytes | None:
        """The first `depth` directories of a path; None if there is no path.

        A watched directory counts as one, a watched file does not.
        """
        if row.path is None:
            return None
        parts = row.path.split(b"/", depth + 1)
        if len(parts) > depth + 1:
            return b"/".join(parts[: depth + 1])
        if self._is_directory(row, row.path):
            return row.path
        return row.path[: row.path.rfind(b"/")] or b"/"

    def _is_directory(self, row: WatchedPath, path: bytes) -> bool:
        # False also if a lookup may wait for a server, or if only chroots show the namespace.
        if row.identity is None:
            return True  # a mount or filesystem
        root = self._root
        if row.mntns not in {0, root.mntns}:
            nested = (one for one in self._search.nested_roots if one.mntns == row.mntns)
            found = next(nested, None)
            if found is None:
                return False
            root = found
        if root.may_block(row.identity.kdev):
            return False
        try:
            with Descriptor(root.open(path)) as fd:
                return stat.S_ISDIR(os.fstat(fd).st_mode)
        except OSError:
            return False

    def find(self, survey: Survey, *, holders: bool) -> Iterator[WatchedPath]:
        """Each watch and mark of the tasks in `comms`, in the order of the survey.

        `holders`: whether the reason for a deleted file names the task that has it open.
        """
        comms = dict(self._comms)
        comms.update((tid, comms[pid]) for tid, pid in survey.threads.items() if pid in comms)
        files = [raw.parse() for raw in survey.files if raw.pid in comms]
        search = self._search
        search.add_holders(comms)
        search.add_owners(survey.owners())
        search.resolve(files)
        failures = search.outcome.unresolved
        deleted = [one for one, failure in failures.items() if holders and failure.deleted]
        held = deleted_holders(self._root, list(comms), deleted)
        for file in files:
            comm = comms[file.pid]
            for watch in file.watches:
                holder = held.get(watch.identity)
                yield self._of_watch(watch, comm, "" if holder is None else f": {holder}")
            for mark in file.marks:
                yield _of_mark(mark, comm, self._root, self._mntns)

    def _of_watch(self, watch: Watch, comm: bytes, held: str) -> WatchedPath:
        answer = self._search.outcome.resolved.get(watch.identity)
        if answer is not None:
            mntns = answer.mntns or self._mntns
            return WatchedPath(watch, comm, answer.path, None, mntns)
        failure = self._search.outcome.unresolved[watch.identity]
        return WatchedPath(watch, comm, None, f"{failure.why}{held}", deleted=failure.deleted)


def _of_mark(mark: Mark, comm: bytes, root: Root, mntns: int) -> WatchedPath:
    if mark.kind is MarkKind.FILESYSTEM:
        mounts = root.mounts.of_device(mark.target)
        mount = mounts[0] if mounts else None
        missing = "its filesystem is not mounted in this root"
    elif mark.kind is MarkKind.NAMESPACE:
        return WatchedPath(mark, comm, None, f"it is on mount namespace {mark.target}")
    else:
        mount = root.mounts.by_id.get(mark.target)
        missing = "its mount is in another mount namespace, or in none any more"
    if mount is None:
        return WatchedPath(mark, comm, None, missing)
    return WatchedPath(mark, comm, mount.mountpoint, None, mntns)
