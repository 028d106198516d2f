"""Makes temporary directories and files. If this run is killed, the next run removes them.

A run holds a flock(2) on its directory, and the kernel drops the lock with the process. So a
directory without a lock is a leftover.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress

from irmapdb.errors import FileError
from irmapdb.ownership import open_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SPOOL_LIMIT_BYTES", "remove_leftovers", "scratch_directory", "spooled"]

SPOOL_LIMIT_BYTES = 1 << 38
"""The number of bytes of a pipe that are kept, if half of the free space is not less."""

_PLACES = (b"/dev/shm", b"/var/tmp", b"/tmp")  # in memory first
_OURS = re.compile(rb"irmapdb-[a-z]+\.[a-z0-9_]{8}")
_SPOOL_PLACES = (b"/var/tmp", b"/tmp", b"/dev/shm")  # on a disk first
_SPARE_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def scratch_directory(purpose: str, *, room_bytes: int = 0) -> Iterator[bytes]:
    """A new directory of mode 0700 that only root and the caller can change; removed at the end.

    `purpose` is a word in its name. `room_bytes`: the needed space. FileError if there is no
    directory for it.
    """
    path, fd = _make(purpose.encode(), room_bytes)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def remove_leftovers() -> None:
    """Remove the leftovers of killed runs of this user in the temporary directories."""
    for place in _PLACES:
        with suppress(OSError):
            for name in filter(_OURS.fullmatch, os.listdir(place)):
                _remove_leftover(os.path.join(place, name))


def spooled(fd: int, name: str) -> int:
    """A descriptor of a nameless temporary file with the rest of a stream; the caller closes it.

    FileError, with `name` as the stream, if it cannot be read, or is larger than the free space and
    `SPOOL_LIMIT_BYTES` allow.
    """
    place, room_bytes = _spool_place()
    limit_bytes = min(SPOOL_LIMIT_BYTES, room_bytes // 2)
    left_bytes = limit_bytes
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            while chunk := os.read(fd, _CHUNK_BYTES):
                left_bytes -= len(chunk)
                if left_bytes < 0:
                    message = f"{name}: more than {limit_bytes:,} bytes, so not kept in "
                    advice = "save it to a file, and name the file"
                    raise FileError(message + os.fsdecode(place), advice=advice)
                _write(file.fileno(), chunk)
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            return os.dup(file.fileno())
    except OSError as error:
        message = f"cannot copy {name} to {os.fsdecode(place)}: {error.strerror}"
        raise FileError(message, advice="save it to a file, and name the file") from error


def _spool_place() -> tuple[bytes, int]:
    # The first directory that may be written to and has space, and its free bytes.
    for place in _SPOOL_PLACES:
        with suppress(OSError):
            status = os.statvfs(place)
            free_bytes = status.f_bavail * status.f_frsize
            if free_bytes > _SPARE_BYTES and os.access(place, os.W_OK | os.X_OK):
                return place, free_bytes
    names = os.fsdecode(b", ".join(_SPOOL_PLACES))
    message = f"no space for a temporary file in {names}"
    raise FileError(message, advice="free space in one of them")


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _remove_leftover(path: bytes) -> None:
    with suppress(OSError):
        status = os.stat(path, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return
        fd = os.open(path, _OPEN)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)


def _make(purpose: bytes, room_bytes: int) -> tuple[bytes, int]:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for place in _PLACES:
        try:
            status = os.statvfs(place)
            if status.f_bavail * status.f_frsize < room_bytes + _SPARE_BYTES:
                continue
            while True:
                path = tempfile.mkdtemp(prefix=b"irmapdb-%b." % purpose, dir=place)
                fd = _lock(path)
                if fd is not None:
                    return path, fd
        except OSError as failed:
            error = failed
    names = os.fsdecode(b", ".join(_PLACES))
    raise FileError(
        f"cannot make a temporary directory in {names}: {error.strerror}",
        advice="free space in one of them",
    ) from error


def _lock(path: bytes) -> int | None:
    # None: another run took it for a leftover before it was locked.
    try:
        fd = os.open(path, _OPEN)
    except FileNotFoundError:
        return None
    try:
        with suppress(OSError):  # BlockingIOError: it is being removed
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                _check_private(path)
                return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _check_private(path: bytes) -> None:
    with open_directory(path) as directory:
        if directory.shared_with:
            shutil.rmtree(path, ignore_errors=True)
            raise FileError(f"{os.fsdecode(path)}: {directory.shared_with}")
