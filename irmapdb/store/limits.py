"""Limits every connection: the size of a value, the depth of an expression, the time.

A hostile database can make a statement run for ever, so none of our statements may run for longer
than STATEMENT_S. Queries of users have a separate limit (irmapdb.store.ask).

Source: https://www.sqlite.org/c3ref/limit.html, https://www.sqlite.org/limits.html,
https://www.sqlite.org/c3ref/progress_handler.html, https://www.sqlite.org/security.html,
https://www.sqlite.org/c3ref/c_dbconfig_defensive.html.
"""

from __future__ import annotations

import sqlite3
import time

from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["PRAGMAS", "STATEMENT_S", "VALUE_BYTES", "Bounded", "TooLongError", "UnreadableError"]

VALUE_BYTES = 1 << 20
"""The largest value, and the largest row, that SQLite reads or makes."""

STATEMENT_S = 20.0
"""The longest time of one statement of ours; it includes the wait for another process's lock."""

_VACUUM_S = 600.0
_STEPS_BETWEEN_LOOKS = 20_000

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 1,  # VACUUM attaches its new file
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,  # a foreign key's CASCADE counts as one
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

PRAGMAS = (
    # A schema is data: no view or index of the file may call a function.
    "PRAGMA trusted_schema = OFF",
    # A page with cells that do not fit is an error, and is not read.
    "PRAGMA cell_size_check = ON",
    # A file that becomes shorter during a read gives an error, and no signal.
    "PRAGMA mmap_size = 0",
)
"""Further settings of every connection."""

_DEFENSIVE = "SQLITE_DBCONFIG_DEFENSIVE"  # Python 3.12


class TooLongError(sqlite3.OperationalError):
    """A statement took too long."""

    sqlite_errorcode = sqlite3.SQLITE_INTERRUPT
    sqlite_errorname = "SQLITE_INTERRUPT"


class UnreadableError(sqlite3.DatabaseError):
    """An error whose text is not UTF-8: SQLite quotes the bytes of a damaged schema.

    Python loses its code.
    """

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    sqlite_errorname = "SQLITE_CORRUPT"


class _Cursor(sqlite3.Cursor):
    connection: Bounded

    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:  # noqa: ANN401 as sqlite3
        self.connection.begin(sql)
        return self._bounded(super().execute, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> _Cursor:
        self.connection.begin(sql)
        return self._bounded(super().executemany, sql, parameters)

    def fetchone(self) -> Any:  # noqa: ANN401 as sqlite3
        return self._bounded(super().fetchone)

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        return self._bounded(super().fetchmany, size)

    def fetchall(self) -> list[Any]:
        return self._bounded(super().fetchall)

    def _bounded(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return function(*arguments)
        except UnicodeDecodeError as error:
            raise UnreadableError(printable(error.object)) from error
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
                raise
            if not self.connection.is_over():
                # A signal came while SQLite was at work, and could not pass through it.
                raise KeyboardInterrupt from error
            raise TooLongError(
                f"a statement took longer than {self.connection.allowed_s:g} s"
            ) from error


class Bounded(sqlite3.Connection):
    """A connection with these limits."""

    limit_s: float | None = None
    """The longest time of one statement; None: STATEMENT_S."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 as sqlite3
        super().__init__(*arguments, **options)
        self.begin("")
        for category, limit in _LIMITS.items():
            self.setlimit(category, limit)
        if hasattr(self, "setconfig"):
            self.setconfig(getattr(sqlite3, _DEFENSIVE), True)  # noqa: FBT003 as sqlite3
        self.set_progress_handler(self.is_over, _STEPS_BETWEEN_LOOKS)

    def begin(self, sql: str) -> None:
        """Record the start of a statement."""
        self.allowed_s = _VACUUM_S if sql == "VACUUM" else self.limit_s or STATEMENT_S
        self._end_s = time.monotonic() + self.allowed_s

    def is_over(self) -> bool:
        """Whether the statement has used up its time."""
        return time.monotonic() > self._end_s

    def commit(self) -> None:
        """As sqlite3 has it."""
        self.begin("COMMIT")
        super().commit()

    # Python's own do not go through `cursor`.
    def execute(self, sql: str, parameters: Any = (), /) -> Any:  # noqa: ANN401 as sqlite3
        """As sqlite3 has it."""
        return self._on_a_cursor("execute", sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:  # noqa: ANN401
        """As sqlite3 has it."""
        return self._on_a_cursor("executemany", sql, parameters)

    def _on_a_cursor(self, call: str, sql: str, parameters: Any) -> Any:  # noqa: ANN401
        cursor = self.cursor()
        try:
            return getattr(cursor, call)(sql, parameters)
        except BaseException:
            # The error's traceback holds the cursor, and a statement that is not finalized would
            # keep the file locked after close() (sqlite3_close_v2).
            cursor.close()
            raise

    def cursor(self, factory: Any = None) -> Any:  # noqa: ANN401 as sqlite3
        """A cursor whose statements are bounded, unless it is one of another class."""
        return super().cursor(factory or _Cursor)
