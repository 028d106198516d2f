"""Runs SQL of the user on a database that is open read-only.

Three mechanisms prevent writes. The file is opened with `mode=ro`. `PRAGMA query_only` is on. An
authorizer allows only reads: no other file, no PRAGMA that sets a value, no extension, no temporary
table.

Source: https://www.sqlite.org/c3ref/set_authorizer.html and c3ref/c_alter_table.html (the codes),
https://www.sqlite.org/c3ref/progress_handler.html, https://www.sqlite.org/pragma.html.
"""

from __future__ import annotations

import difflib
import os
import re
import sqlite3
import time
from contextlib import ExitStack, closing, suppress

from irmapdb.errors import AnswerTooLargeError, SqlError
from irmapdb.model import InodeKey, format_kdev, parse_kdev
from irmapdb.record import Record
from irmapdb.store.failures import explain, primary_code, show, translated
from irmapdb.store.limits import VALUE_BYTES
from irmapdb.store.place import COPY_LIMIT_BYTES, open_place
from irmapdb.store.raw import check_unchanged, connect_raw
from irmapdb.store.sqltext import split
from irmapdb.store.values import from_ino
from irmapdb.store.version import check_newest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import NoReturn, Self, TypeAlias

    from irmapdb.store.file import AnyPath

__all__ = ["FUNCTIONS", "Answer", "Ask", "Value", "fetch", "stopped"]

Value: TypeAlias = str | bytes | int | float | None
"""The value of a cell. In damaged TEXT of another tool, odd bytes are lone surrogates."""

FUNCTIONS = {
    "kdev": "kdev('254:0') is 266338304, and kdev(266338304) is '254:0'",
    "hex_ino": "hex_ino(dev, ino) is 'fe00000:2e3', as CRIU's log has it",
    "path_text": "path_text(path) is printable text, as the tables show it",
}
"""The functions that irmapdb adds to those of SQLite."""

# SQLite checks the time between its steps, but not within a function. So the arguments of functions
# are limited (irmapdb.store.limits): a second of LIKE, a few of instr() and replace().
_BYTES_AN_ANSWER = 64 << 20
_BYTES_OF_MEMORY = 512 << 20
"""Of SQLite in this process, for ORDER BY and the like."""
_BYTES_A_CELL = 8
"""The size of a cell without its text."""
_MESSAGE_WIDTH = 200
_STEPS_BETWEEN_LOOKS = 500

_WORD = re.compile(r"\w+")
_MISSING = re.compile(r'no such (?P<kind>column|table|function): "?(?P<name>[^"()]+)')

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
# PRAGMAs that only read; the second kind has an argument, the name of a table.
_PRAGMAS = {
    *("application_id", "collation_list", "compile_options", "database_list", "encoding"),
    *("freelist_count", "function_list", "journal_mode", "module_list", "page_count", "page_size"),
    *("pragma_list", "schema_version", "user_version"),
}
_PRAGMAS_OF_A_TABLE = {
    *("foreign_key_check", "foreign_key_list", "index_info", "index_list", "index_xinfo"),
    *("integrity_check", "quick_check", "table_info", "table_list", "table_xinfo"),
}
# An error of the question, not of the database.
_QUESTION_AT_FAULT = {
    *(sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH),
    *(sqlite3.SQLITE_RANGE, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM),
}


class Answer(Record):
    """The result of one statement."""

    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    cut: bool
    """Whether there were more rows than the limit."""
    took_us: int


class Ask:
    """An open `irmap.db` that answers SQL. A context manager; not for use by several threads."""

    def __init__(self, raw: sqlite3.Connection, path: bytes, wait_s: float) -> None:
        self.path = path
        """The file, absolute."""
        self._raw = raw
        self._wait_s = wait_s
        self._stack = ExitStack()
        self._deadline: float | None = None
        self._over = self._interrupted = False
        self._guard = _Guard()
        self._function_said = ""
        raw.text_factory = _text
        raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._add_function("kdev", 1, _kdev)
        self._add_function("hex_ino", 2, _hex_ino)
        raw.set_authorizer(self._guard.allow)
        raw.set_progress_handler(self._is_over, _STEPS_BETWEEN_LOOKS)

    @classmethod
    def open(
        cls,
        path: AnyPath,
        *,
        path_text: Callable[[bytes], str] = os.fsdecode,
        wait_s: float = 10.0,
        copy_limit_bytes: int = COPY_LIMIT_BYTES,
    ) -> Ask:
        """Open a database, also while another process writes it. It never changes the database.

        `path_text` implements the SQL function of that name. Raises DatabaseError for a file that
        is no database of irmapdb, for an older schema, and if a private copy is needed that is
        larger than `copy_limit_bytes`.
        """
        with ExitStack() as stack:
            place = stack.enter_context(
                open_place(path, write=False, copy_limit_bytes=copy_limit_bytes)
            )
            raw = stack.enter_context(connect_raw(place, write=False, wait_s=wait_s))
            with translated(place.path, wait_s):
                check_newest(raw, place)
                raw.execute(f"PRAGMA hard_heap_limit = {_BYTES_OF_MEMORY}")
            ask = cls(raw, place.path, wait_s)
            ask._add_function("path_text", 1, lambda value: _path_text(value, path_text))
            ask._stack = stack.pop_all()
            return ask

    def ask(
        self,
        text: str,
        parameters: Mapping[str, Value] | None = None,
        *,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Answer]:
        """The answer of each statement of a text, one after the other.

        `limit` is the most rows, `timeout_s` the longest time of one statement. Raises SqlError for
        a statement that SQLite does not understand, that takes too long, gives more than 64 MiB, or
        does more than read.
        """
        values = _Values(parameters or {})
        for statement in split(text):
            try:
                yield self._run(statement.text, values, limit, timeout_s)
            except SqlError as error:
                if "\n" not in text.strip():
                    raise
                message = f"line {statement.line}: {error.message}"
                raise type(error)(message, advice=error.advice, remedy=error.remedy) from error

    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns of every table and view, tables first."""
        names = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY type, name"
        columns = "SELECT name FROM pragma_table_info(:name) ORDER BY cid"
        found: dict[str, tuple[str, ...]] = {}
        with translated(self.path, self._wait_s):
            for (name,) in self._execute(names).fetchall():
                found[name] = ()
                # A view of a missing table, or a name that is not UTF-8.
                with suppress(sqlite3.OperationalError, UnicodeError):
                    rows = self._execute(columns, {"name": name})
                    found[name] = tuple(column for (column,) in rows)
        return found

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(self, sql: str, values: Mapping[str, Value] | None = None) -> sqlite3.Cursor:
        # A plain cursor: the time of a question is not that of our own statements.
        return self._raw.cursor(sqlite3.Cursor).execute(sql, () if values is None else values)

    def _run(
        self, statement: str, values: _Values, limit: int | None, timeout_s: float | None
    ) -> Answer:
        self._guard.refused = self._function_said = ""
        self._over = self._interrupted = False
        start = time.monotonic()
        self._deadline = None if timeout_s is None else start + timeout_s
        try:
            # Always close it: an open statement would block a checkpoint of the WAL.
            with closing(self._execute(statement, values)) as cursor:
                columns = tuple(column[0] for column in cursor.description or ())
                rows = fetch(self._in_time(cursor, timeout_s), limit)
        except (sqlite3.Error, ValueError, OverflowError, MemoryError) as error:
            raise self._explain(error, statement, timeout_s) from error
        finally:
            self._deadline = None
        check_unchanged(self._raw)
        cut = limit is not None and len(rows) > limit
        took_us = round((time.monotonic() - start) * 1e6)
        return Answer(columns, rows[:limit], cut, took_us)

    def _in_time(
        self, cursor: sqlite3.Cursor, timeout_s: float | None
    ) -> Iterator[tuple[Value, ...]]:
        for row in cursor:
            if self._is_over():
                raise stopped(timeout_s)
            yield row

    def _is_over(self) -> bool:
        self._over = self._deadline is not None and time.monotonic() > self._deadline
        return self._over

    def _explain(self, error: Exception, statement: str, timeout_s: float | None) -> BaseException:
        """The error to raise for a statement that failed."""
        stopped = self._why_stopped(error, timeout_s)
        if stopped is not None:
            return stopped
        if isinstance(error, sqlite3.Error):
            return self._explain_sqlites(error, statement)
        if isinstance(error, UnicodeEncodeError):
            advice = "write a path that is no UTF-8 as x'2f…', or write :path and give its value"
            return SqlError("not UTF-8", advice=advice, remedy="parameter")
        if isinstance(error, UnicodeDecodeError):  # SQLite quotes bytes of the file
            return SqlError(_one_line(show(error.object)))
        return SqlError(str(error))

    def _explain_sqlites(self, error: sqlite3.Error, statement: str) -> BaseException:
        code = primary_code(error)
        if code == sqlite3.SQLITE_TOOBIG:
            message = f"stopped: a value has more than {VALUE_BYTES >> 20} MiB"
            return SqlError(message, advice="ask for a part of it, as substr(path, 1, 100) does")
        if self._guard.refused or code == sqlite3.SQLITE_READONLY:
            return self._guard.error(statement)
        if code is not None and code not in _QUESTION_AT_FAULT:
            return explain(self.path, error, self._wait_s)
        if isinstance(error, sqlite3.ProgrammingError):  # "Binding 1 has no name, …"
            advice = "write :NAME, and give its value"
            return SqlError(str(error), advice=advice, remedy="parameter")
        message = self._function_said or str(error)
        return SqlError(_one_line(message), advice=_advise(message, self.columns))

    def _why_stopped(self, error: Exception, timeout_s: float | None) -> BaseException | None:
        if isinstance(error, MemoryError):
            message = f"stopped: it needs more than {_BYTES_OF_MEMORY >> 20} MiB of memory"
            return SqlError(message, advice="narrow the question, or leave out ORDER BY")
        at_work = (
            isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_INTERRUPT
        )
        if at_work and self._over:
            return stopped(timeout_s)
        # Else the signal came while SQLite was at work, and could not pass through it.
        return KeyboardInterrupt() if at_work or self._interrupted else None

    def _add_function(self, name: str, arguments: int, function: Callable[..., Value]) -> None:
        def told(*values: Value) -> Value:
            try:
                return function(*values)
            except ValueError as error:
                # SQLite would only say that there was one.
                self._function_said = f"{name}: {error}"
                raise
            except KeyboardInterrupt:
                self._interrupted = True
                raise

        self._raw.create_function(name, arguments, told, deterministic=True)


class _Guard:
    """SQLite's authorizer: allows only reads, and remembers what it refused."""

    def __init__(self) -> None:
        self.refused = ""

    def allow(self, action: int, one: str | None, two: str | None, *_where: str | None) -> int:
        if action in _ALLOWED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and two not in _REFUSED_FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and (
            one in _PRAGMAS_OF_A_TABLE or (one in _PRAGMAS and two is None)
        ):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and one == "sqlite_master":
            # SQLite declares a table-valued function to itself so. A query that says so changes no
            # column, and the other guards refuse it.
            return sqlite3.SQLITE_IGNORE
        if action == sqlite3.SQLITE_FUNCTION:
            self.refused = f"{two}()"
        elif action == sqlite3.SQLITE_PRAGMA:
            self.refused = f"PRAGMA {one}" if two is None else f"PRAGMA {one} = {two}"
        else:
            self.refused = _WRITES.get(action, "this")
        return sqlite3.SQLITE_DENY

    def error(self, statement: str) -> SqlError:
        """The error for a statement that was refused."""
        first = _WORD.match(statement)
        what = first[0].upper() if first else ""
        if what in {"", "SELECT", "VALUES", "WITH", "EXPLAIN", "PRAGMA"}:
            what = self.refused or what
        return SqlError(f"{what} is refused", advice="irmapdb sql only reads")


class _Values(dict[str, "Value"]):
    """The values of a question's parameters. A parameter without one is an error of ours."""

    def __missing__(self, key: str) -> NoReturn:
        raise SqlError(f":{key} has no value", advice="give it one", remedy="parameter")


_WRITES = {
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_DELETE: "DELETE",
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
}


def fetch(rows: Iterable[tuple[Value, ...]], limit: int | None) -> list[tuple[Value, ...]]:
    """The rows of an answer, up to one more than the limit. AnswerTooLargeError."""
    found = []
    size = 0
    for row in rows:
        found.append(row)
        if limit is not None and len(found) > limit:
            break
        size += sum(map(_size, row))
        if size > _BYTES_AN_ANSWER:
            message = f"stopped: the answer has more than {_BYTES_AN_ANSWER >> 20} MiB"
            raise AnswerTooLargeError(message, advice="ask for fewer columns, or LIMIT the rows")
    return found


def stopped(timeout_s: float | None) -> SqlError:
    """The error for a statement that took too long."""
    return SqlError(
        f"stopped: it took longer than {timeout_s or 0:g} s",
        advice="narrow the question, or give it more time",
        remedy="timeout",
    )


def _advise(message: str, columns: Callable[[], dict[str, tuple[str, ...]]]) -> str:
    missing = _MISSING.match(message)
    if missing is None:
        return ""
    kind, name = missing["kind"], missing["name"].rpartition(".")[2]
    named = columns()
    known = {
        "table": list(named),
        "column": [column for names in named.values() for column in names],
        "function": list(FUNCTIONS),
    }[kind]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else ""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _size(value: Value) -> int:
    return _BYTES_A_CELL + (len(value) if isinstance(value, str | bytes) else 0)


def _one_line(message: str) -> str:
    # A string that is not closed is quoted to its end.
    shown = "".join(one if one.isprintable() else " " for one in message)
    return shown if len(shown) <= _MESSAGE_WIDTH else f"{shown[:_MESSAGE_WIDTH]}…"


def _kdev(value: Value) -> Value:
    match value:
        case None:
            return None
        case int() if 0 <= value < 1 << 32:
            return format_kdev(value)
        case str():
            with suppress(ValueError):
                return parse_kdev(value)
    raise ValueError(f"{value!r} is neither a device number nor MAJOR:MINOR")


def _hex_ino(dev: Value, ino: Value) -> Value:
    if dev is None or ino is None:
        return None
    if not isinstance(dev, int) or not isinstance(ino, int):
        raise ValueError(f"{dev!r}, {ino!r}: not a device and an inode number, as in dev and ino")
    return str(InodeKey(dev, from_ino(ino)))


def _path_text(value: Value, path_text: Callable[[bytes], str]) -> Value:
    match value:
        case None:
            return None
        case bytes():
            return path_text(value)
        case str():
            return path_text(value.encode())
    return str(value)
