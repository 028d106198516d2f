"""Names a database and SQLite's files beside it, creates them, and refuses unsuitable ones.

Nothing here opens an existing database: fcntl(2) drops all locks that a process has on a file,
SQLite's too, as soon as it closes any descriptor of it.
"""

from __future__ import annotations

import os
import stat

from irmapdb.errors import DatabaseError
from irmapdb.store.failures import another_file, show

__all__ = [
    "SIDECARS",
    "AnyPath",
    "absolute",
    "cannot_be_made",
    "cannot_be_opened",
    "check_length",
    "check_readable",
    "check_sidecars",
    "check_writable",
    "is_missing",
    "make_file",
    "status_of",
]

AnyPath = bytes | os.PathLike[bytes] | os.PathLike[str]

SIDECARS = (b"-wal", b"-shm", b"-journal")
"""The endings of SQLite's files beside a database."""

_MAX_PATH_BYTES = 512  # MAX_PATHNAME in sqlite's src/os_unix.c


def absolute(path: AnyPath) -> bytes:
    """The path in the form of all functions here."""
    return os.path.abspath(os.fsencode(path))


def check_length(path: bytes) -> None:
    """Refuse a path that SQLite cannot work with: it only says "unable to open database file"."""
    if len(path + b"-journal") >= _MAX_PATH_BYTES:
        raise another_file(
            path,
            f"the path is too long for SQLite, which takes {_MAX_PATH_BYTES} bytes",
            "name a file with a shorter path",
        )


def status_of(dir_fd: int, name: bytes, path: bytes) -> os.stat_result | None:
    """The stat of a file by its name in an open directory; None if there is none.

    Refuses a symlink, and a file that is not regular. `path` is for messages.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_be_opened(path, error) from error
    if stat.S_ISLNK(status.st_mode):
        raise another_file(
            path, "is a symbolic link, which is not followed", "name the file itself"
        )
    if not stat.S_ISREG(status.st_mode):
        raise another_file(
            path, f"is a {_kind_of(status.st_mode)}, not a database", "name another file"
        )
    return status


def check_sidecars(dir_fd: int, name: bytes, path: bytes) -> list[os.stat_result]:
    """The stats of SQLite's files beside a database. Refuses one that is no regular file."""
    found = []
    for suffix in SIDECARS:
        try:
            status = os.stat(name + suffix, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode):
            link = stat.S_ISLNK(status.st_mode)
            what = "symbolic link, which is not followed" if link else _kind_of(status.st_mode)
            raise DatabaseError(
                show(path + suffix),
                f"is a {what}",
                advice="remove it if you do not know it",
            )
        found.append(status)
    return found


def make_file(dir_fd: int, name: bytes, path: bytes) -> bool:
    """Make an empty database, mode 0600, in an open directory; False if a file has the name.

    SQLite takes an empty file for a new database, so a kill between this and the schema
    leaves one that opens the next time.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(name, flags, 0o600, dir_fd=dir_fd))
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_be_made(path, error) from error
    return True


def cannot_be_made(path: bytes, error: OSError) -> DatabaseError:
    """The error for a database that cannot be made."""
    if isinstance(error, FileNotFoundError):
        return another_file(
            path,
            f"there is no directory {show(os.path.dirname(path))}",
            "make it, or name a file elsewhere",
        )
    return another_file(path, f"cannot be made: {error.strerror}", "name a file elsewhere")


def cannot_be_opened(path: bytes, error: OSError) -> DatabaseError:
    """The error for a database that the kernel does not open."""
    return another_file(
        path, f"cannot be opened: {error.strerror}", "run as its owner, or name another file"
    )


def is_missing(path: bytes) -> DatabaseError:
    """The error for a missing database."""
    return another_file(
        path,
        "no such database",
        "make one by `irmapdb pre-dump` or `irmapdb import`, or name another file",
    )


def check_readable(dir_fd: int, name: bytes, path: bytes) -> None:
    """Refuse a file that may not be read."""
    if not os.access(name, os.R_OK, dir_fd=dir_fd, effective_ids=True):
        raise another_file(path, "may not be read", "run as its owner, or name another file")


def check_writable(dir_fd: int, name: bytes | None, path: bytes) -> None:
    """Refuse a file that cannot be written: SQLite would open it for reading, and fail later."""
    directory = os.path.dirname(path)
    for needed, shown in ((name, path), (b".", directory)):
        if needed is None:
            continue
        if not os.access(needed, os.W_OK, dir_fd=dir_fd, effective_ids=True):
            raise another_file(
                path,
                f"cannot be written: {show(shown)} is read-only",
                "name a file that can be written",
            )


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "directory",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "device",
        stat.S_IFCHR: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
