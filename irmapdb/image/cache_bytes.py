"""`irmap-cache` written without protobuf, whose import takes longer than all that the hook does.

An entry is three fields, `required uint32 dev = 1; required uint64 inode = 2; required string path
= 3` (CRIU's images/fh.proto), in this order. Source: protobuf's encoding guide: a field is its key
(`number << 3 | wire type`) and its value; a varint has 7 bits a byte, the lowest first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irmapdb.image.framing import join_frames
from irmapdb.image.magic import IRMAP_CACHE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.model import CacheEntry

__all__ = ["cache_bytes"]

_DEV, _INODE, _PATH = b"\x08", b"\x10", b"\x1a"  # keys: fields 1 and 2 varints, 3 with a length
_CONTINUES = 0x80


def cache_bytes(entries: Iterable[CacheEntry]) -> bytes:
    """The image of these entries, as irmapdb.image.cache.encode_cache gives it.

    For what the kernel told: devices are u32 and inode numbers u64.
    """
    return join_frames(
        IRMAP_CACHE,
        (
            b"".join((_DEV, _varint(kdev), _INODE, _varint(ino), _PATH, _varint(len(path)), path))
            for kdev, ino, path in entries
        ),
    )


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= _CONTINUES:
        out.append(number & 0x7F | _CONTINUES)
        number >>= 7
    out.append(number)
    return bytes(out)
