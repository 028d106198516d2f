"""Reads the watches of one image, and makes entries of `irmap-cache` from them."""

from __future__ import annotations

from irmapdb import files
from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.kind import FileKind
from irmapdb.image import fsnotify
from irmapdb.image.fsnotify import FsnotifyWatch
from irmapdb.model import CacheEntry, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from irmapdb.image.fsnotify import FsnotifyFile, MountMark

__all__ = ["cache_entries", "read_image"]

_DECODE = {
    FileKind.INOTIFY: fsnotify.decode_inotify,
    FileKind.FANOTIFY: fsnotify.decode_fanotify,
    FileKind.FILES: fsnotify.decode_files_img,
}


def read_image(path: Path, kind: FileKind) -> tuple[FsnotifyFile, ...]:
    """The descriptors of `inotify.img`, `fanotify.img` or `files.img`. FileError, ImageError."""
    data = files.read_whole(path, limit_bytes=files.LIMIT_BYTES)
    return _DECODE[kind](data, printable(path))


def cache_entries(path: Path, kind: FileKind) -> tuple[CacheEntry, ...]:
    """An entry for each watch with a path: of an image, an images dir or an archive.

    The entries are as CRIU recorded them, and not proved. FileError, ImageError.
    """
    if kind is FileKind.CHECKPOINT:
        return _entries(one.watch for one in read_dumped(path).watches)
    return _entries(watch for file in read_image(path, kind) for watch in file.watches)


def _entries(watches: Iterable[FsnotifyWatch | MountMark]) -> tuple[CacheEntry, ...]:
    return tuple(
        CacheEntry(watch.identity.kdev, watch.identity.ino, watch.path)
        for watch in watches
        if isinstance(watch, FsnotifyWatch) and watch.path is not None
    )
