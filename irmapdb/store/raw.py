"""Opens SQLite's own connection to the file, with its mode, journal and pragmas.

irmapdb.store.connect adds SQLAlchemy, for an upgrade of the schema alone.

Source: https://www.sqlite.org/uri.html, https://www.sqlite.org/wal.html,
https://www.sqlite.org/pragma.html.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager

from irmapdb.errors import DatabaseError
from irmapdb.store.failures import is_full, primary_code, show, translated
from irmapdb.store.limits import PRAGMAS, Bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from irmapdb.store.place import Place

__all__ = ["check_unchanged", "connect_raw", "immediate", "open_raw", "use_wal"]

# SQLite's error for a WAL database without shared memory.
_NO_SHARED_MEMORY = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL}
_CACHE_KIB = 4 * 1024  # more is no faster, only more
_PLAIN = frozenset(b"/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_SHARED_MEMORY_BYTES = 32 * 1024  # WALINDEX_PGSZ in sqlite's src/wal.c


class _Unlocked(Bounded):
    """Reads a file as if it never changes, without a lock; `stamp` detects a change."""

    path = b""
    stamp: tuple[int, ...] = ()


def open_raw(path: bytes, *, write: bool, wait_s: float) -> Bounded:
    """SQLite's own connection to an absolute path. It begins no transaction by itself."""
    if not write and (_never_changes(path) or _has_no_space_for_locks(path)):
        return _open_unlocked(path)
    return sqlite3.connect(
        _uri(path, "mode=rw" if write else "mode=ro"),
        uri=True,
        timeout=wait_s,
        isolation_level=None,
        factory=Bounded,
        # A reader can be handed to another thread. One at a time uses it.
        check_same_thread=write,
    )


def _uri(path: bytes, query: str) -> str:
    # Two slashes: else a path that begins with two would name a host. Not `urllib.parse.quote`,
    # which takes longer to import than all that is read here.
    quoted = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in path)
    return f"file://{quoted}?{query}"


def _open_unlocked(path: bytes) -> _Unlocked:
    stamp = _stamp(path)
    uri = _uri(path, "mode=ro&immutable=1")
    raw = sqlite3.connect(
        uri, uri=True, isolation_level=None, factory=_Unlocked, check_same_thread=False
    )
    raw.path, raw.stamp = path, stamp
    return raw


def _never_changes(path: bytes) -> bool:
    # This is the only way to read a WAL database on a read-only filesystem: there is no place
    # for the shared memory.
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        return False
    return bool(read_only) and not _has_log(path)


def _has_no_space_for_locks(path: bytes) -> bool:
    # The same on a full one, where SQLite would begin a file for the shared memory, fail, and
    # leave it behind. One of full size belongs to a process that uses the database.
    return is_full(path) and not _has_log(path) and _size_of(path + b"-shm") < _SHARED_MEMORY_BYTES


def _has_no_room_for_locks(path: bytes) -> bool:
    # The same, if only we may not make a file.
    writable = os.access(os.path.dirname(path), os.W_OK, effective_ids=True)
    return not writable and not os.path.lexists(path + b"-wal") and not _has_log(path)


def _has_log(path: bytes) -> bool:
    # A file of the database that a reader without locks would ignore.
    return any(_size_of(path + suffix) for suffix in (b"-wal", b"-journal"))


def _size_of(path: bytes) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _stamp(path: bytes) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(raw: object) -> None:
    """Raise DatabaseError if a file that was read without locks has changed meanwhile."""
    if isinstance(raw, _Unlocked) and raw.stamp != _stamp(raw.path):
        raise DatabaseError(
            show(raw.path),
            "was written while it was read, and its directory has no place for a lock",
            advice="ask again, or ask a copy",
        )


def _tidy(path: bytes) -> None:
    # A reader of a WAL database leaves an empty log beside it, as it may not remove it. A process
    # that may write may remove it, unless others still have it open.
    try:
        if os.stat(path + b"-wal").st_size:
            return
        raw = open_raw(path, write=True, wait_s=0)
    except (OSError, sqlite3.Error):
        return
    try:
        raw.execute("PRAGMA query_only = ON")
        raw.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error:
        pass  # another process uses it
    finally:
        raw.close()


def _roll_back(path: bytes, wait_s: float) -> None:
    # A writer in rollback mode was killed. The next reader must undo the changes, and may write
    # for that.
    with closing(open_raw(path, write=True, wait_s=wait_s)) as raw:
        raw.execute("SELECT 1 FROM sqlite_master").fetchone()


def _leave_wal(path: bytes) -> None:
    # Back to the rollback journal. Without shared memory, only a process with a lock on the whole
    # file can read a WAL, so this fails while another process has it open.
    raw = open_raw(path, write=True, wait_s=0)
    try:
        raw.execute("PRAGMA locking_mode = EXCLUSIVE")
        raw.execute("PRAGMA journal_mode = DELETE")
    finally:
        raw.close()


def _configured(raw: Bounded, pragmas: Iterable[str], limit_s: float | None) -> sqlite3.Connection:
    raw.limit_s = limit_s
    try:
        for pragma in pragmas:
            raw.execute(pragma)
    except BaseException:
        raw.close()
        raise
    return raw


@contextmanager
def connect_raw(
    place: Place,
    *,
    write: bool,
    wait_s: float,
    foreign_keys: bool = True,
    tidy: bool = True,
    limit_s: float | None = None,
) -> Iterator[sqlite3.Connection]:
    """A connection to a database, with our limits, closed at the end.

    `tidy`: whether a reader removes the empty log that it leaves; a writer does that anyway.
    `limit_s`: the longest time of one statement; None: the usual one.
    """
    pragmas = [
        *PRAGMAS,
        f"PRAGMA query_only = {'OFF' if write else 'ON'}",
        f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        # The first read of the file: another type of file fails here.
        f"PRAGMA cache_size = -{_CACHE_KIB}",
        "PRAGMA temp_store = MEMORY",
    ]
    if place.copied:
        pragmas.append("PRAGMA synchronous = OFF")  # no crash leaves it behind
    try:
        with translated(place.path, wait_s):
            raw = _open_anywhere(place.work, pragmas, limit_s, write=write, wait_s=wait_s)
        with closing(raw):
            yield raw
            check_unchanged(raw)
    finally:
        if tidy and not write:
            _tidy(place.work)


@contextmanager
def immediate(raw: sqlite3.Connection) -> Iterator[None]:
    """The one write transaction: all or nothing, and no other process writes meanwhile."""
    raw.execute("BEGIN IMMEDIATE")
    try:
        yield
        raw.commit()
    except BaseException:
        raw.rollback()  # does nothing if SQLite has done it
        raise


def _open_anywhere(
    path: bytes, pragmas: Iterable[str], limit_s: float | None, *, write: bool, wait_s: float
) -> sqlite3.Connection:
    try:
        return _configured(open_raw(path, write=write, wait_s=wait_s), pragmas, limit_s)
    except sqlite3.OperationalError as error:
        code = primary_code(error)
        if not write and code in _NO_SHARED_MEMORY | {sqlite3.SQLITE_READONLY}:
            if _has_no_room_for_locks(path):
                return _configured(_open_unlocked(path), pragmas, limit_s)
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            _roll_back(path, wait_s)
            return _configured(open_raw(path, write=False, wait_s=wait_s), pragmas, limit_s)
        if code not in _NO_SHARED_MEMORY:
            raise
    # A WAL database that was brought here from a filesystem with shared memory.
    _leave_wal(path)
    return _configured(open_raw(path, write=write, wait_s=wait_s), pragmas, limit_s)


def use_wal(path: bytes) -> None:
    """Switch to the write-ahead log if the filesystem allows it, so that readers never wait.

    If it has no shared memory (some FUSE filesystems), or another process uses the database at this
    moment, it stays in rollback mode.
    """
    raw = open_raw(path, write=True, wait_s=0)
    try:
        raw.execute("PRAGMA journal_mode = WAL")
        # The switch itself needs no shared memory; the first transaction does.
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
    except sqlite3.Error as error:
        raw.close()
        if primary_code(error) != sqlite3.SQLITE_BUSY:
            _leave_wal(path)
    finally:
        raw.close()
