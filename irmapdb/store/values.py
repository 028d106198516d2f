"""Converts the values that SQLite cannot store directly.

| in Python | in the file |
|---|---|
| unsigned 64-bit inode number | INTEGER, two's complement: SQLite's integers are signed |
| path, comm: any bytes | TEXT if they are UTF-8 without NUL, else BLOB |
| aware datetime | TEXT, UTC, `YYYY-MM-DD HH:MM:SS.ffffff`: as SQLite's date functions read it |

`to_*` gives the stored form, `from_*` takes it.

Source: https://www.sqlite.org/datatype3.html, https://www.sqlite.org/lang_datefunc.html.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache

__all__ = [
    "MAX_PATH_BYTES",
    "check_number",
    "check_path",
    "check_word",
    "from_ino",
    "from_time",
    "new_uuid",
    "to_ino",
    "to_text",
    "to_time",
    "to_words",
]

MAX_PATH_BYTES = 1 << 16
"""No stored path is longer. PATH_MAX (4096) limits the path of one system call, not the depth of a
tree; CRIU accepts no path that is longer than PATH_MAX."""

_YEARS = range(2, 9999)  # at the ends of what Python knows there is no room for a timezone
_SHOWN_CHARACTERS = 40
_SIGN = 1 << 63
_MODULUS = 1 << 64
_MASK = _MODULUS - 1


def to_ino(ino: int) -> int:
    """An unsigned 64-bit number as a signed one. More than 64 bits are refused by SQLite."""
    return ino if ino < _SIGN else ino - _MODULUS


def from_ino(value: int) -> int:
    """The unsigned number again."""
    return value & _MASK


def to_text(raw: bytes) -> str | bytes:
    """Text if every SQLite tool can read it as text, else the bytes.

    A NUL goes into a BLOB: SQLite's own functions and the shell cut TEXT off there. Select it
    as `CAST(… AS BLOB)`: then not even TEXT that another tool has spoilt can fail to decode.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return raw
    return raw if "\0" in text else text


def to_words(text: str) -> str:
    """Text for people. A name in it may not be UTF-8, and SQLite accepts no lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=64)  # a step stamps all its rows with one time
def to_time(at: datetime) -> str:
    """UTC text. A datetime without a timezone raises ValueError."""
    if at.tzinfo is None:
        raise ValueError(f"a time without a timezone: {at}")
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


@lru_cache(maxsize=1024)
def from_time(value: object) -> datetime:
    """The aware datetime again. ValueError for any other text."""
    at = None
    if isinstance(value, str):
        with suppress(ValueError):
            at = datetime.fromisoformat(value)
    # Python reads other forms too.
    if at is None or at.tzinfo is not None or at.isoformat(" ", "microseconds") != value:
        raise ValueError(f"{_shown(value)} is no time")
    at = at.replace(tzinfo=UTC)
    if at.year not in _YEARS:
        raise ValueError(f"{_shown(value)} is no time of ours")
    return at


def new_uuid() -> str:
    """A random UUID, version 4 of RFC 9562.

    The hook stores runs, and `import uuid` takes longer than this.
    """
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def check_number(name: str, value: object, low: int, high: int) -> None:
    """ValueError unless it is a whole number of this range."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}")


def check_path(value: object) -> None:
    """ValueError unless it is the bytes of a path that we would store."""
    if type(value) is not bytes:
        raise ValueError(f"the path is {_shown(value)}")
    if len(value) > MAX_PATH_BYTES:
        raise ValueError(f"the path has {len(value)} bytes, more than {MAX_PATH_BYTES}")


def check_word(name: str, value: object) -> None:
    """ValueError unless it is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}")


def _shown(value: object) -> str:
    # Any value as ASCII on one line.
    text = ascii(value[:_SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 2 * _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
