"""Collects the figures of the report: from one database, from those of a node, or from the fleet.

Each figure keeps its statement. The page names a database that cannot be read, and shows the
others.
"""

from __future__ import annotations

import html
import itertools
import time
from datetime import UTC, datetime

from irmapdb.errors import AnswerTooLargeError, IrmapError
from irmapdb.record import Record
from irmapdb.report.cells import cell_text
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
"""The time for one statement; for the only database it is `_ALL_S`."""
_ALL_S = 120.0
"""The time for all databases; those that are not read by then are named."""
_MOST_DATABASES = 2_000
_MOST_CHECKS = 300
_TEXT_BYTES = 120_000
"""The most bytes of text that a table shows: tenants choose how long names are."""

_SHOWN = {
    "last_runs": 300,
    "unresolved": 300,
    "stops": 40,
    "directories": 60,
    "stale_hours": 1_500,  # the chart has 60 days
    "stale": 200,
    "limits": 40,
    "verdicts": 300,
}
"""The most rows of each figure that the page shows, so that it stays small."""
_ASKED = tuple(name for name in _SHOWN if name not in {"limits", "verdicts"})
"""The figures that each database has."""


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
    checks_shown: int
    """How many of them the table has, so that it stays small."""
    several: bool
    """Whether it is about several containers: then each row has the name of its container."""
    verdicts: Figure
    """The verdicts that the nodes of the fleet have sent, if a watch would be lost."""
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
    several: bool = False,
    users: Sequence[Usage] = (),
    checks: Sequence[ContainerCheck] | None = None,
) -> Report:
    """The figures of one database, or of `several`. DatabaseError if the one cannot be read."""
    sums = {name: _Sum(name, several=several) for name in _ASKED}
    problems = []
    until_s = time.monotonic() + _ALL_S
    for database in databases[:_MOST_DATABASES]:
        if time.monotonic() > until_s:
            problems.append(f"{database.label}: not read within {_ALL_S:g} s for all databases")
            continue
        try:
            limit_s = _STATEMENT_S if several else _ALL_S
            for name, counted in _ask_database(database.path, limit_s).items():
                sums[name].add(database.label, counted)
        except IrmapError as error:
            if not several:
                raise
            problems.append(f"{database.label}: {error}")
    if len(databases) > _MOST_DATABASES:
        problems.append(f"{len(databases) - _MOST_DATABASES:,} databases: too many")
    return _report(
        about,
        len(databases),
        OF_DATABASE,
        {name: found.counted() for name, found in sums.items()},
        several=several,
        problems=problems,
        checks=checks,
        limits=_of_users(users),
    )


def collect_fleet(about: str, server: Server) -> Report:
    """The figures of all nodes. FleetError if the server cannot be reached."""
    from irmapdb.fleet.ask import ask  # noqa: PLC0415 needs the extra irmapdb[fleet]

    def question(sql: str, limit: int) -> Answer:
        return ask(server, sql, limit=limit, timeout_s=_ALL_S)

    answers = {name: _ask_counted(name, OF_FLEET, question) for name in _SHOWN}
    limits = answers.pop("limits")
    number = question("SELECT count(*) FROM containers", 1).rows[0][0]
    return _report(
        about,
        int(number or 0),
        OF_FLEET,
        answers,
        several=True,
        problems=(),
        checks=None,
        limits=_figure("limits", OF_FLEET.limits, limits),
    )


class _Counted(Record):
    """The first rows of an answer, in the order of their weight."""

    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    total: int
    """The number of all rows."""


def _ask_database(path: AnyPath, limit_s: float) -> dict[str, _Counted]:
    def question(sql: str, limit: int) -> Answer:
        return next(iter(ask.ask(sql, limit=limit, timeout_s=limit_s)))

    with Ask.open(path) as ask:
        return {name: _ask_counted(name, OF_DATABASE, question) for name in _ASKED}


def _ask_counted(name: str, questions: Questions, ask: Callable[[str, int], Answer]) -> _Counted:
    # The rows that are not shown are only counted: tenants chose how many they are, and how long.
    sql = getattr(questions, name)
    answer = _ask_few(lambda limit: ask(sql, limit), _SHOWN[name])
    total = len(answer.rows)
    if answer.cut:
        counted = ask(f"SELECT count(*) FROM ({sql}) AS counted", 1).rows[0][0]  # noqa: S608 ours
        total = max(total, int(counted or 0))
    return _Counted(answer.columns, answer.rows, total)


def _ask_few(ask: Callable[[int], Answer], limit: int) -> Answer:
    # Fewer rows if their values are so long that the answer would not fit into memory.
    while True:
        try:
            return ask(limit)
        except AnswerTooLargeError:
            if limit == 1:
                raise
            limit = max(1, limit // 8)


def _report(
    about: str,
    databases: int,
    questions: Questions,
    answers: dict[str, _Counted],
    *,
    several: bool,
    problems: Iterable[str],
    checks: Sequence[ContainerCheck] | None,
    limits: Figure,
) -> Report:
    figures: dict[str, Any] = {
        name: _figure(name, getattr(questions, name), answer) for name, answer in answers.items()
    }
    ranked = tuple(sorted(checks or (), key=lambda one: one.rank))
    return Report(
        about=about,
        made_at=datetime.now(UTC),
        databases=databases,
        checks=None if checks is None else ranked,
        checks_shown=_number_that_fits(map(_texts_of_check, ranked), _MOST_CHECKS),
        several=several,
        problems=tuple(problems),
        **{"verdicts": Figure("", (), (), 0), **figures, "limits": limits},
    )


def _texts_of_check(one: ContainerCheck) -> tuple[Value, ...]:
    worst = one.worst if one.worst and not one.right else None
    return (one.info.label, one.info.image, worst and worst.why, worst and worst.advice)


def _figure(name: str, sql: str, answer: _Counted) -> Figure:
    shown = answer.rows[: _number_that_fits(answer.rows, _SHOWN[name])]
    return Figure(sql, answer.columns, tuple(shown), answer.total - len(shown))


def _number_that_fits(rows: Iterable[tuple[Value, ...]], most: int) -> int:
    # The first row is shown in any case.
    number = size = 0
    for row in itertools.islice(rows, most):
        size += sum(len(html.escape(cell_text(value)).encode(errors="replace")) for value in row)
        if number and size > _TEXT_BYTES:
            break
        number += 1
    return number


# --- several databases ----------------------------------------------------------------------------


class _Sum:
    """One answer of all databases, in the order of its question."""

    def __init__(self, name: str, *, several: bool) -> None:
        """`several`: whether the name of the container is in front of each row."""
        self._name = name
        self._several = several and name != "stale_hours"
        self._columns: tuple[str, ...] = ()
        self._rows: list[tuple[Value, ...]] = []
        self._hours: dict[str, int] = {}
        self._total = 0

    def add(self, label: str, counted: _Counted) -> None:
        """Take the rows of one more database; those that are not shown are forgotten at once."""
        self._columns = ("container", *counted.columns) if self._several else counted.columns
        self._total += counted.total
        if self._name == "stale_hours":
            for hour, stale in counted.rows:
                self._hours[str(hour)] = self._hours.get(str(hour), 0) + int(stale or 0)
            return
        if not self._several:
            self._rows += counted.rows
            return
        self._rows += [(label, *row) for row in counted.rows]
        weight = _WEIGHTS.get(self._name)
        if weight is not None:
            index = self._columns.index(weight)
            self._rows.sort(key=lambda row: _sort_key(row[index]), reverse=True)
        del self._rows[_SHOWN[self._name] :]

    def counted(self) -> _Counted:
        """The rows so far."""
        by_hour = self._name == "stale_hours"
        rows = sorted(self._hours.items(), reverse=True) if by_hour else self._rows
        return _Counted(self._columns, [*rows], max(self._total, len(rows)))


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


def _of_users(users: Sequence[Usage]) -> Figure:
    rows = tuple(
        ("this machine", one.uid, str(one.account), one.used, one.limit)
        for one in users
        if one.limit
    )
    shown = rows[: _SHOWN["limits"]]
    return Figure(
        "irmapdb ps    (from /proc, when the page was made)",
        ("where", "uid", "account", "used", "maximum"),
        shown,
        len(rows) - len(shown),
    )
