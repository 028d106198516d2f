"""Rows that irmapdb did not write, and names in SQLite that are not UTF-8."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from irmapdb.errors import DatabaseError
from irmapdb.image.cache import decode_cache, encode_cache
from irmapdb.store.database import Store
from irmapdb.store.entries import read_entries
from irmapdb.store.values import MAX_PATH_BYTES
from tests.support.hostile import COMMANDS, ENTRY, fill, run_command, run_irmapdb
from tests.test_migrations import write_content

CUT = "UPDATE mapping SET "
HOSTILE = {
    "a path of 200 MB": f"{CUT} path = zeroblob(200000000)",
    "a path of 100 kB": f"{CUT} path = zeroblob(100000)",
    "a time that is no time": f"{CUT} first_seen_at = 'yesterday'",
    "a time without end": f"{CUT} first_seen_at = '9999-12-31 23:59:59.999999'",
    "a time that is a number": f"{CUT} first_seen_at = 1e300",
    "a device of 64 bits": f"{CUT} dev = 9223372036854775807",
    "a negative device": f"{CUT} dev = -1",
    "a device that is text": f"{CUT} dev = 'sda'",
    "an inode that is text": f"{CUT} ino = 'x' || id",
    "a namespace of 64 bits": f"{CUT} mntns = 1 << 40",
    "a handle of 10 kB": f"{CUT} handle_type = 1, handle = zeroblob(10000)",
    "a handle that is text": f"{CUT} handle_type = 1, handle = 'h'",
    "an unknown source": f"{CUT} source = 'oracle'",
}


def spoiled(path, statement):
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("PRAGMA ignore_check_constraints = ON")
        raw.execute(statement)


@pytest.fixture
def work(tmp_path):
    directory = tmp_path / "work"
    directory.mkdir(mode=0o700)
    fill(directory / "irmap.db", *(ENTRY._replace(path=b"/srv/%d" % one) for one in range(3)))
    return directory


def _marked(name):
    marks = [pytest.mark.slow] if "200 MB" in name else []
    return pytest.param(name, id=name, marks=marks)


@pytest.mark.parametrize("what", [_marked(name) for name in HOSTILE])
def test_a_row_that_irmapdb_did_not_write_is_named_and_counted(work, what):
    path = work / "irmap.db"
    with closing(sqlite3.connect(path)) as raw, raw:  # of two inodes, so that paths may be equal
        raw.execute("DELETE FROM mapping WHERE id > 2")
        raw.execute("UPDATE mapping SET ino = id")
    spoiled(path, HOSTILE[what])
    with Store.open_readonly(path) as store, pytest.raises(DatabaseError) as refused:
        list(store.all_mappings())
    said = str(refused.value)
    assert said.isprintable()
    assert len(said) < 500
    if "200 MB" in what:
        assert "a value in it has more than 1 MiB" in said
    else:
        assert "mapping 1: a row that irmapdb did not write: " in said
        assert "(1 more like it)" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("what", ["a path of 200 MB", "a path of 100 kB", "a time that is no time"])
def test_no_command_ends_with_a_traceback(work, name, what):
    spoiled(work / "irmap.db", f"{HOSTILE[what]} WHERE id = 1")
    done = run_command(name, work)
    assert done.code in {0, 1, 3}, done
    assert "Traceback" not in done.said
    assert len(done.said) < 10_000


def read_all(store):
    for answers in (store.runs(), store.watches(1), store.changes()):
        list(answers)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE watch SET pid = -5", "the pid is -5"),
        ("UPDATE watch SET fd = 1 << 40", "the descriptor is 1099511627776"),
        ("UPDATE watch SET mask = 'all'", "mask is 'all'"),
        ("UPDATE run SET watches = -1", "watches is -1"),
        ("UPDATE run SET finished_at = ''", "'' is no time"),
        ("UPDATE run SET outcome = x'ff'", "the outcome is b'\\xff'"),
        ("UPDATE change SET path = zeroblob(70000)", "the path has 70000 bytes"),
        ("UPDATE change SET kind = 'eaten'", "'eaten'"),
    ],
)
def test_so_are_runs_watches_and_changes(tmp_path, statement, said):
    path = tmp_path / "irmap.db"
    write_content(path)
    spoiled(path, statement)
    with Store.open_readonly(path) as store, pytest.raises(DatabaseError) as refused:
        read_all(store)
    assert said in str(refused.value)


def test_a_path_as_long_as_may_be_comes_back(tmp_path):
    path = tmp_path / "irmap.db"
    longest = ENTRY._replace(path=b"/" + b"d/" * (MAX_PATH_BYTES // 2 - 1) + b"f")
    assert len(longest.path) == MAX_PATH_BYTES
    fill(path, ENTRY, longest)
    assert read_entries(path) == [ENTRY, longest]


def test_an_image_with_a_longer_one_is_taken_in_without_it(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(encode_cache([ENTRY, ENTRY._replace(path=b"/" + b"x" * MAX_PATH_BYTES)]))
    done = run_irmapdb(["import", "image"], tmp_path)
    assert done.code == 0
    assert "1 entries are left out: their paths have more than 65536 bytes" in done.err
    assert read_entries(tmp_path / "irmap.db") == [ENTRY]
    assert run_irmapdb(["export", "out"], tmp_path).code == 0
    assert decode_cache((tmp_path / "out").read_bytes(), "out") == (ENTRY,)


# --- words that are no UTF-8 ----------------------------------------------------------------------


def a_broken_view(raw):
    raw.execute("PRAGMA writable_schema = ON")
    raw.execute(
        "INSERT INTO sqlite_master VALUES"
        " ('view', CAST(x'ff1b5b' AS TEXT), CAST(x'ff1b5b' AS TEXT), 0, 'CREATE VIEW')"
    )


def a_table_of_that_name(raw):
    raw.execute("PRAGMA writable_schema = ON")
    raw.execute("CREATE TABLE zzz (a)")
    raw.execute(
        "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT), tbl_name = CAST(x'ff' AS TEXT),"
        " sql = CAST(CAST('CREATE TABLE ' AS BLOB) || x'ff' || CAST(' (a)' AS BLOB) AS TEXT)"
        " WHERE name = 'zzz'"
    )


def a_broken_text(raw):
    raw.execute("UPDATE alembic_version SET version_num = CAST(x'ff30' AS TEXT)")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [a_broken_view, a_table_of_that_name, a_broken_text])
@pytest.mark.parametrize("name", COMMANDS)
def test_bytes_that_are_no_utf8_are_no_traceback(work, name, spoil):
    with closing(sqlite3.connect(work / "irmap.db")) as raw, raw:
        spoil(raw)
    done = run_command(name, work)
    assert "Traceback" not in done.said
    log = work / "irmapdb.log"
    if log.exists():
        assert "Traceback" not in log.read_text()
        assert "UnicodeDecodeError" not in log.read_text()
    elif spoil is not a_table_of_that_name:
        assert done.code == 1
        assert len(done.err.splitlines()) == 1
        assert str(work) in done.err


@pytest.mark.parametrize(
    "question",
    [
        "SELECT * FROM pragma_table_info(CAST(x'ff' AS TEXT))",
        'SELECT 1 AS "a\x1b"',
        "SELECT CAST(x'ff' AS TEXT) FROM sqlite_master",
        "SELECT * FROM nothing",
    ],
)
def test_a_question_about_such_a_database_is_answered_on_lines(work, question):
    with closing(sqlite3.connect(work / "irmap.db")) as raw, raw:
        a_table_of_that_name(raw)
    done = run_irmapdb(["sql", question], work)
    assert "Traceback" not in done.said
    assert "\x1b" not in done.out
