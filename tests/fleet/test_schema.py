"""The server's tables: made by the revisions, as irmapdb.fleet.schema has them, all or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from irmapdb.errors import FleetError
from irmapdb.fleet import schema, views
from irmapdb.fleet.server import find_server
from tests.support.cli import irmapdb
from tests.test_store_processes import child, exit_code

_ROOT = Path(__file__).parents[2]


def _one(url, sql):
    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchone()


def test_every_revision_is_known_without_alembic():
    scripts = ScriptDirectory(str(_ROOT / "migrations" / "fleet"))
    found = [one.revision for one in scripts.walk_revisions()]
    assert tuple(reversed(found)) == schema.REVISIONS


def test_the_revisions_make_the_tables_that_the_package_knows(url):
    with psycopg.connect(url) as connection:
        connection.execute("SELECT irmapdb_add_period(irmapdb_period(now()))")
    with find_server(url).connect() as connection:
        found = {*inspect(connection).get_table_names()} - {schema.VERSION_TABLE}
        assert {one for one in found if not re.search(r"_\d{4}w\d\d$", one)} == {*schema.TABLES}
        keys = connection.execute(
            text("SELECT relname FROM pg_partitioned_table JOIN pg_class ON oid = partrelid")
        )
        assert {*keys.scalars()} == {*schema.PARTITIONED}


def test_current_prints_the_revision(postgres, url):
    empty = postgres.new_database()
    assert "no tables of irmapdb" in irmapdb("fleet", "current", "--to", empty).out
    assert irmapdb("fleet", "current", "--to", url).out == f"{schema.HEAD}\n"
    document = json.loads(irmapdb("fleet", "current", "--to", url, "--json").out)
    assert document["revision"] == document["newest"] == schema.HEAD
    assert irmapdb("fleet", "upgrade", "--to", empty).code == 1
    assert "already" in irmapdb("fleet", "upgrade", "--to", url).err


def test_init_by_several_at_once_makes_the_tables_once(postgres):
    url = postgres.new_database()

    def run():
        schema.init(find_server(url))

    with child(run) as one, child(run) as two, child(run) as three:
        assert [exit_code(pid) for pid in (one, two, three)] == [0, 0, 0]
    assert irmapdb("fleet", "current", "--to", url).out == f"{schema.HEAD}\n"


def test_init_that_fails_leaves_nothing(postgres, monkeypatch):
    url = postgres.new_database()
    monkeypatch.setattr(views, "statements", lambda: {"bad": "CREATE VIEW bad AS SELECT nothing"})
    assert irmapdb("fleet", "init", "--to", url).code == 1
    assert _one(url, "SELECT count(*) FROM pg_class WHERE relname = 'run'") == (0,)


def test_a_newer_schema_is_refused_by_name(url, maker, tmp_path):
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE irmapdb_version SET version_num = '9999'")
    for words in (("upgrade",), ("push", maker.make(tmp_path / "a.db")), ("check",), ("prune",)):
        done = irmapdb("fleet", *words, "--to", url)
        assert done.code == 1
        assert "schema 9999, newer than" in done.err
    with pytest.raises(FleetError, match="update irmapdb on this machine"):
        schema.init(find_server(url))


def test_a_period_is_a_week_and_none_is_made_for_another_day(url):
    with psycopg.connect(url) as connection:
        connection.execute("SELECT irmapdb_add_period(irmapdb_period(now()))")
        connection.execute("SELECT irmapdb_add_period(irmapdb_period(now()))")
        with pytest.raises(psycopg.errors.RaiseException):
            connection.execute("SELECT irmapdb_add_period('2026-11-24')")  # a Tuesday
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.RaiseException):
        connection.execute("SELECT irmapdb_add_period('1970-01-05')")
