"""What was proved while the tasks ran, confirmed when they stand still.

A path that was proved stays proved until some part of it is renamed, removed or mounted over.
`kernel.rename_monitor` reports the first two, the mount table the third. Only paths that these
concern, and paths that neither can see, are proved again.
"""

from __future__ import annotations

import operator
import os
from collections import Counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from irmapdb.kernel.rename_monitor import RenameMonitor
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Mount, Resolved
    from irmapdb.resolve.engine import Resolution

__all__ = ["Confirmation"]

# Why an answer has to be proved again, as the database tells it.
_OVERFLOW = "queue overflow"
_UNWITNESSED = "not witnessed"
_ELSEWHERE = "other namespace"
_WATCHED = "new watch"
_MOUNTED = "mount changed"
_RENAMED = "renamed"


class Confirmation:
    """Knows which answers may have become wrong since they were proved.

    The order is: `cover` the devices, prove, `index` the answers, and ask for `suspects` as
    often as needed; each call speaks of the time since the one before.
    """

    def __init__(self, root: Root, monitor: RenameMonitor) -> None:
        self._root = root
        self._monitor = monitor
        self._mounts = dict(root.by_mountpoint)
        self._generation = root.generation
        self._parts: set[bytes] = set()
        self._indexed: tuple[Resolved, ...] = ()
        self.causes: Counter[str] = Counter()
        """Of the last suspects: how many there were for which cause."""

    def cover(self, kdevs: Iterable[int]) -> None:
        """Have the kernel monitor these devices, before the first proof on them."""
        for kdev in set(kdevs):
            mounts = self._root.mounts_of(kdev)
            # What other hosts and FUSE servers rename, this kernel does not see.
            if mounts and not self._root.may_block(kdev):
                self._watch(kdev, mounts[0].mountpoint)

    def _watch(self, kdev: int, mountpoint: bytes) -> None:
        try:
            fd = self._root.open(mountpoint, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        try:
            self._monitor.watch(kdev, fd)
        finally:
            os.close(fd)

    def index(self, outcome: Resolution) -> None:
        """Take in the answers, while the tasks still run: asking is cheap afterwards."""
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

        `rewatched`: whose watch may have been added since the proof. One that was there all the
        time has kept its filesystem from going; of the others a mount that looks the same may
        have come back with other files.
        """
        self.causes = Counter()
        self.index(outcome)  # what was proved again may have another path now
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
        after = self._mounts = dict(self._root.by_mountpoint)
        changed = [
            point
            for point in before.keys() | after.keys()
            if _what(before, point) != _what(after, point)
        ]
        if self._generation != self._root.generation:
            self._generation = self._root.generation
            # The monitor of a filesystem goes with it, and its number to the next one.
            kdevs = set(self._monitor.kdevs)
            self._monitor.kdevs.clear()
            self.cover(kdevs)
        return changed


def _has_part(answer: Resolved, parts: set[bytes] | frozenset[bytes]) -> bool:
    paths = (answer.path, *answer.other_paths)
    return any(not parts.isdisjoint(path.split(b"/")) for path in paths)


def _what(mounts: Mapping[bytes, Mount], point: bytes) -> tuple[int, int, bytes] | None:
    # The number alone does not do: the kernel gives the lowest free one to the next mount.
    mount = mounts.get(point)
    return None if mount is None else (mount.mnt_id, mount.kdev, mount.root)


def _last_part(path: bytes) -> bytes:
    # Of the root itself b"", which every path has a part of.
    return path.rstrip(b"/").rpartition(b"/")[2]
