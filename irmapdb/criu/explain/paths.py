"""Looks for the path of an inode in a log: in the database, in irmap-cache, on this machine.

On this machine it reads /proc, and asks the same sources as a step that walks no directory: it
stops no task, writes nothing, and waits at most 5 s for a filesystem that does not answer. A path
from this machine was proved now, by the kernel's own identity of the inode. But a log can come from
another machine, or from before a reboot: there the same numbers belong to another file.
"""

from __future__ import annotations

import enum
import os
import time

from irmapdb import files
from irmapdb.checkpoint.criu_cache import has_the_numbers
from irmapdb.config import Config
from irmapdb.errors import IrmapError
from irmapdb.model import Identity
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from collections.abc import Mapping as MappingABC

    from irmapdb.criu.explain.reader import WatchFacts
    from irmapdb.kernel.proc.fdinfo import RawWatchFile
    from irmapdb.kernel.root import Root
    from irmapdb.model import InodeKey, Mapping, Watch, WatchFile
    from irmapdb.resolve.engine import Resolution

__all__ = ["Finder", "FoundPath", "Origin"]

_PATIENCE_S = 10.0
"""For all tasks and filesystems of this machine together."""
_MOST_INODES = 8


class Origin(enum.StrEnum):
    """The source of a path."""

    LOG = "log"
    DATABASE = "database"
    CACHE = "irmap-cache"
    TASK = "task"
    """A process of this machine that watches the inode now; the path was proved."""
    HANDLE = "handle"
    """The file handle of the log, opened on this machine; the path was proved."""


class FoundPath(Record):
    """A path of an inode, and the process that watches it."""

    path: bytes | None
    origin: Origin | None
    note: str = ""
    """A remark for people: a stale row, the reason why there is no path."""
    pid: int | None = None
    comm: bytes | None = None
    fd: int | None = None
    """The process of this machine that watches the inode now, and its descriptor."""
    fstype: str | None = None
    """The filesystem, in the root of that process."""
    deleted: bool = False
    """Whether the file has no name any more."""
    mntns: int = 0
    """As in Mapping: CRIU looks in the root of the root task's namespace, where it is 0."""
    is_accepted: bool = True
    """Whether CRIU accepts an entry of irmap-cache with this path: its device and number are those
    of the watch."""


class Finder:
    """Finds the paths of the inodes of one log."""

    def __init__(
        self, *, database: bytes | None, work: bytes | None, machine: bool, must_open: bool
    ) -> None:
        """`database` and `work` may not exist. `machine`: whether to look at this machine.

        `must_open`: whether a database that cannot be opened is an error (DatabaseError).
        """
        self._database = database
        self._work = work
        self._machine = machine
        self._must_open = must_open
        self.notes: list[str] = []

    def find(self, watches: Iterable[WatchFacts]) -> dict[InodeKey, FoundPath]:
        """The best path of each inode; those without any answer are left out."""
        wanted: dict[InodeKey, WatchFacts] = {}
        left_out: set[InodeKey] = set()
        for watch in watches:
            if watch.key is None:
                continue
            if watch.key not in wanted and len(wanted) >= _MOST_INODES:
                left_out.add(watch.key)
                continue
            known = wanted.setdefault(watch.key, watch)
            wanted[watch.key] = watch if known.handle is None else known
        if left_out:
            self.notes.append(
                f"irmapdb looked for the paths of the first {_MOST_INODES} inodes, and not for the "
                f"other {len(left_out):,}"
            )
        if not wanted:
            return {}
        found = self._stored(wanted)
        if self._machine:
            if os.geteuid():
                self.notes.append("run as root to see the watches of all processes of this machine")
            try:
                found = _merged(found, _Machine(wanted).find())
            except (IrmapError, OSError) as error:
                self.notes.append(f"irmapdb could not read this machine: {error}")
        return found

    def _stored(self, keys: Collection[InodeKey]) -> dict[InodeKey, FoundPath]:
        found = self._in_database(keys)
        missing = [key for key in keys if key not in found or found[key].path is None]
        return {**found, **(self._in_cache(missing) if missing else {})}

    def _in_database(self, keys: Collection[InodeKey]) -> dict[InodeKey, FoundPath]:
        if self._database is None or not (self._must_open or os.path.exists(self._database)):
            return {}
        from irmapdb.store.database import Store  # noqa: PLC0415 seldom

        try:
            with Store.open_readonly(self._database) as store:
                reports = {key: store.inode_report(key) for key in keys}
        except IrmapError as error:
            if self._must_open:
                raise
            self.notes.append(str(error))
            return {}
        return {
            key: _best_row(report.mappings)
            for key, report in reports.items()
            if report is not None and report.mappings
        }

    def _in_cache(self, keys: Collection[InodeKey]) -> dict[InodeKey, FoundPath]:
        if self._work is None:
            return {}
        from irmapdb.image.cache_bytes import cache_entries  # noqa: PLC0415

        name = os.path.join(self._work, b"irmap-cache")
        try:
            data = files.read_if_there(name, limit_bytes=files.LIMIT_BYTES)
        except IrmapError as error:
            self.notes.append(str(error))
            return {}
        entries = cache_entries(data) if data else ()
        note = "from irmap-cache, not proved"
        return {  # the last entry of an inode is the one that CRIU tries first
            entry.key: FoundPath(entry.path, Origin.CACHE, note)
            for entry in entries or ()
            if entry.key in keys
        }


def _best_row(mappings: Collection[Mapping]) -> FoundPath:
    live = [one for one in mappings if not one.stale]
    best = max(live or mappings, key=lambda one: (one.mntns == 0, one.validated_at is not None))
    if best.stale:
        note = f"a stale path: {best.stale_reason}"
    elif best.revalidate:
        note = "not proved in the last run"
    else:
        note = ""
    return FoundPath(best.path, Origin.DATABASE, note)


def _merged(
    stored: MappingABC[InodeKey, FoundPath], now: MappingABC[InodeKey, FoundPath]
) -> dict[InodeKey, FoundPath]:
    # A path that was proved now is better than a stored one.
    merged = dict(stored)
    for key, found in now.items():
        known = merged.get(key)
        if known is None or found.path is not None:
            merged[key] = found
        else:
            merged[key] = found._replace(path=known.path, origin=known.origin, note=known.note)
    return merged


class _Machine:
    """The inodes on this machine now."""

    def __init__(self, wanted: MappingABC[InodeKey, WatchFacts]) -> None:
        self._wanted = wanted
        until_s = time.monotonic() + _PATIENCE_S
        self._over: Callable[[], bool] = lambda: time.monotonic() > until_s

    def find(self) -> dict[InodeKey, FoundPath]:
        found = self._watched()
        left = [
            Identity(key.kdev, key.ino, watch.handle)
            for key, watch in self._wanted.items()
            if watch.is_whole_handle and key not in found
        ]
        return {**found, **(self._by_handle(left) if left else {})}

    def _watched(self) -> dict[InodeKey, FoundPath]:
        from irmapdb.kernel.proc import tasks  # noqa: PLC0415 only here
        from irmapdb.kernel.proc.survey import read_survey  # noqa: PLC0415

        everyone = tasks.all_tasks()
        comms = {task.pid: task.comm for task in everyone}
        survey = read_survey(everyone, self._over)
        found: dict[InodeKey, FoundPath] = {}
        for raw in survey.files:
            for watch in self._of_file(raw):
                key = watch.identity.key
                if key not in found:
                    pid = survey.threads.get(raw.pid, raw.pid)
                    answer = self._resolved(raw.parse(), watch)
                    found[key] = answer._replace(pid=pid, comm=comms.get(pid), fd=raw.fd)
        return found

    def _of_file(self, raw: RawWatchFile) -> list[Watch]:
        if not any(b"ino:%x sdev:%x " % (key.ino, key.kdev) in raw.raw for key in self._wanted):
            return []
        return [watch for watch in raw.parse().watches if self._is_wanted(watch.identity)]

    def _is_wanted(self, identity: Identity) -> bool:
        # The numbers of an inode on another machine may be those of another file here.
        wanted = self._wanted.get(identity.key)
        if wanted is None or wanted.handle is None or identity.handle is None:
            return wanted is not None
        shown, here = wanted.handle, identity.handle
        return here.type == shown.type and here.data.startswith(shown.data)

    def _resolved(self, file: WatchFile, watch: Watch) -> FoundPath:
        from irmapdb.kernel.root import open_root  # noqa: PLC0415
        from irmapdb.resolve.search import Search  # noqa: PLC0415

        try:
            with (
                open_root(file.pid) as root,
                Search(root, config=Config(), scan=False, over=self._over) as search,
            ):
                search.add_holders([file.pid])
                search.resolve([file._replace(watches=(watch,), marks=())])
                return _answer(root, watch.identity, search.outcome)
        except (IrmapError, OSError) as error:  # it ended meanwhile, or may not be looked at
            return FoundPath(None, None, str(error))

    def _by_handle(self, identities: list[Identity]) -> dict[InodeKey, FoundPath]:
        from irmapdb.kernel.proof import disproof  # noqa: PLC0415
        from irmapdb.kernel.root import open_root  # noqa: PLC0415
        from irmapdb.resolve import engine  # noqa: PLC0415
        from irmapdb.resolve.handle import Handles  # noqa: PLC0415
        from irmapdb.resolve.mount_fds import MountFds  # noqa: PLC0415

        with open_root(os.getpid()) as root:
            root.adopt(Config())
            local = [one for one in identities if not root.may_block(one.kdev)]
            mount_fds = MountFds(root)
            try:
                outcome = engine.resolve(
                    local,
                    [Handles(root, mount_fds, self._over)],
                    lambda identity, path: disproof(root, identity, path),
                    over=self._over,
                )
            finally:
                mount_fds.close()
        note = "the file with this handle on this machine now"
        return {
            identity.key: FoundPath(answer.path, Origin.HANDLE, note)
            for identity, answer in outcome.resolved.items()
        }


def _answer(root: Root, identity: Identity, outcome: Resolution) -> FoundPath:
    mounts = root.mounts.of_device(identity.kdev)
    fstype = mounts[0].fstype if mounts else None
    answer = outcome.resolved.get(identity)
    if answer is None:
        failure = outcome.unresolved.get(identity)
        why = "" if failure is None else failure.why
        deleted = failure is not None and failure.deleted
        return FoundPath(None, None, why, fstype=fstype, deleted=deleted)
    accepted = answer.mntns != 0 or root.may_block(identity.kdev)
    return FoundPath(
        answer.path,
        Origin.TASK,
        f"in mount namespace {answer.mntns}" if answer.mntns else "",
        fstype=fstype,
        mntns=answer.mntns,
        is_accepted=accepted or has_the_numbers(root, identity, answer.path),
    )
