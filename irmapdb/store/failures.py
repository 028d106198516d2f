"""Turns SQLite's errors into DatabaseError: the file, the problem, the next step.

Source of the codes: https://www.sqlite.org/rescode.html. Of the lock bytes:
https://www.sqlite.org/walformat.html#locks and `PENDING_BYTE` in sqlite's src/os.h.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import contextmanager

from irmapdb.errors import DatabaseError
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

__all__ = [
    "Holder",
    "another_file",
    "check_order",
    "explain",
    "explain_full",
    "explain_lock",
    "find_holder",
    "is_full",
    "primary_code",
    "show",
    "show_words",
    "translated",
]

_WAL_LOCKS = range(120, 123)  # in the -shm file: writer, checkpointer, recoverer
_DATABASE_LOCKS = range(0x40000000, 0x40000000 + 512)  # in the database: pending, reserved, shared
_ALMOST_FULL_BYTES = 64 * 1024
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Holder(Record):
    """A process that has a lock on the database."""

    pid: int
    comm: str


def show(path: bytes) -> str:
    """A path in a message."""
    return printable(path)


def another_file(path: bytes, reason: str, advice: str) -> DatabaseError:
    """The error for a database. Its advice ends with `advice`, and may suggest another file."""
    return DatabaseError(show(path), reason, advice=advice, remedy="database")


def show_words(text: str) -> str:
    """Words of a database in a message: a table may have any name."""
    return printable(text.encode("utf-8", "backslashreplace"))


def primary_code(error: sqlite3.Error) -> int | None:
    """The SQLITE_… code without its extension; None if Python raised it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


@contextmanager
def translated(path: bytes, wait_s: float = 0) -> Iterator[None]:
    """Turn each error of SQLite or SQLAlchemy into a DatabaseError about `path`.

    `wait_s` is the time of the wait for a lock.
    """
    try:
        yield
    except MemoryError as error:
        raise DatabaseError(
            show(path), "there is not enough memory", advice="free some, and run this again"
        ) from error
    except Exception as error:
        # SQLAlchemy's DBAPIError has SQLite's own error in `orig`. By name, as only an
        # upgrade imports SQLAlchemy.
        said = getattr(error, "orig", error)
        if not isinstance(said, sqlite3.Error):
            raise
        raise explain(path, said, wait_s) from error


def explain(path: bytes, error: sqlite3.Error, wait_s: float = 0) -> DatabaseError:
    """The error to raise for an error of SQLite."""
    name, said = show(path), _words_of(error)
    code, code_name = primary_code(error), getattr(error, "sqlite_errorname", "")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return explain_lock(path, wait_s)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_full(path)):
        return explain_full(path)
    if code == sqlite3.SQLITE_READONLY:
        return _explain_readonly(name, said, code_name)
    if code == sqlite3.SQLITE_NOTADB:
        return DatabaseError(
            name,
            f"not a database: {_what_it_is(path)}",
            advice="move it away, or name another file",
            remedy="database",
        )
    if code == sqlite3.SQLITE_IOERR and "_SHM" in code_name:
        return DatabaseError(
            name,
            "there is no shared memory for its log on this filesystem",
            advice="open it once for writing, or copy it elsewhere",
        )
    if code in _OF_THE_CONTENT:
        text, advice = _OF_THE_CONTENT[code]
        return DatabaseError(name, f"{text.format(said)}", advice=advice)
    return DatabaseError(name, f"{said} ({code_name or type(error).__name__})")


def check_order(path: bytes, after: int, page: Sequence[Sequence[Any]]) -> None:
    """DatabaseError unless the ids of a page, its first values, increase from `after` on.

    In a damaged file many parts of a table can be the same page, and SQLite gives its rows again
    and again.
    """
    text, advice = _OF_THE_CONTENT[sqlite3.SQLITE_CORRUPT]
    for row in page:
        if row[0] <= after:
            raise DatabaseError(show(path), text.format("a row comes twice"), advice=advice)
        after = row[0]


def _words_of(error: sqlite3.Error) -> str:
    text = str(error)
    return text if text.isprintable() else show_words(text)  # escaped already, or not


_OF_THE_CONTENT = {
    sqlite3.SQLITE_CORRUPT: (
        "the database is damaged ({})",
        "move it away, or put back a backup: it is only a cache",
    ),
    sqlite3.SQLITE_TOOBIG: (
        "a value in it has more than 1 MiB, and irmapdb did not write that",
        "put back what was changed by hand, or move the file away: it is only a cache",
    ),
    sqlite3.SQLITE_INTERRUPT: (
        "{}",
        "run this when the machine is less busy, or move the file away: it is only a cache",
    ),
}


def _explain_readonly(name: str, said: str, code: str) -> DatabaseError:
    if code == "SQLITE_READONLY_ROLLBACK":
        return DatabaseError(
            name,
            "a process was killed in the middle of a step, which has to be undone first",
            advice="open it once as a user who may write it",
        )
    return DatabaseError(
        name,
        f"the database cannot be written ({said})",
        advice="name a file that can be written",
        remedy="database",
    )


def explain_full(path: bytes) -> DatabaseError:
    """The error for a full disk."""
    return another_file(
        path, "the disk is full, nothing was changed", "free disk space, or name a file elsewhere"
    )


def explain_lock(path: bytes, wait_s: float) -> DatabaseError:
    """The error for a lock that was not released in time."""
    holder = find_holder(path)
    who = "another process" if holder is None else f"pid {holder.pid} ({holder.comm})"
    return DatabaseError(
        show(path),
        f"locked by {who}, for longer than the {wait_s:g} s that were waited",
        advice="wait until it has ended",
    )


def is_full(path: bytes) -> bool:
    """Whether the filesystem is too full for a file of SQLite's beside `path`.

    If SQLite cannot make its shared memory, it reports an I/O error.
    """
    try:
        status = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    no_inode = bool(status.f_files) and not status.f_favail  # btrfs counts none
    return no_inode or status.f_bavail * status.f_frsize < _ALMOST_FULL_BYTES


def _what_it_is(path: bytes) -> str:
    # Only after SQLite refused the file: closing a descriptor of a database that is in use
    # drops every lock that this process has on it, fcntl(2).
    try:
        fd = os.open(path, _LOOK)
        try:
            head = os.read(fd, 64) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
    except OSError as error:
        return str(error.strerror)
    if head.startswith(b"SQLite format 3\0"):
        return "its header is damaged, or it is encrypted"
    start = head[:16]
    # Quote the begin of a text file, so that the user recognizes it.
    if start.isascii() and all(one.isprintable() or one.isspace() for one in start.decode()):
        return f'it begins with "{show(start)}"'
    return f"it begins with the bytes {start[:8].hex(' ')}"


def find_holder(path: bytes) -> Holder | None:
    """The process that has the write lock of `path`, if the kernel shows it.

    Read from proc_locks(5). fcntl(F_GETLK) would need a descriptor of the file, and closing
    it would drop this process's own locks (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    for suffix, wanted in ((b"-shm", _WAL_LOCKS), (b"", _DATABASE_LOCKS)):
        try:
            status = os.stat(path + suffix, follow_symlinks=False)
        except OSError:
            continue
        # Writers first: a reader only keeps a rollback journal from being committed.
        locks = sorted(_locks_on(status, wanted), key=lambda lock: not lock.write)
        for lock in locks:
            comm = _read_comm(lock.pid)
            if lock.pid != os.getpid() and comm is not None:
                return Holder(lock.pid, comm)
    return None


class _Lock(Record):
    pid: int
    write: bool
    same_device: bool


def _locks_on(status: os.stat_result, wanted: range) -> list[_Lock]:
    try:
        with open("/proc/locks", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    device = b"%02x:%02x" % (os.major(status.st_dev), os.minor(status.st_dev))
    found = []
    for line in lines:
        # "8: POSIX  ADVISORY  WRITE 4242 fe:00:262148 120 120"; a waiter has "->" as second word.
        match line.split():
            case [_, b"POSIX", _, kind, pid, inode, start, end]:
                where, _, number = inode.rpartition(b":")
            case _:
                continue
        last = wanted.stop - 1 if end == b"EOF" else int(end)
        if int(number) == status.st_ino and int(start) < wanted.stop and last >= wanted.start:
            found.append(_Lock(int(pid), kind == b"WRITE", where == device))
    # On btrfs and overlayfs st_dev is not the superblock's device, which /proc/locks shows.
    same_device = [lock for lock in found if lock.same_device]
    return same_device or found


def _read_comm(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return printable(file.read().rstrip(b"\n"))
    except OSError:
        return None
