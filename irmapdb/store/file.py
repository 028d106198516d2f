"""The file before SQLite gets to see it: what is made, and what is refused.

Nothing here opens an existing database: fcntl(2) drops all locks that a process has on a file,
SQLite's too, as soon as it closes any descriptor of it.
"""

from __future__ import annotations

import os
import stat

from irmapdb.errors import DatabaseError
from irmapdb.store.failures import show

__all__ = ["SIDECARS", "AnyPath", "absolute", "check_readable", "check_writable", "make_file"]

AnyPath = bytes | os.PathLike[bytes] | os.PathLike[str]

SIDECARS = (b"-wal", b"-shm", b"-journal")
"""What SQLite keeps beside a database, under its name and these."""

_MAX_PATH_BYTES = 512  # MAX_PATHNAME in sqlite's src/os_unix.c


def absolute(path: AnyPath) -> bytes:
    """The path in the form that everything here takes."""
    return os.path.abspath(os.fsencode(path))


def _check_name(path: bytes) -> None:
    # What SQLite cannot work with, and says so only as "unable to open database file".
    if len(path + b"-journal") >= _MAX_PATH_BYTES:
        raise DatabaseError(
            f"{show(path)}: the path is too long for SQLite, which takes {_MAX_PATH_BYTES} bytes",
            advice="name a file with a shorter path with --db",
        )
    for sidecar in SIDECARS:
        if os.path.islink(path + sidecar):
            raise DatabaseError(
                f"{show(path + sidecar)}: is a symbolic link, which is not followed",
                advice="remove it if you do not know it",
            )


def make_file(path: bytes) -> bool:
    """Make an empty database, mode 0600; False if something is there already.

    SQLite takes an empty file for a new database, so a kill between this and the schema
    leaves one that opens the next time.
    """
    _check_name(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        return False
    except FileNotFoundError as error:
        raise DatabaseError(
            f"{show(path)}: there is no directory {show(os.path.dirname(path))}",
            advice="make it, or name a file elsewhere with --db",
        ) from error
    except OSError as error:
        raise DatabaseError(
            f"{show(path)}: cannot be made: {error.strerror}",
            advice="name a file elsewhere with --db",
        ) from error
    return True


def check_readable(path: bytes) -> None:
    """Refuse what is missing, a symlink, or no regular file."""
    _check_name(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError as error:
        raise DatabaseError(
            f"{show(path)}: no such database",
            advice="`irmapdb pre-dump` and `irmapdb import` make one; --db names another",
        ) from error
    except OSError as error:
        raise DatabaseError(
            f"{show(path)}: cannot be opened: {error.strerror}",
            advice="run as its owner, or name another file with --db",
        ) from error
    if stat.S_ISLNK(mode):
        raise DatabaseError(
            f"{show(path)}: is a symbolic link, which is not followed",
            advice="name the file itself with --db",
        )
    if not stat.S_ISREG(mode):
        raise DatabaseError(
            f"{show(path)}: is a {_kind_of(mode)}, not a database",
            advice="name another file with --db",
        )
    if not os.access(path, os.R_OK, effective_ids=True):
        raise DatabaseError(
            f"{show(path)}: may not be read",
            advice="run as its owner, or name another file with --db",
        )


def check_writable(path: bytes) -> None:
    """Refuse also what cannot be written: SQLite would open it for reading, and fail later."""
    check_readable(path)
    for needed in (path, os.path.dirname(path)):
        if not os.access(needed, os.W_OK, effective_ids=True):
            raise DatabaseError(
                f"{show(path)}: cannot be written: {show(needed)} is read-only",
                advice="name a file that can be written with --db",
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
