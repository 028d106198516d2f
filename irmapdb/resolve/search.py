"""One tree's identities on the way to their paths, in every root that they can be seen from.

All are looked for in the root of the root task's mount namespace, the only one that CRIU's cache
speaks of. What cannot be seen there and is watched from a nested mount namespace is looked for in
that one's root; in the watcher's own where all that namespace's tasks are in chroots. What lies
on a filesystem that may keep us waiting (network, FUSE) is asked for in a child process that can
be killed.
"""

from __future__ import annotations

import contextlib
import itertools
import time

from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.identity import disproof, disproof_of_watch
from irmapdb.kernel.proc import mountinfo, open_files
from irmapdb.kernel.proc.namespaces import open_namespace
from irmapdb.kernel.root import Root, open_root
from irmapdb.log import Log
from irmapdb.model import Source, StaleReason, Tried, Unresolved, printable
from irmapdb.record import Record
from irmapdb.resolve import engine
from irmapdb.resolve.engine import Disproved
from irmapdb.resolve.mount_fds import MountFds
from irmapdb.resolve.rename_retry import last_of, once_more, were_moving
from irmapdb.resolve.sources import Late, lookups
from irmapdb.resolve.stored import StoredRows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from collections.abc import Mapping as MappingABC
    from typing import Protocol, Self, TypeAlias

    from irmapdb.config import Config
    from irmapdb.model import Identity, InodeKey, Mapping, WatchFile
    from irmapdb.resolve.engine import Resolution, Resolver
    from irmapdb.resolve.scan import Scan

__all__ = ["Load", "Paused", "Search"]

_log = Log(__name__)

_PATIENCE_S = 5.0
"""How long all of a filesystem's answers may take where they come from somebody else."""

_MOST_HELD_OPEN = 128
"""Descriptors of mounts, of all roots together: a process may open 1,024."""

_LOOK_AGAIN_S = 0.1
"""How long the tasks stand still for what is asked for once more."""

_BATCH = 16
"""Of what is asked for once more in the freeze: so many in vain, and the rest can wait."""

_NO_TIME = "the time budget was over"
_PAUSE_OVER = "the time for a pause was over"
_LISTENER = "a paused task may be asked before a directory is opened, so none was"

_QUESTIONS_MORE = 2
"""How often is asked again, while the tasks run, for what was renamed between answer and proof."""


_BY_HANDLE = (Source.HANDLE, Source.OVERLAY)


if TYPE_CHECKING:

    class Load(Protocol):
        """The store's rows for a batch of keys, of one mount namespace."""

        def __call__(
            self, keys: Collection[InodeKey], mntns: int = 0
        ) -> dict[InodeKey, list[Mapping]]: ...


_Key: TypeAlias = tuple[int, ...]
"""Of a nested root: its mount namespace; for a chroot also which directory it is."""

_MAIN: _Key = ()


class _Place(Record):
    """A root and who is asked about it."""

    root: Root
    mntns: int
    stored: StoredRows
    lookups: Sequence[Late]
    scan: Resolver
    mount_fds: MountFds
    failed: dict[Identity, list[Disproved]]
    """The paths that failed of what was being renamed when it was looked for."""

    @property
    def quick(self) -> tuple[Resolver, ...]:
        """All resolvers but the scan."""
        return (self.stored, *self.lookups)


class Paused(Record):
    """The tasks stand still already, and what waits for one of them waits in vain."""

    for_s: float
    """How long directories may be opened and walked, from the first one on."""
    may_hold_us: Callable[[], bool]
    """Whether one of the tasks may be asked before a directory is opened."""


class Search:
    """Resolves batches and proves answers again. A context manager: holds the roots open."""

    def __init__(
        self,
        root: Root,
        load: Load,
        *,
        config: Config,
        scan_paths: Iterable[bytes] = (),
        scan: bool = True,
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._load = load
        self.paused: Paused | None = None
        """Set where the tasks stand still already."""
        self._paused_until_s: float | None = None
        """When the time for directories is over; None until the first one is asked for."""
        self._config = config
        self._scan_paths = tuple(scan_paths)
        self._scans = scan
        self._progress = progress
        self._over = over
        self.freeze_follows = False
        """Whether the tasks are about to stand still: what moves can wait for that."""
        self._pids: dict[int, None] = {}
        self._holders: dict[int, None] = {}
        self._owners: dict[tuple[int, int], tuple[int, ...]] = {}
        self._open_names: set[bytes | None] | None = None
        self._stack = contextlib.ExitStack()
        self._main = self._place(root, 0)
        self._nested: dict[_Key, _Place] = {}
        self._found_in: dict[Identity, _Key] = {}
        self._put_off: dict[_Key, list[Identity]] = {}
        self._chroots_only: set[int] = set()
        self.outcome = engine.Resolution()
        self.proved: dict[Identity, bytes] = {}
        """In the main root, from the moment of the proof on: before a batch is through."""
        self.resolve_us = 0
        self._scanners: list[Scan] = []
        self._scanned_aside = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def rows(self) -> dict[InodeKey, list[Mapping]]:
        """Every stored row that was looked at, as it was before."""
        rows: dict[InodeKey, list[Mapping]] = {}
        for place in self._places():
            for key, found in place.stored.rows.items():
                rows.setdefault(key, []).extend(found)
        return rows

    @property
    def scanned(self) -> int:
        """Directory entries looked at."""
        return sum(scan.scanned for scan in self._scanners) + self._scanned_aside

    @property
    def nested_roots(self) -> list[Root]:
        """The roots of other mount namespaces that were looked at, without chroots in them."""
        roots = (place.root for place in self._nested.values())
        return [root for root in roots if root.is_namespaces_own]

    def add_owners(self, owners: MappingABC[tuple[int, int], Iterable[int]]) -> None:
        """Who else has the descriptors that are resolved next, by (pid, fd)."""
        for key, pids in owners.items():
            known = self._owners.get(key, ())
            self._owners[key] = (*known, *(pid for pid in pids if pid not in known))

    def add_holders(self, pids: Iterable[int]) -> None:
        """Tasks that may hold open what is watched, beside those that watch: all of the tree."""
        self._holders.update(dict.fromkeys(pids))

    def hold_open(self) -> None:
        """Open what filesystems are asked through `at_once`: until the end, nothing else is."""
        for place in self._places():
            for source in place.lookups:
                source.load()  # no import in the freeze
        left = _MOST_HELD_OPEN
        everything = (*self.outcome.resolved, *self.outcome.unresolved)
        kdevs = {_MAIN: {identity.kdev for identity in everything}}
        for identity, key in self._found_in.items():
            kdevs.setdefault(key, set()).add(identity.kdev)
        for key in (_MAIN, *self._nested):
            place = self._place_of(key)
            wanted = kdevs.get(key, set()) | {identity.kdev for identity in place.failed}
            left -= place.mount_fds.keep(
                sorted(wanted - {kdev for kdev in wanted if place.root.may_block(kdev)}), left
            )

    def resolve(self, files: Iterable[WatchFile], *, at_once: bool = False) -> None:
        """Resolve what the files watch and is neither resolved nor given up yet.

        `at_once`, for the freeze: nothing is walked, nobody is waited for, who may be one of the
        frozen, and no directory is opened that is not held open. What that leaves without an
        answer is looked for by the next call. So is what had a path only a moment ago: it is not
        given up before the tasks stand still.
        """
        start = time.monotonic_ns()
        if at_once:
            self.freeze_follows = False
        else:
            self._catch_up()
        watchers: dict[Identity, tuple[int, ...]] = {}
        known = self.outcome.resolved.keys() | self.outcome.unresolved.keys()
        for file in files:
            self._pids[file.pid] = self._holders[file.pid] = None
            # A child that inherited the descriptor may see what it watches in a root of its own.
            mine = (file.pid, *self._owners.get((file.pid, file.fd), ()))
            for watch in file.watches:
                if watch.identity not in known:
                    others = watchers.setdefault(watch.identity, mine)
                    if others is not mine:
                        watchers[watch.identity] = tuple(dict.fromkeys(others + mine))
        if watchers:
            self.outcome.update(self._run(self._main, watchers, at_once=at_once))
            if not at_once:
                self._resolve_nested(watchers)
        if at_once:
            self._look_again()
        self.resolve_us += (time.monotonic_ns() - start) // 1000

    def prove_again(self, identities: Iterable[Identity], *, at_once: bool = False) -> None:
        """Prove answers again; those that no longer hold are resolved anew.

        Not those on a filesystem that may keep us waiting. `at_once` as in `resolve`.
        """
        start = time.monotonic_ns()
        lost: dict[_Key, dict[Identity, list[Disproved]]] = {}
        for identity in identities:
            answer = self.outcome.resolved[identity]
            key = self._found_in[identity] if answer.mntns else _MAIN
            place = self._place_of(key)
            if place.root.may_block(identity.kdev):
                continue
            paths = (answer.path, *answer.other_paths)
            held, failures = [], []
            for path in paths:
                reason = disproof_of_watch(place.root, identity, path)
                if reason is None:
                    held.append(path)
                else:
                    failed = Disproved(identity, path, answer.source, reason, answer.mntns)
                    failures.append(failed)
            self.outcome.disproved += failures
            if not held:
                del self.outcome.resolved[identity]
                lost.setdefault(key, {})[identity] = failures
            elif len(held) < len(paths):
                self.outcome.resolved[identity] = answer._replace(
                    path=held[0], other_paths=tuple(held[1:])
                )
        for key, batch in lost.items():
            place = self._place_of(key)
            self.outcome.update(self._run(place, batch, at_once=at_once))
            if not at_once:
                for identity, failures in batch.items():
                    known = place.failed.get(identity, [])
                    place.failed[identity] = last_of([*known, *failures])
        self.resolve_us += (time.monotonic_ns() - start) // 1000

    def disprove(self, identity: Identity, path: bytes) -> StaleReason | None:
        """Why a path in the main root is not that inode; None if it is, or if asking may wait."""
        if self._main.root.may_block(identity.kdev):
            return None
        if self._over():
            return StaleReason.UNREACHABLE  # not looked at: it may be as right as before
        return disproof(self._main.root, identity, path)

    def _place(self, root: Root, mntns: int) -> _Place:
        root.adopt(self._config, self._scan_paths)
        stored = StoredRows(lambda keys: self._load(keys, mntns))
        mount_fds = MountFds(root)
        self._stack.callback(mount_fds.close)
        scan = Late(Source.SCAN, lambda: self._make_scan(root, mntns))
        late = lookups(root, mount_fds, self._holders, self._over)
        return _Place(root, mntns, stored, late, scan, mount_fds, {})

    def _make_scan(self, root: Root, mntns: int) -> Resolver:
        from irmapdb.resolve.scan import Scan  # noqa: PLC0415

        scan = Scan(
            root,
            self._config,
            paths=() if mntns else self._scan_paths,
            pids=self._pids,
            progress=self._progress,
            over=self._over,
        )
        self._scanners.append(scan)
        return scan

    def _place_of(self, key: _Key) -> _Place:
        return self._nested[key] if key else self._main

    def _places(self) -> tuple[_Place, ...]:
        return (self._main, *self._nested.values())

    def _run(
        self, place: _Place, identities: Iterable[Identity], *, at_once: bool = False
    ) -> Resolution:
        by_kdev: dict[int, list[Identity]] = {}
        for identity in identities:
            by_kdev.setdefault(identity.kdev, []).append(identity)
        aside = [
            by_kdev.pop(kdev)
            for kdev in sorted({kdev for kdev in by_kdev if place.root.may_block(kdev)})
        ]
        quick = itertools.chain.from_iterable(by_kdev.values())
        if at_once:
            resolvers = place.quick
            with place.mount_fds.only_kept():
                outcome = self._ask(place, quick, resolvers)
            for identity in [*outcome.unresolved]:
                if not outcome.unresolved[identity].deleted:
                    del outcome.unresolved[identity]
            return outcome
        if self.paused is not None:
            return self._run_paused(place, quick, aside, self.paused)
        outcome = self._ask_and_scan(place, quick)
        _tell(outcome)
        for batch in aside:
            outcome.update(self._ask_aside(place, batch))
        place.failed.update(were_moving(place.root, outcome))
        return outcome

    def _run_paused(
        self,
        place: _Place,
        quick: Iterable[Identity],
        aside: Iterable[list[Identity]],
        paused: Paused,
    ) -> Resolution:
        # No server is asked, and no directory opened; what that leaves is looked for by a child
        # that can be killed, if it can come to an end at all.
        with place.mount_fds.only_kept():
            resolvers = place.quick
            outcome = self._ask(place, quick, resolvers)
        left = [i for i, failure in outcome.unresolved.items() if not failure.deleted]
        if left:
            outcome.update(self._ask_in_time(place, left, paused))
        for batch in aside:
            kinds = place.root.blocking_kinds(batch[0].kdev)
            outcome.update(_unanswered(batch, f"{kinds}: is not asked in a pause"))
        _tell(outcome)
        return outcome

    def _ask_in_time(self, place: _Place, left: list[Identity], paused: Paused) -> Resolution:
        if paused.may_hold_us():
            return _unanswered(left, _LISTENER)
        place.stored.load(left)
        if self._paused_until_s is None:
            self._paused_until_s = time.monotonic() + paused.for_s
        left_s = self._paused_until_s - time.monotonic()
        if left_s <= 0 or self._over():
            return _unanswered(left, _PAUSE_OVER, cut=True)

        def ask() -> tuple[Resolution, int]:
            return self._ask_and_scan(place, left), self.scanned

        try:
            outcome, self._scanned_aside = call_in_child(
                ask, left_s, self._over, count_queueing=False
            )
        except (TimeoutError, ChildProcessError) as error:
            return _unanswered(left, f"{_PAUSE_OVER} ({error})", cut=True)
        assert isinstance(outcome, engine.Resolution)  # noqa: S101 our own child's
        return outcome

    def _ask_and_scan(self, place: _Place, identities: Iterable[Identity]) -> Resolution:
        # A walk of the whole root is for what nobody else knows. What was being renamed when it
        # was looked for is known to be there: a second question is enough, at rest at the latest.
        outcome = self._ask(place, identities, place.quick)
        moving = were_moving(place.root, outcome)
        for _ in range(_QUESTIONS_MORE):
            if not moving or self._over():
                break
            self._ask_moving(place, outcome, moving)
            moving = were_moving(place.root, outcome)
        left = {
            identity: failure.tried
            for identity, failure in outcome.unresolved.items()
            if not failure.deleted and not failure.cut
            if not self.freeze_follows or identity not in moving
        }
        if left and self._scans:
            outcome.update(self._ask(place, left, [place.scan]))
        return outcome

    def _ask_moving(
        self, place: _Place, outcome: Resolution, moving: MappingABC[Identity, Sequence[Disproved]]
    ) -> None:
        tried = {identity: outcome.unresolved[identity].tried for identity in moving}
        handles = [one for one in place.lookups if one.source in _BY_HANDLE]
        outcome.update(self._ask(place, tried, [*handles, *once_more(moving, moving)]))

    def _look_again(self) -> None:
        left: set[Identity] = set()
        until = time.monotonic() + _LOOK_AGAIN_S
        for key in (_MAIN, *self._nested):
            place = self._place_of(key)
            missing = [one for one in place.failed if self._is_missing(one)]
            waits = {kdev for kdev in {one.kdev for one in missing} if place.root.may_block(kdev)}
            left.update(one for one in missing if one.kdev in waits)
            failed = [one for one in missing if one.kdev not in waits]
            for start in range(0, len(failed), _BATCH):
                batch = failed[start : start + _BATCH]
                left |= self._ask_at_rest(key, batch)
                if all(map(self._is_missing, batch)) or time.monotonic() > until:
                    self._put_off[key] = failed[start + _BATCH :]
                    break
        self._leave(left)

    def _catch_up(self) -> None:
        left: set[Identity] = set()
        for key, batch in self._put_off.items():
            left |= self._ask_at_rest(key, [one for one in batch if self._is_missing(one)])
        self._put_off.clear()
        self._leave(left)

    def _leave(self, identities: Iterable[Identity]) -> None:
        # To the next call: what is not known to be unresolved is looked for.
        for identity in identities:
            self.outcome.unresolved.pop(identity, None)

    def _is_missing(self, identity: Identity) -> bool:
        failure = self.outcome.unresolved.get(identity)
        return failure is not None and not failure.deleted

    def _ask_at_rest(self, key: _Key, batch: Collection[Identity]) -> set[Identity]:
        # Gives back what is still to be looked for. Nobody but the kernel is asked: whatever was
        # renamed is in its cache of names, or has one of the paths that failed; and the tasks'
        # open files are too many to look through. What is told the very path that failed before
        # is not being renamed, but covered by a mount: a second scan would find no more.
        place = self._place_of(key)
        with place.mount_fds.only_kept():
            handles = [one for one in place.lookups if one.source in _BY_HANDLE]
            outcome = self._ask(place, batch, handles)
        covered = {
            one.identity
            for one in outcome.disproved
            if one.path in {before.path for before in place.failed[one.identity]}
        }
        outcome.unresolved, open_ended = _parted(outcome.unresolved)
        moving = [one for one in open_ended if one not in covered]
        outcome.update(self._ask(place, moving, once_more(place.failed, moving)))
        outcome.unresolved, _ = _parted(outcome.unresolved)
        if key:
            self._found_in.update(dict.fromkeys(outcome.resolved, key))
        self.outcome.update(outcome)
        return {one for one in batch if self._is_missing(one)} - covered

    def _ask_aside(self, place: _Place, identities: list[Identity]) -> Resolution:
        # The child has no business with our database: what it may need is loaded before.
        place.stored.load(identities)
        if self._over():
            return _unanswered(identities, _NO_TIME, cut=True)
        try:
            answer: Resolution = call_in_child(
                lambda: self._ask_inside(place, identities), _PATIENCE_S, self._over
            )
        except (TimeoutError, ChildProcessError) as error:
            kinds = place.root.blocking_kinds(identities[0].kdev)
            return _unanswered(identities, f"{kinds}: {error}", cut=self._over())
        return answer

    def _ask_inside(self, place: _Place, identities: list[Identity]) -> Resolution:
        # A child that waits for ever is left behind, and is not to keep what others unmount.
        for one in self._places():
            one.mount_fds.close()
        scan = [place.scan] if self._scans else []
        return self._ask(place, identities, [*place.quick, *scan])

    def _ask(
        self,
        place: _Place,
        identities: Iterable[Identity] | MappingABC[Identity, Sequence[Tried]],
        resolvers: Iterable[Resolver],
    ) -> Resolution:
        def prove(identity: Identity, path: bytes) -> StaleReason | None:
            reason = disproof_of_watch(place.root, identity, path)
            if reason is None and not place.mntns:
                self.proved[identity] = path
            return reason

        outcome = engine.resolve(
            identities,
            resolvers,
            prove,
            prefer=self._prefer,
            over=self._over,
        )
        if place.mntns:
            for identity, answer in outcome.resolved.items():
                outcome.resolved[identity] = answer._replace(mntns=place.mntns)
            outcome.disproved = [one._replace(mntns=place.mntns) for one in outcome.disproved]
        return outcome

    def _resolve_nested(self, watchers: dict[Identity, tuple[int, ...]]) -> None:
        keys: dict[int, _Key] = {}
        by_place: dict[_Key, list[Identity]] = {}
        for identity, pids in watchers.items():
            if identity not in self.outcome.unresolved:
                continue  # what was deleted may be mounted there still
            if not self._main.root.mounts_of(identity.kdev):
                # Any task may have mounted it; who watches came there through /proc/PID/fd.
                pids = tuple(dict.fromkeys((*pids, *self._holders)))  # noqa: PLW2901
            self._look_into(pids, keys)
            for key in dict.fromkeys(keys[pid] for pid in pids if pid in keys):
                if key:
                    by_place.setdefault(key, []).append(identity)
            if any(pid not in keys for pid in pids):
                self._cut(identity)
        for key, batch in by_place.items():
            wanted = [identity for identity in batch if identity in self.outcome.unresolved]
            found = self._run(self._nested[key], wanted)
            for identity in [one for one, failure in found.unresolved.items() if failure.cut]:
                self._cut(identity)
            # Else what the main root said is the better reason.
            found.unresolved = {i: why for i, why in found.unresolved.items() if why.deleted}
            self._found_in.update(dict.fromkeys(found.resolved, key))
            self.outcome.update(found)

    def _look_into(self, pids: Iterable[int], keys: dict[int, _Key]) -> None:
        for pid in pids:
            if pid not in keys and not self._over():
                keys[pid] = self._nested_root(pid)

    def _cut(self, identity: Identity) -> None:
        failure = self.outcome.unresolved[identity]
        if not failure.cut:
            tried = (*failure.tried, Tried("engine", _NO_TIME))
            self.outcome.unresolved[identity] = failure._replace(tried=tried, cut=True)

    def _nested_root(self, pid: int) -> _Key:
        # _MAIN also for one that cannot be looked at.
        try:
            mntns = mountinfo.mount_namespace(pid)
            if mntns == self._main.root.mntns:
                return _MAIN
            if (mntns,) in self._nested:
                return (mntns,)
            return self._open_nested(pid)
        except (OSError, TaskError):
            return _MAIN

    def _open_nested(self, pid: int) -> _Key:
        # The namespace's own root, which a task in a chroot does not show, but another one may:
        # else what a path means would depend on which task comes first. Only where there are
        # none but chroots, each task is looked at from its own.
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
            if key not in self._nested:
                self._nested[key] = self._place(root, root.mntns)
                self._stack.push(opened.pop_all())
            return key

    def _prefer(self, paths: Sequence[bytes]) -> Sequence[bytes]:
        # The name that a task has open, then the shortest.
        if self._open_names is None:
            self._open_names = set()
            for pid in self._pids:
                if self._over():
                    break
                for file in open_files.open_files(pid):
                    self._open_names.add(self._main.root.strip(file.path))
        names = self._open_names
        return sorted(paths, key=lambda path: (path not in names, len(path), path))


def _parted(
    unresolved: dict[Identity, Unresolved],
) -> tuple[dict[Identity, Unresolved], dict[Identity, Unresolved]]:
    # The deleted ones, and the others.
    deleted = {i: why for i, why in unresolved.items() if why.deleted}
    return deleted, {i: why for i, why in unresolved.items() if not why.deleted}


def _unanswered(identities: Iterable[Identity], why: str, *, cut: bool = False) -> Resolution:
    tried = (Tried("engine", why),)
    return engine.Resolution(
        unresolved={identity: Unresolved(identity, tried, cut=cut) for identity in identities}
    )


def _tell(outcome: Resolution) -> None:
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
