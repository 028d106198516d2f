"""Sends the rows of one snapshot in one transaction, under the lock of the database's row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

from sqlalchemy import text

from irmapdb.fleet.driver import psycopg
from irmapdb.fleet.rows import WatchList, add_rows, copy_lines, copy_rows
from irmapdb.fleet.sources import CheckVerdict
from irmapdb.record import Record
from irmapdb.store.snapshot import CHANGE_COLUMNS, MAPPING_COLUMNS, RUN_COLUMNS, Last, RunRows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from datetime import date
    from typing import Any
    from uuid import UUID

    from psycopg import Cursor
    from sqlalchemy import Connection

    from irmapdb.store.snapshot import Snapshot

__all__ = ["Claim", "Sent", "push_rows"]

_PAGE_WATCHES = 10_000
_PAGE_RUNS = 2000
_STEPS = {"pre-dump", "dump"}
_ID, _UUID, _EVENT, _STARTED_AT = map(RUN_COLUMNS.index, ("id", "uuid", "event", "started_at"))
_OUTCOME = RUN_COLUMNS.index("outcome")
_KEY, _AT = map(CHANGE_COLUMNS.index, ("key", "at"))
_RUN_ID = CHANGE_COLUMNS.index("run_id")
_UPSERT = (
    "ON CONFLICT (database_id, key) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in MAPPING_COLUMNS[1:])
    + " WHERE ("
    + ", ".join(f"mapping.{name}" for name in MAPPING_COLUMNS[1:])
    + ") IS DISTINCT FROM ("
    + ", ".join(f"excluded.{name}" for name in MAPPING_COLUMNS[1:])
    + ")"
)
_REPLACED = "ON CONFLICT (database_id, verdict) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in CheckVerdict._fields
)


class Claim(Record):
    """How far a database was pushed, when this push began."""

    database_id: int
    pushes: int
    last_run_id: int
    last_run: UUID | None
    last_change_id: int
    last_change: UUID | None
    pruned_before: date
    """Rows of older weeks were pruned on the server, and are not sent again."""


class Sent(Record):
    """The number of new rows on the server."""

    runs: int = 0
    watches: int = 0
    changes: int = 0
    mappings: int = 0
    """New or changed."""
    verdicts: int = 0


class _New(Record):
    """The rows that may be new, each with the week that it belongs to."""

    runs: list[tuple[date, tuple[Any, ...]]]
    changes: list[tuple[date, tuple[Any, ...]]]
    first_run_id: int


def push_rows(
    connection: Connection,
    claim: Claim,
    snapshot: Snapshot,
    verdicts: Sequence[CheckVerdict] | None = None,
) -> Sent | None:
    """Send the rows that the server does not have. None if another push came first.

    `verdicts`: CRIU's, for the container as it is now; None if it was not checked.
    """
    last = snapshot.last()
    is_same = _is_same(claim, last)
    if is_same and verdicts is None:
        return Sent()
    raw = connection.connection.driver_connection
    if not isinstance(raw, psycopg.Connection):
        raise TypeError(type(raw))
    with connection.begin(), raw.cursor() as cursor:
        new = _find_new(cursor, claim, snapshot)
        checked = _with_periods(cursor, claim, [(one.at, one) for one in verdicts or ()], 0)
        _add_periods(cursor, [*new.runs, *new.changes, *checked])
    with connection.begin(), raw.cursor() as cursor:
        lock = "SELECT pushes FROM database WHERE id = %s FOR UPDATE"
        if cursor.execute(lock, (claim.database_id,)).fetchone() != (claim.pushes,):
            return None
        if verdicts is not None:
            _send_verdicts(cursor, claim, checked)
        if is_same:
            return Sent(verdicts=len(checked))
        sent = _Sender(cursor, claim.database_id).send(snapshot, new)
        sent = sent._replace(verdicts=len(checked))
        _note(connection, claim, last, new)
        return sent


def _is_same(claim: Claim, last: Last) -> bool:
    known = Last(
        claim.last_run_id,
        str(claim.last_run or ""),
        claim.last_change_id,
        claim.last_change.hex if claim.last_change else "",
    )
    return claim.pushes > 0 and known == last


def _find_new(cursor: Cursor[Any], claim: Claim, snapshot: Snapshot) -> _New:
    # In a transaction of its own: a new partition must not wait for the locks of a push.
    run_id, change_id = claim.last_run_id, claim.last_change_id
    if not claim.last_run or snapshot.run_uuid(run_id) != str(claim.last_run):
        run_id = 0
    if not claim.last_change or snapshot.change_key(change_id) != claim.last_change.hex:
        change_id = 0
    runs = _with_periods(cursor, claim, snapshot.runs(run_id), _STARTED_AT)
    changes = _with_periods(cursor, claim, [*snapshot.changes(change_id)], _AT)
    return _New(runs, changes, run_id + 1)


def _with_periods(
    cursor: Cursor[Any], claim: Claim, rows: list[tuple[Any, ...]], time_at: int
) -> list[tuple[date, tuple[Any, ...]]]:
    if not rows:
        return []
    cursor.execute(
        "SELECT irmapdb_period(at) FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS given(at, n)"
        " ORDER BY n",
        ([row[time_at] for row in rows],),
    )
    periods = [period for (period,) in cursor.fetchall()]
    dated = zip(periods, rows, strict=True)
    return [(period, row) for period, row in dated if period >= claim.pruned_before]


def _add_periods(cursor: Cursor[Any], rows: list[tuple[date, tuple[Any, ...]]]) -> None:
    periods = sorted({period for period, _ in rows})
    if periods:
        cursor.execute(
            "SELECT irmapdb_add_period(period) FROM unnest(%s::date[]) AS given(period)", (periods,)
        )


def _send_verdicts(
    cursor: Cursor[Any], claim: Claim, checked: list[tuple[date, tuple[Any, ...]]]
) -> None:
    columns = CheckVerdict._fields
    kept = [(claim.database_id, period, *verdict) for period, (_, verdict) in checked]
    all_columns = ("database_id", "period", *columns)
    add_rows(cursor, "verdict", all_columns, kept, on_conflict="ON CONFLICT DO NOTHING")
    rows = [(claim.database_id, *verdict) for _, (_, verdict) in checked]
    add_rows(cursor, "current_verdict", ("database_id", *columns), rows, on_conflict=_REPLACED)
    # The check that came last, not the newest one: the clock of the node may have been ahead. A
    # container without a watch has a check and no verdict.
    at = checked[-1][1][0] if checked else None
    cursor.execute(
        "UPDATE database SET last_check_at = coalesce(%s, now()) WHERE id = %s",
        (at, claim.database_id),
    )


def _note(connection: Connection, claim: Claim, last: Last, new: _New) -> None:
    values: dict[str, Any] = {
        "id": claim.database_id,
        "last_run_id": last.run_id,
        "last_run": last.run_uuid or None,
        "last_change_id": last.change_id,
        "last_change": last.change_key or None,
    }
    more = ""
    if new.runs:
        more = ", last_run_period = :run_period"
        values["run_period"] = new.runs[-1][0]
    for period, row in reversed(new.runs):
        if row[_EVENT] in _STEPS and not row[_OUTCOME].startswith("failed:"):
            more += ", last_step = :last_step, last_step_period = :period"
            values |= {"last_step": row[_UUID], "period": period}
            break
    connection.execute(
        text(
            "UPDATE database SET pushes = pushes + 1, last_run_id = :last_run_id,"  # noqa: S608 ours
            " last_run = :last_run, last_change_id = :last_change_id, last_change = :last_change"
            f"{more} WHERE id = :id"
        ),
        values,
    )


class _Sender:
    """The open transaction of one database."""

    def __init__(self, cursor: Cursor[Any], database_id: int) -> None:
        self._cursor = cursor
        self._database_id = database_id
        self._listed: set[tuple[date, str]] = set()
        # COPY does not work on a table with row-level security, which the owner does not have.
        row = cursor.execute("SELECT row_security_active('listed_watch')").fetchone()
        self._is_staged = row is not None and bool(row[0])

    def send(self, snapshot: Snapshot, new: _New) -> Sent:
        """Send all that the server does not have."""
        runs = watches = 0
        missing = self._missing("run", "uuid", [row[_UUID] for _, row in new.runs])
        counts = snapshot.watch_counts(new.first_run_id - 1)
        pages = _pages([one for one in new.runs if one[1][_UUID] in missing], counts)
        # closing: no thread may read the snapshot after an error.
        with closing(_read_ahead(snapshot, pages)) as read:
            for page, of_runs in read:
                self._send_runs(page, of_runs)
                runs += len(page)
                watches += sum(counts.get(row[_ID], 0) for _, row in page)
        changes = self._send_changes(snapshot, new)
        mappings = self._send_mappings(snapshot.mappings())
        return Sent(runs, watches, changes, mappings)

    def _missing(self, table: str, column: str, keys: list[str]) -> set[str]:
        if not keys:
            return set()
        self._cursor.execute(
            f"SELECT key FROM unnest(%s::text[]) AS given(key)"  # noqa: S608 ours
            f" WHERE NOT EXISTS (SELECT FROM {table} WHERE database_id = %s"
            f" AND {table}.{column} = given.key::uuid)",
            (keys, self._database_id),
        )
        return {key for (key,) in self._cursor.fetchall()}

    def _send_runs(
        self, page: list[tuple[date, tuple[Any, ...]]], of_runs: dict[int, RunRows]
    ) -> None:
        nothing = RunRows([], [], [])
        lists: dict[tuple[date, str], WatchList] = {}
        runs, sources = [], []
        for period, row in page:
            rows = of_runs.get(row[_ID], nothing)
            digest = None
            if rows.watches:
                one = WatchList.of(rows)
                digest = one.digest
                if (period, digest) not in self._listed:
                    lists[period, digest] = one
            runs.append((self._database_id, period, digest, *row))
            sources += [(self._database_id, period, row[_UUID], *one) for one in rows.sources]
        self._send_lists(lists)
        columns = ("database_id", "period", "watch_list", *RUN_COLUMNS)
        with self._copying("run") as table:
            copy_rows(self._cursor, table, columns, runs)
        columns = ("database_id", "period", "run", "source", "identities")
        with self._copying("run_source") as table:
            copy_rows(self._cursor, table, columns, sources)

    def _send_lists(self, lists: dict[tuple[date, str], WatchList]) -> None:
        if not lists:
            return
        self._cursor.execute(
            "SELECT period, list FROM unnest(%s::date[], %s::text[]) AS given(period, list)"
            " WHERE NOT EXISTS (SELECT FROM listed_watch WHERE database_id = %s AND number = 1"
            " AND listed_watch.list = given.list::uuid AND listed_watch.period = given.period)",
            ([period for period, _ in lists], [digest for _, digest in lists], self._database_id),
        )
        wanted = {key: lists[key] for key in self._cursor.fetchall()}
        watches = {key: one.watches for key, one in wanted.items()}
        tried = {key: one.tried for key, one in wanted.items() if one.tried}
        with self._copying("listed_watch") as table:
            copy_lines(self._cursor, table, _with_prefix(self._database_id, watches))
        if tried:
            with self._copying("listed_tried") as table:
                copy_lines(self._cursor, table, _with_prefix(self._database_id, tried))
        self._listed |= lists.keys()

    @contextmanager
    def _copying(self, table: str) -> Iterator[str]:
        # The table to COPY to, directly or by way of a temporary one.
        if not self._is_staged:
            yield table
            return
        name = f"staged_{table}"
        staged = f"pg_temp.{name}"
        self._cursor.execute(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {name} (LIKE {table}) ON COMMIT DELETE ROWS"
        )
        yield staged
        self._cursor.execute(f"INSERT INTO {table} SELECT * FROM {staged}")  # noqa: S608 ours
        self._cursor.execute(f"TRUNCATE {staged}")

    def _send_changes(self, snapshot: Snapshot, new: _New) -> int:
        missing = self._missing("change", "key", [row[_KEY] for _, row in new.changes])
        run_ids = {row[_RUN_ID] for _, row in new.changes} - {None}
        uuids = {run_id: snapshot.run_uuid(run_id) or None for run_id in run_ids}
        columns = ("database_id", "period", "run", *CHANGE_COLUMNS)
        rows = {
            row[_KEY]: (self._database_id, period, uuids.get(row[_RUN_ID]), *row)
            for period, row in new.changes
            if row[_KEY] in missing
        }
        return add_rows(self._cursor, "change", columns, rows.values())

    def _send_mappings(self, mappings: Iterable[Sequence[Any]]) -> int:
        columns = ("database_id", *MAPPING_COLUMNS)
        # A file of another program can have one path as text and as bytes.
        rows = {row[0]: (self._database_id, *row) for row in mappings}
        return add_rows(self._cursor, "mapping", columns, rows.values(), on_conflict=_UPSERT)


def _pages(
    runs: list[tuple[date, tuple[Any, ...]]], counts: dict[int, int]
) -> Iterator[list[tuple[date, tuple[Any, ...]]]]:
    page: list[tuple[date, tuple[Any, ...]]] = []
    watches = 0
    for one in runs:
        count = counts.get(one[1][_ID], 0)
        if page and (watches + count > _PAGE_WATCHES or len(page) == _PAGE_RUNS):
            yield page
            page, watches = [], 0
        page.append(one)
        watches += count
    if page:
        yield page


def _read_ahead(
    snapshot: Snapshot, pages: Iterable[list[tuple[date, tuple[Any, ...]]]]
) -> Generator[tuple[list[tuple[date, tuple[Any, ...]]], dict[int, RunRows]], None, None]:
    # A thread reads the next page while the server takes this one. At the end it has stopped.
    ahead = None
    with ThreadPoolExecutor(1) as thread:
        for page in pages:
            rows = thread.submit(snapshot.rows_of_runs, page[0][1][_ID], page[-1][1][_ID])
            if ahead:
                yield ahead[0], ahead[1].result()
            ahead = page, rows
        if ahead:
            yield ahead[0], ahead[1].result()


def _with_prefix(database_id: int, lists: dict[tuple[date, str], str]) -> Iterator[tuple[str, str]]:
    for (period, digest), lines in lists.items():
        yield f"{database_id}\t{period}\t{digest}\t", lines
