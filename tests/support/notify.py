"""Watches and events as a watching process reports them, and the mask bits that tests use.

Sources: inotify(7), fanotify(7); include/uapi/linux/inotify.h, fanotify.h of Linux 6.18.
"""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = [
    "FAN_CLOSE_WRITE",
    "FAN_MODIFY",
    "FAN_ONDIR",
    "FAN_OPEN",
    "FAN_REPORT_FID",
    "IN_ATTRIB",
    "IN_CLOSE_WRITE",
    "IN_CREATE",
    "IN_DELETE",
    "IN_DELETE_SELF",
    "IN_DONT_FOLLOW",
    "IN_MODIFY",
    "IN_MOVE_SELF",
    "IN_OPEN",
    "FanotifyEvent",
    "InotifyEvent",
    "Watched",
]

IN_MODIFY = 0x002
IN_ATTRIB = 0x004
IN_CLOSE_WRITE = 0x008
IN_OPEN = 0x020
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_DONT_FOLLOW = 0x02000000

FAN_MODIFY = 0x002
FAN_CLOSE_WRITE = 0x008
FAN_OPEN = 0x020
FAN_ONDIR = 0x40000000
FAN_REPORT_FID = 0x200


class Watched(NamedTuple):
    """One watch as it was added, and the lstat(2) of its path at that moment."""

    kind: str
    """"inotify" or "fanotify"."""
    fd: int
    wd: int
    """-1 for fanotify."""
    path: bytes
    """As the process sees it: in its root and mount namespace."""
    mask: int
    st_dev: int
    st_ino: int
    what: str = "inode"
    """For fanotify also "mount" or "filesystem"."""

    @property
    def st_kdev(self) -> int:
        """`st_dev` in the kernel's encoding. Not always the superblock's (btrfs, overlayfs)."""
        return os.major(self.st_dev) << 20 | os.minor(self.st_dev)


class InotifyEvent(NamedTuple):
    """`struct inotify_event` and the descriptor it was read from."""

    fd: int
    wd: int
    mask: int
    cookie: int
    name: bytes


class FanotifyEvent(NamedTuple):
    """`struct fanotify_event_metadata`; the inode is from the event's own descriptor."""

    fd: int
    mask: int
    pid: int
    st_dev: int | None
    """None where the event carries no descriptor (FAN_REPORT_FID, overflow)."""
    st_ino: int | None
    info: bytes
    """The information records that follow, raw."""
