"""Reads the schema revision of a file. Every open begins with it.

The revision is in alembic's own table. `application_id` distinguishes our files from those of other
programs with alembic. Source: https://www.sqlite.org/pragma.html#pragma_application_id.
"""

from __future__ import annotations

from irmapdb.errors import DatabaseError
from irmapdb.store.failures import another_file, show, show_words
from irmapdb.store.objects import check_kinds, check_objects, check_texts, read_objects

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from irmapdb.store.place import Place

__all__ = [
    "APPLICATION_ID",
    "HEAD",
    "REVISIONS",
    "TABLES",
    "check_newest",
    "read_revision",
    "refuse_empty",
]

APPLICATION_ID = 0x49524D50
"""`PRAGMA application_id` ("IRMP"): distinguishes a newer schema from a foreign database."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every schema revision, oldest first. Known here so that opening needs no alembic."""

HEAD = REVISIONS[-1]

TABLES = frozenset(
    {
        *("mapping", "image_entry", "image_seen", "run", "run_source", "watch", "tried", "change"),
        *("origin", "alembic_version"),
    }
)
"""All tables of the newest schema."""


def read_revision(raw: sqlite3.Connection, place: Place) -> str | None:
    """The revision of the schema, one of REVISIONS; None for an empty database.

    DatabaseError for a foreign database, for a newer schema, and for a schema that can run foreign
    code.
    """
    path = place.path
    objects = read_objects(raw, path)
    (application_id,) = _column(raw, "PRAGMA application_id")
    if not objects and application_id == 0:
        return None
    names = {show(one.name) for one in objects if one.kind in {"table", "view"}}
    if application_id != APPLICATION_ID or "alembic_version" not in names:
        tables = ", ".join(sorted(names))
        has = f"it has the tables {tables}" if names else "it has no tables"
        raise another_file(path, f"a database, but not one of irmapdb: {has}", "name another file")
    check_kinds(objects, TABLES, path)
    check_texts(objects, ("alembic_version",), HEAD, path)
    found = _column(raw, "SELECT version_num FROM alembic_version LIMIT 2")
    if len(found) != 1:
        raise DatabaseError(
            show(path),
            f"the database is damaged: it names {'several' if found else 'no'} schema revisions",
            advice="move it away, or put back a backup: it is only a cache",
        )
    revision = str(found[0])
    if revision not in REVISIONS:
        newer = show_words(revision)
        raise another_file(
            path,
            f"has schema {newer}, newer than {HEAD}, the newest that this irmapdb knows",
            f"use an irmapdb that knows schema {newer}, or name another file",
        )
    check_objects(objects, revision, path, with_views=revision == HEAD)
    if place.unread:
        _check_whole(raw, place)
    return revision


def _check_whole(raw: sqlite3.Connection, place: Place) -> None:
    # Its writer may have been killed in the middle, and the journal that would undo that is not
    # read.
    if raw.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
        names = ", ".join(show(place.name + suffix) for suffix in place.unread)
        raise DatabaseError(
            show(place.path),
            f"is damaged without {names}, which is not read, as {place.why_copied}",
            advice="let its owner use it once, or move it away: it is only a cache",
        )


def check_newest(raw: sqlite3.Connection, place: Place) -> None:
    """Raise DatabaseError unless it is a database of irmapdb with the newest schema."""
    revision = read_revision(raw, place)
    if revision is None:
        raise refuse_empty(place.path)
    if revision != HEAD:
        raise DatabaseError(
            show(place.path),
            f"has the older schema {revision}",
            advice="run `irmapdb db upgrade` on it",
        )


def refuse_empty(path: bytes) -> DatabaseError:
    """The error for an empty database."""
    return DatabaseError(
        show(path),
        "an empty database",
        advice="`irmapdb pre-dump` and `irmapdb import` fill it",
    )


def _column(raw: sqlite3.Connection, question: str) -> list[Any]:
    return [row[0] for row in raw.execute(question)]
