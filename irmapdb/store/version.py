"""Which schema a file has: asked first, by whoever opens it.

The revision stands in alembic's own table; `application_id` tells our files from those of
others who use alembic too. Source: https://www.sqlite.org/pragma.html#pragma_application_id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irmapdb.errors import DatabaseError
from irmapdb.store.failures import show, show_words

if TYPE_CHECKING:
    import sqlite3
    from typing import Any

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
"""`PRAGMA application_id` of our files ("IRMP"): tells a newer schema from a foreign database."""

REVISIONS = ("0001", "0002", "0003")
"""Every schema revision, oldest first. Known here so that opening needs no alembic."""

HEAD = REVISIONS[-1]

_OBJECTS = "SELECT type, name, tbl_name, sql LIKE 'create virtual%' FROM sqlite_master"

TABLES = frozenset(
    {
        *("mapping", "image_entry", "image_seen", "run", "run_source", "watch", "tried", "change"),
        "alembic_version",
    }
)
"""All tables of the newest schema."""


def read_revision(raw: sqlite3.Connection, path: bytes) -> str | None:
    """The revision of the schema, one of REVISIONS; None for an empty database.

    A foreign database, or one with a newer schema, raises DatabaseError.
    """
    names = _column(raw, "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    (application_id,) = _column(raw, "PRAGMA application_id")
    if not names and application_id == 0:
        return None
    if application_id != APPLICATION_ID or "alembic_version" not in names:
        tables = ", ".join(map(show_words, sorted(names)))
        has = f"it has the tables {tables}" if names else "it has no tables"
        raise DatabaseError(
            f"{show(path)}: a database, but not one of irmapdb: {has}",
            advice="name another file with --db",
        )
    _check_tables(raw, path)
    found = _column(raw, "SELECT version_num FROM alembic_version LIMIT 2")
    if len(found) != 1:
        raise DatabaseError(
            f"{show(path)}: the database is damaged: it names {'several' if found else 'no'} "
            "schema revisions",
            advice="move it away, or put back a backup: it is only a cache",
        )
    revision = str(found[0])
    if revision not in REVISIONS:
        newer = show_words(revision)
        raise DatabaseError(
            f"{show(path)}: has schema {newer}, newer than {HEAD}, "
            "the newest that this irmapdb knows",
            advice=f"use an irmapdb that knows schema {newer}, or name another file with --db",
        )
    return revision


def _check_tables(raw: sqlite3.Connection, path: bytes) -> None:
    # Nothing runs because a database says so: a view in place of a table, or a trigger, may be
    # without end.
    for kind, name, table, virtual in raw.execute(_OBJECTS):
        # In any spelling: SQLite does not tell names apart by case.
        ours, its = name.lower() in TABLES, table.lower() in TABLES
        what = "virtual table" if virtual else kind
        if (ours and what != "table") or (its and kind == "trigger"):
            raise DatabaseError(
                f"{show(path)}: not as irmapdb makes it: {show_words(name)} is a {what}",
                advice="drop that, or move the file away: it is only a cache",
            )


def check_newest(raw: sqlite3.Connection, path: bytes) -> None:
    """Raise DatabaseError unless it is a database of ours, with the newest schema."""
    revision = read_revision(raw, path)
    if revision is None:
        raise refuse_empty(path)
    if revision != HEAD:
        raise DatabaseError(
            f"{show(path)}: has the older schema {revision}",
            advice="run `irmapdb db upgrade` on it",
        )


def refuse_empty(path: bytes) -> DatabaseError:
    """The error for an empty database where one with data is needed."""
    return DatabaseError(
        f"{show(path)}: an empty database",
        advice="`irmapdb pre-dump` and `irmapdb import` fill it",
    )


def _column(raw: sqlite3.Connection, question: str) -> list[Any]:
    return [row[0] for row in raw.execute(question)]
