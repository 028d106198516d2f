"""Predicts for each watch of a task tree whether `criu dump` can dump it, without a freeze."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from irmapdb import files
from irmapdb.checkpoint.work_dir import CACHE_NAME, WorkDir, within
from irmapdb.config import Config
from irmapdb.criu.check.criu_view import CriuMount, CriuView, open_criu_view
from irmapdb.criu.check.decision import decide, scan_below, with_holder
from irmapdb.criu.check.facts import Call, Facts, Look
from irmapdb.criu.check.hook_entries import hook_entries
from irmapdb.criu.check.observe import Observer
from irmapdb.criu.check.verdicts import CriuOutcome, Prediction, WatchVerdict
from irmapdb.criu.check.version import CriuVersion, criu_version
from irmapdb.errors import FileError
from irmapdb.image import cache
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.proc import mountinfo, tasks
from irmapdb.kernel.proc.holders import deleted_holders
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.root import adopt_from
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import FAN_MARK_IGNORE, MarkKind, format_kdev, printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from irmapdb.kernel.proc.survey import Denied
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.kernel.root import Root
    from irmapdb.model import CacheEntry, Identity, Mark, Watch

__all__ = [
    "DROPPED",
    "DumpCheck",
    "DumpCheckOptions",
    "MarkCheck",
    "Problem",
    "WatchCheck",
    "check_dump",
]

DROPPED = "dropped"

_PATIENCE_S = 5.0
"""The time limit for a filesystem that can block."""


class DumpCheckOptions(Record):
    """CRIU's options, and its directories."""

    pid: int
    images_dir: Path | None = Path()
    """None: a new one, as an engine makes it, so that CRIU has no irmap-cache."""
    work_dir: Path | None = None
    prev_images_dir: Path | None = None
    version: CriuVersion | None = None
    """None: from the criu on PATH."""
    force_irmap: bool = False
    scan_paths: tuple[bytes, ...] = ()
    config: Config = Config()
    hook: bool = False
    """Whether CRIU calls the hook, which writes irmap-cache; the one of `work_dir` does not count
    then."""
    runtime: str = ""
    """As in Call: for the advice."""
    progress: Callable[[int, bytes], None] = lambda _scanned, _top: None
    """Called during a walk with the number of compared entries, and the place."""


class WatchCheck(Record):
    """One watch, and the prediction for it."""

    watch: Watch
    comm: bytes
    fstype: str | None
    """None if CRIU sees no directory on the watch's device."""
    prediction: Prediction

    @property
    def right(self) -> bool:
        return self.prediction.verdict.right


class MarkCheck(Record):
    """A fanotify mark without an inode, and the prediction for it."""

    mark: Mark
    comm: bytes
    target: bytes
    """The mount point, or `major:minor` of the filesystem."""
    outcome: CriuOutcome
    why: str
    advice: str

    @property
    def right(self) -> bool:
        return self.outcome is CriuOutcome.PATH and not self.advice

    @property
    def verdict(self) -> str:
        """A WatchVerdict, or `dropped` for a mark that CRIU leaves out."""
        match self.outcome:
            case CriuOutcome.FAILS:
                return WatchVerdict.FAILS
            case CriuOutcome.WRONG_PATH:
                return WatchVerdict.WRONG_PATH
            case CriuOutcome.PATH:
                return WatchVerdict.PATH if self.right else WatchVerdict.NO_RESTORE
            case _:
                return DROPPED


class Problem(Record):
    """A problem of the whole dump."""

    why: str
    advice: str
    fatal: bool
    """Whether the dump fails on it. Else a restore may fail, or the predictions are uncertain."""


class DumpCheck(Record):
    """The whole answer."""

    call: Call
    watches: tuple[WatchCheck, ...]
    marks: tuple[MarkCheck, ...]
    denied: tuple[Denied, ...]
    problems: tuple[Problem, ...]
    cache: bytes | None
    """The irmap-cache that CRIU will load; None if there is none."""
    entries: int
    """The number of its entries."""
    hook: bool = False
    """Whether these are the entries that the hook will write."""
    notes: tuple[str, ...] = ()
    """Further remarks. They do not change the predictions."""

    @property
    def fails(self) -> bool:
        """Whether the dump will fail: one failing watch is enough."""
        return (
            any(problem.fatal for problem in self.problems)
            or any(one.prediction.outcome is CriuOutcome.FAILS for one in self.watches)
            or any(one.outcome is CriuOutcome.FAILS for one in self.marks)
        )

    @property
    def right(self) -> bool:
        """Whether a restore sets every watch and mark on its present file again.

        Other causes of a failed dump (sockets, terminals) are not checked.
        """
        return (
            not (self.problems or self.denied)
            and all(one.right for one in self.watches)
            and all(one.right for one in self.marks)
        )

    @property
    def uncertain(self) -> bool:
        """Whether a watch has no prediction."""
        return any(one.prediction.outcome is CriuOutcome.UNKNOWN for one in self.watches)

    @property
    def walk_us(self) -> int:
        """An estimate of the frozen time for CRIU's walks of overlays."""
        return sum(one.prediction.walk_us for one in self.watches)


def check_dump(options: DumpCheckOptions) -> DumpCheck:
    """Predict a dump by CRIU with these options. It stops no task and writes nothing.

    TaskError if the root task is missing or may not be read; FileError if a directory is missing;
    ImageError for an irmap-cache that CRIU reads and irmapdb does not.
    """
    _refuse_relative(options.scan_paths)
    place = _place(options)
    call = Call(
        options.pid,
        options.version or criu_version(),
        options.force_irmap,
        options.scan_paths,
        b"" if place is None else os.fsencode(place.work),
        options.runtime,
    )
    found = tasks.task_tree(options.pid)
    survey = read_survey(found)
    watched = [raw.parse() for raw in survey.files]
    comms = {task.pid: task.comm for task in found}
    if options.hook:
        path, damage = None, None
        entries: Sequence[CacheEntry] = hook_entries(found, survey, watched, options.config)
    else:
        path, entries, damage = (None, (), None) if place is None else _load_cache(place)
    with (
        open_criu_view(found) as criu_view,
        Observer(
            criu_view, call, entries, config=options.config, progress=options.progress
        ) as observer,
    ):
        criu_view.root.adopt(options.config, options.scan_paths)
        for nested in criu_view.nested:
            adopt_from(nested, criu_view.root)
        other_root = (
            _other_root(criu_view.root) if criu_view.foreign and criu_view.root.prefix else None
        )
        identities = list(
            dict.fromkeys(watch.identity for file in watched for watch in file.watches)
        )
        if other_root is not None:
            hopeless = (Facts(identity, hopeless=other_root[:2]) for identity in identities)
            settled = _settle(hopeless, observer, call)
        else:
            settled = _settle_all(identities, observer, criu_view.root, call)
        settled = _scan_once(_with_holders(settled, criu_view))
        denied = _DENIED if observer.denied else None
        return DumpCheck(
            call=call,
            watches=tuple(
                _check_watch(watch, comms[watch.pid], *settled[watch.identity])
                for file in watched
                for watch in file.watches
            ),
            marks=tuple(
                _check_mark(mark, comms[mark.pid], criu_view)
                for file in watched
                for mark in file.marks
            ),
            denied=survey.denied,
            problems=(
                *filter(None, (other_root, damage, denied, _headless(found))),
                *_removed_mounts(criu_view),
            ),
            cache=path,
            entries=len(entries),
            hook=options.hook,
            notes=tuple(_notes(criu_view, call)),  # last, as they look
        )


def _place(options: DumpCheckOptions) -> WorkDir | None:
    if options.images_dir is None:
        return None
    return WorkDir.open(options.images_dir, options.work_dir, previous=options.prev_images_dir)


def _notes(criu_view: CriuView, call: Call) -> Iterator[str]:
    if not call.version.is_known:
        yield f"CRIU {call.version} may behave differently: only 4.1.1 to 4.3 are known"
    for path in call.scan_paths:
        if criu_view.root.blocking_kinds_to(path):
            continue
        if why := _why_missing_aside(criu_view, path):
            yield (
                f"--irmap-scan-path {printable(path)}: {why} in the root of the tasks, so CRIU "
                "scans nothing there; irmapdb pre-dump refuses it"
            )


def _why_missing_aside(criu_view: CriuView, path: bytes) -> str:
    # CRIU follows links, so a tenant can lead it to a mount that does not answer.
    return ask_in_child(lambda: _why_missing(criu_view, path), lambda _: "", _PATIENCE_S)


def _why_missing(criu_view: CriuView, path: bytes) -> str:
    # Read its directory's listing: a lookup would put the name into the kernel's cache.
    parent, _, name = path.rstrip(b"/").rpartition(b"/")
    try:
        with Descriptor(
            criu_view.lookup(parent[1:] or b".", os.O_RDONLY | os.O_DIRECTORY, root=criu_view.root)
        ) as fd:
            if name in {b"", *map(os.fsencode, os.listdir(fd))}:
                return ""
        os.close(
            criu_view.lookup(path[1:], root=criu_view.root)
        )  # a listing need not have all entries
    except (OSError, ValueError) as error:
        return str(error.strerror if isinstance(error, OSError) else error)
    return ""


def _headless(found: Iterable[Task]) -> Problem | None:
    # compel_interrupt_task() stops only the first thread.
    for task in found:
        if task.state == "Z":
            why = f"the first thread of {task.name} has ended, and CRIU cannot stop the others"
            return Problem(why, "end the task before the dump", fatal=True)
    return None


def _with_holders(settled: _Settled, criu_view: CriuView) -> _Settled:
    deleted = [one for one, (_, prediction) in settled.items() if prediction.deleted]
    holders = deleted_holders(criu_view.root, criu_view.pids, deleted)
    named = dict(settled)
    for identity, holder in holders.items():
        fstype, prediction = settled[identity]
        named[identity] = fstype, with_holder(prediction, holder)
    return named


def _scan_once(settled: _Settled) -> _Settled:
    """One --irmap-scan-path for all watches that need one: their common directory.

    Not the root: a scan of the root for each watch would take longer than several options.
    """
    paths = [one.scan.path for _, one in settled.values() if one.scan is not None]
    above = os.path.commonpath(paths) if len(paths) > 1 else b"/"
    if above == b"/":
        return settled
    return {
        identity: (fstype, scan_below(prediction, above))
        for identity, (fstype, prediction) in settled.items()
    }


_REMOVED = b"//deleted"


def _removed_mounts(criu_view: CriuView) -> Iterator[Problem]:
    """Bind mounts with a removed or replaced source, for example a subPath file of Kubernetes.

    CRIU dumps them. Its restore creates the source again under the old name, and fails if that name
    exists. A container runtime mounts the file with that name, and fails if it does not exist. A
    filesystem that only the tree has mounted comes back with the source.
    """
    removed = [mount for mount in criu_view.root.mounts.all if mount.root.endswith(_REMOVED)]
    if not removed or not criu_view.foreign:  # the machine's own mounts are not dumped
        return
    ours = {mount.kdev for mount in mountinfo.read_mountinfo("self")}
    for mount in removed:
        name = mount.root.removesuffix(_REMOVED)
        there = _answered(functools.partial(_has_name, criu_view.root, mount.kdev, name))
        if not there and mount.kdev not in ours:
            continue
        where = printable(mount.mountpoint)
        what = f"the source of the mount {where} ({printable(name)} on its filesystem)"
        if there:
            why = f"{what} was replaced: the dump succeeds, and the restore fails"
        else:
            why = f"{what} was removed: the dump succeeds, and a container runtime's restore fails"
        advice = "restart the container, so that it mounts the new file; then checkpoint it"
        yield Problem(why, advice, fatal=False)


def _answered(ask: Callable[[], bool]) -> bool:
    # A filesystem on the way may not answer.
    return ask_in_child(ask, lambda _: False, _PATIENCE_S)


def _has_name(root: Root, kdev: int, name: bytes) -> bool:
    # From our own mounts, as in the restore; a filesystem of the tree alone, in the tree.
    for mount in (*mountinfo.read_mountinfo("self"), *root.mounts.of_device(kdev)):
        below = os.path.relpath(name, mount.root)
        if mount.kdev != kdev or below.split(b"/")[0] == b"..":
            continue
        path = os.path.join(mount.mountpoint, below)
        if mount.mnt_id not in root.mounts.by_id:
            if os.path.lexists(path):
                return True
            continue
        with contextlib.suppress(OSError):
            os.close(root.open(path))
            return True
    return False


_DENIED = Problem(
    "opening handles needs CAP_DAC_READ_SEARCH; the prediction is for CRIU without it",
    "run check as CRIU will run, as root",
    fatal=False,
)


def _refuse_relative(paths: Iterable[bytes]) -> None:
    for path in paths:
        if not path.startswith(b"/"):
            message = f"{printable(path)}: not absolute"
            advice = "write it as seen from the root of the tasks"
            raise FileError(message, advice=advice, about="scan path")


def _other_root(root: Root) -> Problem:
    return Problem(
        f"the root of the root task is not that of its mount namespace but "
        f"{printable(root.prefix)}, which CRIU refuses",
        "checkpoint from a task that has not called chroot",
        fatal=True,
    )


def _load_cache(place: WorkDir) -> tuple[bytes | None, Sequence[CacheEntry], Problem | None]:
    """The image that CRIU loads: of the work dir, else of the parent images dir."""
    for directory in filter(None, (place.work, place.previous)):
        path = within(directory, os.fsencode(CACHE_NAME))
        data = files.read_if_there(path, limit_bytes=files.LIMIT_BYTES)
        if data is None:
            continue
        if not cache.loadable(data):
            why = f"{printable(path)} is damaged, and CRIU ends with an error when it loads it"
            advice = (
                "remove or rename it, then irmapdb pre-dump writes a new one; the hook does so by "
                "itself"
            )
            return path, (), Problem(why, advice, fatal=True)
        return path, cache.decode_cache(data, printable(path)), None
    return None, (), None


_Settled: TypeAlias = dict["Identity", tuple[str | None, Prediction]]
"""The filesystem type and the prediction for each watched inode."""


def _settle_all(
    identities: Iterable[Identity], observer: Observer, root: Root, call: Call
) -> _Settled:
    by_kdev: dict[int, list[Identity]] = {}
    for identity in identities:
        by_kdev.setdefault(identity.kdev, []).append(identity)
    at_once: list[Facts] = []
    settled: _Settled = {}
    for kdev, batch in by_kdev.items():
        kinds = root.blocking_kinds(kdev)
        if kinds:
            settled |= _settle_aside(batch, kinds, observer, call)
        else:
            at_once += map(observer.facts, batch)
    return settled | _settle(at_once, observer, call)


def _settle_aside(
    batch: Iterable[Identity], fstype: str, observer: Observer, call: Call
) -> _Settled:
    # CRIU would wait here too, with the tasks frozen, and perhaps for one of them.
    def settle() -> _Settled:
        return _settle(map(observer.facts, batch), observer, call)

    def failed(_: str) -> _Settled:
        why = (
            f"its {fstype} gave no answer within {_PATIENCE_S:g} s, and CRIU would wait for it "
            "with the tasks frozen"
        )
        advice = "check the server of that filesystem, or let the task remove the watch"
        facts = (Facts(identity, fstype, unseen=(why, advice)) for identity in batch)
        return _settle(facts, observer, call)

    return ask_in_child(settle, failed, _PATIENCE_S)


def _settle(batch: Iterable[Facts], observer: Observer, call: Call) -> _Settled:
    """Take the looks that the decisions need, each look for all watches before the next."""
    settled: _Settled = {}
    pending = {facts.identity: facts for facts in batch}
    while pending:
        asked: dict[Look, list[Facts]] = {}
        for identity, facts in list(pending.items()):
            step = decide(facts, call)
            if isinstance(step, Prediction):
                settled[identity] = (facts.fstype, step)
                del pending[identity]
            else:
                asked.setdefault(step, []).append(facts)
        if asked:
            look = min(asked)
            pending |= {facts.identity: facts for facts in _taken(observer, look, asked[look])}
    return settled


def _taken(observer: Observer, look: Look, batch: Sequence[Facts]) -> Iterator[Facts]:
    # If one watch cannot be read, the others still get a verdict.
    taken: dict[Identity, Facts] = {}
    try:
        for facts in observer.take(look, batch):
            taken[facts.identity] = facts
        yield from taken.values()
    except OSError as error:
        yield from taken.values()
        left = [facts for facts in batch if facts.identity not in taken]
        failed, rest = (left, []) if look in _TOGETHER else (left[:1], left[1:])
        why = f"it could not be read: {error.strerror}"
        for facts in failed:
            yield facts._replace(unseen=(why, "run `irmapdb pre-dump`, which looks by other means"))
        if rest:
            yield from _taken(observer, look, rest)


_TOGETHER = {Look.OVERLAY, Look.SCAN, Look.SEARCH}
"""Looks for a whole batch: an error has no watch of its own."""


_IGNORES = "its ignore mask was set with FAN_MARK_IGNORE: a restore fails, or loses the mark"

_IGNORE_OTHERWISE = (
    "let the task set the ignore mask with FAN_MARK_IGNORED_MASK, or remove the mark before the "
    "dump"
)


def _check_watch(
    watch: Watch, comm: bytes, fstype: str | None, prediction: Prediction
) -> WatchCheck:
    if watch.mflags & FAN_MARK_IGNORE and prediction.outcome is not CriuOutcome.FAILS:
        prediction = prediction._replace(
            verdict=WatchVerdict.NO_RESTORE, why=_IGNORES, advice=_IGNORE_OTHERWISE
        )
    return WatchCheck(watch, comm, fstype, prediction)


def _check_mark(mark: Mark, comm: bytes, criu_view: CriuView) -> MarkCheck:
    if mark.kind is MarkKind.NAMESPACE:
        return MarkCheck(
            mark,
            comm,
            b"mount namespace %d" % mark.target,
            CriuOutcome.NO_PATH,
            "CRIU knows no marks on mount namespaces",
            "let the task set the mark again after the restore",
        )
    if mark.kind is MarkKind.FILESYSTEM:
        return MarkCheck(
            mark,
            comm,
            format_kdev(mark.target).encode(),
            CriuOutcome.NO_PATH,
            "CRIU leaves out marks on whole filesystems, without a message",
            "let the task set the mark again after the restore",
        )
    for view in criu_view.views:
        if view.mount.mnt_id == mark.target:
            return _check_mount_mark(mark, comm, view)
    return MarkCheck(
        mark,
        comm,
        b"mount %d" % mark.target,
        CriuOutcome.FAILS,
        "CRIU does not see the mount",
        "let the task remove the mark before the dump",
    )


def _check_mount_mark(mark: Mark, comm: bytes, view: CriuMount) -> MarkCheck:
    where = view.mount.mountpoint
    seen = view.root.mounts.by_mountpoint.get(where)
    if seen is None or seen.mnt_id != mark.target:
        return MarkCheck(
            mark,
            comm,
            where,
            CriuOutcome.WRONG_PATH,
            "a restore marks the mount that it finds at the place, and that is another one",
            "unmount what covers the mount, or let the task remove the mark before the dump",
        )
    if mark.mflags & FAN_MARK_IGNORE:
        return MarkCheck(mark, comm, where, CriuOutcome.PATH, _IGNORES, _IGNORE_OTHERWISE)
    return MarkCheck(mark, comm, where, CriuOutcome.PATH, "CRIU knows the mount", "")
