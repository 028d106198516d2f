"""Compares the tables, indexes, views and triggers of a database with those of irmapdb.

A schema is code: CHECK constraints, generated columns, triggers, foreign keys, defaults and indexes
on expressions run when a row is read or written. So the text of each of our tables and indexes must
be that of its revision. `schemas/` has a file for each revision, with its additions and changes; a
new database is made from these files. The text of each of our views must be that of `views.sql`.
Spaces and line ends do not count, because a column that was added later is on the line of the
previous column.

A user may add plain tables, views, and indexes on plain columns. irmapdb does not use them. It
refuses objects that can run when it uses its own tables: a trigger, a virtual table, a table with a
foreign key, an index on an expression or with a condition, a unique index.

Source: https://www.sqlite.org/schematab.html, https://www.sqlite.org/security.html.
"""

from __future__ import annotations

import os
from functools import cache

from irmapdb.errors import DatabaseError
from irmapdb.record import Record
from irmapdb.store import views
from irmapdb.store.failures import another_file, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable

__all__ = [
    "SchemaObject",
    "check_kinds",
    "check_objects",
    "check_texts",
    "creations",
    "read_objects",
]

_MOST_OBJECTS = 1000
_SCHEMAS = os.path.join(os.path.dirname(__file__), "schemas")
# As bytes: a name need not be UTF-8.
_OBJECTS = f"""
SELECT CAST(type AS TEXT), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB)
FROM sqlite_master LIMIT {_MOST_OBJECTS + 1}
"""  # noqa: S608 - a number
_PLAIN_INDEX = (
    rb'(?i)CREATE INDEX [^()]* ON [^()]*\(\s*"?\w+"?(?: ASC| DESC)?'
    rb'(?:\s*,\s*"?\w+"?(?: ASC| DESC)?)*\s*\)'
)
_ADVICE = "drop that, or move the file away: it is only a cache"


class SchemaObject(Record):
    """A row of sqlite_schema."""

    kind: str
    """table, index, view or trigger."""
    name: bytes
    table: bytes
    """The table that it belongs to."""
    sql: bytes | None
    """None for the index of a constraint."""


def read_objects(raw: sqlite3.Connection, path: bytes) -> list[SchemaObject]:
    """All objects of a database; DatabaseError if there are more than a user would add."""
    found = [SchemaObject(*row) for row in raw.execute(_OBJECTS).fetchall()]
    if len(found) > _MOST_OBJECTS:
        raise another_file(
            path,
            f"has more than {_MOST_OBJECTS} tables, indexes and views",
            "move it away, as it is only a cache, or name another file",
        )
    return found


def check_kinds(objects: Iterable[SchemaObject], tables: Collection[str], path: bytes) -> None:
    """Refuse triggers, virtual tables, and other objects with the name of a table of ours."""
    for one in objects:
        # In any spelling: SQLite does not tell names apart by case.
        ours = _lower(one.name) in tables
        begin = b" ".join((one.sql or b"").split(None, 2)[:2])
        what = "virtual table" if begin.lower() == b"create virtual" else one.kind
        if (ours and what != "table") or what in {"trigger", "virtual table"}:
            raise _refused(path, f"{show(one.name)} is a {what}")


def check_texts(
    objects: Iterable[SchemaObject], names: Iterable[str], revision: str, path: bytes
) -> None:
    """Refuse if one of these tables or indexes is missing, or differs from the revision."""
    found = {_lower(one.name): one for one in objects}
    for name in names:
        one = found.get(name)
        if one is None:
            raise _refused(path, f"it has no {name}")
        if _plain(one.sql) != _texts(revision)[name]:
            raise _refused(path, f"the {one.kind} {show(one.name)} is another one")


def check_objects(
    objects: Collection[SchemaObject], revision: str, path: bytes, *, with_views: bool
) -> None:
    """Refuse a schema that is not that of the revision, except for additions of the user.

    `with_views`: compare ours too. Those of an older schema are made anew by the upgrade.
    """
    expected = _texts(revision)
    check_texts(objects, expected, revision, path)
    our_views = _view_texts() if with_views else {}
    for one in objects:
        name = _lower(one.name)
        if name in our_views:
            if _plain(one.sql) != our_views[name]:
                raise _refused(path, f"the {one.kind} {show(one.name)} is another one")
        elif name not in expected:
            _check_added(one, expected, path)


def _check_added(one: SchemaObject, expected: Collection[str], path: bytes) -> None:
    sql = one.sql or b""
    if one.kind == "table" and b"references" in sql.lower():
        raise _refused(path, f"the table {show(one.name)} has a foreign key")
    on_ours = one.kind == "index" and _lower(one.table) in expected
    if on_ours and one.sql is not None and not _is_plain_index(sql):
        raise _refused(path, f"the index {show(one.name)} is not one on plain columns")


def _is_plain_index(sql: bytes) -> bool:
    import re  # noqa: PLC0415 the hook needs it seldom

    return re.fullmatch(_PLAIN_INDEX, _plain(sql)) is not None


def _refused(path: bytes, what: str) -> DatabaseError:
    return DatabaseError(show(path), f"not as irmapdb makes it: {what}", advice=_ADVICE)


def _lower(name: bytes) -> str:
    return name.decode("utf-8", "replace").lower()


def _plain(sql: bytes | None) -> bytes:
    return b" ".join((sql or b"").split())


def creations(revision: str) -> dict[str, str]:
    """The statements that make the tables and indexes of a revision, by the name of each."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(_SCHEMAS)):
        if name.endswith(".sql") and name.removesuffix(".sql") <= revision:
            found |= views.read_creations(os.path.join(_SCHEMAS, name))
    return found


@cache
def _texts(revision: str) -> dict[str, bytes]:
    return {name: _plain(sql.encode()) for name, sql in creations(revision).items()}


@cache
def _view_texts() -> dict[str, bytes]:
    return {name: _plain(sql.encode()) for name, sql in views.statements().items()}
