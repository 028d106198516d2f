"""Lets only one service run in a run directory, and reads its pid (see rundir.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.kernel.proc import tasks
from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

__all__ = ["ServiceLock"]

_LOCK, _PID, _FIFO = "warm.lock", "warm.pid", "warm.fifo"


class ServiceLock:
    """The lock of the service. A context manager: FileError if a service runs already."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    def __enter__(self) -> Self:
        fd = os.open(
            self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise FileError(
                f"{printable(self._directory)}: `irmapdb warm` is running already{self._who()}",
                advice="`irmapdb warm --status` shows its state",
            ) from error
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            for name in (_PID, _FIFO):
                (self._directory / name).unlink(missing_ok=True)
            self.forget()

    def forget(self) -> None:
        """Leave the lock to the parent only: for a forked child."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _who(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return f", as process {int((self._directory / _PID).read_text().split()[0])}"
        return ""

    def announce(self) -> int:
        """Make the FIFO for the hook's script, and write our pid; returns its descriptor.

        Another file with that name is replaced.
        """
        fifo = self._directory / _FIFO
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo, 0o600)
        # Also for writing: else it would be at its end if no script has it open.
        fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        me = tasks.require_task(os.getpid())
        files.replace_whole(self._directory / _PID, b"%d %d\n" % (me.pid, me.starttime))
        return fd

    def running(self) -> int | None:
        """The pid of the service that runs here; None if none does."""
        try:
            pid, starttime = map(int, (self._directory / _PID).read_text().split())
            task = tasks.read_task(pid)
        except (OSError, ValueError):
            return None
        return pid if task is not None and task.starttime == starttime else None

    def has_ended(self) -> bool:
        """Whether a service has ended without removing its files: it was killed."""
        return (self._directory / _PID).exists() and self.running() is None

    def request(self, line: bytes) -> bool:
        """Write a request to the service; False if its FIFO is full, or none reads it. OSError."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._directory / _FIFO, flags)
        try:
            return stat.S_ISFIFO(os.fstat(fd).st_mode) and os.write(fd, line) == len(line)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
