r"""Reads whole tables of one database at one moment, for a copy of the rows elsewhere.

All reads are in one transaction, so the rows belong together also while another process writes.
A database can hold any value in any column, so SQLite compares the types of each page of rows
before Python gets them. Rows are tuples in the order of the `*_COLUMNS`:

| kind of column | in a row |
|---|---|
| number | int, 64 bits signed; inode numbers as in the file |
| path, comm, handle | bytes |
| words | str without NUL; bytes that are no UTF-8 become `\xNN` |
| time | str, UTC, `YYYY-MM-DD HH:MM:SS.ffffff` |

Each of them is None where the column is NULL. Watches are by far the most rows, so SQLite makes
lines of text of them (irmapdb.store.copy_text).
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter

from irmapdb.errors import DatabaseError
from irmapdb.record import Record
from irmapdb.store import copy_text
from irmapdb.store.failures import check_order, show, translated
from irmapdb.store.place import open_place
from irmapdb.store.raw import connect_raw
from irmapdb.store.values import MAX_PATH_BYTES, from_time
from irmapdb.store.version import check_newest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from typing import Any, Self

    from irmapdb.store.file import AnyPath

__all__ = [
    "CHANGE_COLUMNS",
    "MAPPING_COLUMNS",
    "RUN_COLUMNS",
    "TRIED_COLUMNS",
    "WATCH_COLUMNS",
    "Last",
    "RunRows",
    "Snapshot",
]

_PAGE = 2000
_MOST_WATCHES = 2_000_000
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_KEY_BYTES = 16

_NUMBER, _RAW, _WORDS, _TIME = "number", "raw", "words", "time"


class _Column(Record):
    name: str
    kind: str
    optional: bool = False
    usual: tuple[str, ...] = ()
    """Words of ours that most rows have."""

    @property
    def sql(self) -> str:
        """The column as it is selected."""
        return f"CAST({self.name} AS BLOB)" if self.kind in {_RAW, _WORDS} else self.name

    @property
    def check(self) -> str:
        """A condition that holds for each value that irmapdb writes."""
        if self.kind in {_RAW, _WORDS}:
            # Each text and each BLOB is at or after '', numbers are before it: no typeof().
            size = f"length(CAST({self.name} AS BLOB))"
            check = f"({self.name} >= '' AND {size} <= {MAX_PATH_BYTES})"
        else:
            check = f"typeof({self.name}) = '{'integer' if self.kind == _NUMBER else 'text'}'"
        return f"({self.name} IS NULL OR {check})" if self.optional else f"coalesce({check}, 0)"

    @property
    def copied_check(self) -> str:
        """The same for a line of text, where 1.0 becomes 1."""
        if self.kind != _NUMBER or self.optional:
            return self.check
        # A text never equals a number, 1.5 does not equal 1. Faster than typeof().
        return f"coalesce({self.name} = ({self.name} | 0), 0)"

    @property
    def copied(self) -> copy_text.Cell:
        """The column in a line of text."""
        if self.kind == _NUMBER:
            return copy_text.number(self.name, optional=self.optional)
        if self.kind == _RAW:
            return copy_text.raw_bytes(self.name)
        return copy_text.words(self.name, self.usual)


def _numbers(names: str) -> tuple[_Column, ...]:
    return tuple(_Column(name, _NUMBER) for name in names.split())


_IDENTITY = (
    *_numbers("dev ino"),
    _Column("handle_type", _NUMBER, optional=True),
    _Column("handle", _RAW, optional=True),
)
_RUN = (
    _Column("id", _NUMBER),
    _Column("uuid", _WORDS),
    _Column("event", _WORDS),
    _Column("pid", _NUMBER, optional=True),
    _Column("comm", _RAW, optional=True),
    _Column("started_at", _TIME),
    _Column("finished_at", _TIME),
    *_numbers("freezing_us frozen_us resolve_us watches resolved unresolved hits stale scanned"),
    *_numbers("tasks_frozen reread_us reparsed confirm_us reproved"),
    _Column("reproved_why", _WORDS),
    *_numbers("frozen_resolve_us paused paused_us criu_freezing_us criu_frozen_us"),
    _Column("outcome", _WORDS),
)
_WATCH = (
    _Column("pid", _NUMBER),
    _Column("comm", _RAW, optional=True),
    _Column("fd", _NUMBER),
    _Column("kind", _WORDS, usual=("inotify", "fanotify")),
    _Column("wd", _NUMBER),
    *_IDENTITY,
    *_numbers("mask ignored_mask mflags"),
    _Column("path", _RAW, optional=True),
    _Column("why", _WORDS, optional=True),
    _Column("mntns", _NUMBER),
)
_TRIED = (
    _Column("position", _NUMBER),
    _Column("resolver", _WORDS),
    _Column("note", _WORDS),
)
_SOURCE = (_Column("source", _WORDS), _Column("identities", _NUMBER))
_CHANGE = (
    _Column("id", _NUMBER),
    _Column("run_id", _NUMBER, optional=True),
    _Column("at", _TIME),
    _Column("mapping_id", _NUMBER, optional=True),
    _Column("kind", _WORDS),
    *_IDENTITY,
    _Column("path", _RAW),
    _Column("old_path", _RAW, optional=True),
    _Column("reason", _WORDS, optional=True),
    _Column("mntns", _NUMBER),
)
_MAPPING = (
    _Column("id", _NUMBER),
    *_IDENTITY,
    _Column("path", _RAW),
    _Column("mntns", _NUMBER),
    _Column("revalidate", _NUMBER),
    _Column("source", _WORDS),
    _Column("first_seen_at", _TIME),
    _Column("validated_at", _TIME, optional=True),
    _Column("last_used_at", _TIME, optional=True),
    _Column("stale_at", _TIME, optional=True),
    _Column("stale_reason", _WORDS, optional=True),
)

RUN_COLUMNS = tuple(one.name for one in _RUN)
WATCH_COLUMNS = tuple(one.name for one in _WATCH)
TRIED_COLUMNS = ("watch", *(one.name for one in _TRIED))
"""`watch` is the number of the watch in its run, from 1."""
CHANGE_COLUMNS = ("key", *(one.name for one in _CHANGE))
"""`key` identifies the change in every copy of the database: 32 hex digits."""
MAPPING_COLUMNS = ("key", *(one.name for one in _MAPPING))
"""`key` is made of device, inode number, mount namespace and path: 32 hex digits."""


class Last(Record):
    """The last run and the last change of a database; 0 and "" if there is none."""

    run_id: int = 0
    run_uuid: str = ""
    change_id: int = 0
    change_key: str = ""


class RunRows(Record):
    """The rows that belong to one run."""

    watches: list[str]
    """Lines of text: WATCH_COLUMNS, in the order of the run."""
    tried: list[str]
    """Lines of text: TRIED_COLUMNS, in the order of the watches and resolvers."""
    sources: list[tuple[str, int]]
    """Each resolver, and the number of inodes that it answered."""


class _CheckedRows:
    """Reads rows whose values have the types that irmapdb writes. DatabaseError for others."""

    def __init__(self, raw: sqlite3.Connection, path: bytes) -> None:
        self.raw = raw
        self._path = path

    def pages(
        self, table: str, columns: Sequence[_Column], after: int
    ) -> Iterator[tuple[Any, ...]]:
        while page := self.read(table, columns, "id > ?", (after,), "id", _PAGE):
            check_order(self._path, after, page)
            yield from page
            after = page[-1][0]

    def read(
        self,
        table: str,
        columns: Sequence[_Column],
        where: str,
        values: tuple[int, ...],
        order: str = "",
        limit: int = -1,
    ) -> list[tuple[Any, ...]]:
        # All texts are ours. A row of another type than irmapdb writes is an error of the file.
        names = ", ".join(one.sql for one in columns)
        checks = " AND ".join(one.check for one in columns)
        rows = self.fetch(
            f"SELECT {names}, {checks} FROM {table} WHERE {where}"  # noqa: S608
            f" {'ORDER BY ' + order if order else ''} LIMIT {limit}",
            values,
        )
        if rows and not min(map(itemgetter(-1), rows)):
            raise self._unknown_row(table)
        convert = [
            (number, copy_text.decoded if one.kind == _WORDS else self._time)
            for number, one in enumerate(columns)
            if one.kind in {_WORDS, _TIME}
        ]
        return [_converted(row, convert) for row in rows]

    def lines(
        self,
        table: str,
        keys: Sequence[_Column],
        columns: Sequence[_Column],
        where: str,
        values: tuple[int, ...],
    ) -> list[tuple[Any, ...]]:
        """The values of `keys`, by which the rows are sorted, and the columns as a line of text."""
        names = ", ".join(one.name for one in keys)
        checks = " AND ".join(one.copied_check for one in (*keys, *columns))
        line = copy_text.line(one.copied for one in columns)
        rows = self.fetch(
            f"SELECT {names}, CASE WHEN {checks} THEN {line} END FROM {table}"  # noqa: S608 ours
            f" WHERE {where} ORDER BY {names}",
            values,
        )
        if None in map(itemgetter(-1), rows):
            raise self._unknown_row(table)
        return rows

    def _unknown_row(self, table: str) -> DatabaseError:
        return self.damaged(f"{table} has a row that irmapdb does not write")

    def _time(self, value: str) -> str:
        try:
            from_time(value)
        except ValueError as error:
            raise self.damaged(str(error)) from error
        return value

    def fetch(self, sql: str, values: tuple[int, ...]) -> list[tuple[Any, ...]]:
        with translated(self._path):
            return self.raw.execute(sql, values).fetchall()

    def damaged(self, what: str) -> DatabaseError:
        return DatabaseError(
            show(self._path), f"the database is damaged: {what}", advice="move it away"
        )


class Snapshot:
    """The rows of a database at one moment. A context manager; one thread at a time may use it."""

    def __init__(self, raw: sqlite3.Connection, path: bytes) -> None:
        self.path = path
        """The file, absolute."""
        copy_text.prepare(raw)
        self._rows = _CheckedRows(raw, path)
        self._stack = ExitStack()
        self.origin = self._read_origin()
        """The UUID of the database."""

    @classmethod
    def open(cls, path: AnyPath, *, wait_s: float = 10.0) -> Snapshot:
        """Open a database of the newest schema for reading, also while another process writes.

        Raises DatabaseError for an older schema, because it changes nothing.
        """
        with ExitStack() as stack:
            place = stack.enter_context(open_place(path, write=False))
            raw = stack.enter_context(connect_raw(place, write=False, wait_s=wait_s))
            with translated(place.path, wait_s):
                raw.execute("BEGIN")
                check_newest(raw, place)
                snapshot = cls(raw, place.path)
            snapshot._stack = stack.pop_all()
            return snapshot

    def last(self) -> Last:
        """The last run and the last change."""
        ids = [
            self._rows.raw.execute(f"SELECT max(id) FROM {table}").fetchone()[0] or 0  # noqa: S608 fixed
            for table in ("run", "change")
        ]
        return Last(ids[0], self.run_uuid(ids[0]), ids[1], self.change_key(ids[1]))

    def run_uuid(self, run_id: int) -> str:
        """The UUID of a run; "" if there is no such run."""
        found = self._rows.read("run", _RUN, "id = ?", (run_id,))
        return found[0][1] if found else ""

    def change_key(self, change_id: int) -> str:
        """The key of a change; "" if there is no such change."""
        found = self._rows.read("change", _CHANGE, "id = ?", (change_id,))
        return _change_key(found[0]) if found else ""

    def runs(self, after: int = 0) -> list[tuple[Any, ...]]:
        """The runs with a larger id, oldest first: RUN_COLUMNS. DatabaseError for a bad UUID."""
        found = []
        known = set()
        for row in self._rows.pages("run", _RUN, after):
            if not _UUID.fullmatch(row[1]) or row[1] in known:
                raise self._rows.damaged(f"run {row[0]} has no UUID of its own")
            known.add(row[1])
            found.append(row)
        return found

    def watch_counts(self, after: int = 0) -> dict[int, int]:
        """The number of watches of each run with a larger id; a run without watches is missing."""
        counted = self._rows.fetch(
            "SELECT run_id, count(*) FROM watch WHERE run_id > ? GROUP BY run_id", (after,)
        )
        counts = dict(counted)
        for run_id, count in counts.items():
            if count > _MOST_WATCHES:
                raise self._rows.damaged(f"run {run_id} has {count} watches")
        return counts

    def rows_of_runs(self, first: int, last: int) -> dict[int, RunRows]:
        """The rows of each run with an id from `first` to `last`."""
        ids = (first, last)
        found: dict[int, RunRows] = {}

        def of(run_id: int) -> RunRows:
            if run_id not in found:
                found[run_id] = RunRows([], [], [])
            return found[run_id]

        in_runs = "run_id BETWEEN ? AND ?"
        watches = self._rows.lines("watch", _numbers("run_id id"), _WATCH, in_runs, ids)
        for run_id, rows in groupby(watches, itemgetter(0)):
            of(run_id).watches.extend(map(itemgetter(-1), rows))
        of_watches = f"watch_id IN (SELECT id FROM watch WHERE {in_runs})"  # noqa: S608 fixed
        keys = _numbers("watch_id position")
        tried = self._rows.lines("tried", keys, _TRIED, of_watches, ids)
        numbers = _numbers_in_runs(watches) if tried else {}
        for watch_id, _, line in tried:
            run_id, number = numbers[watch_id]
            of(run_id).tried.append(f"{number}\t{line}")
        for run_id, source, identities in self._rows.read(
            "run_source",
            (_Column("run_id", _NUMBER), *_SOURCE),
            in_runs,
            ids,
            "run_id, source",
        ):
            of(run_id).sources.append((source, identities))
        return found

    def changes(self, after: int = 0) -> Iterator[tuple[Any, ...]]:
        """The changes with a larger id, oldest first: CHANGE_COLUMNS."""
        for row in self._rows.pages("change", _CHANGE, after):
            yield _change_key(row), *row

    def mappings(self) -> Iterator[tuple[Any, ...]]:
        """Every mapping, the stale ones too: MAPPING_COLUMNS."""
        for row in self._rows.pages("mapping", _MAPPING, 0):
            _, dev, ino, _, _, path, mntns, *_ = row
            yield _digest((dev, ino, mntns, path)), *row

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_origin(self) -> str:
        found = self._rows.fetch("SELECT CAST(uuid AS BLOB) FROM origin LIMIT 2", ())
        uuids = [copy_text.decoded(row[0]) for row in found if row[0] is not None]
        if len(uuids) != 1 or not _UUID.fullmatch(uuids[0]):
            raise self._rows.damaged(f"it has {'several UUIDs' if len(uuids) > 1 else 'no UUID'}")
        return uuids[0]


def _converted(row: tuple[Any, ...], convert: list[tuple[int, Any]]) -> tuple[Any, ...]:
    values = list(row[:-1])
    for number, function in convert:
        if values[number] is not None:
            values[number] = function(values[number])
    return tuple(values)


def _numbers_in_runs(watches: list[tuple[Any, ...]]) -> dict[int, tuple[int, int]]:
    # The run of each watch, and the number of the watch in it.
    numbers: dict[int, tuple[int, int]] = {}
    for run_id, rows in groupby(watches, itemgetter(0)):
        numbers.update((row[1], (run_id, number)) for number, row in enumerate(rows, 1))
    return numbers


def _digest(values: tuple[Any, ...]) -> str:
    return blake2b(repr(values).encode(), digest_size=_KEY_BYTES).hexdigest()


def _change_key(row: tuple[Any, ...]) -> str:
    # Without the numbers of the run and of the mapping: they become NULL when those are pruned.
    change_id, _, at, _, *rest = row
    return _digest((change_id, at, *rest))
