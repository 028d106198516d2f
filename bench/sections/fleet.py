"""`irmapdb fleet push` beside a bare COPY of the same rows; the saved queries at 10 million rows.

The PostgreSQL server is one of its own, on a unix socket, without fsync. It, irmapdb and the bare
COPY may use every core: irmapdb reads with a thread while the server works.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench
    from tests.support.postgres import Postgres

__all__ = ["NAME", "measure", "rows_sql"]

NAME = "fleet"

_RUNS, _A_FEW = 10_000, 20
_WATCHES = 100
_TIMES_COPY = 3
_ROWS, _FEW_ROWS = 10_000_000, 10_000
_DATABASES = 10_000
_COPY = "a bare COPY of the same rows into the same tables"


def measure(bench: Bench) -> Iterator[Figure]:
    """Rows for the pushes, and for each saved query."""
    runs = _RUNS if bench.full_size else _A_FEW
    try:
        from tests.support.postgres import Postgres  # noqa: PLC0415 wants psycopg and a server

        server = Postgres()
    except BaseException as error:  # noqa: BLE001 a test would be skipped
        yield Skipped(NAME, f"a push of {runs} runs", f"no PostgreSQL: {error}")
        return
    with contextlib.ExitStack() as stack:
        with bench.on_every_core():
            stack.enter_context(server)
        made = server.new_database()
        bench.output(*bench.settings.irmapdb, "fleet", "init", "--to", made)
        yield from _pushes(bench, server, _name(made), runs)
        rows = _ROWS if bench.full_size else _FEW_ROWS
        yield from _queries(bench, server, server.new_database(_name(made)), rows)


def _pushes(bench: Bench, server: Postgres, made: str, runs: int) -> Iterator[Figure]:
    directory = bench.new_directory()
    rows = runs * _WATCHES
    for name, same in (("different", False), ("equal", True)):
        database = directory / f"{name}.db"
        _make(bench, database, runs, same=same)
        pushed, again, bare = Samples(), Samples(), Samples()
        for _ in range(bench.settings.repeats):
            url = server.new_database(made)
            words = ("fleet", "push", str(database), "--to", url, "--node", "bench")
            command = (*bench.every_core, *bench.settings.irmapdb, *words)
            pushed.add_command(bench.time(*command))
            again.add_command(bench.time(*command))
            found = server.psql(_name(url), "SELECT count(*) FROM watch")
            if found != [str(rows)]:
                raise BenchError(f"{found} watches on the server, not {rows}")
            if not same:
                script = Path(__file__).parent.parent / "bare_copy.py"
                target = server.new_database(made)
                copy = (*bench.every_core, sys.executable, script)
                bare.add(float(bench.output(*copy, url, target)))
        what = f"push, {runs} runs of {_WATCHES} watches, {name} in each run"
        if same:
            yield pushed.row(NAME, what, rows)
            yield again.row(NAME, "push, nothing new")
            continue
        row = bare.row(NAME, _COPY, rows)
        yield row
        yield pushed.row(NAME, what, rows, beside=Beside(_COPY, row.median))
        if bench.full_size:
            yield Goal(NAME, what, _TIMES_COPY, pushed.median / row.median, "times")


def _name(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def _make(bench: Bench, path: Path, runs: int, *, same: bool) -> None:
    image = path.with_suffix(".image")
    image.write_bytes(bytes.fromhex("4059105559400057"))
    bench.output(*bench.settings.irmapdb, "import", image, "--db", path)
    choose = random.Random(0)
    begin = datetime.now(UTC) - timedelta(minutes=runs)
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DELETE FROM run")
        raw.executemany(
            "INSERT INTO run (id, event, started_at, finished_at, freezing_us, frozen_us,"
            " resolve_us, watches, resolved, unresolved, hits, stale, scanned, outcome, uuid)"
            " VALUES (?, 'pre-dump', ?, ?, 0, 0, 1, ?, ?, 0, 0, 0, 0, 'done', ?)",
            (
                (
                    *(run, _at(begin, run), _at(begin, run), _WATCHES, _WATCHES),
                    f"00000000-0000-4000-8000-{run:012x}",
                )
                for run in range(1, runs + 1)
            ),
        )
        raw.executemany(
            "INSERT INTO watch (run_id, pid, comm, fd, kind, wd, dev, ino, handle_type, handle,"
            " mask, ignored_mask, mflags, path, mntns)"
            " VALUES (?, 4242, 'app', 5, 'inotify', ?, 41, ?, 1, ?, 4095, 0, 0, ?, 0)",
            (
                (
                    *(run, number, number if same else choose.getrandbits(62)),
                    *(number.to_bytes(8, "little"), f"/srv/app/config/{number}/app.conf"),
                )
                for run in range(1, runs + 1)
                for number in range(_WATCHES)
            ),
        )


def _at(begin: datetime, minutes: int) -> str:
    at = begin + timedelta(minutes=minutes)
    return at.replace(tzinfo=None).isoformat(" ", "microseconds")


_FILL = """
INSERT INTO node (name, cluster, version, first_push_at, last_push_at, clock_offset_s)
SELECT 'node-' || n, 'bench', '1', now(), now(), 0 FROM generate_series(1, {databases} / 10) AS n;
INSERT INTO node_limit
SELECT n, 'inotify/max_user_watches', now(), uid, (n * 7 + uid) % 1000, 1000
FROM generate_series(1, {databases} / 10) AS n, generate_series(1000, 1009) AS uid;
INSERT INTO database (node_id, uuid, file, schema, container, image, pod, namespace, first_push_at,
    last_push_at, pushes, last_run_id, last_change_id)
SELECT 1 + n % ({databases} / 10), gen_random_uuid(), '/var/lib/irmapdb/x.db', '1', 'c-' || n,
    'image-' || n % 300, 'pod-' || n, 'namespace-' || n % 50, now(), now(), 1, 1, 0
FROM generate_series(1, {databases}) AS n;
SELECT irmapdb_add_period(irmapdb_period(now() - n * interval '7 days')) FROM
    generate_series(0, 13) AS n;
INSERT INTO listed_watch
SELECT d, irmapdb_period(now() - week * interval '7 days'), md5(d::text)::uuid, w, 4242, 'app', 5,
    'inotify', w, 41, w, 1, '\\x0102', 4095, 0, 0,
    CASE WHEN w = 1 AND d % 20 = 0 THEN NULL ELSE convert_to('/srv/app/' || w, 'UTF8') END,
    CASE WHEN w = 1 AND d % 20 = 0 THEN 'scan: not found' END, 0
FROM generate_series(1, {databases}) AS d, generate_series(1, 10) AS w,
    generate_series(0, 1) AS week;
INSERT INTO run
SELECT d, irmapdb_period(at), gen_random_uuid(), n, 'pre-dump', 1, 'app', at, at, 0, 0, n, 10, 10,
    CASE WHEN d % 20 = 0 THEN 1 ELSE 0 END, 0, 0, 0, 0, 0, 0, 0, 0, '', 0, 1,
    (random() * 1000000)::bigint, 0, 0, 'done', md5(d::text)::uuid
FROM generate_series(1, {databases}) AS d, generate_series(1, {runs}) AS n,
    LATERAL (SELECT now() - n * interval '90 days' / {runs} AS at) AS times;
UPDATE database SET last_run = newest.uuid, last_step = newest.uuid,
    last_step_period = newest.period, last_run_period = newest.period
FROM run AS newest WHERE newest.database_id = database.id AND newest.id = 1;
INSERT INTO verdict
SELECT d, irmapdb_period(at), at, kind.name, 5, CASE WHEN kind.why THEN 'no path is known' END,
    CASE WHEN kind.why THEN 'run irmapdb pre-dump' END, d % 20 = 0
FROM generate_series(1, {databases}) AS d, generate_series(1, {runs} / 2) AS n,
    LATERAL (SELECT now() - n * interval '90 days' / ({runs} / 2) AS at) AS times,
    (VALUES ('no-path', true), ('path', false)) AS kind (name, why);
INSERT INTO current_verdict
SELECT DISTINCT ON (database_id, verdict) database_id, at, verdict, watches, why, advice, fails
FROM verdict ORDER BY database_id, verdict, at DESC;
UPDATE database SET last_check_at = last.at FROM current_verdict AS last
WHERE last.database_id = database.id AND last.verdict = 'path';
INSERT INTO mapping
SELECT d, gen_random_uuid(), m, 41, m, NULL, NULL, convert_to('/srv/app/' || m, 'UTF8'), 0, 0,
    'scan', now(), now(), now(),
    CASE WHEN m = 1 THEN now() - d * interval '90 days' / {databases} END,
    CASE WHEN m = 1 THEN 'gone' END
FROM generate_series(1, {databases}) AS d, generate_series(1, 10) AS m;
"""


def rows_sql(databases: int, runs: int) -> str:
    """SQL that fills the tables: `databases`, a tenth as many nodes, and `runs` of each database.

    Every second run has a check with two verdicts.
    """
    return _FILL.format(databases=databases, runs=runs)


def _queries(bench: Bench, server: Postgres, url: str, rows: int) -> Iterator[Figure]:
    databases = min(_DATABASES, rows // 100)
    server.psql(_name(url), f"BEGIN; {rows_sql(databases, rows // databases)} COMMIT")
    server.psql(_name(url), "VACUUM ANALYZE")
    bytes_of = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('run')"
    size = int(server.psql(_name(url), bytes_of)[0])
    listed = bench.output(*bench.settings.irmapdb, "sql", "--list", "--fleet", "--json")
    for query in json.loads(listed):
        samples = Samples()
        for _ in range(bench.settings.repeats):
            samples.add(_time_of(server, _name(url), query["sql"]))
        note = f"run has {size / rows:.0f} bytes a row"
        yield samples.row(NAME, f"saved query {query['name']}, {rows:,} runs", rows, note=note)


def _time_of(server: Postgres, database: str, sql: str) -> float:
    defaults = {":runs": "10", ":since": "'yesterday'", ":percent": "80"}
    for name, value in defaults.items():
        sql = sql.replace(name, value)
    lines = server.psql(database, f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}")
    return float(json.loads("\n".join(lines))[0]["Execution Time"]) / 1000
