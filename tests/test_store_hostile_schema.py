"""A schema that can run code of another user, or is too large for one of irmapdb."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from irmapdb.errors import DatabaseError
from irmapdb.store import limits, raw
from irmapdb.store.database import Store
from irmapdb.store.entries import read_entries
from irmapdb.store.failures import translated
from irmapdb.store.place import open_place
from irmapdb.store.revisions import current, upgrade
from tests.support.hook import CHECKOUT
from tests.support.hostile import COMMANDS, ENTRY, fill, run_command

SLOW = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n)"
NEVER = "length(hex(zeroblob(400000000)))"


def rewritten(table, old, new):
    """Change the text of a table, as `PRAGMA writable_schema` allows."""

    def spoil(connection):
        connection.execute("PRAGMA writable_schema = ON")
        done = connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (old, new, table)
        )
        assert done.rowcount == 1
        (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,))
        assert new in text[0]

    return spoil


def executed(script):
    return lambda connection: connection.executescript(script)


HOSTILE = {
    "check": rewritten("mapping", "revalidate IN (0, 1)", f"{NEVER} > 0"),
    "check of another column": rewritten("run", "pid INTEGER", f"pid INTEGER CHECK ({NEVER})"),
    "default": rewritten("mapping", "DEFAULT 0", f"DEFAULT ({NEVER})"),
    "generated column": rewritten("mapping", "stale_reason TEXT", f"stale_reason AS ({NEVER})"),
    "collation": rewritten("mapping", "path TEXT", "path TEXT COLLATE nocase"),
    "conflict": rewritten("mapping", "UNIQUE (dev", "UNIQUE (dev, source"),
    "foreign key": rewritten("tried", "ON DELETE CASCADE", "ON DELETE SET NULL"),
    "expression index": executed(f"CREATE INDEX slow ON mapping ({NEVER})"),
    "partial index": executed("CREATE INDEX slow ON mapping (path) WHERE path LIKE '%a%b%c%'"),
    "expression of words": executed("CREATE INDEX slow ON mapping (path IS NULL)"),
    "unique index": executed("CREATE UNIQUE INDEX one ON run (event)"),
    "trigger": executed(f"CREATE TRIGGER t AFTER INSERT ON run BEGIN SELECT {NEVER}; END"),
    "trigger on a table of theirs": executed(
        "CREATE TABLE x (a); CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT 1; END"
    ),
    "child": executed(
        "CREATE TABLE child (a INTEGER REFERENCES run (id) ON DELETE SET NULL,"
        f" CHECK ({NEVER} > a))"
    ),
    "virtual table": executed("CREATE VIRTUAL TABLE words USING fts5(a)"),
    "another view": executed(f"DROP VIEW last_run; CREATE VIEW last_run AS SELECT {NEVER} AS id"),
    "no table": executed("DROP TABLE tried"),
    "no index": executed("DROP INDEX ix_watch_run_id"),
    "many": executed("".join(f"CREATE TABLE t{number} (a);" for number in range(3000))),
}


def spoiled(path, spoil):
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        spoil(connection)


def _marked(name):
    marks = [pytest.mark.slow] if name in {"expression index", "many"} else []
    return pytest.param(name, id=name, marks=marks)


@pytest.mark.parametrize("what", [_marked(name) for name in HOSTILE])
def test_a_schema_that_is_not_ours_is_refused_before_anything_runs(tmp_path, what):
    path = tmp_path / "irmap.db"
    spoiled(path, HOSTILE[what])
    before = path.read_bytes()
    ways = (
        lambda: Store.open(path, create=True),
        lambda: Store.open_readonly(path),
        lambda: read_entries(path),
        lambda: current(path),
        lambda: upgrade(path),
    )
    for way in ways:
        with pytest.raises(
            DatabaseError, match=r"not as irmapdb makes it|has more than 1000"
        ) as no:
            way()
        assert str(no.value).isprintable()
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("what", ["check", "generated column", "trigger", "many"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_so(tmp_path, name, what):
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    spoiled(work / "irmap.db", HOSTILE[what])
    done = run_command(name, work)
    said = done.said
    if name == "hook":
        assert done.code == 0
        said = (work / "irmapdb.log").read_text()
    else:
        assert done.code == 1
        assert len(done.err.splitlines()) == 1
    assert "not as irmapdb makes it" in said or "has more than 1000" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_older_schema_is_compared_before_it_is_upgraded(tmp_path, revision):
    path = tmp_path / "irmap.db"
    source = CHECKOUT / "tests" / "data" / "db" / f"{revision}.db"
    with closing(sqlite3.connect(path)) as target, closing(sqlite3.connect(source)) as old:
        old.backup(target)
    with closing(sqlite3.connect(path)) as connection, connection:
        HOSTILE["check"](connection)
    path.chmod(0o600)
    before = path.read_bytes()
    for way in (upgrade, lambda path: Store.open(path, create=False)):
        with pytest.raises(DatabaseError, match="the table mapping is another one"):
            way(path)
    assert path.read_bytes() == before


def test_tables_and_views_of_the_user_stay(tmp_path):
    path = tmp_path / "irmap.db"
    fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT DEFAULT 'x' CHECK (text <> ''));
            CREATE INDEX notes_text ON notes (lower(text)) WHERE text IS NOT NULL;
            CREATE VIEW noted AS SELECT mapping.path, notes.text FROM mapping, notes;
            CREATE INDEX by_path ON mapping (path, dev DESC);
            INSERT INTO notes (text) VALUES ('kept');
            ANALYZE;
        """)
    fill(path, ENTRY._replace(path=b"/b"))
    assert len(read_entries(path)) == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM noted").fetchone() == (2,)


@pytest.mark.parametrize(
    "row",
    [
        ("mapping", "by_path", "9223372036854775807 1 unordered noskipscan sz=-1"),
        ("mapping", None, "x" * 10_000),
        ("mapping", "sqlite_autoindex_mapping_1", b"\xff\x00"),
        (None, None, None),
    ],
)
def test_false_statistics_harm_no_statement(tmp_path, row):
    path = tmp_path / "irmap.db"
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ANALYZE")
        connection.execute("DELETE FROM sqlite_stat1")
        connection.execute("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", row)
    fill(path, ENTRY._replace(path=b"/b"))
    assert len(read_entries(path)) == 2


@pytest.mark.parametrize("pragma", ["application_id = -1", "application_id = 2147483647"])
def test_odd_numbers_in_the_header_are_refused(tmp_path, pragma):
    path = tmp_path / "irmap.db"
    fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(DatabaseError, match="not one of irmapdb"):
        Store.open(path, create=True)


def test_odd_numbers_without_effect_are_left(tmp_path):
    path = tmp_path / "irmap.db"
    fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = -2147483648")
        connection.execute("PRAGMA auto_vacuum = 1")
    assert read_entries(path) == [ENTRY]


def test_every_connection_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "irmap.db"
    fill(path)
    monkeypatch.setattr(limits, "STATEMENT_S", 0.2)
    for write in (False, True):
        with (
            open_place(path, write=write) as place,
            raw.connect_raw(place, write=write, wait_s=0) as connection,
        ):
            with pytest.raises(limits.TooLongError, match=r"longer than 0\.2 s"):
                connection.execute(f"SELECT {SLOW}").fetchall()
            with pytest.raises(sqlite3.Error, match="too big"):
                connection.execute("SELECT length(zeroblob(2000000))").fetchall()
            deep = "+".join("1" * 2000)
            with pytest.raises(sqlite3.Error, match=r"too large|depth"):
                connection.execute(f"SELECT {deep}").fetchall()
            assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
            assert connection.execute("PRAGMA cell_size_check").fetchone() == (1,)
            assert connection.execute("SELECT 1").fetchone() == (1,)
    with (
        Store.open_readonly(path) as store,
        pytest.raises(DatabaseError, match="took longer"),
        translated(store.path),
    ):
        store._raw.execute(f"SELECT {SLOW}").fetchall()
