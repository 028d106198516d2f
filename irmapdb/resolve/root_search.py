"""Searches in one root: has the order of its sources, and chooses those that may be asked.

A filesystem whose lookups may block (network, FUSE) is asked in a child process that can be killed.
"""

from __future__ import annotations

import itertools
import time

from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.proof import disproof_of_watch
from irmapdb.log import Log
from irmapdb.model import Source, StaleReason, Tried, Unresolved, printable
from irmapdb.record import Record
from irmapdb.resolve import engine
from irmapdb.resolve.mount_fds import MountFds
from irmapdb.resolve.rename_retry import once_more, were_moving
from irmapdb.resolve.sources import Late, lookups
from irmapdb.resolve.stored import StoredRows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from irmapdb.config import Config
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity
    from irmapdb.resolve.engine import Disproved, Resolution, Resolver
    from irmapdb.resolve.scan import Scan
    from irmapdb.resolve.stored import Load
    from irmapdb.resolve.watchers import Watchers

__all__ = ["NO_TIME", "Paused", "RootSearch", "SearchOptions"]

_log = Log(__name__)

_PATIENCE_S = 5.0
"""Time limit for all answers of one filesystem whose lookups may block."""

_QUESTIONS_MORE = 2
"""The number of further searches for an inode that was renamed between answer and proof, while the
tasks run."""

_BY_HANDLE = (Source.HANDLE, Source.OVERLAY)

NO_TIME = "the time budget was over"
_PAUSE_OVER = "the time for a pause was over"
_LISTENER = "a paused task may be asked before a directory is opened, so none was"


class Paused:
    """The tasks are paused already: a lookup that waits for one of them never returns."""

    def __init__(self, for_s: float, may_hold_us: Callable[[], bool]) -> None:
        """`for_s`: the time for opening and walking directories, from the first one on.

        `may_hold_us` returns whether the kernel may ask one of the tasks before an open.
        """
        self._for_s = for_s
        self.may_hold_us = may_hold_us
        self._until_s: float | None = None

    def left_s(self) -> float:
        """The time that is left for directories. The first call starts it."""
        if self._until_s is None:
            self._until_s = time.monotonic() + self._for_s
        return self._until_s - time.monotonic()


class SearchOptions(Record):
    """The options of a search, the same for all of its roots."""

    load: Load
    config: Config
    scan_paths: tuple[bytes, ...]
    """Paths in the main root."""
    scan: bool
    """Whether directories are walked."""
    ask_servers: Callable[[], bool]
    """Whether a filesystem whose lookups may block is asked now."""
    progress: Callable[[int, bytes], None]
    over: Callable[[], bool]
    """Whether the time budget is over."""


class RootSearch:
    """The sources of paths in one root, and their answers."""

    def __init__(
        self,
        root: Root,
        options: SearchOptions,
        watchers: Watchers,
        mount_fds: list[MountFds],
        *,
        mntns: int = 0,
    ) -> None:
        """`root` has its policy already (`Root.adopt`).

        `mntns`: the mount namespace of a nested root; 0 for the main one.

        `mount_fds` are those of all roots of the search. This root's are appended.
        """
        self.root = root
        self._mntns = mntns
        self._options = options
        self._watchers = watchers
        self._all_mount_fds = mount_fds
        self.mount_fds = MountFds(root)
        mount_fds.append(self.mount_fds)
        self.stored = StoredRows(lambda keys: options.load(keys, mntns))
        self._lookups = lookups(root, self.mount_fds, watchers.holders, options.over)
        self._quick: tuple[Resolver, ...] = (self.stored, *self._lookups)
        self.by_handle = [one for one in self._lookups if one.source in _BY_HANDLE]
        self._scans = [Late(Source.SCAN, self._make_scan)] if options.scan else []
        self._scanner: Scan | None = None
        self._scanned_in_child = 0
        self.failed: dict[Identity, list[Disproved]] = {}
        """The failed paths of each inode that was being renamed during the search."""
        self.proved: dict[Identity, bytes] = {}
        """It has a path as soon as that is proved, before its batch ends."""

    @property
    def is_nested(self) -> bool:
        """Whether it is the root of another mount namespace than the main one."""
        return self._mntns != 0

    @property
    def scanned(self) -> int:
        """The number of directory entries compared."""
        here = self._scanner.scanned if self._scanner is not None else 0
        return here + self._scanned_in_child

    def hold_open(self, kdevs: Iterable[int], most: int) -> int:
        """Prepare for `resolve_at_once`: open mounts of these devices and of renamed inodes.

        Returns the number of opened descriptors, at most `most`.
        """
        for source in self._lookups:
            source.load()  # no import in the freeze
        wanted = {*kdevs, *(identity.kdev for identity in self.failed)}
        local = sorted(kdev for kdev in wanted if not self.root.may_block(kdev))
        return self.mount_fds.keep(local, most)

    def resolve_at_once(self, identities: Iterable[Identity]) -> Resolution:
        """Search in the freeze: without a walk, and without a lookup that may block.

        An inode without an answer is left out, unless it is known to be deleted.
        """
        local, _ = self._by_blocking(identities)
        with self.mount_fds.only_kept():
            outcome = self.ask(local, self._quick)
        for identity in [*outcome.unresolved]:
            if not outcome.unresolved[identity].deleted:
                del outcome.unresolved[identity]
        return outcome

    def resolve_paused(
        self, identities: Iterable[Identity], paused: Paused, *, freeze_follows: bool
    ) -> Resolution:
        """Search while the tasks are paused.

        It asks no server and opens no directory. A child that can be killed searches for the rest,
        unless a paused task could block it for ever.
        """
        local, blocking = self._by_blocking(identities)
        with self.mount_fds.only_kept():
            outcome = self.ask(local, self._quick)
        left = [i for i, failure in outcome.unresolved.items() if not failure.deleted]
        if left:
            outcome.update(self._ask_in_time(left, paused, freeze_follows=freeze_follows))
        for batch in blocking:
            kinds = self.root.blocking_kinds(batch[0].kdev)
            outcome.update(_unanswered(batch, f"{kinds}: is not asked in a pause"))
        _log_outcome(outcome)
        return outcome

    def resolve(self, identities: Iterable[Identity], *, freeze_follows: bool) -> Resolution:
        """Ask every source while the tasks run; with `freeze_follows`, no scan for moving files."""
        local, blocking = self._by_blocking(identities)
        outcome = self._ask_and_scan(local, freeze_follows=freeze_follows)
        _log_outcome(outcome)
        for batch in blocking:
            outcome.update(self._ask_blocking(batch))
        self.failed.update(were_moving(self.root, outcome))
        return outcome

    def ask(
        self,
        identities: Iterable[Identity] | Mapping[Identity, Sequence[Tried]],
        resolvers: Iterable[Resolver],
    ) -> Resolution:
        """The proved answers of these resolvers, asked one after the other."""

        def prove(identity: Identity, path: bytes) -> StaleReason | None:
            reason = disproof_of_watch(self.root, identity, path)
            if reason is None:
                self.proved[identity] = path
            return reason

        outcome = engine.resolve(
            identities,
            resolvers,
            prove,
            prefer=self._watchers.prefer,
            over=self._options.over,
        )
        if self._mntns:
            for identity, answer in outcome.resolved.items():
                outcome.resolved[identity] = answer._replace(mntns=self._mntns)
            outcome.disproved = [one._replace(mntns=self._mntns) for one in outcome.disproved]
        return outcome

    def _by_blocking(
        self, identities: Iterable[Identity]
    ) -> tuple[Iterable[Identity], list[list[Identity]]]:
        # Those on filesystems that do not block, and a batch for each device that may.
        by_kdev: dict[int, list[Identity]] = {}
        for identity in identities:
            by_kdev.setdefault(identity.kdev, []).append(identity)
        kdevs = sorted(kdev for kdev in by_kdev if self.root.may_block(kdev))
        blocking = [by_kdev.pop(kdev) for kdev in kdevs]
        return itertools.chain.from_iterable(by_kdev.values()), blocking

    def _ask_in_time(
        self, left: list[Identity], paused: Paused, *, freeze_follows: bool
    ) -> Resolution:
        if paused.may_hold_us():
            return _unanswered(left, _LISTENER)
        self.stored.load(left)
        left_s = paused.left_s()
        if left_s <= 0 or self._options.over():
            return _unanswered(left, _PAUSE_OVER, cut=True)
        before = self.scanned

        def ask() -> tuple[Resolution, int]:
            return self._ask_and_scan(left, freeze_follows=freeze_follows), self.scanned - before

        def failed(why: str) -> tuple[Resolution, int]:
            return _unanswered(left, f"{_PAUSE_OVER} ({why})", cut=True), 0

        outcome, scanned = ask_in_child(ask, failed, left_s, self._options.over, queueing_s=left_s)
        self._scanned_in_child += scanned
        return outcome

    def _ask_and_scan(self, identities: Iterable[Identity], *, freeze_follows: bool) -> Resolution:
        # A scan looks only for inodes that no other source knows. An inode that was being renamed
        # exists: it is asked for again, now or in the freeze.
        outcome = self.ask(identities, self._quick)
        moving = were_moving(self.root, outcome)
        for _ in range(_QUESTIONS_MORE):
            if not moving or self._options.over():
                break
            self._ask_moving(outcome, moving)
            moving = were_moving(self.root, outcome)
        left = {
            identity: failure.tried
            for identity, failure in outcome.unresolved.items()
            if not failure.deleted and not failure.cut
            if not freeze_follows or identity not in moving
        }
        if left and self._scans:
            outcome.update(self.ask(left, self._scans))
        return outcome

    def _ask_moving(
        self, outcome: Resolution, moving: Mapping[Identity, Sequence[Disproved]]
    ) -> None:
        tried = {identity: outcome.unresolved[identity].tried for identity in moving}
        outcome.update(self.ask(tried, [*self.by_handle, *once_more(moving, moving)]))

    def _ask_blocking(self, identities: list[Identity]) -> Resolution:
        # The child must not use our database: the rows that it may need are loaded before.
        self.stored.load(identities)
        over = self._options.over
        if over():
            return _unanswered(identities, NO_TIME, cut=True)

        def failed(why: str) -> Resolution:
            kinds = self.root.blocking_kinds(identities[0].kdev)
            return _unanswered(identities, f"{kinds}: {why}", cut=over())

        if not self._options.ask_servers():
            return failed("is not asked while a child still waits for such a server")
        return ask_in_child(lambda: self._ask_all(identities), failed, _PATIENCE_S, over)

    def _ask_all(self, identities: list[Identity]) -> Resolution:
        # A child that never ends is left behind. It must not keep mounts from being unmounted.
        for one in self._all_mount_fds:
            one.close()
        return self.ask(identities, [*self._quick, *self._scans])

    def _make_scan(self) -> Resolver:
        from irmapdb.resolve.scan import Scan  # noqa: PLC0415

        options = self._options
        self._scanner = Scan(
            self.root,
            options.config,
            paths=() if self._mntns else options.scan_paths,
            pids=self._watchers.pids,
            progress=options.progress,
            over=options.over,
        )
        return self._scanner


def _unanswered(identities: Iterable[Identity], why: str, *, cut: bool = False) -> Resolution:
    tried = (Tried("engine", why),)
    return engine.Resolution(
        unresolved={identity: Unresolved(identity, tried, cut=cut) for identity in identities}
    )


def _log_outcome(outcome: Resolution) -> None:
    if _log.is_debug:
        for answer in outcome.resolved.values():
            _log.debug("%s: %s by %s", answer.identity, printable(answer.path), answer.source)
        for failure in outcome.unresolved.values():
            _log.debug("%s: unresolved: %s", failure.identity, failure.why)
        for one in outcome.disproved:
            what = (one.identity, printable(one.path), one.source, one.reason)
            _log.debug("%s: not %s, as %s has it: %s", *what)
    resolved, unresolved = len(outcome.resolved), len(outcome.unresolved)
    _log.info("inodes: %d resolved, %d unresolved", resolved, unresolved)
