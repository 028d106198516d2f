"""Creates the views of the schema from `views.sql`.

An upgrade drops all views, because SQLite renames no table that a view uses. Then the revisions
change the tables, and the upgrade makes the views of the newest schema. migrations/env.py does that
around every upgrade.

Source: https://www.sqlite.org/lang_createview.html, https://www.sqlite.org/lang_altertable.html.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

__all__ = ["create", "drop", "read_creations", "statements"]

_FILE = os.path.join(os.path.dirname(__file__), "views.sql")


def statements() -> dict[str, str]:
    """`CREATE VIEW …` of each view by its name."""
    return read_creations(_FILE)


def read_creations(path: str) -> dict[str, str]:
    """The statements `CREATE …` of a file of ours, by the name of their table, view or index.

    Each begins a line, and ends with a semicolon at the end of a line, which is left out. A regular
    expression would take longer than all that is read here.
    """
    with open(path, encoding="utf-8") as file:
        text = f"\n{file.read()}\n"
    found = {}
    for part in text.split(";\n"):
        _, create, rest = part.partition("\nCREATE ")
        if create:
            found[rest.split(None, 2)[1]] = f"CREATE {rest}"
    return found


def create(raw: sqlite3.Connection, others: dict[str, str] | None = None) -> None:
    """Make all views in the caller's transaction, and `others` unless ours have the same name."""
    for statement in ((others or {}) | statements()).values():
        raw.execute(statement)


def drop(raw: sqlite3.Connection) -> dict[str, str]:
    """Drop all views, in the caller's transaction; the statements that made them, by name.

    Some may be the user's own.
    """
    found = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'")
    dropped = dict(found.fetchall())
    for name in dropped:
        quoted = name.replace('"', '""')
        raw.execute(f'DROP VIEW "{quoted}"')
    return dropped
