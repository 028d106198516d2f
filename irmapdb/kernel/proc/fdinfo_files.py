"""Keeps large fdinfo files open from one read to the next.

The kernel makes the whole text of an fdinfo file at each read from its beginning, in a buffer of
one page. If the buffer is too small, the kernel doubles it and begins again (seq_read_iter() of
fs/seq_file.c). The buffer stays while the file is open. So a second read of an open file takes a
third of the time of the first.
"""

from __future__ import annotations

import os

from irmapdb.kernel.proc import fdinfo, procfs
from irmapdb.kernel.proc.fdinfo import RawWatchFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from irmapdb.model import WatchKind

__all__ = ["FdinfoFiles"]

_LARGE_BYTES = 1 << 14
"""Files of this size or more are kept open."""
_MOST_OPEN = 64
"""A process may open 1,024 files, and it keeps other files open too."""


class FdinfoFiles:
    """Reads fdinfo, and keeps large files open. A context manager that closes them."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, pid: int, fd: int, kind: WatchKind) -> RawWatchFile | None:
        """One descriptor's fdinfo as it is now; None if the descriptor or task is gone."""
        file = self._open.get((pid, fd))
        if file is None:
            return self._first(pid, fd, kind)
        try:
            return RawWatchFile(pid, fd, kind, procfs.read_open(file))
        except OSError:
            # It was closed, or the task has ended. The file belongs to that task, even if another
            # task has its number now.
            os.close(self._open.pop((pid, fd)))
            return fdinfo.read_raw(pid, fd, kind)

    def _first(self, pid: int, fd: int, kind: WatchKind) -> RawWatchFile | None:
        if len(self._open) >= _MOST_OPEN:
            return fdinfo.read_raw(pid, fd, kind)
        try:
            file = os.open(f"{procfs.ROOT}/{pid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return fdinfo.read_raw(pid, fd, kind)
        kept = False
        try:
            raw = procfs.read_open(file)
            if len(raw) >= _LARGE_BYTES:
                self._open[pid, fd] = file
                kept = True
        except OSError:
            return fdinfo.read_raw(pid, fd, kind)
        finally:
            if not kept:
                os.close(file)
        return RawWatchFile(pid, fd, kind, raw)
