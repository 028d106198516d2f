"""Detects the kind of a file or directory from its content."""

from __future__ import annotations

import enum
import os

from irmapdb import files
from irmapdb.archive.members import is_archive
from irmapdb.image.magic import FANOTIFY_FILE, FILES, HEADER, INOTIFY_FILE, STATS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FileKind", "kind_of"]


class FileKind(enum.StrEnum):
    """The kinds that `kind_of` detects."""

    CACHE = "cache"
    """An `irmap-cache`, its JSON, a database; or none of all these."""
    INOTIFY = "inotify.img"
    FANOTIFY = "fanotify.img"
    FILES = "files.img"
    STATS = "stats"
    """`stats-dump` or `stats-restore`."""
    CHECKPOINT = "checkpoint"
    """An images dir, or an archive."""


_MAGICS = {
    HEADER.pack(*INOTIFY_FILE): FileKind.INOTIFY,
    HEADER.pack(*FANOTIFY_FILE): FileKind.FANOTIFY,
    HEADER.pack(*FILES): FileKind.FILES,
    HEADER.pack(*STATS): FileKind.STATS,
}


def kind_of(path: Path) -> FileKind:
    """The kind of the file or directory at a path. FileError."""
    if os.path.isdir(path):
        return FileKind.CHECKPOINT
    head = files.read_prefix(path)
    found = _MAGICS.get(head[: HEADER.size])
    if found is not None:
        return found
    return FileKind.CHECKPOINT if is_archive(head) else FileKind.CACHE
