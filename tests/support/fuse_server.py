"""A small FUSE server that gives one node number to two files.

Its root has the file `one` until the test changes that; then `two`, a directory with the same
number and generation. Uses the kernel's protocol: include/uapi/linux/fuse.h, fuse(4); mount(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from typing import TYPE_CHECKING, Self

from tests.support.filesystems import unmount

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ReusingServer"]

_IN = struct.Struct("=IIQQIIII")  # struct fuse_in_header
_OUT = struct.Struct("=IiQ")  # struct fuse_out_header
_INIT = struct.Struct("=IIIIHHIIHHI7I")  # struct fuse_init_out
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")  # struct fuse_attr
_ENTRY = struct.Struct("=QQQQII")  # struct fuse_entry_out, before the attributes
_ATTR_OUT = struct.Struct("=QII")  # struct fuse_attr_out, before the attributes
_OPEN = struct.Struct("=QII")  # struct fuse_open_out

# enum fuse_opcode
_LOOKUP, _FORGET, _GETATTR, _OPEN_FILE, _RELEASE, _FLUSH, _INIT_CALL = 1, 2, 3, 14, 18, 25, 26
_OPEN_DIRECTORY, _RELEASE_DIRECTORY, _BATCH_FORGET = 27, 29, 42

_REQUEST_BYTES = 1 << 17
_ROOT, _REUSED = 1, 42


class ReusingServer:
    """A context manager: mounted at a directory, served by a thread of ours."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self.reused = False
        """Whether `two` has the number now, and `one` is gone."""

    def __enter__(self) -> Self:
        self._mountpoint.mkdir(parents=True, exist_ok=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        _mount(self._mountpoint, f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other")
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        unmount(self._mountpoint)
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, _REQUEST_BYTES)
                _, code, unique, node, *_ = _IN.unpack_from(request)
                answer = self._answer(code, node, request[_IN.size :])
                if answer is not None:
                    error, data = answer
                    os.write(self._fd, _OUT.pack(_OUT.size + len(data), -error, unique) + data)
            except OSError:
                return  # ENODEV: unmounted

    def _answer(self, code: int, node: int, data: bytes) -> tuple[int, bytes] | None:
        if code in {_FORGET, _BATCH_FORGET}:
            return None
        if code == _INIT_CALL:
            return 0, _INIT.pack(7, 31, 0, 0, 9, 9, 1 << 16, 1, 0, 0, 0, *[0] * 7)
        if code == _LOOKUP:
            return self._lookup(data.rstrip(b"\0"))
        if code == _GETATTR:
            return 0, _ATTR_OUT.pack(0, 0, 0) + self._attributes(node)
        if code in {_OPEN_FILE, _OPEN_DIRECTORY}:
            return 0, _OPEN.pack(1, 0, 0)
        if code in {_RELEASE, _RELEASE_DIRECTORY, _FLUSH}:
            return 0, b""
        return errno.ENOSYS, b""

    def _lookup(self, name: bytes) -> tuple[int, bytes]:
        if name != (b"two" if self.reused else b"one"):
            return errno.ENOENT, b""
        return 0, _ENTRY.pack(_REUSED, 0, 0, 0, 0, 0) + self._attributes(_REUSED)

    def _attributes(self, node: int) -> bytes:
        directory = node == _ROOT or self.reused
        mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644
        return _ATTR.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _mount(mountpoint: Path, options: str) -> None:
    # mount(8) would not hand the descriptor on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"reusing", os.fsencode(mountpoint), b"fuse", 0, options.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), mountpoint)
