"""Reads and writes the frame of CRIU's images: a header, then messages with their sizes.

    image   = header { entry }
    header  = group kind            two u32, see magic.py
    entry   = size message          u32, then that many bytes
    message = one protobuf (proto2) message

All numbers are little-endian (CRIU writes the machine's own order, and so does crit read it).
A message is at least one byte, and below 2 GiB, protobuf's own limit; crit reads the size as
signed. Nothing marks the end: a file that was cut off between two entries is a shorter, legal
image, and an image without entries is its 8-byte header alone.

Facts from CRIU's criu/image.c and criu/protobuf.c.
"""

from __future__ import annotations

import struct

from irmapdb.errors import ImageError
from irmapdb.image.magic import HEADER, Magic, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["DAMAGED", "frames", "image_error", "join_frames"]

_SIZE = struct.Struct("<i")

DAMAGED = "the file is damaged: remove it, or have it written again"
"""The advice for a file that is damaged."""


def image_error(name: str, offset: int, what: str, *, advice: str = DAMAGED) -> ImageError:
    """An error with the name of the file and the offset of the wrong byte."""
    return ImageError(f"{name}: offset {offset}: {what}", advice=advice)


def _check_header(data: bytes, name: str, magic: Magic) -> None:
    if not data:
        raise image_error(name, 0, "the file is empty")
    if data.startswith(HEADER.pack(*magic)):
        return
    if HEADER.pack(*magic).startswith(data):
        raise image_error(name, len(data), f"cut off in the {HEADER.size}-byte header")
    raise image_error(
        name,
        0,
        f"not CRIU's {magic.name} image but {describe(data[:64])}",
        advice="give the right file",
    )


def frames(data: bytes, name: str, magic: Magic) -> Iterator[tuple[int, bytes]]:
    """Each message of the image `data`, with its offset in the file.

    Raises ImageError, with `name` as the file, if the framing is wrong.
    """
    _check_header(data, name, magic)
    unpack, width = _SIZE.unpack_from, _SIZE.size
    end = len(data)
    at = HEADER.size
    while at < end:
        start = at + width
        if start > end:
            raise image_error(name, at, f"cut off in the size of an entry, after {end - at} bytes")
        (size,) = unpack(data, at)
        if size <= 0:
            raise image_error(name, at, f"an entry of size {size}")
        after = start + size
        if after > end:
            raise image_error(name, at, f"an entry of {size} bytes where {end - start} are left")
        at = after
        yield start, data[start:at]


def join_frames(magic: Magic, messages: Iterable[bytes]) -> bytes:
    """The image of these messages; the opposite of `frames`."""
    image = bytearray(HEADER.pack(*magic))
    for message in messages:
        image += _SIZE.pack(len(message))
        image += message
    return bytes(image)
