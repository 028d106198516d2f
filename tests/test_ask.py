"""Queries in SQL: their answers, and that no query changes the database."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from irmapdb.errors import DatabaseError, SqlError
from irmapdb.model import CacheEntry
from irmapdb.store import ask as ask_module
from irmapdb.store import raw
from irmapdb.store.ask import Answer, Ask
from irmapdb.store.database import Store
from irmapdb.store.entries import read_entries
from irmapdb.store.revisions import backup
from tests.support.features import require_root
from tests.support.filesystems import tmpfs
from tests.support.killed import kill_a_writer
from tests.support.programs import run
from tests.support.scenario import write_scenario

NOBODY = 65534
NOW = datetime(2026, 11, 24, tzinfo=UTC)
ENTRY = CacheEntry(254 << 20, 2, b"/srv/a")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "place" / "irmap.db"
    path.parent.mkdir()
    write_scenario(path)
    return path


@pytest.fixture
def ask(path):
    with Ask.open(path) as opened:
        yield opened


def one(ask, text, **how) -> Answer:
    (answer,) = ask.ask(text, **how)
    return answer


def value(ask, text, **how):
    ((found,),) = one(ask, text, **how).rows
    return found


def test_values_come_as_they_are(ask):
    answer = one(ask, "SELECT 1, 2.5, NULL, 'ü', x'00ff', CAST(x'2fff' AS TEXT)")
    assert answer.rows == [(1, 2.5, None, "ü", b"\0\xff", "/\udcff")]
    assert value(ask, "SELECT path FROM mapping WHERE typeof(path) = 'blob'") == (
        b"/srv/data/caf\xe9.txt"
    )


def test_several_statements_are_answered_in_turn(ask):
    answers = list(ask.ask("SELECT 1 AS a; ; SELECT 2 AS b, 3 AS c;"))
    assert [(one.columns, one.rows) for one in answers] == [
        (("a",), [(1,)]),
        (("b", "c"), [(2, 3)]),
    ]
    assert list(ask.ask(" -- nothing")) == []


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ("kdev('254:0')", 254 << 20),
        ("kdev('4095:1048575')", (1 << 32) - 1),
        ("kdev(266338304)", "254:0"),
        ("kdev(NULL)", None),
        ("hex_ino(266338304, 739)", "fe00000:2e3"),
        ("hex_ino(41, -6)", "29:fffffffffffffffa"),
        ("hex_ino(NULL, 1)", None),
        ("path_text(x'2fe9')", "</\\xe9>"),
        ("path_text('/a')", "</a>"),
        ("path_text(7)", "7"),
        ("path_text(NULL)", None),
    ],
)
def test_our_functions(path, call, wanted):
    def shown(raw):
        return f"<{raw.decode(errors='backslashreplace')}>"

    with Ask.open(path, path_text=shown) as ask:
        assert value(ask, f"SELECT {call}") == wanted


@pytest.mark.parametrize(
    "call", ["kdev('254')", "kdev('1:2:3')", "kdev(-1)", "kdev('4096:0')", "hex_ino('a', 1)"]
)
def test_our_functions_name_a_wrong_argument(ask, call):
    with pytest.raises(SqlError, match=f"^{call.partition('(')[0]}: .*(MAJOR|inode number)"):
        value(ask, f"SELECT {call}")


def test_an_inode_of_a_log_is_found_by_the_function_and_by_the_view(ask):
    by_function = "SELECT path FROM mapping WHERE hex_ino(dev, ino) = :log"
    by_view = "SELECT path FROM all_mappings WHERE in_criu_log = :log"
    answers = [
        one(ask, text, parameters={"log": "fe00000:2e3"}).rows for text in (by_function, by_view)
    ]
    assert answers[0] == answers[1] == [("/srv/data/in.csv",), ("/srv/data/in.csv.1",)]


def test_parameters_are_values_and_nothing_else(ask):
    odd = {"p": b"/srv/data/caf\xe9.txt", "n": 742}
    assert value(ask, "SELECT ino FROM mapping WHERE path = :p AND ino = @n", parameters=odd) == 742
    assert value(ask, "SELECT :p", parameters={"p": "'; DROP TABLE run"}) == "'; DROP TABLE run"


def test_an_answer_is_cut_at_the_limit_and_says_so(ask):
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c"
    answer = one(ask, numbers, limit=3)
    assert (answer.rows, answer.cut) == ([(1,), (2,), (3,)], True)
    assert not one(ask, f"{numbers} LIMIT 3", limit=3).cut
    assert len(one(ask, f"{numbers} LIMIT 20000").rows) == 20000


def test_a_slow_statement_is_stopped_and_the_next_one_answered(ask):
    forever = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT max(n) FROM c"
    with pytest.raises(SqlError, match=r"longer than 0\.05 s") as raised:
        list(ask.ask(forever, timeout_s=0.05))
    assert raised.value.remedy == "timeout"
    assert value(ask, "SELECT 1", timeout_s=60) == 1


def test_a_value_that_would_fill_the_memory_is_refused(ask):
    with pytest.raises(SqlError, match=r"a value has more than 1 MiB; .*substr"):
        list(ask.ask("SELECT hex(zeroblob(1000000000))"))


def test_thousands_of_digits_are_no_device(ask):
    with pytest.raises(SqlError, match=r"^kdev: '1{100}"):
        list(ask.ask("SELECT kdev(:device)", {"device": f"{'1' * 5000}:1"}))


@pytest.mark.parametrize(
    ("what", "most"), [("slow(n)", 12), ("max(slow(n))", 12 + ask_module._STEPS_BETWEEN_LOOKS)]
)
def test_the_time_is_kept_between_slow_rows_and_slow_functions(ask, monkeypatch, what, most):
    """irmapdb looks after each row, and within a row after some of SQLite's steps."""
    calls: list[int] = []
    # A call takes 10 ms; the rest takes no time.
    clock = SimpleNamespace(monotonic=lambda: len(calls) / 100)
    monkeypatch.setattr(ask_module, "time", clock)
    ask._raw.create_function("slow", 1, calls.append)
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3000)"
    with pytest.raises(SqlError, match=r"longer than 0.1 s"):
        list(ask.ask(f"{numbers} SELECT {what} FROM c", timeout_s=0.1))  # noqa: S608
    assert len(calls) <= most


def test_a_pattern_that_would_take_for_ever_is_refused(ask):
    with pytest.raises(SqlError, match="pattern too complex"):
        value(ask, "SELECT hex(zeroblob(2000)) LIKE '%' || hex(zeroblob(1000)) || '1'")


def test_an_answer_that_would_fill_the_memory_is_refused(ask, monkeypatch):
    monkeypatch.setattr("irmapdb.store.ask._BYTES_AN_ANSWER", 1 << 20)
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)"
    for cells in ("randomblob(100000)", "n, n", "hex(zeroblob(300000))"):
        question = f"{numbers} SELECT {cells} FROM c"  # noqa: S608
        with pytest.raises(SqlError, match="the answer has more than 1 MiB; ask for fewer"):
            one(ask, question, limit=10**9)
        assert len(one(ask, question, limit=1).rows) == 1
    wide = ", ".join(["zeroblob(1000000)"] * 201)
    with pytest.raises(SqlError, match="too many columns"):
        one(ask, f"SELECT {wide}")


def test_sorted_rows_have_a_limit_too(path):
    # In a process of its own: SQLite's limit is the process's.
    numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 99)"
    script = (
        "import sys; from irmapdb.store import ask; from irmapdb.errors import SqlError\n"
        "ask._BYTES_OF_MEMORY = 32 << 20\n"
        "with ask.Ask.open(sys.argv[1].encode()) as opened:\n"
        "    try: list(opened.ask(sys.argv[2]))\n"
        "    except SqlError as error: print(error)\n"
        "    print(list(opened.ask('SELECT 42'))[0].rows)\n"
    )
    question = f"{numbers} SELECT randomblob(900000) FROM c ORDER BY 1"  # noqa: S608
    done = subprocess.run(
        [sys.executable, "-c", script, path, question], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("stopped: it needs more than 32 MiB of memory")
    assert done.stdout.endswith("[(42,)]\n")


def test_the_longest_path_of_a_database_fits(path):
    longest = b"/" + b"\xe9" * 65535
    with Store.open(path, create=False) as store, store.step() as step:
        step.import_entries([CacheEntry(254 << 20, 3, longest)], NOW)
    with Ask.open(path) as ask:
        for view in ("all_mappings", "unwatched_mappings", "cache_entries"):
            assert (longest,) in one(ask, f"SELECT path FROM {view}").rows  # noqa: S608


def test_an_interrupt_passes_through(ask):
    forever = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT max(n) FROM c"
    begun = threading.Event()

    def interrupt():
        begun.wait(60)
        ask._raw.interrupt()  # the effect of a signal in SQLite's loop

    thread = threading.Thread(target=interrupt)
    thread.start()
    ask._raw.set_progress_handler(begun.set, 1000)
    with pytest.raises(KeyboardInterrupt):
        list(ask.ask(forever))
    thread.join()


def test_an_interrupt_passes_through_our_functions(path):
    def interrupted(_):
        raise KeyboardInterrupt

    with Ask.open(path, path_text=interrupted) as ask:
        with pytest.raises(KeyboardInterrupt):
            list(ask.ask("SELECT path_text(path) FROM mapping"))
        assert value(ask, "SELECT 1") == 1


HOSTILE = [
    "DELETE FROM mapping",
    "DELETE FROM mapping RETURNING path",
    "INSERT INTO run DEFAULT VALUES",
    "INSERT OR REPLACE INTO mapping (id) SELECT 1",
    "REPLACE INTO alembic_version VALUES ('9999')",
    "UPDATE mapping SET stale_at = NULL",
    "WITH gone AS (SELECT id FROM mapping) DELETE FROM mapping WHERE id IN gone",
    "EXPLAIN DELETE FROM mapping",
    "UPDATE sqlite_master SET sql = 'x'",
    "UPDATE sqlite_schema SET sql = 'x' WHERE type = 'view'",
    "DELETE FROM sqlite_master",
    "CREATE TABLE mine (x)",
    "CREATE TABLE mine AS SELECT * FROM mapping",
    "CREATE TEMP TABLE mine (x)",
    "CREATE TEMP VIEW mine AS SELECT 1",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE INDEX mine ON mapping (path)",
    "CREATE TRIGGER mine AFTER INSERT ON run BEGIN DELETE FROM mapping; END",
    "CREATE TEMP TRIGGER mine AFTER INSERT ON main.run BEGIN DELETE FROM mapping; END",
    "CREATE VIRTUAL TABLE mine USING fts5(x)",
    "ALTER TABLE mapping RENAME TO mine",
    "ALTER TABLE mapping ADD COLUMN mine",
    "ALTER TABLE mapping DROP COLUMN source",
    "DROP TABLE mapping",
    "DROP VIEW all_mappings",
    "DROP INDEX ix_watch_run_id",
    "VACUUM",
    "VACUUM INTO '{dir}/copy.db'",
    "VACUUM INTO '{dir}/copy.db'; DELETE FROM run",
    "ATTACH '{dir}/other.db' AS other",
    "ATTACH ':memory:' AS other",
    "ATTACH '' AS other",
    "ATTACH 'file:{dir}/irmap.db?mode=rw' AS other",
    "DETACH main",
    "REINDEX",
    "ANALYZE",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "BEGIN EXCLUSIVE",
    "SAVEPOINT mine",
    "COMMIT",
    "PRAGMA query_only = OFF",
    "PRAGMA query_only(0)",
    "PRAGMA main.query_only = 0",
    "PRAGMA writable_schema = ON",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA journal_mode(off)",
    "PRAGMA wal_checkpoint",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA user_version = 7",
    "PRAGMA application_id = 7",
    "PRAGMA schema_version = 7",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA incremental_vacuum",
    "PRAGMA optimize",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA trusted_schema = ON",
    "PRAGMA temp_store_directory = '{dir}'",
    "PRAGMA data_store_directory = '{dir}'",
    "PRAGMA mmap_size = 100000000",
    "PRAGMA shrink_memory",
    "PRAGMA no_such_pragma",
    "SELECT load_extension('{dir}/evil.so')",
    "SELECT load_extension('{dir}/evil.so', 'init')",
    "SELECT fts3_tokenizer('x', x'00')",
    "SELECT writefile('{dir}/written', 'x')",
    "SELECT readfile('/etc/passwd')",
    "SELECT edit('x', 'touch {dir}/edited')",
    "SELECT * FROM fsdir('/')",
    "SELECT * FROM pragma_wal_checkpoint",
    "SELECT 1; DELETE FROM mapping; SELECT 2",
    "SELECT 1 /* ; */; -- ;\nDELETE FROM mapping",
    ".shell touch {dir}/shelled",
]
# Answered, as they read and no more.
HARMLESS = [
    "PRAGMA integrity_check",
    "PRAGMA table_info(mapping)",
    "PRAGMA journal_mode",
    "PRAGMA user_version",
    "SELECT name FROM pragma_table_info('mapping')",
    "SELECT * FROM pragma_index_list('mapping')",
    "SELECT * FROM json_each('[1, 2]')",
    "SELECT sql FROM sqlite_master",
    "SELECT sqlite_version()",
    "EXPLAIN QUERY PLAN SELECT * FROM mapping WHERE dev = 1",
    "VALUES (1), (2)",
]


def snapshot(directory):
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in directory.iterdir()
    }


def test_read_only_means_read_only(path):
    before = snapshot(path.parent)
    for text in HOSTILE:
        with Ask.open(path) as ask, pytest.raises(SqlError):
            list(ask.ask(text.format(dir=path.parent)))
        assert snapshot(path.parent) == before, text
    with Ask.open(path) as ask:
        for text in HARMLESS:
            assert one(ask, text).rows, text
    assert snapshot(path.parent) == before


def test_without_the_authorizer_the_file_is_still_only_read(path):
    before = path.read_bytes()
    for text in HOSTILE:
        with Ask.open(path) as ask:
            ask._raw.set_authorizer(None)
            with suppress(SqlError, DatabaseError):
                list(ask.ask(text.format(dir=path.parent)))
        assert path.read_bytes() == before, text
        assert os.listdir(path.parent) == ["irmap.db"], text


def test_a_reader_sees_the_committed_rows_during_a_write(path):
    count = "SELECT count(*) FROM mapping"
    with Store.open(path, create=False) as writer, Ask.open(path) as ask:
        before = value(ask, count)
        with writer.step() as step:
            step.import_entries([ENTRY], NOW)
            assert value(ask, count) == before
        assert value(ask, count) == before + 1
    assert sorted(os.listdir(path.parent)) == ["irmap.db"]


def test_a_writer_is_not_held_up_by_an_open_question(path):
    with Ask.open(path) as ask:
        one(ask, "SELECT * FROM mapping", limit=1)
        with Store.open(path, create=False, wait_s=0) as writer, writer.step() as step:
            step.import_entries([ENTRY], NOW)
        assert value(ask, "SELECT count(*) FROM mapping WHERE path = '/srv/a'") == 1


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_on_a_read_only_filesystem(area, journal):
    mountpoint = area.tmpfs()
    path = mountpoint / "irmap.db"
    write_scenario(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA journal_mode = {journal}")
    run("mount", "-o", "remount,ro", mountpoint)
    with Ask.open(path) as ask:
        assert value(ask, "SELECT count(*) FROM stale_mappings") == 2
        with pytest.raises(SqlError, match="refused"):
            list(ask.ask("DELETE FROM mapping"))
    assert os.listdir(mountpoint) == ["irmap.db"]


@pytest.mark.kernel
def test_on_a_full_filesystem(area, tmp_path):
    with tmpfs(area.path / "full", size_mib=1) as mountpoint:
        path = mountpoint / "irmap.db"
        write_scenario(path)
        mappings = len(read_entries(path))
        (mountpoint / "other").write_bytes(bytes(os.statvfs(mountpoint).f_bavail * 4096))
        for leftover in (b"", b"???"):  # of an earlier try
            if leftover:
                (mountpoint / "irmap.db-wal").touch()
                (mountpoint / "irmap.db-shm").touch()
            before = sorted(os.listdir(mountpoint))
            with Ask.open(path) as ask:
                assert value(ask, "SELECT count(*) FROM stale_mappings") == 2
            with Store.open_readonly(path) as store:
                assert len(list(store.runs())) == 4
            assert len(read_entries(path)) == mappings
            backup(path, tmp_path / f"copy{len(leftover)}.db")
            assert sorted(os.listdir(mountpoint)) == before
        (mountpoint / "irmap.db-wal").write_bytes(b"")
        (mountpoint / "other").unlink()
        with Store.open(path, create=False) as writer, writer.step() as step:
            step.import_entries([ENTRY], NOW)
        # A writer at work has made the lock files: they are used.
        with Store.open(path, create=False) as writer:
            with writer.step() as step:
                step.import_entries([ENTRY._replace(path=b"/srv/b")], NOW)
            (mountpoint / "other").write_bytes(bytes(os.statvfs(mountpoint).f_bavail * 4096))
            with Ask.open(path) as ask:
                assert value(ask, "SELECT count(*) FROM mapping WHERE path = '/srv/b'") == 1


@pytest.mark.parametrize("log", ["-wal", "-journal"])
def test_a_log_is_never_left_out(path, monkeypatch, log):
    monkeypatch.setattr(raw, "is_full", lambda _: True)

    def unlocked():
        with closing(raw.open_raw(os.fsencode(path), write=False, wait_s=0)) as opened:
            return isinstance(opened, raw._Unlocked)

    assert unlocked()
    Path(f"{path}{log}").write_bytes(b"committed, or to be undone")
    assert not unlocked()


def as_nobody(action):
    """The result of `action` in a process without rights: "" or its traceback."""
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        said = ""
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
        except BaseException:  # noqa: BLE001 - it is for the parent to judge
            said = traceback.format_exc()
        os.write(writable, said.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.fixture
def foreign():
    """A database that only root may read, in a directory that only root may write."""
    require_root()
    place = Path(f"/var/tmp/irmapdb-ask-{os.getpid()}")
    place.mkdir(mode=0o755)
    try:
        write_scenario(place / "irmap.db")
        (place / "irmap.db").chmod(0o644)
        yield place / "irmap.db"
    finally:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


def test_a_journal_of_a_killed_writer_is_refused_if_it_cannot_be_rolled_back(foreign):
    whole = foreign.rename(foreign.with_name("whole.db"))
    kill_a_writer(whole, foreign)
    for path in foreign.parent.iterdir():
        path.chmod(0o644)

    def look():
        with pytest.raises(DatabaseError, match="killed in the middle"), Ask.open(foreign):
            pass

    assert as_nobody(look) == ""
    with Ask.open(foreign) as ask:  # root may, and does
        assert value(ask, "SELECT count(*) FROM image_seen WHERE path = '9'") == 0


def test_in_a_directory_that_is_not_ours(foreign):
    def look():
        with Ask.open(foreign) as ask:
            assert value(ask, "SELECT count(*) FROM stale_mappings") == 2

    assert as_nobody(look) == ""
    assert os.listdir(foreign.parent) == ["irmap.db"]
    # With a writer at work there are locks to be had after all.
    with Store.open(foreign, create=False) as writer:
        with writer.step() as step:
            step.import_entries([ENTRY], NOW)
        for sidecar in foreign.parent.glob("irmap.db-*"):
            sidecar.chmod(0o644)
        assert as_nobody(look) == ""


def test_a_change_under_a_reader_without_locks_is_an_error(area, path):
    """A read-only bind mount: no process can write through it, and yet the file changes."""
    mountpoint = area.path / "bind"
    mountpoint.mkdir()
    run("mount", "--bind", path.parent, mountpoint)
    run("mount", "-o", "remount,bind,ro", mountpoint)
    said = "was written while it was read"
    ask = Ask.open(mountpoint / "irmap.db")
    assert value(ask, "SELECT 1") == 1
    with Store.open(path, create=False) as writer, writer.step() as step:
        step.import_entries([ENTRY], NOW)
    with pytest.raises(DatabaseError, match=said):
        list(ask.ask("SELECT count(*) FROM mapping"))
    with pytest.raises(DatabaseError, match=said):
        ask.close()
    with Ask.open(mountpoint / "irmap.db") as again:
        assert value(again, "SELECT count(*) FROM mapping WHERE path = '/srv/a'") == 1


def test_an_unlocked_reader_is_only_the_last_resort(path, monkeypatch):
    asked = []
    monkeypatch.setattr(raw, "_has_no_room_for_locks", lambda _: asked.append(1))
    with Ask.open(path) as ask:
        value(ask, "SELECT 1")
    assert not asked


def test_the_tables_and_views_are_listed(ask):
    columns = ask.columns()
    assert columns["run_source"] == ("run_id", "source", "identities")
    assert columns["last_run"] == ("run_id",)
    assert list(columns)[:2] == ["alembic_version", "change"]


def test_a_broken_view_harms_no_other(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE VIEW broken AS SELECT * FROM nowhere")
    with Ask.open(path) as ask:
        assert ask.columns()["broken"] == ()
        with pytest.raises(SqlError, match="nowhere"):
            list(ask.ask("SELECT * FROM broken"))
        assert value(ask, "SELECT 1") == 1


def test_another_database_is_refused(tmp_path):
    with pytest.raises(DatabaseError, match="no such database"):
        Ask.open(tmp_path / "irmap.db")
    with closing(sqlite3.connect(tmp_path / "irmap.db")) as other:
        other.execute("CREATE TABLE users (name)")
    with pytest.raises(DatabaseError, match="not one of irmapdb: it has the tables users"):
        Ask.open(tmp_path / "irmap.db")
    (tmp_path / "text").write_text("some text, and no database" * 100)
    with pytest.raises(DatabaseError, match='not a database: it begins with "some text'):
        Ask.open(tmp_path / "text")
