"""Runs SQL of the user on the fleet's database, in transactions that can only read.

PostgreSQL limits the rows that a statement sees, by the rights and the row-level security of the
role that connects.
"""

from __future__ import annotations

import re
import time
from datetime import date, datetime, timedelta
from decimal import Decimal

from irmapdb.errors import SqlError
from irmapdb.fleet.driver import psycopg
from irmapdb.store.ask import Answer, fetch, stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from irmapdb.fleet.server import Server
    from irmapdb.store.ask import Value

__all__ = ["ask"]

_MOST_DIGITS = 100
_ROWS_AT_A_TIME = 32
"""psycopg keeps all rows of a fetch in memory, and a row can have values of 1 MiB."""
_QUERY = re.compile(r"\s*(?:--[^\n]*\n\s*)*(?:SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE)
# Errors of the question: its syntax and names, its data, its time, a write, rights.
_QUESTION_AT_FAULT = ("22", "25006", "42", "57014", "0A", "21")


def ask(
    server: Server,
    statement: str,
    parameters: Mapping[str, Value] | None = None,
    *,
    limit: int | None = None,
    timeout_s: float | None = None,
) -> Answer:
    """The answer of one statement; times in it are text in UTC.

    `limit` is the most rows, `timeout_s` the longest time. SqlError for a statement that PostgreSQL
    does not understand, that takes too long, gives more than 64 MiB, or writes. FleetError if the
    server cannot be reached.
    """
    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": str(round((timeout_s or 0) * 1000)),
    }
    start_s = time.monotonic()
    with server.connect(settings=settings) as connection:
        raw = connection.connection.driver_connection
        if not isinstance(raw, psycopg.Connection):
            raise TypeError(type(raw))
        sql, values = _with_values(statement.strip().removesuffix(";"), parameters or {})
        try:
            # With parameters, if only none: PostgreSQL then takes a single statement.
            with _cursor_for(raw, sql) as cursor:
                cursor.execute(sql, values)
                columns = tuple(column.name for column in cursor.description or ())
                rows = fetch((tuple(map(_value, row)) for row in cursor), limit) if columns else []
        except psycopg.Error as error:
            explained = _explained(error, timeout_s)
            if explained is None:
                raise
            raise explained from error
    took_us = round((time.monotonic() - start_s) * 1e6)
    cut = limit is not None and len(rows) > limit
    return Answer(columns, rows[:limit], cut, took_us)


def _cursor_for(raw: psycopg.Connection[Any], sql: str) -> Any:  # noqa: ANN401 two types
    # A cursor of the server reads only as many rows as are printed. SHOW and EXPLAIN have none.
    if not _QUERY.match(sql):
        return raw.cursor()
    cursor = raw.cursor("irmapdb")
    cursor.itersize = _ROWS_AT_A_TIME
    return cursor


def _with_values(statement: str, parameters: Mapping[str, Value]) -> tuple[Any, Any]:
    escaped = statement.replace("%", "%%")
    if not parameters:
        return escaped, ()
    names = "|".join(map(re.escape, parameters))
    return re.sub(rf"(?<![:\w]):({names})\b", r"%(\1)s", escaped), dict(parameters)


def _value(value: Any) -> Value:  # noqa: ANN401 any type of PostgreSQL
    match value:
        case None | str() | bytes() | int() | float():
            return value
        case datetime():
            return value.replace(tzinfo=None).isoformat(" ", "microseconds")
        case date():
            return value.isoformat()
        case Decimal():
            return _number(value)
        case timedelta():
            return value.total_seconds()
        case _:
            return str(value)


def _number(value: Decimal) -> Value:
    # PostgreSQL has numbers with 131,072 digits, and Infinity and NaN, which JSON does not have.
    if not value.is_finite() or value.adjusted() >= _MOST_DIGITS:
        return str(value)
    return int(value) if value == value.to_integral_value() else float(value)


def _explained(error: psycopg.Error, timeout_s: float | None) -> SqlError | None:
    # None: it is no error of the statement.
    state = error.sqlstate
    if state is None or not state.startswith(_QUESTION_AT_FAULT):
        return None
    said = error.diag.message_primary or str(error)
    if state == "57014":
        return stopped(timeout_s)
    if state == "25006":
        return SqlError(said, advice="irmapdb sql only reads")
    return SqlError(said, advice=error.diag.message_hint or "")
