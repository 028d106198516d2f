"""Asks an xfs with parent pointers for the names of an inode, each with its directory.

Parent pointers are made by `mkfs.xfs -n parent=1`. An inode is (number, generation), so a number
that was used again is another inode. XFS_IOC_GETPARENTS_BY_HANDLE needs no open file.

Sources: ioctl_xfs_getparents(2) of xfsprogs; fs/xfs/libxfs/xfs_fs.h, fs/xfs/xfs_handle.c,
xfs_export.c of Linux 6.18. The ioctl exists since 6.10.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
from _thread import _local  # threading takes 1 ms to import

from irmapdb.kernel import syscalls
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.model import FileHandle

__all__ = ["Inode", "inode_of", "parents", "parse_parents"]


class Inode(Record):
    """An inode of one xfs."""

    ino: int
    generation: int


# FILEID_INO32_GEN and FILEID_INO32_GEN_PARENT, which a filesystem mounted with inode32 may show,
# and both with XFS_FILEID_TYPE_64FLAG. The inode comes first, then the parent.
_HANDLES = {
    0x01: (8, struct.Struct("=II")),
    0x02: (16, struct.Struct("=II")),
    0x81: (12, struct.Struct("=QI")),
    0x82: (24, struct.Struct("=QI")),
}


def inode_of(handle: FileHandle) -> Inode | None:
    """The inode that a handle of xfs names; None for any other handle.

    Other filesystems use the same types: look at the filesystem first.
    """
    size, head = _HANDLES.get(handle.type, (None, None))
    if head is None or len(handle.data) != size:
        return None
    return Inode(*head.unpack_from(handle.data))


# struct xfs_getparents_by_handle. The handle, struct xfs_handle: fsid, fid_len, fid_pad, fid_gen,
# fid_ino; the fsid is not looked at, the descriptor says which filesystem is meant
# (xfs_khandle_to_inode()). Then the cursor, which starts as zeroes and is handed back unread;
# gp_iflags, gp_oflags, gp_bufsize, padding, gp_buffer.
_GETPARENTS = struct.Struct("=QHHIQ16sHHIQQ")
_FID_BYTES = 14  # the size of fid_pad, fid_gen and fid_ino, for fid_len
_GETPARENTS_BY_HANDLE = syscalls.iowr(ord("X"), 63, _GETPARENTS.size)
_DONE = 2  # XFS_GETPARENTS_OFLAG_DONE
_ANSWER = struct.Struct("=24x16s2xH20x")  # the fields of the same struct that are read afterwards
# struct xfs_getparents_rec: the parent's handle (only its generation and number are used),
# gpr_reclen, reserved, the NUL-terminated name.
_RECORD = struct.Struct("=12xIQI4x")
_NO_RECORD = bytes(_RECORD.size)
_MOST_NAME_BYTES = 256  # NAME_MAX, and a NUL
# A page holds a dozen of the longest names, and the kernel zeroes as much each time.
_BUFFER_BYTES = 4096


class _Buffer(_local):
    # One for each thread.
    def __init__(self) -> None:
        self.request = bytearray(_GETPARENTS.size)
        self.records = ctypes.create_string_buffer(_BUFFER_BYTES)
        self.address = ctypes.addressof(self.records)
        self.view = memoryview(self.records).cast("B")


_buffer = _Buffer()
# A limit for corrupt answers: a real file has far fewer links.
_MOST_ROUNDS = 1 << 16


def parse_parents(raw: bytes) -> list[tuple[Inode, bytes]]:
    """The records of one buffer: a parent and the name in it.

    A buffer that begins with zeroes has none. The length of the last record runs to the end of the
    buffer. A record that is cut short is left out.
    """
    found: list[tuple[Inode, bytes]] = []
    position = 0
    size = len(raw)
    while (start := position + _RECORD.size) < size:
        generation, ino, length = _RECORD.unpack_from(raw, position)
        position += length
        if not start < position <= size:
            break
        end = raw.find(b"\0", start, min(start + _MOST_NAME_BYTES, position))
        if end > start:
            found.append((Inode(ino, generation), raw[start:end]))
    return found


def parents(fd: int, inode: Inode) -> Sequence[tuple[Inode, bytes]]:
    """Every name of an inode with its directory; none for the root.

    `fd` is any directory of the filesystem but no O_PATH descriptor. ESTALE: no such inode (any
    more); EOPNOTSUPP: no parent pointers; ENOTTY: a kernel that does not know them; EPERM:
    needs CAP_SYS_ADMIN.
    """
    ino, generation = inode
    buffer = _buffer
    request, address, view = buffer.request, buffer.address, buffer.view
    found: list[tuple[Inode, bytes]] = []
    cursor = b""
    for _ in range(_MOST_ROUNDS):
        # If there is no record, the kernel writes nothing, and we would read the previous answer.
        view[: _RECORD.size] = _NO_RECORD
        handle = (0, _FID_BYTES, 0, generation, ino)
        _GETPARENTS.pack_into(request, 0, *handle, cursor, 0, 0, _BUFFER_BYTES, 0, address)
        fcntl.ioctl(fd, _GETPARENTS_BY_HANDLE, request)
        cursor, flags = _ANSWER.unpack(request)
        batch = parse_parents(buffer.records.raw)
        found += batch
        if flags & _DONE or not batch:
            break
    return found
