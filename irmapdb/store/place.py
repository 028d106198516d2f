"""Decides where SQLite works: on the database itself, or on a private copy of it.

SQLite uses files by their names. It rolls back any journal beside a database, deletes the file that
the journal names, opens a FIFO and waits, and writes through a hard link. So it works on the
database itself ("in place") only if no other user can put a file under these names:

- the directory and its parents belong to root or the caller, and only these may write to them
  (irmapdb.ownership);
- so do the database and SQLite's files beside it; these are regular files with one link each.

Anywhere else irmapdb opens the directory once, copies the main file through that descriptor into
a scratch directory, and lets SQLite work there. No journal or log is read. After each step the
copy is put back whole by a rename(2) relative to the descriptor. Two writers exclude each other
by a flock(2) on the directory. If a program without this lock has written the database meanwhile,
or has it open, nothing is put back. Readers write nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import ExitStack, contextmanager, suppress

from irmapdb import files
from irmapdb.errors import DatabaseError, FileError
from irmapdb.log import Log
from irmapdb.ownership import belongs_to_us, open_directory
from irmapdb.record import Record
from irmapdb.store.failures import another_file, explain_full, explain_lock, find_holder, show
from irmapdb.store.file import (
    SIDECARS,
    absolute,
    cannot_be_made,
    cannot_be_opened,
    check_length,
    check_readable,
    check_sidecars,
    check_writable,
    is_missing,
    make_file,
    status_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.ownership import Directory
    from irmapdb.store.file import AnyPath

__all__ = ["COPY_LIMIT_BYTES", "Place", "open_place"]

COPY_LIMIT_BYTES = 1 << 30
"""The largest database for a private copy."""

UNREAD = b".unread"
"""Added to the name of a journal or log that was not read, when a new database is put beside it."""

_CHUNK_BYTES = 1 << 20
_TRIES = 5
_LOCK_PAUSE_S = 0.05
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_VERSIONS = slice(18, 20)  # of the file format: 2, 2 in a header is a WAL database
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_log = Log(__name__)


class _Stamp(Record):
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Place:
    """One database, and the file that SQLite opens for it."""

    def __init__(
        self, path: bytes, directory: Directory, work: bytes, why_copied: str, wait_s: float = 0
    ) -> None:
        self.path = path
        """The absolute path as the user named it, for messages."""
        self.directory = directory
        self.name = os.path.basename(path)
        self.work = work
        """The file that SQLite opens."""
        self.why_copied = why_copied
        """Why `work` is a private copy; "" if it is the database itself."""
        self.made = False
        """Whether there was no database before."""
        self.unread: tuple[bytes, ...] = ()
        """The journals and logs beside the database that were not read."""
        self._old: os.stat_result | None = None
        self._is_changed = False
        self._wait_s = wait_s
        self._refused: DatabaseError | None = None

    @property
    def copied(self) -> bool:
        """Whether SQLite works on a private copy."""
        return bool(self.why_copied)

    def mark_changed(self) -> None:
        """Record that the copy must be put back."""
        self._is_changed = self.copied

    def put_back(self) -> None:
        """Replace the database by the copy, if a step has changed it.

        DatabaseError if that failed. It is not tried again.
        """
        if not self._is_changed:
            return
        self._is_changed = False
        if self._refused is not None:  # the copy has a step that was not kept
            raise self._refused
        try:
            self._check_untouched()
            self._put_back()
        except DatabaseError as error:
            self._refused = error
            raise

    def _put_back(self) -> None:
        try:
            self._set_unread_aside()
            with open(self.work, "rb") as copy:
                old = self._old
                self._old = files.put_file(
                    self.directory.fd,
                    self.name,
                    copy.fileno(),
                    mode=0o600 if old is None else old.st_mode & 0o666,
                    owner=None if old is None else (old.st_uid, old.st_gid),
                    replace=old is not None,
                )
        except FileExistsError as error:
            raise self._was_written() from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise explain_full(self.path) from error
            raise another_file(
                self.path,
                f"cannot be put back: {error.strerror}",
                "free space there, or name a file elsewhere",
            ) from error

    def _check_untouched(self) -> None:
        now = status_of(self.directory.fd, self.name, self.path)
        then = self._old
        if (now and _Stamp.of(now)) != (then and _Stamp.of(then)):
            raise self._was_written()
        # A program that works in place has a lock on the file while it is open.
        end_s = time.monotonic() + self._wait_s
        while find_holder(self.path) is not None:
            if time.monotonic() > end_s:
                raise explain_lock(self.path, self._wait_s)
            time.sleep(_LOCK_PAUSE_S)

    def _was_written(self) -> DatabaseError:
        return DatabaseError(
            show(self.path),
            "was written by another program meanwhile; nothing was changed",
            advice="run this again",
        )

    def _set_unread_aside(self) -> None:
        # SQLite would apply it to the new database. It may hold rows that its owner still needs.
        within = {"src_dir_fd": self.directory.fd, "dst_dir_fd": self.directory.fd}
        for name in (self.name + suffix for suffix in SIDECARS):
            with suppress(FileNotFoundError):
                os.rename(name, name + UNREAD, **within)
        with suppress(OSError):  # has nothing that is not in the log
            os.unlink(self.name + b"-shm" + UNREAD, dir_fd=self.directory.fd)


@contextmanager
def open_place(
    path: AnyPath,
    *,
    write: bool,
    create: bool = False,
    wait_s: float = 10.0,
    copy_limit_bytes: int = COPY_LIMIT_BYTES,
) -> Iterator[Place]:
    """Decide where SQLite works, and make the copy if it is needed.

    `create`: whether there may be no database yet. `wait_s`: the longest wait for another writer of
    a directory where copies are made. DatabaseError if a copy would be larger than
    `copy_limit_bytes`. Without a call of `put_back`, changes of a copy are lost.
    """
    where = absolute(path)
    check_length(where)
    with ExitStack() as stack:
        directory = _open_directory(stack, where, create=create)
        old = status_of(directory.fd, os.path.basename(where), where)
        if old is None and not create:
            raise is_missing(where)
        why = directory.shared_with or _why_shared(directory.fd, where, old)
        if why:
            limit = copy_limit_bytes
            yield _copied(stack, where, directory, why, limit, write=write, wait_s=wait_s)
        else:
            yield _in_place(where, directory, write=write, create=create)


def _open_directory(stack: ExitStack, path: bytes, *, create: bool) -> Directory:
    try:
        return stack.enter_context(open_directory(os.path.dirname(path)))
    except FileError as error:
        raise DatabaseError(
            show(path), error.message, advice=error.advice, remedy="database or work dir"
        ) from error
    except OSError as error:
        if create:
            raise cannot_be_made(path, error) from error
        if isinstance(error, FileNotFoundError):
            raise is_missing(path) from error
        raise cannot_be_opened(path, error) from error


def _why_shared(dir_fd: int, path: bytes, main: os.stat_result | None) -> str:
    # Of the files, in a directory that only root and the caller can change.
    name = os.path.basename(path)
    for status in (main, *check_sidecars(dir_fd, name, path)):
        if status is None:
            continue
        if not belongs_to_us(status):
            return f"a file of it belongs to uid {status.st_uid}"
        if status.st_nlink != 1:
            return f"a file of it has {status.st_nlink} hard links"
        if status.st_mode & _OTHERS_WRITE:
            return f"a file of it can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _in_place(path: bytes, directory: Directory, *, write: bool, create: bool) -> Place:
    name = os.path.basename(path)
    place = Place(path, directory, os.path.join(directory.path, name), "")
    check_length(place.work)
    place.made = create and make_file(directory.fd, name, path)
    if status_of(directory.fd, name, path) is None:
        raise is_missing(path)
    check_readable(directory.fd, name, path)
    if write:
        check_writable(directory.fd, name, path)
    return place


# --- the private copy -----------------------------------------------------------------------------


def _copied(
    stack: ExitStack,
    path: bytes,
    directory: Directory,
    why: str,
    limit_bytes: int,
    *,
    write: bool,
    wait_s: float,
) -> Place:
    if write:
        check_writable(directory.fd, None, path)
        _lock(directory.fd, path, wait_s)
    name = os.path.basename(path)
    old = status_of(directory.fd, name, path)
    size = 0 if old is None else old.st_size
    _check_size(path, size, limit_bytes, why)
    if old is not None:
        check_readable(directory.fd, name, path)
    from irmapdb.scratch import scratch_directory  # noqa: PLC0415 seldom needed

    scratch = stack.enter_context(scratch_directory("copy", room_bytes=2 * size))
    place = Place(path, directory, os.path.join(scratch, b"irmap.db"), why, wait_s)
    with open(place.work, "xb", opener=lambda file, flags: os.open(file, flags, 0o600)) as copy:
        if old is not None:
            place._old = _copy_main(  # noqa: SLF001
                directory.fd, name, path, copy.fileno(), limit_bytes, why
            )
    place.made = old is None
    place.unread = tuple(suffix for suffix in SIDECARS if _has_data(directory.fd, name + suffix))
    _log.warning("%s: worked on a private copy, as %s", show(path), why)
    for suffix in place.unread:
        _log.warning("%s: was not read", show(path + suffix))
    return place


def _check_size(path: bytes, size: int, limit_bytes: int, why: str) -> None:
    if size > limit_bytes:
        raise DatabaseError(
            show(path),
            f"has {size} bytes, and a private copy is made of no more than {limit_bytes} ({why})",
            advice="move it to a directory that only you and root can write to",
        )


def _lock(dir_fd: int, path: bytes, wait_s: float) -> None:
    # Closed with the directory. Without a lock, the stamp is still compared.
    end_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end_s:
                raise DatabaseError(
                    show(path),
                    f"another process has locked {show(os.path.dirname(path))}, for "
                    f"longer than the {wait_s:g} s that were waited",
                    advice="wait until it has ended",
                ) from error
            time.sleep(_LOCK_PAUSE_S)
        except OSError:
            return
        else:
            return


def _copy_main(
    dir_fd: int, name: bytes, path: bytes, dest: int, limit_bytes: int, why: str
) -> os.stat_result:
    try:
        fd = os.open(name, _READ, dir_fd=dir_fd)
    except OSError as error:
        raise cannot_be_opened(path, error) from error
    try:
        for _ in range(_TRIES):
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise is_missing(path)  # it was a regular file a moment ago
            _check_size(path, status.st_size, limit_bytes, why)
            _copy_bytes(fd, dest, status.st_size)
            if _Stamp.of(os.fstat(fd)) == _Stamp.of(status):
                return status
        raise DatabaseError(
            show(path),
            "is written all the time, and cannot be copied",
            advice="run this again when that has ended",
        )
    finally:
        os.close(fd)


def _copy_bytes(fd: int, dest: int, size: int) -> None:
    # As a database without a log: the header of one with a log asks for that.
    os.ftruncate(dest, 0)
    offset = 0
    while offset < size:
        chunk = os.pread(fd, min(_CHUNK_BYTES, size - offset), offset)
        if not chunk:
            break
        if not offset and chunk[_VERSIONS] == b"\2\2":
            chunk = chunk[: _VERSIONS.start] + b"\1\1" + chunk[_VERSIONS.stop :]
        offset += os.pwrite(dest, chunk, offset)


def _has_data(dir_fd: int, name: bytes) -> bool:
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return not name.endswith(b"-shm") and bool(status.st_size)
