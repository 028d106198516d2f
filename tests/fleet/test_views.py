"""The questions of docs/fleet.md, and the rows that each role may see."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from bench.sections.fleet import rows_sql as fleet_rows_sql
from irmapdb.fleet import views
from irmapdb.fleet.push import PushOptions, push
from irmapdb.fleet.queries import SAVED
from irmapdb.fleet.server import find_server
from irmapdb.fleet.sources import CheckVerdict, ContainerFacts, LimitUse, PushSource, node_facts
from irmapdb.model import (
    Change,
    ChangeKind,
    Event,
    Identity,
    Resolved,
    RunStats,
    Source,
    StaleReason,
)
from irmapdb.store.database import Store
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.fleet_rows import assert_same, server_rows


def _rows(url, *words):
    done = irmapdb("sql", *words, "--to", url, "--json")
    assert done.code == 0, done.said
    return json.loads(done.out)


def _push(url, *paths, node):
    done = irmapdb("fleet", "push", *paths, "--to", url, "--node", node)
    assert done.code == 0, done.said


def _run(url, sql):
    with psycopg.connect(url) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def _sql(path, sql):
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(sql)


@pytest.mark.parametrize("name", list(SAVED))
def test_a_saved_query_runs_also_without_rows(url, name):
    assert _rows(url, name) == []
    assert irmapdb("sql", name, "--to", url, "--csv").code == 0
    assert irmapdb("sql", name, "--to", url).code == 0
    assert irmapdb("sql", name, "--fleet", "--print").out.strip() == SAVED[name].sql


def test_every_view_can_be_read(url):
    for name in views.statements():
        _run(url, f"SELECT * FROM {name}")


def test_containers_that_would_fail_by_image(url, maker, tmp_path):
    paths = [maker.make(tmp_path / f"{number}.db", runs=2, watches=3) for number in range(3)]
    _push(url, *paths, node="one")
    _sql(paths[0], "UPDATE watch SET why = 'scan: deleted' WHERE why IS NOT NULL")
    other = maker.make(tmp_path / "other.db", runs=1, watches=0)
    _push(url, other, node="two")
    _run(url, "UPDATE database SET image = 'nginx'")
    rows = _rows(url, "failing")
    assert [(row["node"], row["image"], row["watches"]) for row in rows] == [
        ("one", "nginx", 1)
    ] * 3
    (row,) = _rows(url, "failing-images")
    assert (row["image"], row["containers"], row["nodes"], row["watches"]) == ("nginx", 3, 1, 3)
    assert row["why"] == "scan: not found\\\t\n日"


def test_the_longest_stops(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=4)
    _sql(path, "UPDATE run SET frozen_us = 0, paused_us = id * 1000, resolve_us = 500")
    _sql(path, "UPDATE run SET criu_freezing_us = 0, criu_frozen_us = iif(id = 3, 2000, 0)")
    _push(url, path, node="one")
    rows = _rows(url, "stops", "-p", "runs=3")
    assert [(row["stopped_ms"], row["resolve_percent"]) for row in rows] == [
        (5, 10),
        (4, 13),
        (2, 25),
    ]
    assert {row["stopped_by"] for row in rows} == {"pause"}
    assert [(row["paused_ms"], row["criu_frozen_ms"]) for row in rows] == [(3, 2), (4, 0), (2, 0)]


def test_paths_that_went_stale_after_a_point_in_time(url, tmp_path):
    path = tmp_path / "one.db"
    now = datetime.now(UTC)
    inode = Identity(1, 2, None)
    with Store.open(path, create=True) as store, store.step() as step:
        step.prove([Resolved(inode, b"/old\xff", Source.SCAN)], now - timedelta(days=3))
        (mapping,) = step.load([inode.key])[inode.key]
        step.mark_stale([(mapping, StaleReason.GONE)], now)
        step.prove([Resolved(inode, b"/new\xff", Source.SCAN)], now)
        change = Change(ChangeKind.MOVED, inode, b"/new\xff", b"/old\xff", StaleReason.GONE)
        _add(step, change, now)
    _push(url, path, node="one")
    (row,) = _rows(url, "stale")
    assert (row["path"], row["moved_to"], row["stale_reason"]) == (
        "/old\udcff",
        "/new\udcff",
        "gone",
    )
    assert _rows(url, "stale", "-p", "since=tomorrow") == []


def _add(step, change, now):
    run = step.add_run(
        Event.PRE_DUMP, pid=1, comm=None, started_at=now, finished_at=now, stats=RunStats(),
        outcome="done",
    )  # fmt: skip
    step.add_changes(run, [change], now)


_AT = datetime(2026, 11, 3, tzinfo=UTC)
_VERDICTS = (
    CheckVerdict(_AT, "no-path", 2, "no path is known", "run pre-dump", fails=True),
    CheckVerdict(_AT, "valid", 5, None, None, fails=True),
)
_NAMES = ContainerFacts("default/web", "web", "nginx:1", "web-0", "team-a")


def _push_with_facts(url, path, *, verdicts=None, facts=_NAMES, limits=()):
    source = PushSource(bytes(path), "web.0", facts, verdicts)
    (done,) = push(PushOptions(find_server(url), node_facts("one"), [source], limits, wait_s=0))
    assert done.sent.verdicts == len(verdicts or ())


def test_verdicts_and_names_arrive_with_the_rows(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db")
    _push_with_facts(url, path, verdicts=_VERDICTS)
    (row,) = _rows(url, "verdicts")
    assert (row["image"], row["verdict"], row["containers"], row["watches"]) == (
        "nginx:1",
        "no-path",
        1,
        2,
    )
    assert row["advice"] == "run pre-dump"
    # Repeated, it is there once; a newer check takes its place, and the container has ended.
    _push_with_facts(url, path, verdicts=_VERDICTS)
    assert _run(url, "SELECT count(*) FROM verdict") == [(2,)]
    later = CheckVerdict(_AT + timedelta(days=1), "valid", 7, None, None, fails=False)
    _push_with_facts(url, path, verdicts=(later,), facts=ContainerFacts())
    assert _rows(url, "verdicts") == []
    (row,) = _rows(url, "SELECT * FROM last_verdicts")
    assert (row["verdict"], row["container"], row["pod"], row["namespace"]) == (
        "valid",
        "default/web",
        "web-0",
        "team-a",
    )


def test_the_last_check_counts_also_with_a_wrong_clock(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db")
    ahead = [one._replace(at=_AT + timedelta(days=300)) for one in _VERDICTS]
    _push_with_facts(url, path, verdicts=tuple(ahead))
    assert len(_rows(url, "verdicts")) == 1
    right = CheckVerdict(_AT, "valid", 7, None, None, fails=False)
    _push_with_facts(url, path, verdicts=(right,))
    assert _rows(url, "verdicts") == []
    (row,) = _rows(url, "SELECT verdict, watches FROM last_verdicts")
    assert row == {"verdict": "valid", "watches": 7}
    assert _run(url, "SELECT count(*) FROM verdict") == [(3,)]


def test_a_container_that_was_checked_without_a_watch_has_no_verdict(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db")
    _push_with_facts(url, path, verdicts=_VERDICTS)
    _push(url, path, node="one")  # not checked
    assert len(_rows(url, "verdicts")) == 1
    _push_with_facts(url, path, verdicts=())
    assert _rows(url, "SELECT * FROM last_verdicts") == []


def _rows_read(plan):
    # The rows that the scans of a plan have read, by the table without its week.
    found = Counter()
    if table := plan.get("Relation Name"):
        read = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        found[table.partition("_2")[0]] += read * plan["Actual Loops"]
    for part in plan.get("Plans", ()):
        found += _rows_read(part)
    return found


def test_no_saved_query_reads_more_rows_after_more_runs(url):
    runs, more = 14, 140
    read = {}
    for number in (runs, more):
        _run(
            url,
            "TRUNCATE node, database, listed_watch, run, verdict, mapping RESTART IDENTITY CASCADE",
        )
        _run(url, fleet_rows_sql(databases=100, runs=number))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        for name, query in SAVED.items():
            sql = query.sql
            for parameter, value in query.parameters.items():
                sql = sql.replace(f":{parameter}", f"'{value}'")
            ((plan,),) = _run(url, f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
            read.setdefault(name, []).append(_rows_read(plan[0]["Plan"]))
    assert read["verdicts"][0]["current_verdict"] == 200
    for name, (few, many) in read.items():
        assert many.total() <= few.total() * 2, (name, few, many)


def test_limits_of_each_user(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db")
    limits = [
        LimitUse("inotify/max_user_watches", 1000, 95, 100),
        LimitUse("inotify/max_user_instances", 0, 1, 128),
    ]
    for _ in range(2):
        _push_with_facts(url, path, limits=limits)
    (row,) = _rows(url, "limits")
    assert (row["node"], row["uid"], row["used_percent"]) == ("one", 1000, 95)
    assert len(_rows(url, "limits", "-p", "percent=0")) == 2


def test_the_limits_of_this_machine(url, maker, tmp_path, watcher):
    require_root()
    watcher.add_inotify(tmp_path)
    _push(url, maker.make(tmp_path / "one.db"), "--check", node="one")
    rows = {(row["limit"], row["uid"]): row for row in _rows(url, "limits", "-p", "percent=0")}
    row = rows["inotify/max_user_watches", os.geteuid()]
    assert row["used"] >= 1
    assert row["maximum"] > 0


def test_nodes_and_versions(url, maker, tmp_path):
    _push(url, maker.make(tmp_path / "one.db"), maker.make(tmp_path / "two.db"), node="one")
    _push(url, maker.make(tmp_path / "three.db"), node="two")
    rows = _rows(url, "nodes")
    assert [(row["node"], row["databases"]) for row in rows] == [("one", 2), ("two", 1)]
    assert abs(rows[0]["clock_offset_s"]) < 60
    (row,) = _rows(url, "versions")
    assert (row["nodes"], row["databases"]) == (2, 3)


def test_hooks_that_failed_or_never_ran(url, maker, tmp_path):
    good = maker.make(tmp_path / "good.db")
    failed = maker.make(tmp_path / "failed.db")
    _sql(failed, "UPDATE run SET outcome = 'failed: no' WHERE id = 2")
    never = maker.make(tmp_path / "never.db", runs=0)
    _push(url, good, failed, never, node="one")
    states = [(row["state"], row["last_outcome"]) for row in _rows(url, "hooks")]
    assert sorted(states, key=repr) == [("failed", "failed: no"), ("never ran", None)]


# --- the forms of an answer -----------------------------------------------------------------------


def test_sql_of_ones_own(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=1)
    _push(url, path, node="a%s")
    assert _rows(url, "SELECT name FROM node WHERE name LIKE '%\\%s'") == [{"name": "a%s"}]
    assert _rows(url, "SELECT name FROM node WHERE name = :n", "-p", "n=a%s") == [{"name": "a%s"}]
    done = irmapdb("sql", "SELECT uuid, started_at FROM run", "--to", url, "--csv")
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert row["started_at"].startswith("2026-11-02 07:00:00")
    rows = "SELECT true AS is_it, NULL::boolean AS unknown UNION ALL SELECT false, NULL ORDER BY 1"
    assert _rows(url, rows) == [
        {"is_it": False, "unknown": None},
        {"is_it": True, "unknown": None},
    ]
    done = irmapdb("sql", rows, "--to", url, "--csv")
    assert [one["is_it"] for one in csv.DictReader(io.StringIO(done.out))] == ["false", "true"]
    table = irmapdb("sql", rows, "--to", url).out.split()
    assert table == ["IS_IT", "UNKNOWN", "false", "-", "true", "-"]
    done = irmapdb("sql", "SELECT generate_series(1, 10)", "--to", url, "--limit", "3", "--json")
    assert done.code == 3
    assert len(json.loads(done.out)) == 3


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM run", "read-only"),
        ("SELECT 1; DELETE FROM run", "multiple commands"),
        ("SELECT nothing", "does not exist; docs/fleet-sql.md has the tables"),
        ("SELECT * FORM run", 'syntax error at or near "FORM"; docs/fleet-sql.md has the tables'),
        ("SELECT pg_sleep(9)", "longer than"),
    ],
)
def test_a_statement_that_is_refused_is_one_line(url, sql, said):
    done = irmapdb("sql", sql, "--to", url, "--timeout", "0.3")
    assert done.code == 1
    assert said in done.err
    assert done.err.count("\n") == 1


# --- roles ----------------------------------------------------------------------------------------


def _as(postgres, url, role):
    return postgres.url(find_server(url).url.database, user=role)


def test_a_tenant_sees_its_namespaces(postgres, url, maker, tmp_path):
    paths = [maker.make(tmp_path / f"{name}.db", runs=1) for name in ("a", "b", "none")]
    _push(url, *paths, node="one")
    for name in ("a", "b"):
        _run(
            url,
            f"UPDATE database SET namespace = 'team-{name}' WHERE file LIKE '%/{name}.db'::bytea",
        )
    for path in paths:
        _push_with_facts(url, path, verdicts=_VERDICTS[:1], facts=ContainerFacts())
    everything = server_rows(url)
    for role in ("team_a", "all_teams", "stranger"):
        _run(url, f"CREATE ROLE {role}_{find_server(url).url.database} LOGIN")
    name = find_server(url).url.database
    for role, words in (("team_a", ("--namespace", "team-a")), ("all_teams", ("--all",))):
        assert irmapdb("fleet", "grant", f"{role}_{name}", *words, "--to", url).code == 0
    assert_same(server_rows(_as(postgres, url, f"all_teams_{name}")), everything)
    own = server_rows(_as(postgres, url, f"team_a_{name}"))
    origin = sqlite3.connect(paths[0]).execute("SELECT uuid FROM origin").fetchone()[0]
    for table, rows in own.items():
        expected = [row for row in everything[table] if row[1] == origin]
        assert_same({table: rows}, {table: expected})
        assert expected
    tenant = _as(postgres, url, f"team_a_{name}")
    assert len(_rows(tenant, "SELECT * FROM containers")) == 1
    assert len(_rows(tenant, "SELECT * FROM stops")) == 1
    for table in ("verdict", "current_verdict", "last_verdicts"):
        assert len(_rows(tenant, f"SELECT * FROM {table}")) == 1
        assert len(_rows(url, f"SELECT * FROM {table}")) == 3
    for sql in (
        "UPDATE database SET namespace = 'team-a'",
        "SELECT * FROM access",
        "SELECT irmapdb_add_period(irmapdb_period(now()))",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            _run(tenant, sql)
    period = _rows(url, "SELECT tableoid::regclass::text AS name FROM run LIMIT 1")[0]["name"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _run(tenant, f"SELECT * FROM {period}")
    # A table of its own with the name of one of ours changes nothing.
    with psycopg.connect(tenant) as connection:
        connection.execute(
            "CREATE TEMPORARY TABLE access AS"
            " SELECT CURRENT_USER::text AS role, '*'::text AS namespace"
        )
        assert connection.execute("SELECT count(*) FROM database").fetchone() == (1,)
    assert irmapdb("fleet", "grant", f"team_a_{name}", "--revoke", "--to", url).code == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _run(tenant, "SELECT * FROM containers")


def test_a_node_with_its_own_role_reaches_no_other_rows(postgres, url, maker, tmp_path):
    name = find_server(url).url.database
    one, two = maker.make(tmp_path / "one.db"), maker.make(tmp_path / "two.db")
    for role in ("node_one", "node_two"):
        _run(url, f"CREATE ROLE {role}_{name} LOGIN")
        assert irmapdb("fleet", "grant", f"{role}_{name}", "--push", "--to", url).code == 0
    as_one, as_two = (_as(postgres, url, f"{role}_{name}") for role in ("node_one", "node_two"))
    _push(as_one, one, node="one")
    for verdicts in (_VERDICTS, _VERDICTS[:1]):
        _push_with_facts(as_one, one, verdicts=verdicts)
    assert len(_rows(as_one, "SELECT * FROM current_verdict")) == 2
    before = server_rows(url)
    assert before["watch"]
    done = irmapdb("fleet", "push", two, "--to", as_two, "--node", "one")
    assert done.code == 1
    assert "row-level security" in done.err
    copy = tmp_path / "copy.db"
    shutil.copy(one, copy)
    _sql(copy, "UPDATE mapping SET path = '/forged' || id")
    _push(as_two, copy, node="two")
    after = server_rows(url)
    kept = {table: [row for row in after[table] if row[0] == "one"] for table in before}
    assert_same(kept, before)
    assert _rows(as_two, "SELECT * FROM current_verdict") == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _run(
            as_two,
            "INSERT INTO current_verdict SELECT 1, now(), 'path', 1, NULL, NULL, false"
            " ON CONFLICT (database_id, verdict) DO UPDATE SET watches = 0",
        )
    seen = _run(as_two, "SELECT name FROM node")
    assert seen == [("two",)]
    runs = "SELECT count(*) FROM run"
    assert _run(as_two, runs) < _run(url, runs)


@pytest.mark.parametrize(
    ("first", "second"), [("--push", "--all"), ("--all", "--push"), ("--push", "--namespace=a")]
)
def test_a_role_pushes_or_reads(url, first, second):
    role = f"both_{find_server(url).url.database}"
    _run(url, f"CREATE ROLE {role} LOGIN")
    grant = ("fleet", "grant", role, "--to", url)
    assert irmapdb(*grant, first).code == 0
    assert irmapdb(*grant, first).code == 0  # again
    done = irmapdb(*grant, second)
    assert done.code == 1
    assert "a role may not push and read; make another role" in done.err
    assert irmapdb(*grant, "--revoke").code == 0
    assert irmapdb(*grant, second).code == 0


# --- retention ------------------------------------------------------------------------------------


def test_prune_deletes_whole_weeks_and_no_push_sends_them_again(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=0)
    now = datetime.now(UTC)
    for days in (200, 100, 1):
        maker.add(path, runs=2, begin=now - timedelta(days=days))
    _push(url, path, node="one")
    assert len(server_rows(url)["run"]) == 6
    done = irmapdb("fleet", "prune", "--to", url, "--older-than", "60d", "--dry-run", "--json")
    document = json.loads(done.out)
    assert len(document["partitions"]) == 12
    assert len(server_rows(url)["run"]) == 6
    done = irmapdb("fleet", "prune", "--to", url, "--older-than", "60d", "--json")
    pruned = json.loads(done.out)
    assert pruned == {**document, "dry_run": False}
    kept = server_rows(url)
    assert len(kept["run"]) == 2
    # The node still has them, and its watermark is gone: they are not sent again.
    _run(url, "UPDATE database SET last_run = NULL, last_run_id = 0, last_change = NULL")
    maker.add(path, runs=1, begin=now)
    _push(url, path, node="one")
    assert len(server_rows(url)["run"]) == 3
    done = irmapdb("fleet", "check", path, "--to", url, "--node", "one", "--json")
    (state,) = json.loads(done.out)["databases"]
    assert (done.code, state["runs"], state["runs_behind"]) == (0, 7, 0)
    assert "gone: 0 weeks" in irmapdb("fleet", "prune", "--to", url, "--older-than", "60d").out


def test_prune_forgets_a_node_that_is_gone(url, maker, tmp_path):
    _push(url, maker.make(tmp_path / "one.db"), node="gone")
    _push(url, maker.make(tmp_path / "two.db"), node="there")
    old = "now() - interval '100 days'"
    _run(url, f"UPDATE node SET last_push_at = {old} WHERE name = 'gone'")
    _run(
        url,
        f"UPDATE database SET last_push_at = {old} WHERE node_id IN"
        " (SELECT id FROM node WHERE name = 'gone')",
    )
    done = json.loads(irmapdb("fleet", "prune", "--to", url, "--json").out)
    assert (done["databases"], done["nodes"]) == (1, 1)
    assert [row["node"] for row in _rows(url, "nodes")] == ["there"]


def test_check_counts_the_runs_that_the_server_lacks(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=2)
    words = ("fleet", "check", path, "--to", url, "--node", "one")
    done = irmapdb(*words)
    assert done.code == 3
    assert "last push never" in done.out
    _push(url, path, node="one")
    assert irmapdb(*words).code == 0
    maker.add(path, runs=3)
    done = irmapdb(*words, "--json")
    assert done.code == 3
    (row,) = json.loads(done.out)["databases"]
    assert (row["runs"], row["runs_behind"]) == (5, 3)
