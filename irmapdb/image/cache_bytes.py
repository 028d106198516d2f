"""Encodes and decodes `irmap-cache` without protobuf, whose import is slower than the whole hook.

An entry is three fields, `required uint32 dev = 1; required uint64 inode = 2; required string path
= 3` (CRIU's images/fh.proto), in this order. Source: protobuf's encoding guide: a field is its key
(`number << 3 | wire type`) and its value; a varint has 7 bits a byte, the lowest first.
"""

from __future__ import annotations

from irmapdb.errors import ImageError
from irmapdb.image.framing import frames, join_frames
from irmapdb.image.magic import IRMAP_CACHE
from irmapdb.model import CacheEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NO_ENTRIES", "cache_bytes", "cache_entries"]

_DEV, _INODE, _PATH = b"\x08", b"\x10", b"\x1a"  # keys: fields 1 and 2 varints, 3 with a length
NO_ENTRIES = join_frames(IRMAP_CACHE, ())
"""An image without an entry: each image begins with it."""
_CONTINUES = 0x80
_VARINT_BYTES = 10
_MAX_DEV, _MAX_INODE = (1 << 32) - 1, (1 << 64) - 1


def cache_bytes(entries: Iterable[CacheEntry], after: bytes = b"") -> bytes:
    """The image of these entries, as irmapdb.image.cache.encode_cache gives it.

    For values of the kernel: devices are u32 and inode numbers u64. `after`: an image that they are
    appended to. CRIU looks at the last entry of an inode first.
    """
    image = join_frames(
        IRMAP_CACHE,
        (
            b"".join((_DEV, _varint(kdev), _INODE, _varint(ino), _PATH, _varint(len(path)), path))
            for kdev, ino, path in entries
        ),
    )
    return after + image[len(NO_ENTRIES) :] if after else image


def cache_entries(data: bytes) -> tuple[CacheEntry, ...] | None:
    """The entries of an image, as irmapdb.image.cache.decode_cache gives them.

    None if decode_cache would raise an error.
    """
    try:
        entries = tuple(_entry(message) for _, message in frames(data, "", IRMAP_CACHE))
    except (ImageError, IndexError, ValueError):
        return None
    fit = all(kdev <= _MAX_DEV and ino <= _MAX_INODE for kdev, ino, _ in entries)
    # Equal only if each entry has these three fields, in this order.
    return entries if fit and cache_bytes(entries) == data else None


def _entry(message: bytes) -> CacheEntry:
    # The keys are not checked. IndexError: cut off; ValueError: no varint.
    kdev, at = _number(message, 1)
    ino, at = _number(message, at + 1)
    _, at = _number(message, at + 1)
    return CacheEntry(kdev, ino, message[at:])


def _number(data: bytes, at: int) -> tuple[int, int]:
    # And the offset behind it.
    number = 0
    for index in range(_VARINT_BYTES):
        byte = data[at + index]
        number |= (byte & ~_CONTINUES) << 7 * index
        if byte < _CONTINUES:
            return number, at + index + 1
    raise ValueError("no varint")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= _CONTINUES:
        out.append(number & 0x7F | _CONTINUES)
        number >>= 7
    out.append(number)
    return bytes(out)
