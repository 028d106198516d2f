"""Databases made in bulk for the fleet's tests, and their rows: read without irmapdb's code."""

from __future__ import annotations

import random
import shutil
import sqlite3
import uuid
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from irmapdb.store.database import Store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["HOSTILE", "Maker", "assert_same", "server_rows", "source_rows"]

HOSTILE = (
    b"/srv/caf\xe9",
    b"/a\0b",
    b"/\\000 \\x41 \\N \\.",
    b"/tab\there\nand\rthere",
    b"'; DROP TABLE run; --",
    b"<script>alert(1)</script>",
    b"/%s %(a)s {} $1 :a",
    b"/" + b"\xff" * 4095,
    "/ü/日本".encode(),
    b"/",
)
"""Names that a tenant can choose."""

_T0 = datetime(2026, 11, 2, 7, tzinfo=UTC)


def _text(raw: bytes | None) -> str | bytes | None:
    # As irmapdb stores a path: text if it is UTF-8 without NUL.
    if raw is None:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return raw
    return raw if "\0" in text else text


def _at(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


class Maker:
    """Makes databases: each a copy of an empty one, with rows put in by SQL."""

    def __init__(self, directory: Path, seed: int = 0) -> None:
        self._empty = directory / "empty.db"
        with Store.open(self._empty, create=True) as store, store.step() as step:
            step.set_image([])
        with closing(sqlite3.connect(self._empty)) as raw:
            raw.execute("PRAGMA journal_mode = DELETE")
        self.random = random.Random(seed)

    def make(self, path: Path, runs: int = 2, watches: int = 4, **more: Any) -> Path:  # noqa: ANN401 those of `add`
        """A database with these runs, and this number of watches in each."""
        shutil.copyfile(self._empty, path)
        path.chmod(0o600)
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA synchronous = OFF")
            raw.execute("UPDATE origin SET uuid = ?", (self._uuid(),))
            raw.commit()
        self.add(path, runs, watches, **more)
        return path

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def add(
        self,
        path: Path,
        runs: int = 1,
        watches: int = 4,
        *,
        begin: datetime = _T0,
        names: Iterable[bytes] = HOSTILE,
        same: bool = False,
    ) -> None:
        """More runs, as a hook would add them. `same`: with the watches of the last run."""
        with closing(sqlite3.connect(path)) as raw, raw:
            raw.execute("PRAGMA synchronous = OFF")
            for _ in range(runs):
                self._add_run(raw, watches, begin, [*names], same=same)

    def _add_run(
        self, raw: sqlite3.Connection, watches: int, begin: datetime, names: list[bytes], *,
        same: bool,
    ) -> None:  # fmt: skip
        last = raw.execute("SELECT coalesce(max(id), 0) FROM run").fetchone()[0]
        start = begin + timedelta(minutes=last)
        end = start + timedelta(seconds=1)
        figures = [self.random.randrange(1, 10**6) for _ in range(9)]
        row = {
            "event": "pre-dump", "pid": 4242, "comm": _text(self.random.choice(names)[:15]),
            "started_at": _at(start), "finished_at": _at(end), "freezing_us": figures[0],
            "frozen_us": figures[1], "resolve_us": figures[2], "watches": watches,
            "resolved": watches - 1, "unresolved": 1, "hits": figures[3], "stale": figures[4],
            "scanned": figures[5], "outcome": "1 unresolved", "paused": 1, "paused_us": figures[6],
            "uuid": self._uuid(), "criu_freezing_us": figures[7], "criu_frozen_us": figures[8],
        }  # fmt: skip
        values = ", ".join(f":{name}" for name in row)
        cursor = raw.execute(f"INSERT INTO run ({', '.join(row)}) VALUES ({values})", row)  # noqa: S608 our own names
        run_id = cursor.lastrowid
        raw.execute("INSERT INTO run_source VALUES (?, 'scan', ?)", (run_id, watches))
        ids = self.random if not same else random.Random(0)
        for number in range(watches):
            path = ids.choice(names) if number else None
            ino = ids.randrange(-(1 << 63), 1 << 63)
            why = None if path is not None else "scan: not found\\\t\n日"
            watch = raw.execute(
                "INSERT INTO watch (run_id, pid, comm, fd, kind, wd, dev, ino, handle_type, handle,"
                " mask, ignored_mask, mflags, path, why, mntns)"
                " VALUES (?, 4242, ?, 5, 'inotify', ?, 1, ?, 1, ?, 4095, 0, 0, ?, ?, 0)",
                (run_id, _text(b"app"), number, ino, ids.randbytes(8), _text(path), why),
            )
            if why:
                raw.execute("INSERT INTO tried VALUES (?, 1, 'scan', ?)", (watch.lastrowid, why))
        for path in self.random.sample(names, 2):
            raw.execute(
                "INSERT INTO mapping (dev, ino, path, revalidate, source, first_seen_at,"
                " validated_at, last_used_at, stale_at, stale_reason)"
                " VALUES (1, ?, ?, 0, 'scan', ?, ?, ?, ?, ?)",
                (
                    *(self.random.getrandbits(62), _text(path), _at(start), _at(start), _at(start)),
                    *(self.random.choice([(None, None), (_at(end), "gone")])),
                ),
            )
            raw.execute(
                "INSERT INTO change (run_id, at, mapping_id, kind, dev, ino, path, old_path,"
                " reason) VALUES (?, ?, NULL, 'moved', 1, 2, ?, ?, 'gone')",
                (run_id, _at(start), _text(path), _text(self.random.choice(names))),
            )


_WATCH = (
    "pid, {comm}, fd, kind, wd, dev, ino, handle_type, handle, mask, ignored_mask, mflags, {path},"
    " {why}, mntns"
)
_RUN = (
    "id, event, pid, {comm}, freezing_us, frozen_us, resolve_us, watches, resolved, unresolved,"
    " hits, stale, scanned, tasks_frozen, reread_us, reparsed, confirm_us, reproved, reproved_why,"
    " frozen_resolve_us, paused, paused_us, criu_freezing_us, criu_frozen_us, {outcome}"
)
_MAPPING = (
    "dev, ino, handle_type, handle, {path}, mntns, revalidate, source, {first_seen_at},"
    " {validated_at}, {last_used_at}, {stale_at}, stale_reason"
)
_CHANGE = "id, {at}, kind, dev, ino, handle_type, handle, {path}, {old_path}, reason, mntns"


def _sqlite(columns: str) -> str:
    raw = {name: f"CAST({name} AS BLOB)" for name in ("comm", "path", "old_path", "why", "outcome")}
    times = ("first_seen_at", "validated_at", "last_used_at", "stale_at", "at")
    return columns.format(**raw, **{name: name for name in times})


def _postgres(columns: str) -> str:
    times = ("first_seen_at", "validated_at", "last_used_at", "stale_at", "at")
    shown = {
        name: f"to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')" for name in times
    }
    words = {name: f"convert_to({name}, 'UTF8')" for name in ("why", "outcome")}
    same = {name: name for name in ("comm", "path", "old_path")}
    return columns.format(**shown, **words, **same)


def source_rows(nodes: dict[str, list[Path]]) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of these databases, by table, sorted; runs are named by their UUID."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for node, paths in nodes.items():
        for path in paths:
            with closing(sqlite3.connect(path)) as raw:
                (origin,) = raw.execute("SELECT uuid FROM origin").fetchone()
                uuids = dict(raw.execute("SELECT id, uuid FROM run").fetchall())
                for table, sql in _SOURCE.items():
                    rows = found.setdefault(table, [])
                    for row in raw.execute(sql):
                        of_run = (uuids[row[0]], *row[1:]) if table in _OF_RUNS else row
                        rows.append((node, origin, *of_run))
    return {table: sorted(rows, key=repr) for table, rows in found.items()}


_SOURCE = {
    "run": f"SELECT uuid, started_at, finished_at, {_sqlite(_RUN)} FROM run",  # noqa: S608 our own names
    "run_source": "SELECT run_id, source, identities FROM run_source",
    "watch": f"SELECT run_id, {_sqlite(_WATCH)} FROM watch ORDER BY run_id, id",  # noqa: S608 our own names
    "tried": "SELECT run_id, position, resolver, CAST(note AS BLOB) FROM tried"
    " JOIN watch ON watch.id = watch_id ORDER BY run_id, watch_id, position",
    "mapping": f"SELECT {_sqlite(_MAPPING)} FROM mapping",  # noqa: S608 our own names
    "change": f"SELECT {_sqlite(_CHANGE)} FROM change",  # noqa: S608 our own names
}
_OF_RUNS = {"watch", "tried", "run_source"}
_TIMES = (
    "to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),"
    " to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
)
_SERVER = {
    "run": f"t.uuid::text, {_TIMES}, {_postgres(_RUN).replace('id,', 't.id,', 1)}",
    "run_source": "t.run::text, source, identities",
    "watch": f"t.run::text, {_postgres(_WATCH)}",
    "tried": "t.run::text, position, resolver, convert_to(note, 'UTF8')",
    "mapping": _postgres(_MAPPING),
    "change": _postgres(_CHANGE).replace("id,", "t.id,", 1),
}


def server_rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """The same rows as the server has them."""
    found = {}
    with psycopg.connect(url) as connection:
        for table, columns in _SERVER.items():
            sql = (
                f"SELECT node.name, d.uuid::text, {columns} FROM {table} AS t"  # noqa: S608 our own names
                " JOIN database AS d ON d.id = t.database_id JOIN node ON node.id = d.node_id"
            )
            rows = connection.execute(sql).fetchall()
            found[table] = sorted(map(_plain, rows), key=repr)
    return found


def _plain(row: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)


def assert_same(
    found: dict[str, list[tuple[Any, ...]]], expected: dict[str, list[tuple[Any, ...]]]
) -> None:
    """The same rows, each as often. pytest's own comparison of so much text takes minutes."""
    for table, rows in expected.items():
        if found[table] != rows:
            more, less = Counter(found[table]), Counter(rows)
            raise AssertionError(
                f"{table}: {len(found[table])} rows, not {len(rows)}; too many:"
                f" {str([*(more - less)][:2])[:500]}; missing: {str([*(less - more)][:2])[:500]}"
            )
