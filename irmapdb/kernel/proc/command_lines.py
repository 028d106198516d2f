"""Reads the command lines of processes.

A process can change its own, also to control characters, or to megabytes. The text lies in the
memory of the process, so a read can wait for a lock on that memory (proc_pid_cmdline_read() of
fs/proc/base.c, `mmap_lock`). A process that waits for a server can hold it for long. So a child
process reads the command lines, with a time limit, and reports the process that it reads.
"""

from __future__ import annotations

import mmap
import os
import struct

from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proc import procfs
from irmapdb.kernel.syscalls import Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOST_BYTES", "read_command_lines"]

MOST_BYTES = 4096
"""The length of a command line that is read; the rest is left out."""

_PATIENCE_S = 1.0
"""The time limit for all command lines, which take some 10 us each."""
_MOST_STUCK = 3
"""If this number of processes did not answer, no other command line is read."""
_PLACE = struct.Struct("=Q")


def read_command_lines(pids: Sequence[int]) -> dict[int, bytes]:
    """The command line of each process, with a blank between two arguments.

    b"" if the process has none. A process that is gone, or does not answer, is left out.
    """
    left = list(pids)
    for _ in range(_MOST_STUCK):
        with mmap.mmap(-1, mmap.PAGESIZE) as place:  # shared with the child
            try:
                found: dict[int, bytes] = call_in_child(lambda: _read_all(left, place), _PATIENCE_S)
            except TimeoutError:
                del left[_PLACE.unpack_from(place)[0]]
            except ChildProcessError:
                break
            else:
                return found
    return {}


def _read_all(pids: Sequence[int], place: mmap.mmap) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for number, pid in enumerate(pids):
        _PLACE.pack_into(place, 0, number)
        text = _read(pid)
        if text is not None:
            found[pid] = text
    return found


def _read(pid: int) -> bytes | None:
    path = f"{procfs.ROOT}/{pid}/cmdline"
    try:
        with Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            text = os.read(fd, MOST_BYTES)
    except OSError:
        return None
    return text.rstrip(b"\0").replace(b"\0", b" ")
