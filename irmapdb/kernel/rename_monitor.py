"""Monitors renames: lists the names that were moved or removed since the last call.

irmapdb proves the paths while the tasks run, and needs them when the tasks are frozen. A second
proof of each path in the freeze would take as long as the first. Instead, a fanotify group reports
every rename and removal on the filesystems of the paths. In the freeze only the paths with a
reported name are proved again. fanotify(7) with FAN_MARK_FILESYSTEM and FAN_REPORT_DFID_NAME;
include/uapi/linux/fanotify.h.

It reports renames by this kernel: not a rename by another host on a network filesystem, and not one
by a FUSE server itself. Such filesystems are not monitored.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import struct
import termios
from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["RenameMonitor"]

_FAN_CLOEXEC = 0x1
_FAN_NONBLOCK = 0x2
_FAN_REPORT_DIR_FID = 0x400
_FAN_REPORT_NAME = 0x800
_FAN_REPORT_DFID_NAME = _FAN_REPORT_DIR_FID | _FAN_REPORT_NAME  # Linux 5.9

_FAN_MARK_ADD = 0x1
_FAN_MARK_FILESYSTEM = 0x100

_FAN_MOVED_FROM = 0x40
_FAN_MOVED_TO = 0x80
_FAN_DELETE = 0x200
_FAN_Q_OVERFLOW = 0x4000
_FAN_ONDIR = 0x40000000

# struct fanotify_event_metadata: u32 event_len, u8 vers, u8 reserved, u16 metadata_len,
# u64 mask, s32 fd, s32 pid.
_EVENT = struct.Struct("=IBBHQii")
# struct fanotify_event_info_header: u8 info_type, u8 pad, u16 len; then an fsid of 8 bytes, a
# struct file_handle (u32 bytes, s32 type, data) and, for DFID_NAME, a name that ends with NUL.
_INFO = struct.Struct("=BBH")
_INFO_TYPE_DFID_NAME = 2
_FSID_BYTES = 8
_HANDLE_HEAD = struct.Struct("=Ii")
_BUFFER_BYTES = 1 << 18
_MOST_QUEUED = 16_384  # fanotify/max_queued_events of proc_sys_fs(5)

_libc = ctypes.CDLL(None, use_errno=True)
_fanotify_init = _libc.fanotify_init
_fanotify_init.restype = ctypes.c_int
_fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_fanotify_mark = _libc.fanotify_mark
_fanotify_mark.restype = ctypes.c_int
_fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


@dataclass(slots=True)
class RenameMonitor:
    """Lists the names that moved. A context manager. Without the rights it monitors nothing."""

    fd: int | None = None
    kdevs: set[int] = field(default_factory=set)
    """The monitored filesystems. On any other, every path must be proved again."""
    blind: bool = False
    """The kernel's queue ran over: names are missing, so every path may be wrong."""

    def __enter__(self) -> Self:
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_DFID_NAME
        fd = _fanotify_init(flags, os.O_RDONLY)
        if fd >= 0:
            self.fd = fd
        return self  # EPERM, EINVAL, ENOSYS: no monitor, so all is proved again

    def __exit__(self, *_: object) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def watch(self, kdev: int, dir_fd: int) -> bool:
        """Monitor the filesystem of a directory (may be O_PATH). Returns whether that is possible.

        EXDEV: a filesystem with several fsids (btrfs below its top level); EOPNOTSUPP, ENODEV:
        one that has no handles or no fsid.
        """
        if self.fd is None:
            return False
        mask = _FAN_MOVED_FROM | _FAN_MOVED_TO | _FAN_DELETE | _FAN_ONDIR
        flags = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
        if _fanotify_mark(self.fd, flags, mask, dir_fd, b".") < 0:
            return False
        self.kdevs.add(kdev)
        return True

    def names(self) -> frozenset[bytes]:
        """The names that were moved or removed between the last call and this one.

        Does not block, and ends also if tasks rename all the time: later reports are for the next
        call.
        """
        found: set[bytes] = set()
        if self.fd is None:
            return frozenset()
        events_left = self._queued(self.fd)
        while events_left > 0:
            try:
                events = os.read(self.fd, _BUFFER_BYTES)
            except BlockingIOError:
                return frozenset(found)
            events_left -= self._collect(events, found)
        return frozenset(found)

    def _queued(self, fd: int) -> int:
        queued = array.array("i", [0])
        try:
            fcntl.ioctl(fd, termios.FIONREAD, queued)
        except OSError:  # a sandbox refuses it
            self.blind = True
            return _MOST_QUEUED
        return queued[0] // _EVENT.size  # the kernel counts the heads of the events only

    def _collect(self, events: bytes, found: set[bytes]) -> int:
        start = count = 0
        while start + _EVENT.size <= len(events):
            count += 1
            length, _, _, head, mask, _, _ = _EVENT.unpack_from(events, start)
            if mask & _FAN_Q_OVERFLOW:
                self.blind = True
            found.update(_names(events[start + head : start + length]))
            start += length
        return count


def _names(infos: bytes) -> Iterable[bytes]:
    start = 0
    while start + _INFO.size <= len(infos):
        kind, _, length = _INFO.unpack_from(infos, start)
        if kind == _INFO_TYPE_DFID_NAME:
            handle = start + _INFO.size + _FSID_BYTES
            size, _ = _HANDLE_HEAD.unpack_from(infos, handle)
            name = infos[handle + _HANDLE_HEAD.size + size : start + length]
            yield name.split(b"\0", 1)[0]
        start += length
