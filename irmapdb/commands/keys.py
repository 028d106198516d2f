"""What people write for an inode: `fe00000:2e3`, `254:0 739`, a line of CRIU's log, a path."""

from __future__ import annotations

import os
import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from irmapdb.errors import UsageError
from irmapdb.model import InodeKey, format_kdev, kdev_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Key", "parse_keys", "spellings"]

_IN_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,8}):(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)
_DEVICE = re.compile(r"(\d{1,20}):(\d{1,20})", re.ASCII)
_INODE = re.compile(r"\d{1,20}|0x[0-9a-f]{1,16}", re.IGNORECASE | re.ASCII)
# "(00.012345)   1234: irmap: Resolving fe00000:2e3 path", CRIU's irmap.c and log.c.
_LOG_PREFIX = re.compile(r"\(\d+\.\d+\)|[\w-]+:")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([ntr\\]))")
_NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}
_C1 = range(0x80, 0xA0)


class Key(NamedTuple):
    """What is asked for: one of the last three is not None."""

    text: str
    key: InodeKey | None = None
    ino: int | None = None
    path: bytes | None = None

    @property
    def is_like_a_device(self) -> bool:
        """Whether it was read as CRIU's hex, and could have been meant for a device alone."""
        return self.key is not None and _DEVICE.fullmatch(self.text) is not None


def parse_keys(arguments: Sequence[str]) -> Iterator[Key]:
    """The keys that the arguments are: two of them may be one key. UsageError."""
    words = _without_prefixes(_words(arguments))
    while words:
        word = words.pop(0)
        if word == "Resolving" and words[1:2] == ["path"] and _IN_HEX.fullmatch(words[0]):
            word = words.pop(0)
            words.pop(0)
            yield _hex_key(word)
        elif word.startswith("/"):
            # The kernel's paths end with no slash, a shell's completion may add one.
            yield Key(word, path=os.fsencode(word.rstrip("/") or "/"))
        elif _DEVICE.fullmatch(word) and words and _INODE.fullmatch(words[0]):
            ino = words.pop(0)
            yield Key(f"{word} {ino}", key=InodeKey(_kdev(word), _number(ino)))
        elif _IN_HEX.fullmatch(word):
            yield _hex_key(word)
        elif _INODE.fullmatch(word):
            yield Key(word, ino=_number(word))
        else:
            message = f"{word}: neither an inode nor a path from /"
            advice = "write fe00000:2e3 as CRIU's log has it, 254:0 739, 739, or /the/path"
            raise UsageError(message, advice=advice)


def _words(arguments: Sequence[str]) -> list[str]:
    words: list[str] = []
    for argument in arguments:
        if not argument.strip():
            message = "an empty key"
            raise UsageError(message, advice="give an inode or a path")
        words += [argument] if "/" in argument else argument.split()
    return words


def _without_prefixes(words: Iterable[str]) -> list[str]:
    """The same without what CRIU's log has before its message."""
    kept: list[str] = []
    for word in words:
        if word == "Resolving":
            while kept and _LOG_PREFIX.fullmatch(kept[-1]):
                kept.pop()
        kept.append(word)
    return kept


def _hex_key(word: str) -> Key:
    found = _IN_HEX.fullmatch(word)
    assert found is not None  # noqa: S101 - the caller has looked
    return Key(word, key=InodeKey(int(found[1], 16), int(found[2], 16)))


def _kdev(word: str) -> int:
    major, _, minor = word.partition(":")
    kdev = kdev_of(int(major), int(minor))
    if kdev >= 1 << 32 or format_kdev(kdev) != f"{int(major)}:{int(minor)}":
        message = f"{word}: larger than any device number"
        raise UsageError(message, advice="a device goes before an inode number, as in 254:0 739")
    return kdev


def _number(word: str) -> int:
    number = int(word, 16) if word[:2].lower() == "0x" else int(word)
    if number >= 1 << 64:
        message = f"{word}: larger than any inode number"
        raise UsageError(message)
    return number


def spellings(path: bytes) -> Iterator[bytes]:
    """The path as it stands, and what it is if it was copied from a table of ours."""
    yield path
    for c1_is_byte in (True, False):
        read = _ESCAPE.sub(partial(_unescape, c1_is_byte=c1_is_byte), path)
        if read != path and b"\0" not in read:
            yield read


def _unescape(found: re.Match[bytes], *, c1_is_byte: bool) -> bytes:
    byte, short, long, name = found.groups()
    if name is not None:
        return _NAMED[name]
    code = int(byte or short or long, 16)
    if byte is not None and (c1_is_byte or code not in _C1):
        return bytes([code])
    try:
        return chr(code).encode()
    except (ValueError, OverflowError):  # no character
        return found[0]
