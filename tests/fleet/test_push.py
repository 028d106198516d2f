"""The server has each pushed row once, also after kills, copies, prunes and wrong clocks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from irmapdb.fleet import source_rows as sending
from irmapdb.fleet.push import PushOptions, push
from irmapdb.fleet.server import find_server
from irmapdb.fleet.sources import node_facts, sources
from irmapdb.store.snapshot import Snapshot
from irmapdb.store.version import HEAD
from tests.support.cli import irmapdb
from tests.support.fleet_rows import HOSTILE, assert_same, server_rows, source_rows
from tests.test_store_processes import child, exit_code

RELEASED = sorted((Path(__file__).parents[1] / "data" / "db").glob("*.db"))


def _push(url, *paths, node="one", code=0):
    done = irmapdb("fleet", "push", *paths, "--to", url, "--node", node, "--json")
    assert done.code == code, done.said
    return json.loads(done.out)["databases"]


def _sent(url, *paths, **more):
    return [tuple((one["sent"] or {}).values())[:4] for one in _push(url, *paths, **more)]


def _assert_has(rows, expected):
    kept = {table: [row for row in rows[table] if row in {*expected[table]}] for table in expected}
    assert_same(kept, expected)


def _sql(path, sql, *values):
    with closing(sqlite3.connect(path)) as raw, raw:
        return raw.execute(sql, values).fetchall()


def test_all_rows_arrive_and_only_once(url, maker, tmp_path):
    one, two = maker.make(tmp_path / "one.db", runs=3), maker.make(tmp_path / "two.db", runs=1)
    nodes = {"one": [one, two]}
    assert _sent(url, one, two) == [(3, 12, 6, 6), (1, 4, 2, 2)]
    assert_same(server_rows(url), source_rows(nodes))
    assert _sent(url, one, two) == [(0, 0, 0, 0), (0, 0, 0, 0)]
    maker.add(one, runs=2)
    assert _sent(url, one) == [(2, 8, 4, 4)]
    assert_same(server_rows(url), source_rows(nodes))


def test_a_path_of_any_bytes_arrives(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=1, watches=60)
    _push(url, path)
    rows = server_rows(url)
    assert_same(rows, source_rows({"one": [path]}))
    paths = {row[-3] for row in rows["watch"]}
    assert {*HOSTILE, None} == paths
    with psycopg.connect(url) as connection:
        shown = dict(connection.execute("SELECT path, irmapdb_text(path) FROM watch").fetchall())
    assert shown[b"/srv/caf\xe9"] == "/srv/caf\\351"
    assert shown[b"/a\0b"] == "/a\\000b"
    assert shown["/ü/日本".encode()] == "/ü/日本"


def test_equal_lists_of_watches_are_stored_once(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=0)
    maker.add(path, runs=20, watches=5, same=True)
    _push(url, path)
    assert_same(server_rows(url), source_rows({"one": [path]}))
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM listed_watch").fetchone() == (5,)


def test_a_clock_that_is_wrong_loses_nothing(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=0)
    for begin in (
        datetime(1970, 1, 2, tzinfo=UTC),
        datetime(2999, 1, 1, tzinfo=UTC),
        datetime(2, 1, 1, tzinfo=UTC),
        datetime.now(UTC) - timedelta(days=30),
    ):
        maker.add(path, runs=1, begin=begin)
        assert _sent(url, path)[0][0] == 1
    assert_same(server_rows(url), source_rows({"one": [path]}))
    with psycopg.connect(url) as connection:
        periods = connection.execute("SELECT min(period), max(period) FROM run").fetchone()
    assert all(abs((period - datetime.now(UTC).date()).days) < 400 for period in periods)


def test_rows_that_the_node_prunes_stay_on_the_server(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=5)
    _push(url, path)
    before = server_rows(url)
    _sql(path, "DELETE FROM tried")
    _sql(path, "DELETE FROM watch WHERE run_id <= 4")
    _sql(path, "DELETE FROM run_source WHERE run_id <= 4")
    _sql(path, "UPDATE change SET run_id = NULL WHERE run_id <= 4")
    _sql(path, "DELETE FROM change WHERE id <= 3")
    _sql(path, "DELETE FROM mapping WHERE id <= 3")
    _sql(path, "DELETE FROM run WHERE id <= 4")
    assert _sent(url, path) == [(0, 0, 0, 0)]
    maker.add(path)
    assert _sent(url, path)[0][:2] == (1, 4)
    after = server_rows(url)
    _assert_has(after, before)
    # The rows of the last push are pruned too: every row is compared.
    _sql(path, "DELETE FROM run WHERE id <= 6")
    _sql(path, "DELETE FROM watch")
    _sql(path, "DELETE FROM change")
    assert _sent(url, path) == [(0, 0, 0, 0)]
    assert_same(server_rows(url), after)


def test_a_restored_backup_pushes_its_new_runs(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=2)
    shutil.copy(path, tmp_path / "backup")
    maker.add(path, runs=2)
    _push(url, path)
    before = server_rows(url)
    shutil.copy(tmp_path / "backup", path)
    maker.add(path, runs=1)
    assert _sent(url, path)[0][0] == 1
    after = server_rows(url)
    _assert_has(after, before)
    assert len(after["run"]) == 5
    _assert_has(after, {"run": source_rows({"one": [path]})["run"]})


def test_a_node_that_was_installed_anew_keeps_its_old_rows(url, maker, tmp_path, monkeypatch):
    one, two = maker.make(tmp_path / "one.db"), maker.make(tmp_path / "two.db")
    for machine, path in (("1" * 32, one), ("2" * 32, two)):
        monkeypatch.setattr("irmapdb.fleet.sources._machine", lambda machine=machine: machine)
        done = irmapdb("fleet", "push", path, "--to", url, "--node", "one")
        assert done.code == 0
        assert ("another machine pushed under this name" in done.err) == (path is two)
    assert_same(server_rows(url), source_rows({"one": [one, two]}))


def test_the_uuid_of_another_node_is_kept_apart(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=3)
    _push(url, path, node="honest")
    before = server_rows(url)
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    _sql(copy, "UPDATE run SET outcome = 'forged', resolve_us = 1")
    _sql(copy, "UPDATE mapping SET path = '/forged' || id")
    assert _sent(url, copy, node="other")[0][0] == 3
    after = server_rows(url)
    for table, rows in before.items():
        assert_same({table: [row for row in after[table] if row[0] == "honest"]}, {table: rows})
    assert_same(after, source_rows({"honest": [path], "other": [copy]}))
    done = irmapdb("fleet", "check", copy, "--to", url, "--node", "other")
    assert done.code == 3
    assert "a copy of it was pushed by honest" in done.out
    rows = json.loads(irmapdb("sql", "copies", "--to", url, "--json").out)
    assert [(row["nodes"], row["node_names"]) for row in rows] == [(2, "honest, other")]


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.stem)
def test_an_old_database_is_pushed_right(url, tmp_path, released):
    path = tmp_path / "irmap.db"
    shutil.copy(released, path)
    path.chmod(0o600)
    ((runs, watches, changes, mappings),) = _sent(url, path)
    assert (runs, watches, changes, mappings) == (2, 2, 3, 7)
    assert _sql(path, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert_same(server_rows(url), source_rows({"one": [path]}))


def test_a_row_that_irmapdb_does_not_write_is_refused_and_the_others_arrive(url, maker, tmp_path):
    good = maker.make(tmp_path / "good.db")
    spoilt = {
        "UPDATE run SET frozen_us = 'x'": "run has a row",
        "UPDATE run SET started_at = 'infinity'": "is no time",
        "UPDATE run SET uuid = 'x'": "has no UUID",
        "UPDATE run SET uuid = (SELECT max(uuid) FROM run)": "has no UUID of its own",
        "UPDATE watch SET pid = 1.5": "watch has a row",
        "UPDATE watch SET ino = 'x'": "watch has a row",
        "UPDATE watch SET mask = 9223372036854775808.0": "watch has a row",
        "UPDATE watch SET fd = x'35'": "watch has a row",
        "UPDATE watch SET handle_type = 1.5": "watch has a row",
        "UPDATE watch SET path = zeroblob(65537)": "watch has a row",
        "UPDATE watch SET why = CAST(zeroblob(65537) AS TEXT)": "watch has a row",
        "UPDATE watch SET kind = zeroblob(700000)": "watch has a row",
        "UPDATE tried SET note = zeroblob(65537)": "tried has a row",
        "UPDATE tried SET position = 1.5": "tried has a row",
        "UPDATE mapping SET path = zeroblob(70000)": "mapping has a row",
        "DELETE FROM origin": "no UUID",
        "INSERT INTO origin VALUES ('x')": "several UUIDs",
    }
    for number, (sql, said) in enumerate(spoilt.items()):
        bad = maker.make(tmp_path / f"bad{number}.db")
        with closing(sqlite3.connect(bad)) as raw, raw:
            raw.execute("PRAGMA ignore_check_constraints = ON")
            raw.execute(sql)
        first, second = _push(url, bad, good, code=3)
        assert said in first["problem"]
        assert second["problem"] == ""
    assert_same(server_rows(url), source_rows({"one": [good]}))


def test_the_next_page_is_read_while_the_server_takes_one():
    asked = [threading.Event() for _ in range(3)]
    before = threading.enumerate()

    class Rows:
        def rows_of_runs(self, first, last):
            asked[first].set()
            return {first: last}

    runs = [[(None, (number,))] for number in range(3)]
    found = []
    with closing(sending._read_ahead(Rows(), runs)) as read:
        for page, rows in read:
            found.append((page[0][1][0], rows))
            assert asked[min(len(found), 2)].wait(60)
    assert found == [(0, {0: 0}), (1, {1: 1}), (2, {2: 2})]
    assert threading.enumerate() == before


@pytest.mark.parametrize("fault", ["the file", "the server"])
def test_an_error_on_a_later_page_leaves_no_row_and_no_thread(
    url, maker, tmp_path, monkeypatch, fault
):
    monkeypatch.setattr(sending, "_PAGE_RUNS", 1)
    before = threading.enumerate()
    path = maker.make(tmp_path / "one.db", runs=6)
    if fault == "the file":
        _sql(path, "UPDATE watch SET pid = 1.5 WHERE run_id = 5")
        (row,) = _push(url, path, code=3)
        assert "watch has a row" in row["problem"]
    else:
        with psycopg.connect(url) as connection:
            connection.execute("ALTER TABLE run ADD CONSTRAINT few CHECK (id <> 3)")
        done = irmapdb("fleet", "push", path, "--to", url, "--node", "one", "--wait", "0")
        assert done.code == 1
    assert threading.enumerate() == before
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert str(path) not in opened
    assert [rows for rows in server_rows(url).values() if rows] == []


def test_a_database_that_needs_too_much_memory_harms_no_other(url, maker, tmp_path, monkeypatch):
    large, small = maker.make(tmp_path / "large.db"), maker.make(tmp_path / "small.db")
    read = Snapshot.rows_of_runs

    def limited(snapshot, first, last):
        if snapshot.path == bytes(large):
            raise MemoryError
        return read(snapshot, first, last)

    monkeypatch.setattr(Snapshot, "rows_of_runs", limited)
    first, second = _push(url, large, small, code=3)
    assert "large.db: it needs more memory" in first["problem"]
    assert second["problem"] == ""
    assert_same(server_rows(url), source_rows({"one": [small]}))


def test_words_that_postgresql_refuses_arrive_with_escapes(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=1)
    _sql(path, "UPDATE watch SET why = CAST(x'61ff0062' AS TEXT) WHERE why IS NOT NULL")
    _push(url, path)
    assert {row[-2] for row in server_rows(url)["watch"]} == {b"a\\xff\\x00b", None}


def test_each_value_of_a_watch_arrives_as_it_is(url, maker, tmp_path):
    largest = b"\xff" * 65536
    values = [
        *(b"", b"inotify", b"inotify ", b"INOTIFY", b"fanotify\0x", b"a\tb\nc\rd", b"\\N", b"\\."),
        *(b"%s%d\\", "\u2028é\N{GRINNING FACE}".encode(), b"\xed\xa0\x80", b"\\x00", b"\0"),
        *(b"\x80" * 65536, b"\\" * 65536, largest),
    ]
    path = maker.make(tmp_path / "one.db", runs=1, watches=2 * len(values))
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("PRAGMA ignore_check_constraints = ON")
        for number, value in enumerate(values * 2, 1):
            as_type = f"CAST(? AS {'TEXT' if number > len(values) else 'BLOB'})"
            raw.execute(
                f"UPDATE watch SET kind = {as_type}, why = {as_type}, comm = ?, handle = {as_type},"
                f" path = {as_type}, ino = ?, mask = ? WHERE id = ?",
                (*(value, value, largest, value, value), -(1 << 63), (1 << 63) - 1, number),
            )
        assert raw.execute("SELECT count(DISTINCT path) FROM watch").fetchone() == (
            2 * len(values),
        )
    _push(url, path)
    words = [one.decode("utf-8", "backslashreplace").replace("\0", "\\x00") for one in values * 2]
    columns = "kind, why, comm, handle, path, ino, mask"
    with psycopg.connect(url) as connection:
        rows = connection.execute(f"SELECT {columns} FROM watch ORDER BY number").fetchall()
    numbers = (-(1 << 63), (1 << 63) - 1)
    assert rows == [
        (word, word, largest, value, value, *numbers)
        for word, value in zip(words, values * 2, strict=True)
    ]


def test_a_password_in_the_url_is_refused_and_not_repeated(tmp_path):
    for url in (
        "postgresql://me:hunter2@db/fleet",
        "postgresql://me@db/fleet?password=hunter2",
        "postgresql+psycopg://me:hunter2@db/fleet",
        "postgresql://me@db/fleet?oauth_client_secret=hunter2",
        "postgresql://me@db/fleet?scram_client_key=hunter2",
    ):
        done = irmapdb("fleet", "push", "--to", url)
        assert done.code == 2
        assert "hunter2" not in done.said
    done = irmapdb("fleet", "check", "--to", "postgresql://me:hunter2@db/fleet")
    assert "PGPASSFILE" in done.err
    config = tmp_path / "irmapdb.toml"
    config.write_text('[fleet]\nurl = "postgresql://me:hunter2@db/fleet"\n')
    done = irmapdb("fleet", "current", "--config", config)
    assert done.code == 2
    assert "hunter2" not in done.said


def test_without_tables_the_next_step_is_named(postgres, maker, tmp_path):
    url = postgres.new_database()
    done = irmapdb("fleet", "push", maker.make(tmp_path / "one.db"), "--to", url)
    assert done.code == 1
    assert "irmapdb fleet init" in done.err


def test_a_server_that_is_away_is_one_line(tmp_path, maker):
    path = maker.make(tmp_path / "one.db")
    url = f"postgresql://me@/fleet?host={tmp_path}"
    done = irmapdb("fleet", "push", path, "--to", url, "--wait", "0")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "check that it runs" in done.err


# --- many at once ---------------------------------------------------------------------------------

_NODES, _CONTAINERS, _KILLS, _AT_ONCE = 100, 10, 100, 3


def _push_in_child(url, node, paths):
    def run():
        push(PushOptions(find_server(url), node_facts(node), sources(paths), wait_s=60))

    return child(run)


def _start(run):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.timeout(600)
def test_a_hundred_nodes_with_kills_and_restarts(postgres, url, maker, tmp_path):
    """100 nodes of 10 containers; a hundred pushes are killed, and the server restarts twice."""
    nodes = {}
    for number in range(_NODES):
        directory = tmp_path / f"node{number}"
        directory.mkdir()
        nodes[directory.name] = [
            maker.make(directory / f"{one}.db", runs=1, watches=3) for one in range(_CONTAINERS)
        ]
    server = find_server(url)

    def run(node):
        push(PushOptions(server, node_facts(node), sources(nodes[node]), wait_s=60))

    waiting, running, kills, restarts, done = [*nodes], {}, 0, 0, 0
    while waiting or running:
        while waiting and len(running) < _AT_ONCE:
            node = waiting.pop(0)
            lifetime_s = maker.random.uniform(0, 0.5) if kills < _KILLS else None
            kills += lifetime_s is not None
            pid = _start(lambda node=node: run(node))
            end_s = None if lifetime_s is None else time.monotonic() + lifetime_s
            running[pid] = node, end_s
        time.sleep(0.005)
        for pid, (node, end_s) in [*running.items()]:
            if end_s is not None and time.monotonic() > end_s:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                if end_s is None:
                    assert status == 0
                    done += 1
                else:
                    waiting.append(node)  # started again, whether the kill came in time or not
        if restarts < 2 and done >= (restarts + 1) * _NODES // 3:
            postgres.restart()
            restarts += 1
    assert (kills, restarts) == (_KILLS, 2)
    assert_same(server_rows(url), source_rows(nodes))


def test_pushes_of_one_database_at_once(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=40)
    for _ in range(5):
        maker.add(path, runs=5)
        with (
            _push_in_child(url, "one", [path]) as one,
            _push_in_child(url, "one", [path]) as two,
            _push_in_child(url, "one", [path]) as three,
        ):
            assert [exit_code(pid) for pid in (one, two, three)] == [0, 0, 0]
    assert_same(server_rows(url), source_rows({"one": [path]}))
