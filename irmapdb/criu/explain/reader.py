"""Collects the facts of a run of CRIU from the lines of its log.

It keeps the last run of a log with several. Of that run it keeps at most 64 findings of each kind
(watches that are lost, errors of watches, other errors), a lost watch once, and counts the others:
the memory does not grow with the log.
"""

from __future__ import annotations

import re
from collections import Counter

from irmapdb.criu.explain.engines import Engine, traces
from irmapdb.criu.explain.lines import MOST_STEPS, StepLines, text_of
from irmapdb.criu.explain.message_kinds import Message, Role
from irmapdb.criu.explain.messages import BEGIN_WATCH, find_message
from irmapdb.criu.explain.other_causes import OtherCause, find_consequence, find_other
from irmapdb.model import FileHandle, InodeKey, WatchKind
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from irmapdb.criu.explain.lines import Lines, LogLine

__all__ = ["Action", "LogFacts", "Outcome", "Seen", "WatchFacts", "read_log"]

_MOST_FINDINGS = 64
_MOST_TRACED_LINES = 100_000
_TEXT_BYTES = 512
_HANDLE_SHOWN_BYTES = 16
"""CRIU's log has only the first two words of a handle."""


class Action:
    """The action of the run of CRIU."""

    DUMP = "dump"
    PRE_DUMP = "pre-dump"
    RESTORE = "restore"


class Outcome:
    """The end of the run."""

    SUCCESS = "success"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The log has no end: it was cut off, or CRIU was killed, or -v0 was given."""


class WatchFacts(Record):
    """The parts of a watch that a log has."""

    kind: WatchKind | None = None
    wd: int | None = None
    key: InodeKey | None = None
    handle: FileHandle | None = None
    """The type, and the bytes that the log has: the first 16."""
    is_whole_handle: bool = False
    pid: int | None = None
    """The task, as CRIU's pid namespace counts."""
    comm: bytes | None = None
    fd: int | None = None
    path: bytes | None = None
    """The path in the message."""
    opens: bool = False
    """Whether the handle opened, but CRIU got no path for it."""
    last_name: bytes | None = None
    """The path that the file had, if it was deleted while it was watched."""

    @property
    def handle_type(self) -> int | None:
        """The type of the handle, which most filesystems have for themselves."""
        return None if self.handle is None else self.handle.type


class Seen(Record):
    """A line that is worth an explanation."""

    line: int
    """The number of the line in the input."""
    text: bytes
    """Its text, cut to 512 bytes."""
    cause: Message | OtherCause | None
    """None for an error that irmapdb does not know."""
    watch: WatchFacts | None = None
    """None if it is not about a watch."""
    why: bytes = b""
    """The kernel's reason in the message."""


class LogFacts(Record):
    """The facts of one run of CRIU."""

    lines: int
    """All lines of the input."""
    criu_lines: int
    """The lines that look like lines of CRIU."""
    runs: int
    """How many runs the log has; the other facts are those of the last."""
    version: str | None
    action: str | None
    outcome: str
    engines: frozenset[Engine]
    """Those with a trace in the log."""
    root_pid: int | None
    root_comm: bytes | None
    counts: Counter[str]
    """The number of lines of each of our messages, by name."""
    seen: tuple[Seen, ...]
    more_seen: int
    """The number of findings that were not kept."""
    hook: bytes | None
    """The last line of irmapdb's hook."""
    log_file: bytes | None
    """The log that an engine's message names."""
    irmap_us: int | None
    """The time that irmap took, if CRIU printed its statistics."""
    frozen_us: int | None
    has_debug: bool
    """Whether the log has the details of -v4."""


def read_log(lines: Lines) -> LogFacts:
    """Collect the facts. It reads all lines once."""
    reader = _Reader()
    for part in lines:
        if isinstance(part, StepLines):
            reader.add_steps(part)
        else:
            reader.add(part)
    return reader.facts(lines)


_NUMBER = rb"(\d{1,10})"
_VERSION = re.compile(rb"Version: ([0-9][\w.~+-]{0,30}) \(gitid")
_BEGIN = re.compile(rb"Dumping processes \(pid: " + _NUMBER + rb" comm: (.{0,64})\)", re.DOTALL)
_TASK = re.compile(rb"(?:Pre-d|D)umping task \(pid: " + _NUMBER + rb" comm: (.{0,64})\)", re.DOTALL)
_FDINFO = re.compile(_NUMBER + rb" fdinfo " + _NUMBER + rb": ")
_ENDS = (
    (b"Dumping finished successfully", Action.DUMP, Outcome.SUCCESS),
    (b"Pre-dumping finished successfully", Action.PRE_DUMP, Outcome.SUCCESS),
    (b"Restore finished successfully", Action.RESTORE, Outcome.SUCCESS),
    (b"Dumping FAILED", Action.DUMP, Outcome.FAILED),
    (b"Pre-dumping FAILED", Action.PRE_DUMP, Outcome.FAILED),
    (b"Restoring FAILED", Action.RESTORE, Outcome.FAILED),
)
_ACTIONS = (
    (b"Pre-dumping tasks' memory", Action.PRE_DUMP),
    (b"Pre-dumping task ", Action.PRE_DUMP),
    (b"Restoring namespaces", Action.RESTORE),
    (b"Restoring processes", Action.RESTORE),
)
_STATS = re.compile(rb"(IRMAP resolve|Frozen) time: (\d{1,15}) us")
_GENERAL = re.compile(
    rb"Version: |(?:Pre-d|D)umping |Restor|\d{1,10} fdinfo |(?:IRMAP resolve|Frozen) time: "
    rb"|irmapdb-hook: "
)
"""The beginning of each line that any run has."""
_REASON = re.compile(rb": ([A-Z][^:\n]{2,80})\Z")
"""The kernel's word for an error number, at the end of a message."""
_HOOK = b"irmapdb-hook: "
_LOG_FILE = re.compile(
    # The word is not given back: to try each of its ends would take long.
    rb"(?:log file:? |path= ?|CRIU logfile |see the log )(/[^\s\"\\]{1,4096}+)"
)
_ENGINE_ERROR = re.compile(rb"criu failed: type |CRIU (?:checkpointing|restoring) failed")
_OF_ENGINE = re.compile(_ENGINE_ERROR.pattern + rb"|log file|path= ?/|CRIU logfile /|see the log /")
"""A part of each line of an engine that `_take_rest` reads."""
_OF_RESTORE = ("restore", "add-watch", "next-wd", "wd-unsorted", "instance-", "group-", "collected")
_ASK_IRMAP = {"resolving", "checking", "queue"}
_CACHE_STEPS = {"searching", "cache-opened", "loading", "pre-cache"}
_IS_DELETED = b" (deleted)"
"""As the kernel ends the name of such a file: d_path() of its fs/d_path.c."""
_DEBUG = {"opening", "trying", "handle-opens", "path-recorded", "link"}


class _Kept:
    """The lines that are worth an explanation, up to the limits."""

    def __init__(self) -> None:
        self._losses: dict[object, tuple[int, Seen]] = {}
        self._causes: list[tuple[int, Seen]] = []
        self._others: list[tuple[int, Seen]] = []
        self._last_cause: int | None = None
        """Its place in `_causes`; -1: it was not kept; None: there is none."""
        self._number = 0
        self.more = 0
        """The number of those that were not kept."""

    def in_order(self) -> tuple[Seen, ...]:
        every = [*self._losses.values(), *self._causes, *self._others]
        return tuple(seen for _, seen in sorted(every))

    def has_room(self, role: Role | None) -> bool:
        """Whether one more is kept. `role`: None for an error that is no message of ours."""
        lists = {None: self._others, Role.LOSS: self._losses}
        return len(lists.get(role, self._causes)) < _MOST_FINDINGS

    def leave_out(self, role: Role | None) -> None:
        """Count one for which there is no room."""
        self.more += 1
        if role is Role.CAUSE:
            self._last_cause = -1

    def add(self, seen: Seen) -> None:
        """Keep one; `has_room` was asked before."""
        self._number += 1
        numbered = self._number, seen
        if not isinstance(seen.cause, Message):
            self._others.append(numbered)
        elif seen.cause.role is Role.LOSS:
            self._losses.setdefault((seen.cause.name, seen.watch and seen.watch.key), numbered)
        else:
            if seen.cause.role is Role.CAUSE:
                self._last_cause = len(self._causes)
            self._causes.append(numbered)

    def name_last_cause(self, watch: WatchFacts) -> bool:
        """Set the watch of the last cause; False if there is none."""
        if self._last_cause is not None and self._last_cause >= 0:
            number, seen = self._causes[self._last_cause]
            named = watch._replace(path=seen.watch.path if seen.watch else None)
            self._causes[self._last_cause] = number, seen._replace(watch=named)
        return self._last_cause is not None


class _Reader:
    def __init__(self) -> None:
        self._criu_lines = self._runs = self._traced = 0
        self._engines: set[Engine] = set()
        self._log_file: bytes | None = None
        self._begin()

    def _begin(self) -> None:
        self._version: str | None = None
        self._action: str | None = None
        self._outcome = Outcome.UNKNOWN
        self._root: tuple[int, bytes] | None = None
        self._counts: Counter[str] = Counter()
        self._kept = _Kept()
        self._hook: bytes | None = None
        self._times_us: dict[bytes, int] = {}
        self._task: tuple[int, bytes] | None = None
        self._watch: dict[str, Any] = {}
        """The known fields of WatchFacts, without those in `_steps`."""
        self._steps: list[bytes] = []
        """The last lines about the watch, which are read if a finding needs them: there can be
        millions of watches."""
        self._in_cache = False

    def facts(self, lines: Lines) -> LogFacts:
        root_pid, root_comm = self._root or (None, None)
        return LogFacts(
            lines=lines.number,
            criu_lines=max(self._criu_lines, lines.own),
            runs=self._runs,
            version=self._version,
            action=self._action,
            outcome=self._outcome,
            engines=frozenset(self._engines),
            root_pid=root_pid,
            root_comm=root_comm,
            counts=self._counts,
            seen=self._kept.in_order(),
            more_seen=self._kept.more,
            hook=self._hook,
            log_file=self._log_file,
            irmap_us=self._times_us.get(b"IRMAP resolve"),
            frozen_us=self._times_us.get(b"Frozen"),
            has_debug=any(self._counts[name] for name in _DEBUG),
        )

    def add_steps(self, steps: StepLines) -> None:
        self._traced += sum(steps.counts.values())
        self._criu_lines += sum(steps.counts.values())
        self._runs = self._runs or 1
        self._counts.update(steps.counts)
        self._in_cache = steps.last in _CACHE_STEPS
        if self._action is None and any(name.startswith(_OF_RESTORE) for name in steps.counts):
            self._action = Action.RESTORE
        self._add_about(steps.about, begins=steps.begins)

    def _add_about(self, lines: Iterable[bytes], *, begins: bool) -> None:
        if begins:  # which leaves nothing of the lines before
            self._steps.clear()
        elif len(self._steps) >= MOST_STEPS:
            self._read_steps()
        self._steps.extend(lines)

    def add(self, line: LogLine) -> None:
        text = line.text
        if self._traced < _MOST_TRACED_LINES:
            self._traced += 1
            self._engines |= traces(text, own=line.own)
        if found := find_message(text, in_cache=self._in_cache):
            self._criu_lines += 1
            self._runs = self._runs or 1
            self._take(line, *found)
            return
        if line.level:
            self._criu_lines += 1
            self._runs = self._runs or 1
            self._in_cache = False
        if self._take_general(text) or line.level != b"Error":
            return
        if find_consequence(text):
            return
        if self._kept.has_room(None):
            self._kept.add(Seen(line.number, text[:_TEXT_BYTES], find_other(text)))
        else:
            self._kept.leave_out(None)

    def _take_general(self, text: bytes) -> bool:
        """Whether it is one of the lines that any run has."""
        if _GENERAL.match(text) is None:
            return self._take_rest(text)
        for words, action, outcome in _ENDS:
            if text.startswith(words):
                self._criu_lines += 1
                self._runs = self._runs or 1
                self._action, self._outcome = action, outcome
                return True
        if found := _VERSION.match(text):
            self._begin()
            self._runs += 1
            self._criu_lines += 1
            self._version = found[1].decode("ascii", "replace")
        elif found := _BEGIN.match(text):
            self._root = int(found[1]), found[2]
            self._action = self._action or Action.DUMP
        elif found := _TASK.match(text):
            self._task = int(found[1]), found[2]
            self._begin_with(pid=self._task[0], comm=found[2])
            self._action = self._action or Action.DUMP
        elif found := _FDINFO.match(text):
            pid, fd = int(found[1]), int(found[2])
            comm = self._task[1] if self._task and self._task[0] == pid else None
            self._begin_with(pid=pid, comm=comm, fd=fd)
        elif found := _STATS.match(text):
            self._times_us[found[1]] = int(found[2])
        elif text.startswith(_HOOK):
            self._hook = text[:_TEXT_BYTES]
        else:
            return self._take_rest(text)
        return True

    def _begin_with(self, **known: Any) -> None:  # noqa: ANN401 fields of WatchFacts
        self._watch = known
        self._steps.clear()

    def _take_rest(self, text: bytes) -> bool:
        for words, action in _ACTIONS:
            if text.startswith(words):
                self._criu_lines += 1
                self._action = action
                return True
        if _OF_ENGINE.search(text) is None:
            return False
        self._log_file = _log_file(text) or self._log_file
        if _ENGINE_ERROR.search(text):
            self._runs = self._runs or 1
            self._outcome = Outcome.FAILED
        return False

    def _take(self, line: LogLine, message: Message, found: re.Match[bytes]) -> None:
        self._counts[message.name] += 1
        self._in_cache = message.name in _CACHE_STEPS
        if self._action is None and message.name.startswith(_OF_RESTORE):
            self._action = Action.RESTORE
        if message.is_ours:
            self._add_about((line.text,), begins=message.name in BEGIN_WATCH)
        role = message.role
        if role is Role.NAMES:
            self._name(line, message)
        elif role is Role.CAUSE or role is Role.LOSS:
            if self._kept.has_room(role):
                self._kept.add(self._seen(line, message, found))
            else:
                self._kept.leave_out(role)

    def _seen(self, line: LogLine, message: Message, found: re.Match[bytes]) -> Seen:
        self._read_steps()
        watch = WatchFacts(**self._watch) if message.is_ours else None
        path = found.groupdict().get("path")
        if watch is not None and path is not None:
            watch = watch._replace(path=_absolute(path))
        reason = _REASON.search(line.text, found.start())
        why = reason[1] if reason and line.level == b"Error" else b""
        return Seen(line.number, line.text[:_TEXT_BYTES], message, watch, why)

    def _read_steps(self) -> None:
        for line in self._steps:
            if found := find_message(text_of(line), in_cache=False):
                named = found[1].groupdict().items()
                self._know(found[0], {key: value for key, value in named if value is not None})
        self._steps.clear()

    def _know(self, message: Message, named: dict[str, bytes]) -> None:
        # Remember the watch that CRIU works on.
        name = message.name
        known = self._watch
        key = _key(named)
        if name in BEGIN_WATCH or (name in _ASK_IRMAP and key != known.get("key")):
            kept = ("kind", "pid", "comm", "fd")
            known = self._watch = {part: known[part] for part in kept if part in known}
        if name == "path-hint":
            known["path"] = _absolute(named["path"])
        elif name in {"link", "tried-path"}:
            known["opens"] = True
            if named["path"].endswith(_IS_DELETED):
                known["last_name"] = _absolute(named["path"].removesuffix(_IS_DELETED))
        elif name == "handle":
            size_bytes = int(named["bytes"], 16)
            known["handle"] = _handle(named, size_bytes)
            known["is_whole_handle"] = size_bytes <= _HANDLE_SHOWN_BYTES
        if key is not None:
            known["key"] = key
        if "wd" in named:
            known["wd"] = int(named["wd"], 16)
            known["kind"] = WatchKind.INOTIFY
        if name in BEGIN_WATCH:
            known["kind"] = BEGIN_WATCH[name]

    def _name(self, line: LogLine, message: Message) -> None:
        # The watch of the cause before it; without one, this line is all that there is.
        self._read_steps()
        watch = WatchFacts(**self._watch)
        if self._kept.name_last_cause(watch):
            return
        if self._kept.has_room(message.role):
            self._kept.add(Seen(line.number, line.text[:_TEXT_BYTES], message, watch))
        else:
            self._kept.leave_out(message.role)


def _log_file(text: bytes) -> bytes | None:
    for found in _LOG_FILE.finditer(text):
        name, end, _ = found[1].rpartition(b".log")
        if len(name) > 1:  # more than the slash
            return name + end
    return None


def _absolute(path: bytes) -> bytes:
    # CRIU prints many paths relative to the root: `srv/a`, `./srv/a`.
    path = path.removeprefix(b".")
    return path if path.startswith(b"/") else b"/" + path


def _key(named: dict[str, bytes]) -> InodeKey | None:
    if "dev" in named and "ino" in named:
        return InodeKey(int(named["dev"], 16), int(named["ino"], 16))
    return None


def _handle(named: dict[str, bytes], size_bytes: int) -> FileHandle:
    words = (int(named[name], 16).to_bytes(8, "little") for name in ("low", "high"))
    return FileHandle(int(named["type"], 16), b"".join(words)[:size_bytes])
