r"""Encodes and decodes crit's JSON form of `irmap-cache`.

    {"magic": "IRMAP_CACHE", "entries": [{"dev": 266338304, "inode": 19, "path": "/etc"}, …]}

For names that are valid UTF-8, the output is byte for byte that of `crit decode` (or `crit decode
--pretty`). A name that is not is written in the form of PEP 383, a byte 0x80 to 0xff that decodes
to nothing as the escape `\udc80` to `\udcff`, so that every byte comes back.

Data that crit itself loses:

- It prints such a name as the text of a Python literal, `"b'/srv/caf\\xe9'"`. That is also a
  name that a file may have, so irmapdb reads this text as a name, and does not guess.
- It cannot encode our PEP 383 escapes: a protobuf string holds no lone surrogate.
- With --pretty it shows `dev` by glibc's encoding, though it is a kernel number: 254:0 comes out
  as "0:65024". No bit is lost, so this form is read back the way crit reads it.

The crit of go-criu writes `inode` as a string of digits, as protobuf's own JSON form has 64-bit
numbers, and null for no entries. Both are read.

Facts from pycriu's cli.py and images/pb2dict.py, from crit 3.17.1, and from image.go of go-criu.
"""

from __future__ import annotations

import json
import os
import re

from irmapdb.errors import ImageError
from irmapdb.image.cache import fits, misfit
from irmapdb.image.magic import IRMAP_CACHE
from irmapdb.model import CacheEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["decode_json", "encode_json"]


_KEYS = {"dev", "inode", "path"}

_DIGITS = re.compile(r"0|[1-9][0-9]{0,19}")
_PRETTY_DEV = re.compile(r"([0-9]{1,4}):([0-9]{1,7})")
_MAX_MAJOR = 0xFFF  # the limits of gnu_dev_major() and gnu_dev_minor() of glibc in 32 bits
_MAX_MINOR = 0xFFFFF

_SHOWN_BITS = 128
_MOST_DIGITS = 100

_ADVICE = "compare it with the output of `crit decode` for an irmap-cache"

_quote = json.JSONEncoder().encode  # of a string: ASCII, with JSON's escapes


class _BadValueError(Exception):
    """An error in a part of the text; it becomes an ImageError with the place."""


def _pretty_dev(kdev: int) -> str:
    return f'"{os.major(kdev)}:{os.minor(kdev)}"'


def encode_json(entries: Iterable[CacheEntry], *, pretty: bool = False) -> bytes:
    """The output of `crit decode` for the image of these entries; `pretty` as its --pretty.

    Raises ImageError if the image cannot have an entry, like `encode_cache`.
    """
    rows: list[tuple[int | str, int, str]] = []
    for index, entry in enumerate(entries):
        if not fits(entry):
            raise misfit(index, entry)
        dev = _pretty_dev(entry.kdev) if pretty else entry.kdev
        rows.append((dev, entry.ino, _quote(entry.path.decode("utf-8", "surrogateescape"))))
    # By hand: json.dumps wants a dict for each entry, and works in pure Python with an indent.
    magic = _quote(IRMAP_CACHE.name)
    if not pretty:
        body = ", ".join([f'{{"dev": {d}, "inode": {i}, "path": {p}}}' for d, i, p in rows])
        text = f'{{"magic": {magic}, "entries": [{body}]}}\n'
    else:
        body = ",\n".join(
            [
                f'        {{\n            "dev": {d},\n            "inode": {i},\n'
                f'            "path": {p}\n        }}'
                for d, i, p in rows
            ]
        )
        body = f"\n{body}\n    " if body else ""
        text = f'{{\n    "magic": {magic},\n    "entries": [{body}]\n}}\n'
    return text.encode("ascii")


def _fields(value: object, keys: set[str]) -> dict[str, object]:
    # The members of an object that must have exactly these keys, each once. `value` is what
    # json made of it with object_pairs_hook=tuple, by which only an object becomes a tuple.
    if not isinstance(value, tuple):
        raise _BadValueError(f"{_kind(value)} where an object is wanted")
    fields = dict(value)
    if len(value) == len(keys) and fields.keys() == keys:
        return fields
    if missing := keys - fields.keys():
        raise _BadValueError(f"key missing: {', '.join(sorted(missing))}")
    if extra := fields.keys() - keys:
        raise _BadValueError(f"unknown key: {', '.join(map(ascii, sorted(extra)))}")
    raise _BadValueError("a key is there twice")


def _kind(value: object) -> str:
    # JSON's name for a Python value.
    match value:
        case bool():
            return "a truth value"
        case int():
            return "a number"
        case float():
            return "a number with a fraction"
        case str():
            return "a string"
        case list():
            return "an array"
        case tuple():
            return "an object"
        case _:
            return "null"


def _unsigned(value: object, key: str, bits: int) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)  # protobuf's own JSON form of 64-bit numbers, which go-criu writes
    if type(value) is not int:  # bool is an int
        raise _BadValueError(f"{key} is {_kind(value)}, not a whole number")
    if not 0 <= value < 1 << bits:
        shown = f"{value:#x}" if abs(value) < 1 << _SHOWN_BITS else "a number of many digits"
        raise _BadValueError(f"{key} is {shown}, outside of {bits} bits")
    return value


def _kdev(value: object) -> int:
    if not isinstance(value, str) or _DIGITS.fullmatch(value):
        return _unsigned(value, "dev", 32)
    match = _PRETTY_DEV.fullmatch(value)
    if match is None:
        raise _BadValueError(f"dev is {value!a}, neither a number nor MAJOR:MINOR")
    major, minor = int(match[1]), int(match[2])
    if major > _MAX_MAJOR or minor > _MAX_MINOR:
        raise _BadValueError(f"dev is {value}, outside of 32 bits")
    return os.makedev(major, minor)


def _path(value: object) -> bytes:
    if not isinstance(value, str):
        raise _BadValueError(f"path is {_kind(value)}, not a string")
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        escape = ascii(value[error.start])
        raise _BadValueError(
            f"path has a lone surrogate {escape} that stands for no byte"
        ) from None


def _entry(value: object) -> CacheEntry:
    # As crit and we write it, which is nearly always: looked at once, and not member by member.
    if isinstance(value, tuple) and len(value) == len(_KEYS):
        (one, dev), (two, ino), (three, path) = value
        if one == "dev" and two == "inode" and three == "path" and type(dev) is type(ino) is int:
            entry = CacheEntry(dev, ino, _path(path))
            if fits(entry):
                return entry
    fields = _fields(value, _KEYS)
    return CacheEntry(
        _kdev(fields["dev"]),
        _unsigned(fields["inode"], "inode", 64),
        _path(fields["path"]),
    )


def _bounded(digits: str) -> int:
    # One too large for anything instead of one with thousands of digits, which Python refuses.
    return int(digits[:_MOST_DIGITS])


def _load(data: bytes, name: str) -> object:
    try:
        try:
            return json.loads(text := data.decode("utf-8"), object_pairs_hook=tuple)
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise
        except ValueError:  # such a number; the error must name the entry that has it
            return json.loads(text, object_pairs_hook=tuple, parse_int=_bounded)
    except UnicodeDecodeError as error:
        raise ImageError(f"{name}: offset {error.start}: not UTF-8", advice=_ADVICE) from None
    except json.JSONDecodeError as error:
        raise ImageError(
            f"{name}: line {error.lineno} column {error.colno}: {error.msg}", advice=_ADVICE
        ) from None
    except RecursionError:
        raise ImageError(f"{name}: nested too deep", advice=_ADVICE) from None


def decode_json(data: bytes, name: str) -> tuple[CacheEntry, ...]:
    """The entries of crit's JSON, plain or pretty, in its order.

    Raises ImageError, which names the file as `name` and the entry by its index from 0, for
    anything but this: JSON in UTF-8 with exactly crit's keys, each once, `dev` within 32 bits and
    `inode` within 64, or the JSON of another image.
    """
    try:
        image = _fields(_load(data, name), {"magic", "entries"})
    except _BadValueError as error:
        raise ImageError(f"{name}: {error}", advice=_ADVICE) from None
    if image["magic"] != IRMAP_CACHE.name:
        raise ImageError(
            f"{name}: JSON of another image: magic is {_shown(image['magic'])}, "
            f"not {IRMAP_CACHE.name}",
            advice="give the JSON of an irmap-cache",
        )
    values = image["entries"]
    if values is None:  # go-criu's list of no entries
        return ()
    if not isinstance(values, list):
        raise ImageError(f"{name}: entries is {_kind(values)}, not an array", advice=_ADVICE)
    entries: list[CacheEntry] = []
    for value in values:
        try:
            entries.append(_entry(value))
        except _BadValueError as error:
            raise ImageError(f"{name}: entry {len(entries)}: {error}", advice=_ADVICE) from None
    return tuple(entries)


def _shown(value: object) -> str:
    return ascii(value[:40]) if isinstance(value, str) else _kind(value)
