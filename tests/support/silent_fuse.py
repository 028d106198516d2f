"""A FUSE filesystem whose server reads each request and, once told, answers none.

A task that waits for such an answer cannot even be killed (request_wait_answer() of
fs/fuse/dev.c): only the end of the connection frees it. include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SilentFuse"]

_IN = struct.Struct("=IIQQ16x")  # len, opcode, unique, nodeid; uid, gid, pid and padding
_OUT = struct.Struct("=IiQ")  # len, error, unique
_INIT_OUT = struct.Struct("=IIII HHI I 36x")
_ATTR_OUT = struct.Struct("=QII 6Q 10I")
_GETATTR, _INIT = 3, 26
_ENOSYS = 38
_REQUEST_BYTES = 1 << 17
_LOOK_MS = 20
_DIRECTORY_MODE = 0o040755

_libc = ctypes.CDLL(None, use_errno=True)


class SilentFuse:
    """One empty directory at `mountpoint`. A context manager: its end frees all who wait."""

    def __init__(self, mountpoint: Path, *, user: int = 0) -> None:
        """`user`: the uid that the kernel is told to have mounted it."""
        self._user = user
        self._mountpoint = os.fsencode(mountpoint)
        self.silent = False
        self._ended = threading.Event()
        self.asked = threading.Event()
        """Set when a request has been read that gets no answer."""

    def __enter__(self) -> Self:
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        options = b"fd=%d,rootmode=40000,user_id=%d,group_id=0,allow_other" % (
            self._fd,
            self._user,
        )
        if _libc.mount(b"silent", self._mountpoint, b"fuse", 0, options):
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, os.strerror(code), self._mountpoint)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._fd)  # the last one: ends the connection
        _libc.umount2(self._mountpoint, 2)  # MNT_DETACH

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self._ended.is_set():
            if not poll.poll(_LOOK_MS):
                continue
            try:
                request = os.read(self._fd, _REQUEST_BYTES)
            except BlockingIOError:
                continue  # the one who asked was killed before
            _, opcode, unique, _ = _IN.unpack_from(request)
            if self.silent:
                self.asked.set()
                continue
            error, body = self._answer(opcode)
            with contextlib.suppress(OSError):
                os.write(self._fd, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def _answer(self, opcode: int) -> tuple[int, bytes]:
        if opcode == _INIT:
            return 0, _INIT_OUT.pack(7, 31, 0, 0, 12, 9, 4096, 1)
        if opcode == _GETATTR:
            return 0, _ATTR_OUT.pack(0, 0, 0, 1, *(0,) * 8, _DIRECTORY_MODE, 2, *(0,) * 5)
        return -_ENOSYS, b""
