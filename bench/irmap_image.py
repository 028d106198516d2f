"""A cache image as CRIU would write it, made by hand. crit checks that it is right.

Little-endian: u32 service magic, u32 irmap magic, then for each entry u32 size and the protobuf
message `irmap_cache_entry` {uint32 dev = 1; uint64 inode = 2; string path = 3}.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_image"]

_HEAD = struct.pack("<II", 0x55105940, 0x57004059)
_KDEV = 254 << 20
_FIRST_INO = 1_000_000


def write_image(path: Path, entries: int) -> None:
    """Write an image with so many different entries."""
    with path.open("wb") as image:
        image.write(_HEAD)
        for number in range(entries):
            name = f"/srv/{number % 97:03d}/data/d{number % 9973:05d}/f{number:06d}".encode()
            entry = b"\x08%b\x10%b\x1a%b%b" % (
                _varint(_KDEV),
                _varint(_FIRST_INO + number),
                _varint(len(name)),
                name,
            )
            image.write(struct.pack("<I", len(entry)) + entry)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
