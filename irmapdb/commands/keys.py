"""Parses the keys of an inode: `fe00000:2e3`, `254:0 739`, a line of CRIU's log, a path."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from irmapdb.errors import UsageError
from irmapdb.model import DEVICE, InodeKey, from_printable, parse_kdev, printable
from irmapdb.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Key", "parse_keys", "spellings"]

_DEV, _INO = r"(?:0x)?([0-9a-f]{1,8})", r"(?:0x)?([0-9a-f]{1,16})"
_HEX = f"{_DEV}:{_INO}"
_IN_HEX = re.compile(_HEX, re.IGNORECASE)
_INODE = re.compile(r"\d{1,20}|0x[0-9a-f]{1,16}", re.IGNORECASE | re.ASCII)

# CRIU's log: "(00.012345)   1234: Warn  (criu/fsnotify.c:281): fsnotify: …", any part is optional.
_LOG_PREFIX = re.compile(
    r"\s*(?:\(\d+\.\d+\)\s*)?(?:\d+:\s+)?(?:(?:Error|Warn)\s+\([^()]*\):\s*)?"
    r"(?:(?:irmap|fsnotify):\s*)?",
    re.ASCII,
)
_LOG_INODES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"Resolving {_HEX} path\s*",
        rf"Handle {_HEX} (?:cannot be opened|is openable)\s*",
        rf"(?:checking|Failed to resolve) {_HEX}\s*",
        rf"Queue {_HEX} for pre-dump\s*",
        rf"{_HEX} is invalid\s*",
        rf"(?:Pre-cache|Irmap cache) {_HEX} -> .*",
        rf"Restore (?:inotify|fanotify) watch for {_HEX} \(.*",
        rf"(?:wd: wd 0x[0-9a-f]+|mark:)\s+s_dev\s+{_DEV}\s+i_ino\s+{_INO}.*",
        # CRIU 4.3 ends each message about a watch like this; a path before it may have brackets.
        rf"(?:Can't|Failed to|Unable to|Unsorted) .*\bdev {_DEV} ino {_INO}(?: mask \S+)?\).*",
    )
]
_LOG_PATH = re.compile(
    r"(?:Dumping (/.*) as path for handle|Found (/.*) in cache|Scanned (/.*)"
    r"|Revalidate stat for (/.*)|Unable to open (/.*?)(?:: [^/]*)?)\s*"
)
_LOG_NEITHER = re.compile(
    r"Opening fhandle |\[fhandle\]|Can't dump that handle|Can't open file handle for"
    r"|Unable to open \(null\)|mark: s_dev"
)
# A line of /proc/PID/fdinfo/FD: proc_pid_fdinfo(5).
_FDINFO = re.compile(
    r"\s*(?:inotify wd:[0-9a-f]+|fanotify) ino:([0-9a-f]{1,16}) sdev:([0-9a-f]{1,8})\b.*"
)

_ADVICE = "write fe00000:2e3 as CRIU's log has it, 254:0 739, 739, or /the/path"


class Key(Record):
    """One key: one of the last three is not None."""

    text: str
    key: InodeKey | None = None
    ino: int | None = None
    path: bytes | None = None

    @property
    def is_like_a_device(self) -> bool:
        """Whether it was read as CRIU's hex, but may also be only a device."""
        return self.key is not None and re.fullmatch(DEVICE, self.text) is not None


def parse_keys(arguments: Sequence[str]) -> Iterator[Key]:
    """Parse the arguments into keys: two arguments may be one key. UsageError.

    An argument with blanks in it may be lines of CRIU's log, or of an fdinfo. Such a line may also
    be given without quotes, as several arguments.
    """
    words: list[str] = []
    for argument in arguments:
        if not argument.strip():
            raise UsageError("an empty key", advice="give an inode or a path")
        if len(argument.split()) > 1 and not argument.startswith("/"):
            yield from _parse_words(words)
            words = []
            yield from _parse_lines(argument)
        else:
            words.append(argument)
    yield from _parse_words(words)


def _parse_lines(text: str) -> Iterator[Key]:
    for line in filter(str.strip, text.splitlines()):
        found = _log_key(line)
        if found is None:
            yield from _parse_words(line.split())
        else:
            yield found


def _log_key(line: str) -> Key | None:
    """The key in a line of CRIU's log, or of an fdinfo; None if it is no such line."""
    if found := _FDINFO.fullmatch(line):
        return _log_inode(found[2], found[1])
    prefix = _LOG_PREFIX.match(line)
    said = line[prefix.end() :] if prefix else line
    for pattern in _LOG_INODES:
        if found := pattern.fullmatch(said):
            return _log_inode(found[1], found[2])
    if found := _LOG_PATH.fullmatch(said):
        path = next(filter(None, found.groups()))
        return Key(path, path=os.fsencode(path))
    if _LOG_NEITHER.match(said):
        message = f"{printable(os.fsencode(line.strip()))}: this line names no inode"
        advice = "give the line near it that has `Handle`, `Resolving`, or `s_dev` and `i_ino`"
        raise UsageError(message, advice=advice)
    return None


def _log_inode(kdev: str, ino: str) -> Key:
    key = InodeKey(int(kdev, 16), int(ino, 16))
    return Key(str(key), key=key)


def _parse_words(given: Sequence[str]) -> Iterator[Key]:
    # Path first: a path may contain anything.
    if given and not given[0].startswith("/") and (found := _log_key(" ".join(given))):
        yield found
        return
    words = list(given)
    while words:
        word = words.pop(0)
        if word.startswith("/"):
            # The kernel's paths end with no slash, a shell's completion may add one.
            yield Key(word, path=os.fsencode(word.rstrip("/") or "/"))
        elif re.fullmatch(DEVICE, word) and words and _INODE.fullmatch(words[0]):
            ino = words.pop(0)
            yield Key(f"{word} {ino}", key=InodeKey(_kdev(word), _number(ino)))
        elif _IN_HEX.fullmatch(word):
            yield _hex_key(word)
        elif _INODE.fullmatch(word):
            yield Key(word, ino=_number(word))
        else:
            message = f"{printable(os.fsencode(word))}: neither an inode nor a path from /"
            raise UsageError(message, advice=_ADVICE)


def _hex_key(word: str) -> Key:
    found = _IN_HEX.fullmatch(word)
    assert found is not None  # noqa: S101 - the caller has looked
    return Key(word, key=InodeKey(int(found[1], 16), int(found[2], 16)))


def _kdev(word: str) -> int:
    try:
        return parse_kdev(word)
    except ValueError as error:
        advice = "a device goes before an inode number, as in 254:0 739"
        raise UsageError(f"{word}: {error}", advice=advice) from error


def _number(word: str) -> int:
    number = int(word, 16) if word[:2].lower() == "0x" else int(word)
    if number >= 1 << 64:
        raise UsageError(f"{word}: larger than any inode number")
    return number


def spellings(path: bytes) -> Iterator[bytes]:
    """The path as given, and the path that our tables print in this form, if there is one."""
    yield path
    try:
        read = from_printable(os.fsdecode(path))
    except ValueError:  # it is not from a table
        return
    if read != path and b"\0" not in read:
        yield read
