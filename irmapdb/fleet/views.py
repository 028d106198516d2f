"""Creates the views of the fleet's database from `views.sql`.

An upgrade drops our views, changes the tables, and makes the views of the newest schema
(migrations/fleet/env.py). A view of the user that reads one of ours stops the upgrade: PostgreSQL
refuses to drop ours, and nothing is changed.
"""

from __future__ import annotations

import os
import re
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["create", "drop", "statements"]

_FILE = os.path.join(os.path.dirname(__file__), "views.sql")
_VIEW = re.compile(r"^CREATE VIEW (\w+) .*?(?=;$)", re.MULTILINE | re.DOTALL)


@cache
def statements() -> dict[str, str]:
    """`CREATE VIEW …` of each view by its name, in the order in which they need each other."""
    with open(_FILE, encoding="utf-8") as file:
        text = file.read()
    return {found[1]: found[0] for found in _VIEW.finditer(text)}


def create(connection: Connection) -> None:
    """Make all views in the caller's transaction."""
    for statement in statements().values():
        connection.exec_driver_sql(statement.replace("%", "%%"))


def drop(connection: Connection) -> None:
    """Drop our views that are there, in the caller's transaction."""
    for name in reversed(statements()):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
