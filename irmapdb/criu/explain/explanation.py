"""Puts an explanation together: the watch that stopped CRIU, its file, the reason, the remedy."""

from __future__ import annotations

import os
import re
import shlex

from irmapdb.criu.check.version import parse_version
from irmapdb.criu.explain.engines import Engine, Help, engine_of, help_for, option_help, traces
from irmapdb.criu.explain.lines import Lines
from irmapdb.criu.explain.message_kinds import Message, Remedy, Role
from irmapdb.criu.explain.messages import find_message
from irmapdb.criu.explain.other_causes import OtherCause
from irmapdb.criu.explain.paths import Finder, FoundPath, Origin
from irmapdb.criu.explain.reader import Action, LogFacts, Outcome, Seen, WatchFacts, read_log
from irmapdb.errors import ImageError, UsageError
from irmapdb.model import format_kdev, printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from irmapdb.model import InodeKey

__all__ = ["ExplainOptions", "Explanation", "Finding", "explain"]

_MOST_UNKNOWN = 3
_SAME_RUN_S = 60
"""CRIU writes both at the end of a dump."""
_LONGEST_PATH_BYTES = 4095
_OVERLAY = 0xF8
_BTRFS = {0x4D, 0x4E, 0x4F}


class ExplainOptions(Record):
    """The options of `explain`."""

    name: str
    """The name of the log in messages, printable."""
    log: bytes | None
    """The path of the log; None for standard input."""
    work_dir: bytes | None = None
    """CRIU's work dir; None: the directory of the log."""
    database: bytes | None = None
    """None: irmap.db in the work dir, if it exists."""
    engine: Engine | None = None
    """None: guessed from the log."""
    machine: bool = True
    """Whether to look for watched inodes on this machine."""


class Finding(Record):
    """One message, and its explanation."""

    name: str
    """The kind: the name of a message, of another cause, or `unknown`."""
    topic: str
    """`watch`, `irmap-cache`, `action script`; else the subject: `TCP connection`."""
    ours: bool
    """Whether it is about watches, marks, irmap-cache or the hook."""
    stops: bool
    """Whether CRIU ended with it."""
    line: int
    text: bytes
    why: str
    help: Help
    watch: WatchFacts | None = None
    file: FoundPath | None = None
    find_out: str = ""
    """How to find the watch or its path, if one of them is not known."""


class Explanation(Record):
    """The result."""

    name: str
    facts: LogFacts
    engine: Engine | None
    engine_is_given: bool
    findings: tuple[Finding, ...]
    without_path: int | None
    """The watches that were dumped without a path; None if the log does not show that."""
    notes: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the log shows a success, and each watch has a path as far as the log shows."""
        return self.facts.outcome == Outcome.SUCCESS and not self.without_path


def explain(chunks: Iterable[bytes], options: ExplainOptions) -> Explanation:
    """Read a log as a stream, and explain it.

    Raises FileError for a compressed log, ImageError if it has no line of CRIU, and DatabaseError
    for a database in `options` that cannot be read.
    """
    facts = read_log(Lines(chunks, options.name))
    if not facts.criu_lines and facts.outcome == Outcome.UNKNOWN:
        raise _no_log(facts, options.name)
    path = None if options.log is None else os.path.abspath(options.log)
    own = set() if path is None else traces(path, own=False)
    engine = options.engine or engine_of(facts.engines | own)
    work = options.work_dir
    if work is None and options.log is not None:
        work = os.path.dirname(options.log) or b"."
    facts, problem = _with_statistics(facts, options.log, work)
    chosen = [_of_cache(one, work) for one in _chosen(facts)]
    database = options.database or (None if work is None else os.path.join(work, b"irmap.db"))
    finder = Finder(
        database=database,
        work=work,
        machine=options.machine,
        must_open=options.database is not None,
    )
    paths = finder.find([one.watch for one in chosen if one.watch is not None])
    maker = _Maker(facts, engine, work, paths)
    without_path = _without_path(facts)
    findings = [maker.finding(one) for one in chosen]
    if without_path:
        findings.append(maker.without_path(without_path))
    if not findings and facts.outcome != Outcome.SUCCESS:
        findings.append(maker.no_end())
    return Explanation(
        name=options.name,
        facts=facts,
        engine=engine,
        engine_is_given=options.engine is not None,
        findings=tuple(findings),
        without_path=without_path,
        notes=(*_notes(facts), *problem, *finder.notes),
    )


def _with_statistics(
    facts: LogFacts, log: bytes | None, work: bytes | None
) -> tuple[LogFacts, list[str]]:
    """With the times of `stats-dump`, if it is of this dump; and remarks."""
    if log is None or work is None or facts.irmap_us is not None:
        return facts, []
    if (facts.action, facts.outcome) != (Action.DUMP, Outcome.SUCCESS):
        return facts, []
    try:
        ended_s = os.stat(log).st_mtime
    except OSError:
        return facts, []
    from irmapdb.criu.dump_stats import read_dump_stats  # noqa: PLC0415 it imports protobuf

    found = read_dump_stats(work, ended_s - _SAME_RUN_S, ended_s + _SAME_RUN_S)
    irmap_us, frozen_us = (found.figures.get(name) for name in ("irmap_resolve_us", "frozen_us"))
    facts = facts._replace(irmap_us=irmap_us, frozen_us=frozen_us)
    return facts, [found.problem] if found.problem else []


def _no_log(facts: LogFacts, name: str) -> ImageError:
    if not facts.lines:
        return ImageError(
            f"{name}: the log is empty",
            advice="with -v0 CRIU writes no errors: run it again with -v4",
        )
    return ImageError(
        f"{name}: no line of it is from CRIU",
        advice="give CRIU's dump.log or restore.log, or the output of the engine that quotes it",
    )


def _chosen(facts: LogFacts) -> list[Seen]:
    """The lines to explain: the error that stopped CRIU first, then the lost watches."""
    losses = [one for one in facts.seen if _role(one) is Role.LOSS]
    if facts.outcome == Outcome.SUCCESS:
        return _once(losses)
    return [*_once(_stops(facts)), *_once(losses)]


def _stops(facts: LogFacts) -> list[Seen]:
    # One error has several lines, and its consequences often look like other errors. Each error of
    # a watch ends a run, so no earlier error ended it.
    fatal = [one for one in facts.seen if _role(one) in {Role.CAUSE, Role.NAMES}]
    watches = [one for one in fatal if isinstance(one.cause, Message) and one.cause.is_ours]
    if watches:
        return watches[:1]
    errors = [one for one in facts.seen if _role(one) is not Role.LOSS]
    real = [one for one in errors if not getattr(one.cause, "is_harmless", False)]
    known = [one for one in real if one.cause is not None]
    grave = [one for one in known if not getattr(one.cause, "is_weak", False)]
    if grave or not real:
        return (grave or errors)[:1]
    # A weak one follows from an unknown one before it.
    if real[0].cause is None:
        return [one for one in real if one.cause is None][:_MOST_UNKNOWN]
    return known[-1:]


def _of_cache(one: Seen, work: bytes | None) -> Seen:
    # With less than -v3 this error does not name its file: look whether irmap-cache is empty.
    if work is None or not one.text.startswith(b"Unexpected EOF"):
        return one
    try:
        status = os.stat(os.path.join(work, b"irmap-cache"))
    except OSError:
        return one
    found = find_message(one.text, in_cache=True) if status.st_size == 0 else None
    return one if found is None else one._replace(cause=found[0])


def _role(one: Seen) -> Role | None:
    return one.cause.role if isinstance(one.cause, Message) else None


def _once(seen: Iterable[Seen]) -> list[Seen]:
    # One of each kind and inode.
    first: dict[object, Seen] = {}
    for one in seen:
        key = one.watch.key if one.watch is not None else None
        name = one.cause.name if one.cause is not None else one.text
        first.setdefault((name, key), one)
    return list(first.values())


def _without_path(facts: LogFacts) -> int | None:
    # CRIU reports it at no verbosity: with -v4 the line with the path is missing.
    if not facts.has_debug or facts.action != Action.DUMP or facts.outcome != Outcome.SUCCESS:
        return None
    watches = facts.counts["inode"] + facts.counts["mark"]
    return max(watches - facts.counts["path-recorded"], 0)


def _notes(facts: LogFacts) -> list[str]:
    notes = []
    if facts.runs > 1:
        notes.append(f"the log has {facts.runs:,} runs of CRIU; this is the last one")
    if facts.more_seen:
        notes.append(f"{facts.more_seen:,} more lines were not explained")
    if facts.outcome == Outcome.UNKNOWN and facts.criu_lines:
        notes.append("the log has no end: it was cut off, or CRIU is running or was killed")
    return notes


class _Maker:
    def __init__(
        self,
        facts: LogFacts,
        engine: Engine | None,
        work: bytes | None,
        paths: Mapping[InodeKey, FoundPath],
    ) -> None:
        self._facts = facts
        self._engine = engine
        self._work = work
        self._paths = paths

    def finding(self, seen: Seen) -> Finding:
        cause = seen.cause
        if isinstance(cause, OtherCause):
            return Finding(
                cause.name,
                cause.topic,
                ours=False,
                stops=True,
                line=seen.line,
                text=seen.text,
                why=cause.meaning,
                help=option_help(cause.remedy, cause.option, self._engine),
            )
        if cause is None:
            return self._unknown(seen)
        watch = self._known_watch(seen.watch)
        key = watch.key if watch is not None else None
        file = self._paths.get(key) if key is not None else None
        why, remedy = self._reason(cause, seen, file)
        return Finding(
            cause.name,
            "watch" if cause.is_ours else _TOPICS[cause.part],
            ours=True,
            stops=cause.role is not Role.LOSS,
            line=seen.line,
            text=seen.text,
            why=why,
            help=self._filled(help_for(remedy, self._engine)),
            watch=watch,
            file=file,
            find_out=self._find_out(watch, file) if cause.role is not Role.LOSS else "",
        )

    def without_path(self, number: int) -> Finding:
        """Of a dump that passed."""
        watches = "1 watch was" if number == 1 else f"{number:,} watches were"
        return Finding(
            "dumped-without-path",
            "watch",
            ours=True,
            stops=False,
            line=self._facts.lines,
            text=b"",
            why=f"{watches} dumped without a path: the handle opened, but the kernel had no name "
            "cached. A restore works only on the same filesystem, and only if the root task was in "
            "a mount namespace of its own",
            help=self._filled(help_for(Remedy.HOOK, self._engine)),
        )

    def no_end(self) -> Finding:
        """Of a log without an error and without an end."""
        facts = self._facts
        if facts.log_file is not None:
            log = printable(facts.log_file)
            text = "this is the message of an engine, and has no details: explain CRIU's log"
            command = f"irmapdb explain {shlex.quote(log)}"
        elif facts.outcome == Outcome.FAILED:
            text, command = "the log has no reason: dump again, with -v4", ""
        else:
            text, command = "look at the end of the log, or dump again with -v4", ""
        failed = facts.outcome == Outcome.FAILED
        why = "CRIU failed, and its reason is not in the log" if failed else "the log has no end"
        return Finding(
            "no-reason" if failed else "no-end",
            "log",
            ours=False,
            stops=failed,
            line=facts.lines,
            text=b"",
            why=why,
            help=Help(text, command),
        )

    def _unknown(self, seen: Seen) -> Finding:
        return Finding(
            "unknown",
            "unknown",
            ours=False,
            stops=True,
            line=seen.line,
            text=seen.text,
            why="irmapdb does not know this error. It is not about watches, marks, or irmap-cache",
            help=Help("search CRIU's issues for this text", ""),
        )

    def _reason(self, cause: Message, seen: Seen, file: FoundPath | None) -> tuple[str, Remedy]:
        watch = seen.watch or WatchFacts()
        if watch.last_name is not None and cause.name.startswith("no-path"):
            return _DELETED, Remedy.REMOVE_WATCH
        if cause.name in {"no-path", "wd-without-path"}:
            return _by_machine(file, watch) or self._no_path(cause, watch)
        why = cause.meaning
        if seen.why:
            why += f" ({printable(seen.why)})"
        if cause.name == "script-failed" and self._facts.hook is not None:
            why += f": {printable(self._facts.hook)}"
        return why, cause.remedy

    def _no_path(self, cause: Message, watch: WatchFacts) -> tuple[str, Remedy]:
        why = cause.meaning if cause.role is Role.CAUSE else _NO_PATH
        if watch.handle_type == _OVERLAY:
            why = _OVERLAY_NEW if _walks_overlays(self._facts.version) else _OVERLAY_OLD
        elif watch.opens:
            why = _FORCED
            if watch.handle_type in _BTRFS:
                return _FORCED_BTRFS, Remedy.NO_FORCE
        if self._facts.hook is None:
            return why, Remedy.HOOK
        hook = printable(self._facts.hook)
        if re.search(r"without a path|not done", hook):
            return f"{why}. The hook ran: {hook}", Remedy.HOOK_LOG
        return f"{why}. The hook ran: {hook}", Remedy.CHECK

    def _known_watch(self, watch: WatchFacts | None) -> WatchFacts | None:
        if watch is None or not any(value for value in watch):
            return None
        return watch

    def _find_out(self, watch: WatchFacts | None, file: FoundPath | None) -> str:
        known = file.path if file is not None else None
        if watch is not None and (watch.path or watch.last_name or known):
            return ""
        if watch is None or watch.key is None:
            return (
                "the log does not name the inode: dump again with -v4, or ask "
                f"`{self._filled(_CHECK).command}` while the task runs"
            )
        return (
            f"`{self._filled(_PS).command}` while the task runs, or `find MOUNTPOINT -xdev -inum "
            f"{watch.key.ino}` for the mount of device {format_kdev(watch.key.kdev)}"
        )

    def _filled(self, help_: Help) -> Help:
        # A number, or a directory that the caller named: nothing of the log gets into a command.
        command = help_.command
        if self._facts.root_pid is not None:
            command = command.replace("PID", str(self._facts.root_pid))
        if self._work is not None:
            command = command.replace("DIR", shlex.quote(printable(self._work)))
        return Help(help_.text, command)


def _walks_overlays(version: str | None) -> bool:
    # The version that the log begins with.
    try:
        return version is not None and parse_version(version).walks_overlays
    except UsageError:
        return False


def _by_machine(file: FoundPath | None, watch: WatchFacts) -> tuple[str, Remedy] | None:
    """The reason that irmapdb sees on this machine, where irmap-cache cannot help."""
    if file is None or file.pid is None:
        return None
    if file.deleted:
        return _DELETED, Remedy.REMOVE_WATCH
    if file.mntns:
        return _OTHER_NAMESPACE, Remedy.MOUNT
    if file.origin is not Origin.TASK:
        return (_PROC_SYS, Remedy.REMOVE_WATCH) if file.fstype == "proc" else None
    if file.path is not None and len(file.path) > _LONGEST_PATH_BYTES:
        return _TOO_LONG, Remedy.REMOVE_WATCH
    if not file.is_accepted and watch.handle_type not in _BTRFS and file.fstype == "overlay":
        return _LAYERS, Remedy.LAYERS
    return None


_TOPICS = {"image.c": "irmap-cache", "action-scripts.c": "action script"}
_CHECK = Help("", "irmapdb check -t PID")
_PS = Help("", "irmapdb ps -t PID --search")
_DELETED = "the watched file was deleted, so it has no path any more"
_OTHER_NAMESPACE = (
    "only another mount namespace of the tree has the file mounted, and CRIU looks in that of the "
    "root task"
)
_PROC_SYS = (
    "the file is on procfs, and the kernel does not know its name any more. A file below /proc/sys "
    "gets a new inode at each lookup"
)
_TOO_LONG = "the path is longer than 4,095 bytes, and the kernel does not give CRIU such a name"
_LAYERS = (
    "the file is on an overlay with layers on several filesystems. CRIU compares the device of the "
    "layer with that of the watch: they differ, so it accepts no entry of irmap-cache"
)
_NO_PATH = "CRIU found no path for this watch"
_OVERLAY_OLD = (
    "the file is on overlayfs, and CRIU before 4.3 cannot open a handle of overlayfs. So only an "
    "entry in irmap-cache can give the path, and there is none that CRIU accepts"
)
_OVERLAY_NEW = (
    "the file is on overlayfs. CRIU 4.3 walked the overlay and did not find it: the file was "
    "deleted, or the layers are on two filesystems (mount with xino=on)"
)
_FORCED = (
    "--force-irmap is set, so CRIU does not use the handle alone, and neither irmap-cache nor its "
    "scan has the inode"
)
_FORCED_BTRFS = (
    "the file is on btrfs, and --force-irmap is set. CRIU compares the device of the subvolume "
    "with that of the watch: they differ, so it accepts no entry of irmap-cache"
)
