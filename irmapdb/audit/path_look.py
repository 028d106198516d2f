"""Reads the inode at a path now, and the time of its last change."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime

from irmapdb.kernel.proof import identify_fd
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity

__all__ = ["PathLook", "look_at_path"]


class PathLook(Record):
    """The result of one look at a path."""

    found: Identity | None = None
    """The inode there; None if there is none, or irmapdb could not look."""
    changed_at: datetime | None = None
    """When the inode changed (st_ctime). If there is none: when a name was last added to or removed
    from the nearest directory that exists (st_mtime)."""
    unseen: str = ""
    """Why irmapdb could not look; "" if it could."""


class _Sight(Record):
    found: Identity | None = None
    status: os.stat_result | None = None
    unseen: str = ""


def look_at_path(root: Root, path: bytes) -> PathLook:
    """Open a path of a root, and read the inode there. Nothing is opened that may block."""
    if not path.startswith(b"/") or b"\0" in path:
        return PathLook()
    found, status, unseen = _look(root, path)
    if found is not None:
        return PathLook(found, status and _time(status.st_ctime_ns))
    while status is None and path not in {b"", b"/"}:
        path = path[: path.rfind(b"/")]
        status = _look(root, path or b"/").status
    return PathLook(None, status and _time(status.st_mtime_ns), unseen)


def _look(root: Root, path: bytes) -> _Sight:
    kinds = root.blocking_kinds_to(path)
    if kinds:
        return _Sight(unseen=f"{kinds} may not answer")
    try:
        with Descriptor(root.open(path)) as fd:
            return _Sight(identify_fd(root, fd), os.fstat(fd))
    except OSError as error:
        return _Sight(unseen=_why_unseen(error))


def _time(ns: int) -> datetime | None:
    # utimensat(2) accepts any time, so a tenant can choose the time of a directory.
    try:
        return datetime.fromtimestamp(ns / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _why_unseen(error: OSError) -> str:
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}:
        return ""  # there is nothing to see
    return os.strerror(error.errno or 0)
