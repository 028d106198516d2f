"""Finds the message of CRIU that a line of a log is."""

from __future__ import annotations

import re
from functools import cache

from irmapdb.criu.explain.fsnotify_messages import FSNOTIFY
from irmapdb.criu.explain.irmap_messages import IRMAP, OTHERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.criu.explain.message_kinds import Message

__all__ = ["MESSAGES", "find_message"]

MESSAGES = (*FSNOTIFY, *IRMAP, *OTHERS)
"""In the order in which they are tried: the first that matches counts."""

_PREFIXES = {"fsnotify.c": b"fsnotify: ", "irmap.c": b"irmap: "}


def find_message(text: bytes, *, in_cache: bool) -> tuple[Message, re.Match[bytes]] | None:
    """The message that a text is, or None. `in_cache`: whether CRIU is reading irmap-cache."""
    part, start = _part_of(text)
    for message in _candidates(part, text[start : start + 1]):
        if message.name == "cache-empty" and not in_cache:
            continue
        if found := _compiled(message.pattern).match(text, start):
            return message, found
    return None


def _part_of(text: bytes) -> tuple[str, int]:
    # And where the message begins, behind the prefix and the tabs.
    for part, prefix in _PREFIXES.items():
        if text.startswith(prefix):
            rest = text[len(prefix) : len(prefix) + 8]
            return part, len(prefix) + len(rest) - len(rest.lstrip(b"\t"))
    return "", 0


@cache
def _candidates(part: str, first: bytes) -> tuple[Message, ...]:
    # A log has millions of lines, so each is compared only with messages of the same first letter.
    return tuple(
        one
        for one in MESSAGES
        if (one.part if one.part in _PREFIXES else "") == part
        and (not one.pattern[:1].isalpha() or one.pattern[:1] == first)
    )


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)
