"""From an older schema to the newest: a backup beside it, then alembic, all or nothing.

alembic's import takes twice as long as opening the database, so only functions here import it.
Source: https://alembic.sqlalchemy.org/en/latest/cookbook.html (sharing a connection),
https://www.sqlite.org/lang_altertable.html, https://www.sqlite.org/backup.html.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import DBAPIError

from irmapdb.errors import DatabaseError
from irmapdb.store import version
from irmapdb.store.connect import connect, immediate, raw_of
from irmapdb.store.failures import explain, is_full, primary_code, show, translated
from irmapdb.store.file import (
    SIDECARS,
    absolute,
    check_readable,
    check_writable,
    make_file,
)
from irmapdb.store.raw import check_unchanged, connect_raw, open_raw
from irmapdb.store.version import read_revision, refuse_empty

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection

    from irmapdb.store.file import AnyPath

__all__ = ["Revision", "Upgrade", "backup", "current", "history", "upgrade"]

_log = logging.getLogger(__name__)


class Revision(NamedTuple):
    """One revision of the schema."""

    id: str
    down: str | None
    """The one before it; None for the first."""
    subject: str


class Upgrade(NamedTuple):
    """What `upgrade` did: from where, to where, and the copy of what was there before."""

    old: str
    new: str
    backup: bytes | None
    """None if there was nothing to do."""


def current(path: AnyPath) -> str:
    """The revision of the schema of a database, of which nothing is changed."""
    where = absolute(path)
    check_readable(where)
    with connect_raw(where, write=False, wait_s=0) as raw, translated(where):
        revision = read_revision(raw, where)
    if revision is None:
        raise refuse_empty(where)
    return revision


def history() -> list[Revision]:
    """Every revision that this irmapdb knows, oldest first."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - dear, see above

    script = ScriptDirectory.from_config(_config())
    return [
        Revision(one.revision, _only(one.down_revision), one.doc)
        for one in reversed(list(script.walk_revisions()))
    ]


def _only(down: object) -> str | None:
    # Our revisions are one line: no merges, so no tuple.
    return None if down is None else str(down)


def upgrade(path: AnyPath, *, wait_s: float = 10.0) -> Upgrade:
    """Bring a database to the newest schema; what was there before stays beside it.

    On an error the database is as it was.
    """
    where = absolute(path)
    check_writable(where)
    # Foreign keys are off: a table is rebuilt by dropping the old one, which would take the
    # rows that refer to it along.
    with (
        connect(where, write=True, wait_s=wait_s, foreign_keys=False) as connection,
        translated(where, wait_s),
        immediate(connection),
    ):
        old = read_revision(raw_of(connection), where)
        if old is None:
            raise refuse_empty(where)
        if old == version.HEAD:
            return Upgrade(old, old, None)
        kept = where + b".backup-" + os.fsencode(old)
        _copy(where, kept, elsewhere="")
        try:
            _run(connection)
        except Exception as error:
            why = error.orig if isinstance(error, DBAPIError) else error
            raise DatabaseError(
                f"{show(where)}: cannot be upgraded from schema {old} to {version.HEAD}, "
                f"nothing was changed: {why}",
                advice="make room if the disk is full, else use the irmapdb that wrote it",
            ) from error
    _log.info("%s: schema %s -> %s, backup %s", show(where), old, version.HEAD, show(kept))
    return Upgrade(old, version.HEAD, kept)


def _run(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - dear, see above

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, version.HEAD)
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if orphans:
        raise ValueError(f"{len(orphans)} rows refer to rows that are gone, as {orphans[0]}")


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - dear, see above

    config = Config()
    # ConfigParser reads "%" as the start of a reference.
    config.set_main_option("script_location", _scripts().replace("%", "%%"))
    return config


def _scripts() -> str:
    # In an installed package the revisions lie inside it, in a checkout beside it.
    package = os.path.dirname(os.path.dirname(__file__))
    inside = os.path.join(package, "migrations")
    return inside if os.path.isdir(inside) else os.path.join(package, os.pardir, "migrations")


def backup(path: AnyPath, dest: AnyPath) -> None:
    """Copy a database, also one that is being written, to a new file of mode 0600."""
    where = absolute(path)
    current(where)  # says what it is, if it is none of ours
    to = absolute(dest)
    if os.path.lexists(to):
        raise DatabaseError(f"{show(to)}: is there already", advice="name a new file")
    _copy(where, to, elsewhere="name a file elsewhere")


_NEXT_STEP = {
    errno.ENOENT: "make the directory first",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EACCES: "try as root",
    errno.EPERM: "try as root",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
}


def _copy(path: bytes, dest: bytes, *, elsewhere: str) -> None:
    # Whole or not at all: made under another name, which a killed copy leaves behind and the
    # next one takes over. `elsewhere` is what else to do where `dest` cannot be written.
    directory, name = os.path.split(dest)
    part = os.path.join(directory, b".%b.part" % name)
    try:
        _remove(part)
        _make(part)
        try:
            with (
                closing(_open_source(path)) as source,
                _of_disk(path, dest),
                closing(sqlite3.connect(part, isolation_level=None)) as target,
            ):
                source.backup(target)
                check_unchanged(source, path)
            os.rename(part, dest)
        except BaseException:
            _remove(part)
            raise
        _sync(directory)
    except OSError as error:
        step = _NEXT_STEP.get(error.errno or 0, "")
        raise DatabaseError(
            f"{show(dest)}: cannot be written: {error.strerror}",
            advice=", or ".join(filter(None, (step, elsewhere))),
        ) from error


def _make(part: bytes) -> None:
    try:
        make_file(part)
    except DatabaseError as error:
        # Nobody knows this name, nor could another --db help.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _open_source(path: bytes) -> sqlite3.Connection:
    with translated(path):
        return open_raw(path, write=False, wait_s=10)


_WRITING = {f"SQLITE_IOERR_{what}" for what in ("WRITE", "FSYNC", "DIR_FSYNC", "TRUNCATE")}


@contextmanager
def _of_disk(path: bytes, dest: bytes) -> Iterator[None]:
    # SQLite does not say which of the two files it speaks of. What cannot be written is the new
    # one, all else is wrong with the one that is read.
    try:
        yield
    except sqlite3.Error as error:
        code = primary_code(error)
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_full(dest)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if getattr(error, "sqlite_errorname", "") in _WRITING:
            raise explain(dest, error) from error
        raise explain(path, error, wait_s=10) from error


def _remove(database: bytes) -> None:
    # With what a copy that was cut off has left beside it.
    for suffix in (b"", *SIDECARS):
        with suppress(FileNotFoundError):
            os.unlink(database + suffix)


def _sync(directory: bytes) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # it may be written to, and not read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
