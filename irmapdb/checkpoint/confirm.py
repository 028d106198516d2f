"""Decides in the freeze which paths must be proved again.

A proved path stays right until a part of it is renamed, removed or mounted over.
`kernel.rename_monitor` reports the first two, the mount table the third. Only the reported paths,
and paths that neither of them can observe, are proved again.
"""

from __future__ import annotations

import operator
import os
from collections import Counter

from irmapdb.kernel.syscalls import Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from irmapdb.kernel.rename_monitor import RenameMonitor
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Mount, Resolved
    from irmapdb.resolve.engine import Resolution

__all__ = ["Confirmation"]

# The reasons for a second proof, as in the database.
_OVERFLOW = "queue overflow"
_UNWITNESSED = "not witnessed"
_ELSEWHERE = "other namespace"
_WATCHED = "new watch"
_MOUNTED = "mount changed"
_RENAMED = "renamed"


class Confirmation:
    """Finds the answers that may have become wrong since their proof.

    The order is: `cover` the devices, prove, `index` the answers, and call `suspects` as often as
    needed. Each call reports the time since the previous call.
    """

    def __init__(self, root: Root, monitor: RenameMonitor) -> None:
        self._root = root
        self._monitor = monitor
        self._mounts = dict(root.mounts.by_mountpoint)
        self._generation = root.mountinfo.generation
        self._parts: set[bytes] = set()
        self._indexed: tuple[Resolved, ...] = ()
        self.causes: Counter[str] = Counter()
        """The number of the last suspects for each cause."""

    def cover(self, kdevs: Iterable[int]) -> None:
        """Make the kernel monitor these devices, before the first proof on them."""
        for kdev in set(kdevs):
            mounts = self._root.mounts.of_device(kdev)
            # This kernel does not see renames by other hosts and by FUSE servers.
            if mounts and not self._root.may_block(kdev):
                self._watch(kdev, mounts[0].mountpoint)

    def _watch(self, kdev: int, mountpoint: bytes) -> None:
        try:
            fd = self._root.open(mountpoint, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        with Descriptor(fd):
            self._monitor.watch(kdev, fd)

    def index(self, outcome: Resolution) -> None:
        """Index the answers while the tasks still run, so that `suspects` is fast."""
        answers = tuple(outcome.resolved.values())
        before = self._indexed
        if len(answers) == len(before) and all(map(operator.is_, answers, before)):
            return
        known = set(map(id, before))
        for answer in answers:
            if id(answer) not in known:
                for path in (answer.path, *answer.other_paths):
                    self._parts.update(path.split(b"/"))
        self._indexed = answers

    def suspects(self, outcome: Resolution, rewatched: Iterable[Identity] = ()) -> list[Identity]:
        """The answers that have to be proved again.

        `rewatched`: inodes whose watch may have been added since the proof. A watch that existed
        all the time has kept its filesystem mounted. For the others, a mount that looks the same
        may be new, with other files.
        """
        self.causes = Counter()
        self.index(outcome)  # a second proof may have given another path
        names = self._monitor.names()
        generation = self._generation
        mountpoints = self._changed_mountpoints()
        if self._monitor.blind:
            self._monitor.blind = False
            self.causes[_OVERFLOW] = len(outcome.resolved)
            return list(outcome.resolved)
        renewed = generation != self._generation
        kdevs = {identity.kdev for identity in outcome.resolved}
        unseen = {kdev for kdev in kdevs - self._monitor.kdevs if not self._root.may_block(kdev)}
        nested = any(answer.mntns for answer in outcome.resolved.values())
        mounted = {_last_part(point) for point in mountpoints}
        touched = (names | mounted) & self._parts
        doubtful = set(rewatched) if renewed else set()
        if not touched and not unseen and not nested and not doubtful:
            return []
        suspects = [
            identity
            for identity, answer in outcome.resolved.items()
            if identity.kdev in unseen
            or identity in doubtful
            or answer.mntns  # another namespace's mounts are not compared
            or _has_part(answer, touched)
        ]
        for identity in suspects:
            answer = outcome.resolved[identity]
            if identity.kdev in unseen:
                cause = _UNWITNESSED
            elif answer.mntns:
                cause = _ELSEWHERE
            elif identity in doubtful:
                cause = _WATCHED
            else:
                cause = _MOUNTED if _has_part(answer, mounted) else _RENAMED
            self.causes[cause] += 1
        return suspects

    def _changed_mountpoints(self) -> list[bytes]:
        before = self._mounts
        self._root.refresh()
        after = self._mounts = dict(self._root.mounts.by_mountpoint)
        changed = [
            point
            for point in before.keys() | after.keys()
            if _what(before, point) != _what(after, point)
        ]
        if self._generation != self._root.mountinfo.generation:
            self._generation = self._root.mountinfo.generation
            # The monitor of a filesystem ends with it, and the next filesystem may get its number.
            kdevs = set(self._monitor.kdevs)
            self._monitor.kdevs.clear()
            self.cover(kdevs)
        return changed


def _has_part(answer: Resolved, parts: set[bytes] | frozenset[bytes]) -> bool:
    paths = (answer.path, *answer.other_paths)
    return any(not parts.isdisjoint(path.split(b"/")) for path in paths)


def _what(mounts: Mapping[bytes, Mount], point: bytes) -> tuple[int, int, bytes] | None:
    # The number alone is not enough: the kernel gives the lowest free number to the next mount.
    mount = mounts.get(point)
    return None if mount is None else (mount.mnt_id, mount.kdev, mount.root)


def _last_part(path: bytes) -> bytes:
    # Of the root itself b"", which every path has a part of.
    return path.rstrip(b"/").rpartition(b"/")[2]
