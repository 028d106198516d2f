"""Finds the message of CRIU that a line of a log is."""

from __future__ import annotations

import re
from functools import cache

from irmapdb.criu.explain.fsnotify_messages import FSNOTIFY
from irmapdb.criu.explain.irmap_messages import IRMAP, OTHERS
from irmapdb.criu.explain.message_kinds import Role
from irmapdb.model import WatchKind
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from irmapdb.criu.explain.message_kinds import Message

__all__ = ["BEGIN_WATCH", "MESSAGES", "STEPS", "STEP_LINE", "find_message"]

MESSAGES = (*FSNOTIFY, *IRMAP, *OTHERS)
"""In the order in which they are tried: the first that matches counts."""

BEGIN_WATCH = {
    "inode": WatchKind.INOTIFY,
    "mark": WatchKind.FANOTIFY,
    "mount-mark": WatchKind.FANOTIFY,
    "restoring-wd": WatchKind.INOTIFY,
    "restoring-group": WatchKind.FANOTIFY,
}
"""Messages with which CRIU begins to work on a watch, and its kind."""

_PREFIXES = {"fsnotify.c": b"fsnotify: ", "irmap.c": b"irmap: "}
_TABS = re.compile(rb"\t{0,8}")
_LITERAL = re.compile(rb"(?:[A-Za-z ':](?![?*+{]))*")
"""The beginning of a pattern that has no special characters."""


def find_message(text: bytes, *, in_cache: bool) -> tuple[Message, re.Match[bytes]] | None:
    """The message that a text is, or None. `in_cache`: whether CRIU is reading irmap-cache."""
    part, start = _part_of(text)
    for literal, message, match in _candidates(part, text[start : start + 1]):
        if not text.startswith(literal, start) or (message.name == "cache-empty" and not in_cache):
            continue
        if found := match(text, start):
            return message, found
    return None


def _part_of(text: bytes) -> tuple[str, int]:
    # And where the message begins, behind the prefix and the tabs.
    for part, prefix in _PREFIXES.items():
        if text.startswith(prefix):
            tabs = _TABS.match(text, len(prefix))
            return part, len(prefix) if tabs is None else tabs.end()
    return "", 0


@cache
def _candidates(
    part: str, first: bytes
) -> tuple[tuple[bytes, Message, Callable[[bytes, int], re.Match[bytes] | None]], ...]:
    # A log has millions of lines, so each is compared only with messages of the same first letter,
    # and with the pattern only behind the same beginning.
    found = []
    for one in MESSAGES:
        if (one.part if one.part in _PREFIXES else "") == part:
            beginning = _LITERAL.match(one.pattern)
            literal = b"" if beginning is None else beginning[0]
            if literal[:1] in {b"", first}:
                found.append((literal, one, re.compile(one.pattern, re.DOTALL).match))
    return tuple(found)


_MANY = {"pre-cache", "cache-written", "queue", "checking", "entry-invalid", "scanning"}


class Step(Record):
    """A message with which CRIU reports its work, or with which nothing is lost."""

    name: str
    begins: bool
    """Whether CRIU begins with a watch."""
    tells: bool
    """Whether it has a part of a watch."""
    is_many: bool
    """Whether there is a line for each of many files or watches, and only the last one counts."""


def _step(message: Message) -> Step | None:
    if message.role not in {Role.STEP, Role.HARMLESS}:
        return None
    tells = re.search(rb"\(\?P<(?:dev|ino|wd|bytes|path)>", message.pattern) is not None
    return Step(message.name, message.name in BEGIN_WATCH, tells, message.name in _MANY)


def _line_pattern() -> bytes:
    # The patterns without their groups. None of them may match the end of a line, or a backslash,
    # with which a line may quote others. An empty group at the end of each tells which one it is:
    # `re` is fast if a pattern begins with a letter.
    other = rb"[^\n\\"

    def of(one: Message) -> bytes:
        plain = re.sub(rb"\(\?P<\w+>", b"(?:", one.pattern)
        return plain.replace(b"[^", other).replace(b".{", other + b"]{") + b"()"

    parts = (
        prefix + rb"\t{0,8}(?:%b)" % b"|".join(map(of, messages))
        for prefix, messages in zip(_PREFIXES.values(), (FSNOTIFY, IRMAP), strict=True)
    )
    head = (
        rb"\([0-9.]{9,12}\) (?: {0,6}[0-9]{1,10}: )?"
        rb"((?:Error|Warn) {1,2}\([\w./-]{1,64}:[0-9]{1,6}\): )?"
    )
    return head + rb"(?:%b)[^\n\\]*\n" % b"|".join(parts)


STEP_LINE = re.compile(_line_pattern(), re.MULTILINE)
"""A whole line with a time that is one of our messages. A large log has hardly any others. The
first group is its level. STEPS[lastindex] is its message; None if that is no step."""
STEPS = (None, None, *map(_step, (*FSNOTIFY, *IRMAP)))
