"""Wraps the system calls that Python's os module does not have, in one thin function each.

Every function raises OSError(errno, strerror, object) on failure and nothing else.
Sources: openat2(2), open_by_handle_at(2), statx(2), kcmp(2), include/uapi/linux/openat2.h,
fcntl.h, stat.h, kcmp.h of Linux 6.18; inotify_init(2), inotify_add_watch(2), statfs(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from irmapdb.model import FileHandle, kdev_of
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import SIGKILL
    from threading import local
    from typing import Any
else:  # the import of these modules takes 2 ms, and a paused container waits for it
    from _signal import SIGKILL
    from _thread import _local as local

__all__ = [
    "AT_EMPTY_PATH",
    "AT_HANDLE_FID",
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "RESOLVE_PLAIN",
    "Descriptor",
    "Statx",
    "compare_files",
    "current_cpu",
    "die_with_parent",
    "filesystem_magic",
    "inotify_add_watch",
    "inotify_init",
    "iowr",
    "name_to_handle_at",
    "open_by_handle_at",
    "openat2",
    "same_descriptors",
    "same_memory",
    "statx",
]

AT_EMPTY_PATH = 0x1000
# Linux 6.5, commit 96b2b072ee62 ("exportfs: allow exporting non-decodeable file handles to
# userspace"): a handle to compare, also where it could not be opened.
AT_HANDLE_FID = 0x200

_IOC_READ_WRITE = 3

_libc = ctypes.CDLL(None, use_errno=True)


def iowr(kind: int, number: int, size: int) -> int:
    """_IOWR(kind, number, an argument of `size` bytes), as x86, arm and riscv count.

    The number of an ioctl: include/uapi/asm-generic/ioctl.h.
    """
    return _IOC_READ_WRITE << 30 | size << 16 | kind << 8 | number


def _function(name: str, *argtypes: Any) -> Callable[..., int]:  # noqa: ANN401 types of ctypes
    function = getattr(_libc, name)
    function.restype, function.argtypes = ctypes.c_int, argtypes
    result: Callable[..., int] = function
    return result


def _system_call(*argtypes: Any) -> Callable[..., int]:  # noqa: ANN401 types of ctypes
    # By its number, which is the first argument.
    call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *argtypes, use_errno=True)
    return call(("syscall", _libc))


def current_cpu() -> int:
    """sched_getcpu(3): the CPU that runs the calling thread."""
    return _check(_libc.sched_getcpu(), b"")


_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """prctl(2), PR_SET_PDEATHSIG: SIGKILL to this process when the thread that forked it ends.

    SIGKILL comes at once if that thread has ended already. `parent` is the process of that thread.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), b"")
    if os.getppid() != parent:
        os.kill(os.getpid(), SIGKILL)


def _check(result: int, path: bytes | int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        name = path if isinstance(path, int) else os.fsdecode(path)
        raise OSError(code, os.strerror(code), name)
    return result


# openat2: the number is the same on every architecture that has it (Linux 5.6), and glibc
# has no wrapper before 2.42.
_SYS_OPENAT2 = 437
# kcmp has none at all. 272: include/uapi/asm-generic/unistd.h (arm64, riscv, loongarch).
_SYS_KCMP = {"x86_64": 312, "ppc64le": 354, "s390x": 343}.get(os.uname().machine, 272)

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
"""Only through directories below the descriptor, on the same mount."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_openat2 = _system_call(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)

# One struct for each pair of flags: a run has few, and a proof needs one call less.
_hows: dict[tuple[int, int], tuple[_OpenHow, int]] = {}


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2): a descriptor, close-on-exec. The path has no NUL byte (ValueError)."""
    how = _hows.get((flags, resolve))
    if how is None:
        block = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
        how = _hows[flags, resolve] = (block, ctypes.addressof(block))
    if b"\0" in path:
        raise ValueError("embedded null byte")
    fd = _openat2(_SYS_OPENAT2, dir_fd, path, how[1], ctypes.sizeof(_OpenHow))
    return fd if fd >= 0 else _check(fd, path)


# struct file_handle: u32 handle_bytes, s32 handle_type, bytes; MAX_HANDLE_SZ is 128.
_HANDLE_HEAD = struct.Struct("=Ii")
_MAX_HANDLE_BYTES = 128


class _Scratch:
    """The buffer for a handle: kept, because a new buffer costs more than the call."""

    __slots__ = ("_buffer", "_mount_id", "address", "bytes", "mount_id", "mount_id_address")

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_HANDLE_HEAD.size + _MAX_HANDLE_BYTES)
        self._mount_id = ctypes.c_int()
        self.bytes = memoryview(self._buffer).cast("B")
        self.address = ctypes.addressof(self._buffer)
        self.mount_id = memoryview(self._mount_id).cast("B").cast("i")
        self.mount_id_address = ctypes.addressof(self._mount_id)


class _Local(local):
    def __init__(self) -> None:
        self.scratch = _Scratch()


_local = _Local()

_name_to_handle_at = _function(
    "name_to_handle_at",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)


def name_to_handle_at(dir_fd: int, path: bytes, flags: int) -> tuple[FileHandle, int]:
    """name_to_handle_at(2): the handle and the mount id.

    EOPNOTSUPP if the filesystem cannot encode a handle, EINVAL if the kernel does not know a flag.
    """
    scratch = _local.scratch
    _HANDLE_HEAD.pack_into(scratch.bytes, 0, _MAX_HANDLE_BYTES, 0)
    result = _name_to_handle_at(dir_fd, path, scratch.address, scratch.mount_id_address, flags)
    if result < 0:
        _check(result, path or dir_fd)
    size, kind = _HANDLE_HEAD.unpack_from(scratch.bytes, 0)
    start = _HANDLE_HEAD.size
    return FileHandle(kind, bytes(scratch.bytes[start : start + size])), scratch.mount_id[0]


_open_by_handle_at = _function("open_by_handle_at", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def open_by_handle_at(mount_fd: int, handle: FileHandle, flags: int) -> int:
    """open_by_handle_at(2): a descriptor, close-on-exec.

    `mount_fd` is a real descriptor on the filesystem, not an O_PATH one. ESTALE: no such
    inode (any more); EPERM: needs CAP_DAC_READ_SEARCH; EOPNOTSUPP: cannot be decoded here.
    """
    size = len(handle.data)
    if size > _MAX_HANDLE_BYTES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(handle))
    scratch = _local.scratch
    _HANDLE_HEAD.pack_into(scratch.bytes, 0, size, handle.type)
    start = _HANDLE_HEAD.size
    scratch.bytes[start : start + size] = handle.data
    fd = _open_by_handle_at(mount_fd, scratch.address, flags | os.O_CLOEXEC)
    return fd if fd >= 0 else _check(fd, mount_fd)


class _StatxBuffer(ctypes.Structure):
    """struct statx up to stx_mnt_id; the kernel writes 256 bytes."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("spare0", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("timestamps", ctypes.c_uint64 * 8),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("spare", ctypes.c_uint64 * 13),
    )


_STATX_BASIC_STATS = 0x07FF
_AT_STATX_DONT_SYNC = 0x4000  # the wanted fields never change, so no server need be asked
_STATX_MNT_ID = 0x1000  # Linux 5.8

_statx = _function(
    "statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
)


class Descriptor:
    """Closes a descriptor at the end of a block: `with Descriptor(os.open(…)) as fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Statx(Record):
    """The part of statx(2) that os.stat does not give, and related fields."""

    ino: int
    mode: int
    nlink: int
    st_kdev: int
    """st_dev in the kernel's encoding: not always the superblock's (btrfs, overlayfs)."""
    mnt_id: int | None
    """None before Linux 5.8."""


def statx(fd: int) -> Statx:
    """statx(2) of an open descriptor, O_PATH or not."""
    buffer = _StatxBuffer()
    mask = _STATX_BASIC_STATS | _STATX_MNT_ID
    _check(_statx(fd, b"", AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, mask, ctypes.addressof(buffer)), fd)
    return Statx(
        ino=buffer.ino,
        mode=buffer.mode,
        nlink=buffer.nlink,
        st_kdev=kdev_of(buffer.dev_major, buffer.dev_minor),
        mnt_id=buffer.mnt_id if buffer.mask & _STATX_MNT_ID else None,
    )


# struct statfs begins with f_type, whose width is the machine's (__statfs_word of asm/statfs.h).
_STATFS_TYPE = struct.Struct("=I" if os.uname().machine == "s390x" else "@L")
_STATFS_BYTES = 256  # more than any machine's

_fstatfs = _function("fstatfs", ctypes.c_int, ctypes.c_void_p)


def filesystem_magic(fd: int) -> int:
    """f_type of fstatfs(2), of an open descriptor, O_PATH or not. It may wait for a server."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _check(_fstatfs(fd, ctypes.addressof(buffer)), fd)
    magic: int = _STATFS_TYPE.unpack_from(buffer.raw)[0]
    return magic


_inotify_init1 = _function("inotify_init1", ctypes.c_int)
_inotify_add_watch = _function("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def inotify_init() -> int:
    """inotify_init1(2): a descriptor, close-on-exec. EMFILE: the user has too many."""
    return _check(_inotify_init1(os.O_CLOEXEC), b"inotify")


def inotify_add_watch(inotify: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2): a watch descriptor. EACCES: needs the right to read the inode."""
    return _check(_inotify_add_watch(inotify, path, mask), path)


_KCMP_FILE = 0
_KCMP_VM = 1
_KCMP_FILES = 2
_KCMP_ORDER = (0, -1, 1)  # equal, less, greater

_kcmp = _system_call(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def compare_files(pid: int, fd: int, other_pid: int, other_fd: int) -> int:
    """kcmp(2), KCMP_FILE: 0 where two descriptors share one open file description, else -1 or 1.

    The order of two descriptions stays the same until the machine is started again. ENOSYS: a
    kernel without CONFIG_KCMP; ESRCH, EBADF: gone; EPERM: may not look.
    """
    result = _check(_kcmp(_SYS_KCMP, pid, other_pid, _KCMP_FILE, fd, other_fd), pid)
    return _KCMP_ORDER[result]


def same_descriptors(pid: int, other: int) -> bool:
    """Whether two threads share one table of descriptors: kcmp(2), KCMP_FILES.

    True also if one is gone, may not be looked at, or the kernel has no kcmp.
    """
    result: int = _kcmp(_SYS_KCMP, pid, other, _KCMP_FILES, 0, 0)
    return result <= 0


def same_memory(pid: int, other: int) -> bool:
    """Whether two tasks share one address space: kcmp(2), KCMP_VM.

    False also if one is gone or the kernel has no kcmp (CONFIG_KCMP, which CRIU needs too).
    """
    result: int = _kcmp(_SYS_KCMP, pid, other, _KCMP_VM, 0, 0)
    return result == 0
