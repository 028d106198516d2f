"""Walks all members of an archive file, and of the image layers in it.

    archive file = tar, plain or packed with gzip or zstd
    image file   = tar with blobs/ALGORITHM/DIGEST (`podman save --format oci-archive`, `ctr images
                   export`) or LAYER.tar (docker's form), each a layer: an archive file again

The place of a member in a layer is `blobs/sha256/…!checkpoint/files.img`. A layer in a layer is
not opened.
"""

from __future__ import annotations

import os
import re

from irmapdb import files
from irmapdb.archive.decompress import Allowance, describe_packed, is_packed, unpacked
from irmapdb.archive.tar import Meter, is_tar, members
from irmapdb.errors import ImageError
from irmapdb.image.magic import describe
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from irmapdb.archive.tar import Reader

__all__ = ["Found", "is_archive", "walk"]

_HEAD_BYTES = 512
_LAYER = re.compile(r"blobs/[a-z0-9]+/[0-9a-f]+|(?:[^/]+/)?layer\.tar|[0-9a-f]{64}\.tar")


class Found(Record):
    """One member."""

    place: str
    """Its name without `./` in front; that of its layer and `!` before. Bytes that are not UTF-8
    are lone surrogates."""
    is_regular: bool
    size_bytes: int
    content: Reader
    """To be read before the next member is asked for."""


def is_archive(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is a tar archive, or a packed or encrypted file."""
    return is_tar(head) or is_packed(head) or describe_packed(head) is not None


def walk(path: Path, allowance: Allowance | None = None) -> Iterator[Found]:
    """Each member of an archive file.

    FileError if the file cannot be read; ImageError if it is damaged, cut off, encrypted, none, or
    beyond the limits of `irmapdb.archive.decompress` and `irmapdb.archive.tar`.
    """
    name = printable(path)
    allowance = allowance or Allowance()
    with files.open_regular(path) as file:
        source = _Seekable(file)
        _refuse_others(source.head, name)
        with unpacked(source, name, allowance) as stream:
            head = stream.peek(_HEAD_BYTES)
            if not is_tar(head):
                _refuse_others(head, name)
                raise _no_archive(head, name)
            yield from _members(stream, Meter(name), allowance, "")


def _members(stream: Reader, meter: Meter, allowance: Allowance, layer: str) -> Iterator[Found]:
    for member in members(stream, meter):
        place = os.fsdecode(member.name).removeprefix("./").strip("/")
        if layer or not member.is_regular or _LAYER.fullmatch(place) is None:
            yield Found(layer + place, member.is_regular, member.size_bytes, member.content)
            continue
        with unpacked(member.content, f"{meter.name}: {place}", allowance) as content:
            if is_tar(content.peek(_HEAD_BYTES)):
                yield from _members(content, meter, allowance, f"{place}!")
            else:
                yield Found(place, member.is_regular, member.size_bytes, content)


class _Seekable:
    """A regular file. A seek skips the bytes that are not wanted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.head = file.read(_HEAD_BYTES)
        file.seek(0)

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def jump(self, size: int) -> None:
        self._file.seek(size, os.SEEK_CUR)


def _refuse_others(head: bytes, name: str) -> None:
    known = describe_packed(head)
    if known is not None:
        what, advice = known
        raise ImageError(f"{name}: {what}", advice=advice)


def _no_archive(head: bytes, name: str) -> ImageError:
    if is_packed(head):
        return ImageError(f"{name}: packed twice", advice="unpack it once (gzip -d, zstd -d)")
    advice = "name the archive of a checkpoint, or its images dir"
    return ImageError(f"{name}: not a tar archive: {describe(head)}", advice=advice)
