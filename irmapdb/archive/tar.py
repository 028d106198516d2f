"""Reads the members of a tar archive from a stream, without unpacking it.

    archive = { member } block of zeros
    member  = header content, each padded to blocks of 512 bytes
    header  = name[100] ... size[12] at 124, checksum[8] at 148, type at 156, "ustar" at 257,
              prefix[155] at 345

A name that does not fit stands in a member of its own in front: GNU's of type L, whose content
is the name, and the pax one of type x, whose content has lines `LENGTH KEYWORD=VALUE`. pax has
the size of a member of 8 GiB and more there too. A size is octal, or base 256 with the top bit set.
GNU's sparse member (type S) has blocks with the rest of its map behind the header, if the byte at
482 is set; such a block continues in the next if its byte at 504 is set. Sources: tar(5) of
libarchive, "Basic Tar Format" and "Storing Sparse Files" of GNU tar's manual, pax(1).

A tenant may have written the archive: `Meter` bounds the bytes and members that are read, and no
more than one name and one chunk is in memory.
"""

from __future__ import annotations

from irmapdb.errors import ImageError
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Reader(Protocol):
        """The common interface of a binary file and a decompressor."""

        def read(self, size: int, /) -> bytes:
            """At most so many bytes; none at the end."""


__all__ = [
    "LIMIT_BYTES",
    "LIMIT_MEMBERS",
    "Content",
    "Member",
    "Meter",
    "is_tar",
    "members",
]

LIMIT_BYTES = 1 << 44
"""The number of unpacked bytes that are read of an archive."""
LIMIT_MEMBERS = 2_000_000
"""The number of members that are read, with those of the archives inside."""

_BLOCK = 512
_NAME_BYTES = 1 << 20
_ALL_NAMES_BYTES = 1 << 28
"""The number of bytes that the members with names of other members may have in one archive."""
_CHUNK_BYTES = 1 << 20
_REGULAR = b"0\0007S"
"""Types with content: regular, its old form, contiguous, sparse."""
_SYMLINK = b"2"
_NO_DATA = b"123456"
"""Links, devices, directories and FIFOs: they have no content, also if they have a size."""


class Meter:
    """Counts the bytes and members that are read of one archive and of those inside it."""

    def __init__(
        self,
        name: str,
        *,
        limit_bytes: int = LIMIT_BYTES,
        limit_members: int = LIMIT_MEMBERS,
    ) -> None:
        self.name = name
        """The archive, for errors."""
        self._left_bytes = self._limit_bytes = limit_bytes
        self._left_members = self._limit_members = limit_members
        self._left_names = _ALL_NAMES_BYTES

    def count_name(self, size_bytes: int) -> None:
        """ImageError if the long names are more than a checkpoint needs."""
        self._left_names -= size_bytes
        if self._left_names < 0:
            message = f"{self.name}: more than {_ALL_NAMES_BYTES:,} bytes of names"
            raise ImageError(message, advice="look into it with tar")

    def count(self, size_bytes: int, *, members: int = 0) -> None:
        """ImageError if this is more than the limits allow."""
        self._left_bytes -= size_bytes
        self._left_members -= members
        if self._left_bytes < 0:
            message = f"{self.name}: more than {self._limit_bytes:,} bytes"
            raise ImageError(message, advice="look into it with tar")
        if self._left_members < 0:
            message = f"{self.name}: more than {self._limit_members:,} members"
            raise ImageError(message, advice="look into it with tar")


class Member(Record):
    """One member of an archive."""

    name: bytes
    """As in the archive, for example `./etc/`."""
    is_regular: bool
    """Whether it is a file with content: no link, directory or device."""
    is_symlink: bool
    size_bytes: int
    content: Content
    """To be read before the next member is asked for."""


class Content:
    """The bytes of one member, as a stream."""

    def __init__(self, stream: Reader, size_bytes: int, name: str) -> None:
        self._stream = stream
        self._name = name
        self.left_bytes = size_bytes
        self._padding = -size_bytes % _BLOCK
        if hasattr(stream, "jump"):
            self.jump = self._jump

    def _jump(self, size: int) -> None:
        if size > self.left_bytes:
            raise _cut_off(self._name)
        self.left_bytes -= size
        self._stream.jump(size)  # type: ignore[attr-defined]

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end. ImageError if the archive is cut off."""
        wanted = min(size, self.left_bytes)
        data = self._stream.read(wanted) if wanted > 0 else b""
        if wanted > 0 and not data:
            raise _cut_off(self._name)
        self.left_bytes -= len(data)
        return data

    def skip(self) -> None:
        """Go to the next header."""
        left = self.left_bytes + self._padding
        self.left_bytes = self._padding = 0
        jump = getattr(self._stream, "jump", None)
        if jump is not None:
            jump(left)
            return
        while left > 0:
            data = self._stream.read(min(left, _CHUNK_BYTES))
            if not data:
                raise _cut_off(self._name)
            left -= len(data)


def is_tar(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is a tar archive: its checksum is right."""
    if len(head) < _BLOCK:
        return False
    field = head[148:156].strip(b" \0")
    if not field or field.strip(b"01234567"):
        return False
    return int(field, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:_BLOCK])


def members(stream: Reader, meter: Meter) -> Iterator[Member]:
    """Each member of the archive, in its order; a stream with `jump` is not read in between.

    Raises ImageError if it is damaged, cut off, or larger than the limits of `meter`.
    """
    name = meter.name
    given: dict[bytes, bytes] = {}
    while (header := _exactly(stream, _BLOCK, name)).strip(b"\0"):
        kind = header[156:157]
        size = _size(given.pop(b"size", b""), header, name)
        if kind in _NO_DATA:
            size = 0
        meter.count(_BLOCK + size, members=1)
        if kind == b"S":
            _skip_sparse_map(stream, header, meter)
        content = Content(stream, size, name)
        if kind in b"Lx" and size <= _NAME_BYTES:
            meter.count_name(size)
            data = _exactly(stream, size, name)
            content.left_bytes = 0
            given |= {b"path": data.rstrip(b"\0")} if kind == b"L" else _pax(data)
        elif kind not in b"gKLx":
            path = given.get(b"GNU.sparse.name") or given.get(b"path") or _ustar_name(header)
            yield Member(path, kind in _REGULAR, kind == _SYMLINK, size, content)
            given = {}
        content.skip()


def _cut_off(name: str) -> ImageError:
    return ImageError(f"{name}: the archive is cut off", advice="have it made again")


def _exactly(stream: Reader, size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) == size:
        return data
    chunks = [data]
    left = size - len(data)
    while left > 0 and (chunk := stream.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    if left:
        raise _cut_off(name)
    return b"".join(chunks)


def _skip_sparse_map(stream: Reader, header: bytes, meter: Meter) -> None:
    more = header[482]
    while more:
        meter.count(_BLOCK)
        more = _exactly(stream, _BLOCK, meter.name)[504]


def _size(pax: bytes, header: bytes, name: str) -> int:
    # Of at most 20 digits: int() of many takes long.
    if pax and pax.isdigit() and len(pax) <= 20:  # noqa: PLR2004 digits of a 64-bit number
        return int(pax)
    return _number(header[124:136], name)


def _number(field: bytes, name: str) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ImageError(f"{name}: not a tar archive", advice="have it made again")
    return int(digits or b"0", 8)


def _ustar_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's magic is "ustar  ", and its header has other fields after the prefix.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return b"%b/%b" % (prefix, name) if prefix else name


_LENGTH_DIGITS = 20
_KEYWORDS = {b"path", b"size", b"GNU.sparse.name"}


def _pax(content: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    start = 0
    while start < len(content):
        blank = content.find(b" ", start, start + _LENGTH_DIGITS)
        digits = content[start:blank] if blank > 0 else b""
        if not digits.isdigit() or not blank < start + int(digits) <= len(content):
            break
        end = start + int(digits)
        equals = content.find(b"=", blank, end)
        keyword = content[blank + 1 : equals] if equals > 0 else b""
        if keyword in _KEYWORDS:
            found[keyword] = content[equals + 1 : end].removesuffix(b"\n")
        start = end
    return found
