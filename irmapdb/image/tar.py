"""Lists the names in a tar archive, from a stream, without unpacking it.

    archive = { member } block of zeros
    member  = header content, each padded to blocks of 512 bytes
    header  = name[100] ... size[12] at 124, type at 156, "ustar" at 257, prefix[155] at 345

A name that does not fit stands in a member of its own in front: GNU's of type L, whose content
is the name, and the pax one of type x, whose content has lines `LENGTH path=NAME`. A size is octal,
or base 256 with the top bit set. Sources: tar(5) of libarchive, "Basic Tar Format" of GNU tar's
manual.

The archive may be anybody's: the memory that it takes is bounded, and so are the bytes read.
"""

from __future__ import annotations

from typing import Protocol

from irmapdb.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LIMIT_BYTES", "member_names"]

LIMIT_BYTES = 1 << 32
"""No archive is read further than this, counted as it is unpacked."""

_BLOCK = 512
_NAME_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20


class Reader(Protocol):
    """The common interface of a binary file and a decompressor."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


def member_names(stream: Reader, name: str) -> Iterator[bytes]:
    """The name of each member as in the archive, for example `./etc/`.

    Raises ImageError, with `name` as the archive, if it is damaged or too long.
    """
    read, given = 0, b""
    while (header := _block(stream, name)).strip(b"\0"):
        size = _number(header[124:136], name)
        read += _BLOCK + size
        if read > LIMIT_BYTES:
            message = f"{name}: more than {LIMIT_BYTES:,} bytes"
            raise ImageError(message, advice="look into it with tar")
        kind = header[156:157]
        if kind in b"Lx" and size <= _NAME_BYTES:
            content = _content(stream, size, name)
            given = content.rstrip(b"\0") if kind == b"L" else _pax_path(content) or given
            continue
        if kind not in b"gKLx":
            yield given or _ustar_name(header)
            given = b""
        _skip(stream, size, name)


def _block(stream: Reader, name: str) -> bytes:
    return _content(stream, _BLOCK, name, padded=False)


def _content(stream: Reader, size: int, name: str, *, padded: bool = True) -> bytes:
    wanted = -(-size // _BLOCK) * _BLOCK if padded else size
    chunks = []
    left = wanted
    while left > 0 and (chunk := stream.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    if left:
        raise ImageError(f"{name}: the archive is cut off", advice="have it made again")
    return b"".join(chunks)[:size]


def _skip(stream: Reader, size: int, name: str) -> None:
    left = -(-size // _BLOCK) * _BLOCK
    while left > 0:
        left -= len(_content(stream, min(left, _CHUNK_BYTES), name, padded=False))


def _number(field: bytes, name: str) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise ImageError(f"{name}: not a tar archive", advice="have it made again") from None


def _ustar_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's magic is "ustar  ", and what follows its prefix is something else.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return b"%b/%b" % (prefix, name) if prefix else name


def _pax_path(content: bytes) -> bytes:
    path = b""
    while content:
        length, blank, _ = content.partition(b" ")
        if not blank or not length.isdigit() or not 0 < int(length) <= len(content):
            break
        keyword, _, value = content[len(length) + 1 : int(length)].partition(b"=")
        if keyword == b"path":
            path = value.removesuffix(b"\n")
        content = content[int(length) :]
    return path
