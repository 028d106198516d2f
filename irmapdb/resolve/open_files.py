"""Finds paths by the files that the tasks have open or mapped."""

from __future__ import annotations

import os

from irmapdb.kernel import proof
from irmapdb.kernel.proc import open_files
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import Source
from irmapdb.resolve.engine import Candidate, Deleted, Note
from irmapdb.resolve.mount_points import at_mount_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity
    from irmapdb.resolve.engine import Answer, Wanted

__all__ = ["OpenFiles"]


class OpenFiles:
    """The tasks' own open files, working directories, roots and executables, then their maps."""

    source = Source.OPEN_FILES

    def __init__(
        self,
        root: Root,
        pids: Collection[int],
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._root = root
        self._pids = pids
        self._over = over

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        kdevs = {identity.kdev for identity in wanted}
        by_ino: dict[int, list[Identity]] = {}
        deleted: set[Identity] = set()
        for identity in wanted:
            by_ino.setdefault(identity.ino, []).append(identity)
        # A task has more maps than descriptors: they are read only for the remaining inodes.
        for held_by in (open_files.open_files, open_files.mapped_files):
            for pid in self._pids if wanted else ():
                for file in held_by(pid):
                    if self._over():
                        return
                    path = self._root.strip(file.path)
                    if path:
                        yield from self._look(file.link, path, by_ino, kdevs, deleted)
        for identity in list(wanted):
            yield Note(identity, "no task has it open")

    def _look(
        self,
        link: str,
        path: bytes,
        by_ino: dict[int, list[Identity]],
        kdevs: set[int],
        deleted: set[Identity],
    ) -> Iterator[Answer]:
        try:
            with Descriptor(os.open(link, os.O_PATH | os.O_CLOEXEC)) as fd:
                # By its mount, and not by its name: a stat on a mount that is not wanted could wait
                # for long.
                mount = self._root.mounts.by_id.get(proof.mount_id(fd))
                if mount is None or mount.kdev not in kdevs:
                    return
                status = os.fstat(fd)
                candidates = by_ino.get(status.st_ino)
                if not candidates:
                    return
                found = proof.identify_fd(self._root, fd)
        except OSError:
            return
        for identity in candidates:
            if not found.matches(identity):
                continue
            if status.st_nlink:
                yield Candidate(identity, path)
            elif identity not in deleted:  # it may be open a thousand times
                deleted.add(identity)
                yield from at_mount_points(self._root, [identity])
                yield Deleted(identity)
