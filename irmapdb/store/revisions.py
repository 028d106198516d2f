"""Upgrades a database to the newest schema with alembic, all or nothing, after a backup.

The import of alembic and SQLAlchemy takes longer than a whole pre-dump, so only functions here
import them.
Source: https://alembic.sqlalchemy.org/en/latest/cookbook.html (sharing a connection),
https://www.sqlite.org/lang_altertable.html, https://www.sqlite.org/backup.html.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import ExitStack, closing, contextmanager

from irmapdb import files
from irmapdb.errors import DatabaseError
from irmapdb.log import Log
from irmapdb.ownership import open_directory
from irmapdb.record import Record
from irmapdb.scratch import scratch_directory
from irmapdb.store import version
from irmapdb.store.failures import show, translated
from irmapdb.store.file import absolute
from irmapdb.store.place import open_place
from irmapdb.store.raw import check_unchanged, connect_raw, open_raw
from irmapdb.store.version import read_revision, refuse_empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection

    from irmapdb.store.file import AnyPath
    from irmapdb.store.place import Place

__all__ = [
    "Revision",
    "Upgrade",
    "backup",
    "current",
    "history",
    "run_revisions",
    "upgrade",
    "upgrade_place",
]

_log = Log(__name__)


class Revision(Record):
    """One revision of the schema."""

    id: str
    down: str | None
    """The previous revision; None for the first."""
    subject: str


class Upgrade(Record):
    """The result of `upgrade`: the old and new revision, and the backup."""

    old: str
    new: str
    backup: bytes | None
    """None if there was nothing to do."""


def current(path: AnyPath) -> str:
    """The schema revision of a database. Changes nothing."""
    with open_place(path, write=False) as place:
        return _current(place)


def _current(place: Place) -> str:
    with connect_raw(place, write=False, wait_s=0) as raw, translated(place.path):
        revision = read_revision(raw, place)
    if revision is None:
        raise refuse_empty(place.path)
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
    """Upgrade a database to the newest schema; a backup of the old file stays beside it.

    On an error the database is as it was.
    """
    with open_place(path, write=True, wait_s=wait_s) as place:
        return upgrade_place(place, wait_s=wait_s)


def upgrade_place(place: Place, *, wait_s: float) -> Upgrade:
    """The same for an open database; a private copy of it is put back."""
    from irmapdb.store.connect import raw_of, upgrading  # noqa: PLC0415 - dear, see above

    with upgrading(place, wait_s=wait_s) as connection:
        old = read_revision(raw_of(connection), place)
        if old is None:
            raise refuse_empty(place.path)
        if old == version.HEAD:
            return Upgrade(old, old, None)
        name = place.name + b".backup-" + os.fsencode(old)
        kept = os.path.join(os.path.dirname(place.path), name)
        _copy(place, place.directory.fd, kept, replace=True, elsewhere="")
        try:
            _run(connection)
        except Exception as error:
            why = getattr(error, "orig", error)  # of a DBAPIError
            raise DatabaseError(
                show(place.path),
                f"cannot be upgraded from schema {old} to {version.HEAD}, "
                f"nothing was changed: {why}",
                advice="free disk space if the disk is full, else use the irmapdb that wrote it",
            ) from error
    place.mark_changed()
    place.put_back()
    _log.info("%s: schema %s -> %s, backup %s", show(place.path), old, version.HEAD, show(kept))
    return Upgrade(old, version.HEAD, kept)


def _run(connection: Connection) -> None:
    run_revisions(connection, version.HEAD)
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if orphans:
        raise ValueError(f"{len(orphans)} rows refer to rows that are gone, as {orphans[0]}")


def run_revisions(connection: Connection, to: str, directory: str = "") -> None:
    """Run revisions in the caller's transaction. `directory` is one below `migrations`."""
    from alembic import command  # noqa: PLC0415 - dear, see above

    config = _config(directory)
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _config(directory: str = "") -> Config:
    from alembic.config import Config  # noqa: PLC0415 - dear, see above

    config = Config()
    # ConfigParser reads "%" as the start of a reference.
    location = os.path.join(_scripts(), directory).replace("%", "%%")
    config.set_main_option("script_location", location)
    return config


def _scripts() -> str:
    # In an installed package the revisions lie inside it, in a checkout beside it.
    package = os.path.dirname(os.path.dirname(__file__))
    inside = os.path.join(package, "migrations")
    return inside if os.path.isdir(inside) else os.path.join(package, os.pardir, "migrations")


def backup(path: AnyPath, dest: AnyPath) -> None:
    """Copy a database, also one that is being written, to a new file of mode 0600."""
    to = absolute(dest)
    with open_place(path, write=False) as place, _directory_of(to) as dir_fd:
        _current(place)  # raises an error if it is no database of irmapdb
        if os.path.lexists(to):
            raise DatabaseError(show(to), "is there already", advice="name a new file")
        _copy(place, dir_fd, to, replace=False, elsewhere="name a file elsewhere")


_NEXT_STEP = {
    errno.ENOENT: "make the directory first",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EACCES: "try as root",
    errno.EPERM: "try as root",
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
}


@contextmanager
def _directory_of(dest: bytes) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(open_directory(os.path.dirname(dest)))
        except OSError as error:
            raise _cannot_write(dest, error, "name a file elsewhere") from error
        yield directory.fd


def _copy(place: Place, dir_fd: int, dest: bytes, *, replace: bool, elsewhere: str) -> None:
    # Whole or not at all: made in a scratch directory, then put into the open directory of `dest`.
    # `elsewhere` is what else to do where `dest` cannot be written.
    with scratch_directory("backup", room_bytes=os.stat(place.work).st_size) as scratch:
        made = os.path.join(scratch, b"irmap.db")
        _copy_pages(place, made)
        try:
            with open(made, "rb") as source:
                name = os.path.basename(dest)
                files.put_file(dir_fd, name, source.fileno(), replace=replace)
        except OSError as error:
            raise _cannot_write(dest, error, elsewhere) from error


def _copy_pages(place: Place, made: bytes) -> None:
    with translated(place.path):
        source = open_raw(place.work, write=False, wait_s=10)
    with closing(source), translated(place.path, wait_s=10):
        with closing(sqlite3.connect(made, isolation_level=None)) as target:
            source.backup(target)
        check_unchanged(source)


def _cannot_write(dest: bytes, error: OSError, elsewhere: str) -> DatabaseError:
    step = _NEXT_STEP.get(error.errno or 0, "")
    return DatabaseError(
        show(dest),
        f"cannot be written: {error.strerror}",
        advice=", or ".join(filter(None, (step, elsewhere))),
    )
