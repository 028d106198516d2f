"""Other people's programs: the file opens in them, and every view runs there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.model import (
    Event,
    FileHandle,
    Identity,
    Resolved,
    RunStats,
    Source,
    Tried,
    Watch,
    WatchKind,
)
from irmapdb.store.ask import Ask
from irmapdb.store.database import Store
from irmapdb.store.records import WatchRow
from irmapdb.store.views import statements
from tests.support.features import require_program
from tests.support.names import ODD_NAMES
from tests.support.scenario import write_scenario
from tests.test_ask import NOW

BIN = Path(sys.executable).parent
VIEWS = list(statements())


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Names that are no UTF-8, and numbers above 2^63, in mappings and watches."""
    path = tmp_path_factory.mktemp("tools") / "irmap.db"
    write_scenario(path)
    with Store.open(path, create=False) as store, store.step() as step:
        step.prove(
            [
                Resolved(
                    Identity(
                        41, (1 << 63) + n, FileHandle(-1 if n % 2 else 0xF8, bytes([n, 0xFF]))
                    ),
                    b"/odd/" + name,
                    Source.SCAN,
                    (b"/odd/\xff\xfe/" + name,),
                    mntns=0xF0000002 if n % 3 == 0 else 0,
                )
                for n, name in enumerate(ODD_NAMES)
            ],
            NOW,
        )
        run_id = step.add_run(
            Event.PRE_DUMP,
            pid=7,
            comm=b"odd\xff",
            started_at=NOW,
            finished_at=NOW,
            stats=RunStats(),
            outcome="1 unresolved",
        )
        watch = Watch(7, 3, WatchKind.INOTIFY, 1, Identity(41, (1 << 64) - 1, None), 2, 0, 0)
        tried = (Tried("scan", "not found"),)
        step.add_watches(
            run_id,
            [
                WatchRow(watch, b"odd\xff", b"/only/\xff\xfe/odd", None),
                WatchRow(watch, b"odd\xff", None, "scan: not found", tried=tried),
            ],
        )
    return path


def count_of(view):
    return f"SELECT count(*) FROM (SELECT * FROM {view})"  # noqa: S608 - our own names


@pytest.fixture
def counts(database):
    """How many rows each view has, as we count them."""
    with Ask.open(database) as ask:
        found = {}
        for view in VIEWS:
            (answer,) = ask.ask(count_of(view))
            ((found[view],),) = answer.rows
        return found


@pytest.fixture
def unchanged(database):
    before = database.read_bytes()
    yield
    assert database.read_bytes() == before


def run(*command):
    done = subprocess.run(list(map(os.fspath, command)), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    return done.stdout


def test_the_sqlite3_shell(database, counts, unchanged):
    require_program("sqlite3")
    for view, count in counts.items():
        assert int(run("sqlite3", "-readonly", database, count_of(view))) == count
        shell = ("sqlite3", "-readonly", "-header", "-column", database)
        run(*shell, f"SELECT * FROM {view}")  # noqa: S608 - our own names
        assert run("sqlite3", "-readonly", database, f".schema {view.upper()}").strip()
    whole = run("sqlite3", "-readonly", database, ".schema").decode()
    assert all(f"CREATE VIEW {view} " in whole for view in VIEWS)
    assert run(
        "sqlite3", "-readonly", database, ".schema Mapping", "PRAGMA integrity_check"
    ).strip()
    odd = "SELECT hex(path) FROM all_mappings WHERE inode = '9223372036854775808'"
    assert ODD_NAMES[0].hex().upper() in run("sqlite3", "-readonly", database, odd).decode()


def test_a_dump_of_the_shell_makes_the_same_database(database, tmp_path, counts):
    require_program("sqlite3")
    dump = tmp_path / "dump.sql"
    dump.write_bytes(run("sqlite3", "-readonly", database, ".dump"))
    run("sqlite3", tmp_path / "again.db", f".read {dump}")
    for view, count in counts.items():
        assert int(run("sqlite3", tmp_path / "again.db", count_of(view))) == count


def test_sqlite_utils(database, counts, unchanged):
    program = BIN / "sqlite-utils"
    listed = json.loads(run(program, "views", database, "--columns"))
    assert {one["view"] for one in listed} == set(VIEWS)
    assert json.loads(run(program, "tables", database, "--counts"))
    for view, count in counts.items():
        rows = json.loads(run(program, "rows", database, view))
        assert len(rows) == count, view
    big = json.loads(run(program, database, "SELECT inode FROM live_mappings WHERE ino < 0"))
    assert {"inode": "18446744073709551610"} in big
    assert all(one["inode"].isdecimal() for one in big)


def test_datasette(database, counts, unchanged):
    program = BIN / "datasette"
    inspected = json.loads(run(program, "inspect", database))
    assert inspected["irmap"]["tables"]["mapping"]["count"] > 0
    for view, count in counts.items():
        shown = run(program, database, "--get", f"/irmap/{view}.json?_shape=objects&_size=max")
        assert len(json.loads(shown)["rows"]) == count, view
        # The HTML page, which shows a BLOB in its own way.
        page = run(program, database, "--get", f"/irmap/{view}?_size=max").decode()
        assert view in page


def test_datasette_shows_an_inode_of_a_log(database, unchanged):
    where = "/irmap/all_mappings?in_criu_log=fe00000%3A2e3"
    page = run(BIN / "datasette", database, "--get", where).decode()
    assert "/srv/data/in.csv.1" in page
