"""Collects the figures of the report: from one database, from those of a node, or from the fleet.

Each figure keeps the statement that gave it. A database that cannot be read is named, and the rest
goes on.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from irmapdb.errors import IrmapError
from irmapdb.record import Record
from irmapdb.report.questions import OF_DATABASE, OF_FLEET, Questions
from irmapdb.store.ask import Answer, Ask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from irmapdb.fleet.server import Server
    from irmapdb.model import AnyPath
    from irmapdb.node.check_all import ContainerCheck
    from irmapdb.node.ps_rows import Usage
    from irmapdb.store.ask import Value

__all__ = ["Database", "Figure", "Report", "collect_databases", "collect_fleet"]

_STATEMENT_S = 10.0
_ALL_S = 120.0
"""The time for all databases; those that are not read by then are named."""
_READ_ROWS = 20_000
_MOST_DATABASES = 2_000

_SHOWN = {
    "last_runs": 300,
    "unresolved": 300,
    "stops": 40,
    "directories": 60,
    "stale_hours": 100_000,
    "stale": 200,
    "limits": 40,
}
"""The most rows of each figure that the page shows, so that it stays small."""


class Database(Record):
    """A database, and the name of its container."""

    path: AnyPath
    label: str


class Figure(Record):
    """The rows of one figure, and how they were found."""

    sql: str
    """The statement; for a figure that is not from a database, the place in words."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    left_out: int
    """The number of rows that the page does not show."""

    def column(self, name: str) -> list[Value]:
        """The values of one column; None in each row if the figure has no such column."""
        if name not in self.columns:
            return [None] * len(self.rows)
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


class Report(Record):
    """Everything that the page shows."""

    about: str
    """The container, the node or the server."""
    made_at: datetime
    databases: int
    checks: tuple[ContainerCheck, ...] | None
    """The predictions for the containers that run; None if none was asked for."""
    last_runs: Figure
    unresolved: Figure
    stops: Figure
    directories: Figure
    stale_hours: Figure
    stale: Figure
    limits: Figure
    problems: tuple[str, ...]
    """The databases that could not be read, and why."""


def collect_databases(
    about: str,
    databases: Sequence[Database],
    *,
    users: Sequence[Usage] = (),
    checks: Sequence[ContainerCheck] | None = None,
) -> Report:
    """The figures of one database or of several. DatabaseError if the only one cannot be read."""
    several = len(databases) != 1
    answers: dict[str, list[tuple[str, Answer]]] = {name: [] for name in _SHOWN}
    problems = []
    until_s = time.monotonic() + _ALL_S
    for database in databases[:_MOST_DATABASES]:
        if time.monotonic() > until_s:
            problems.append(f"{database.label}: not read within {_ALL_S:g} s for all databases")
            continue
        try:
            for name, answer in _ask_database(database.path).items():
                answers[name].append((database.label, answer))
        except IrmapError as error:
            if not several:
                raise
            problems.append(f"{database.label}: {error}")
    problems += [f"{one.label}: too many databases" for one in databases[_MOST_DATABASES:]]
    return _report(
        about,
        len(databases),
        OF_DATABASE,
        {name: _merged(name, found, several=several) for name, found in answers.items()},
        problems=problems,
        checks=checks,
        limits=_of_users(users),
    )


def collect_fleet(about: str, server: Server) -> Report:
    """The figures of all nodes. FleetError if the server cannot be reached."""
    from irmapdb.fleet.ask import ask  # noqa: PLC0415 needs the extra irmapdb[fleet]

    def question(sql: str) -> Answer:
        return ask(server, sql, limit=_READ_ROWS, timeout_s=_ALL_S)

    answers = _ask_each(OF_FLEET, question)
    limits = question(OF_FLEET.limits)
    number = question("SELECT count(*) FROM containers").rows[0][0]
    return _report(
        about,
        int(number or 0),
        OF_FLEET,
        answers,
        problems=(),
        checks=None,
        limits=_figure("limits", OF_FLEET.limits, limits),
    )


def _ask_database(path: AnyPath) -> dict[str, Answer]:
    def question(sql: str) -> Answer:
        return next(iter(ask.ask(sql, limit=_READ_ROWS, timeout_s=_STATEMENT_S)))

    with Ask.open(path) as ask:
        return _ask_each(OF_DATABASE, question)


def _ask_each(questions: Questions, ask: Callable[[str], Answer]) -> dict[str, Answer]:
    return {name: ask(getattr(questions, name)) for name in _SHOWN if name != "limits"}


def _report(
    about: str,
    databases: int,
    questions: Questions,
    answers: dict[str, Answer],
    *,
    problems: Iterable[str],
    checks: Sequence[ContainerCheck] | None,
    limits: Figure,
) -> Report:
    figures: dict[str, Any] = {
        name: _figure(name, getattr(questions, name), answer) for name, answer in answers.items()
    }
    figures["limits"] = limits
    return Report(
        about=about,
        made_at=datetime.now(UTC),
        databases=databases,
        checks=None if checks is None else tuple(sorted(checks, key=lambda one: one.rank)),
        problems=tuple(problems),
        **figures,
    )


def _figure(name: str, sql: str, answer: Answer) -> Figure:
    shown = answer.rows[: _SHOWN[name]]
    return Figure(sql, answer.columns, tuple(shown), len(answer.rows) - len(shown))


# --- several databases ----------------------------------------------------------------------------


def _merged(name: str, found: Sequence[tuple[str, Answer]], *, several: bool) -> Answer:
    # One answer of all, in the order of its question; with the name of the container in front.
    if not several and found:
        return found[0][1]
    columns = found[0][1].columns if found else ()
    if name == "stale_hours":
        return _sum_of_hours(columns, [answer for _, answer in found])
    rows = [(label, *row) for label, answer in found for row in answer.rows]
    columns = ("container", *columns)
    weight = _WEIGHTS.get(name)
    if weight is not None and rows:
        index = columns.index(weight)
        rows.sort(key=lambda row: _sort_key(row[index]), reverse=True)
    return Answer(columns, rows, cut=False, took_us=0)


_WEIGHTS = {
    "last_runs": "unresolved",
    "stops": "started_at",
    "directories": "watches",
    "stale": "stale_at",
}


def _sort_key(value: Value) -> tuple[float, str]:
    # A column of a database may hold any type.
    if isinstance(value, int | float):
        return float(value), ""
    return 0.0, str(value or "")


def _sum_of_hours(columns: tuple[str, ...], answers: Iterable[Answer]) -> Answer:
    sums: dict[str, int] = {}
    for answer in answers:
        for hour, stale in answer.rows:
            sums[str(hour)] = sums.get(str(hour), 0) + int(stale or 0)
    return Answer(columns, sorted(sums.items()), cut=False, took_us=0)


def _of_users(users: Sequence[Usage]) -> Figure:
    rows = tuple(
        ("this machine", one.uid, str(one.account), one.used, one.limit)
        for one in users
        if one.limit
    )
    shown = rows[: _SHOWN["limits"]]
    return Figure(
        "/proc/sys/fs and the tasks of this machine, when the page was made: `irmapdb ps`",
        ("where", "uid", "account", "used", "maximum"),
        shown,
        len(rows) - len(shown),
    )
