"""Reads files of /proc. Only this module knows where /proc is mounted."""

from __future__ import annotations

import os

__all__ = ["ROOT", "living_thread", "read_file", "read_open"]

ROOT = "/proc"
"""Where proc(5) is mounted. Tests put a tree of files in its place."""


def living_thread(pid: int | str) -> int | str:
    """The task as given; if its first thread has ended, another live thread.

    A first thread that has ended has no descriptors, root and namespaces any more (do_exit() of
    kernel/exit.c), while the others have. Any thread's number can be looked up in /proc. OSError
    where the task is gone.
    """
    if _has_ended(f"{ROOT}/{pid}"):
        for tid in os.listdir(f"{ROOT}/{pid}/task"):
            if not _has_ended(f"{ROOT}/{pid}/task/{tid}"):
                return int(tid)
    return pid


def _has_ended(directory: str) -> bool:
    stat = read_file(f"{directory}/stat")
    return stat[stat.rfind(b")") + 2 :][:1] in {b"Z", b"X"}


# The kernel makes the whole text of one fdinfo at the first read (single_open), so large reads
# only save calls. Most files fit into the first one, whose buffer malloc keeps.
_FIRST_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20


def read_file(path: str, dir_fd: int | None = None) -> bytes:
    """One whole file of /proc, in as few calls as possible. OSError as open(2) and read(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return _read_on(fd)
    finally:
        os.close(fd)


def read_open(fd: int) -> bytes:
    """The whole text of an open file of /proc, as it is now."""
    os.lseek(fd, 0, os.SEEK_SET)
    return _read_on(fd)


def _read_on(fd: int) -> bytes:
    chunks = [os.read(fd, _FIRST_BYTES)]
    while chunks[-1]:
        chunks.append(os.read(fd, _CHUNK_BYTES))
    return chunks[0] if len(chunks) <= 2 else b"".join(chunks)  # noqa: PLR2004 text, end
