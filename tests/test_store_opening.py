"""The files that irmapdb opens and refuses; a refused file stays as it was."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from irmapdb.errors import DatabaseError
from irmapdb.model import CacheEntry
from irmapdb.store.database import Store
from irmapdb.store.revisions import backup, current, upgrade
from irmapdb.store.version import HEAD
from tests.support.features import require_program
from tests.support.killed import kill_a_writer
from tests.support.programs import run

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ENTRY = CacheEntry(254 << 20, 2, b"/srv/a")


def fill(path, *entries):
    with Store.open(path, create=True) as store, store.step() as step:
        step.import_entries(entries or (ENTRY,), NOW)


def entries_of(path):
    with Store.open_readonly(path) as store:
        return store.image_entries()


def journal_mode(path):
    with closing(sqlite3.connect(path)) as other:
        return other.execute("PRAGMA journal_mode").fetchone()[0]


def open_files():
    return len(os.listdir("/proc/self/fd"))


def private_tmpfs(area):
    mountpoint = area.tmpfs()
    mountpoint.chmod(0o700)  # as mounted, every user may write to it
    return mountpoint


def make_symlink(path):
    fill(path.with_name("target"))
    path.symlink_to("target")


def make_dangling_symlink(path):
    path.symlink_to("nowhere")


def make_socket(path):
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(os.fspath(path))


def make_text(path):
    path.write_text("mapping of the world\n" * 400)


def make_scattered(path):
    path.write_bytes(b"$FwG" + bytes(range(256)) * 40)


def make_zeros(path):
    path.write_bytes(bytes(8192))


def make_cut_off(path):
    fill(path)
    os.truncate(path, 5000)


def make_scrambled(path):
    fill(path)
    with path.open("r+b") as file:
        file.seek(100)  # behind the header: the schema's page
        file.write(b"\xff" * 3000)


def make_foreign(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE users (name)")


def make_foreign_alembic(path):
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE alembic_version (version_num)")
        other.execute("INSERT INTO alembic_version VALUES ('0001')")


def make_newer(path):
    fill(path)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE alembic_version SET version_num = '0999'")


def make_unstamped(path):
    fill(path)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("DELETE FROM alembic_version")


def make_symlinked_log(path):
    fill(path)
    path.with_name(path.name + "-wal").symlink_to("target")


REFUSED = [
    (make_symlink, "symbolic link"),
    (make_dangling_symlink, "symbolic link"),
    (Path.mkdir, "directory"),
    (os.mkfifo, "pipe"),
    (make_socket, "socket"),
    (make_text, 'begins with "mapping of the w"'),
    (make_scattered, "begins with the bytes 24 46 77 47 00 01 02 03"),
    (make_zeros, "not a database"),
    (make_cut_off, "damaged"),
    (make_scrambled, "damaged"),
    (make_foreign, "tables users"),
    (make_foreign_alembic, "not one of irmapdb"),
    (make_newer, "0999"),
    (make_unstamped, "damaged"),
    (make_symlinked_log, "irmap.db-wal: is a symbolic link"),
]
WAYS = [
    lambda path: Store.open(path, create=True),
    lambda path: Store.open(path, create=False),
    Store.open_readonly,
    current,
    upgrade,
    lambda path: backup(path, path.with_name("copy")),
]


def snapshot(directory):
    return {
        path.name: (path.lstat().st_mode, path.is_file() and path.read_bytes())
        for path in directory.iterdir()
        # SQLite's own, which a reader leaves beside a WAL database.
        if path.is_symlink() or not path.name.endswith(("-shm", "-wal"))
    }


@pytest.mark.parametrize("way", WAYS, ids=["open", "open old", "read", "current", "up", "backup"])
@pytest.mark.parametrize(
    ("make", "said"), REFUSED, ids=lambda value: getattr(value, "__name__", "")
)
def test_another_file_is_refused_and_not_changed(tmp_path, make, said, way):
    path = tmp_path / "irmap.db"
    make(path)
    before = snapshot(tmp_path)
    fds = open_files()
    with pytest.raises(DatabaseError) as refused:
        way(path)
    assert said in str(refused.value)
    assert os.fspath(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.advice
    assert snapshot(tmp_path) == before
    assert open_files() == fds


EVIL = "a\x1b[31m\nb\u202e"


def foreign_table(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f'CREATE TABLE "{EVIL}" (x)')


def newer_schema(path):
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE alembic_version SET version_num = ?", (EVIL,))


def broken_schema(path):
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("PRAGMA writable_schema = 1")
        row = ("table", EVIL, EVIL, 0, f"CREATE TABLE {EVIL}")
        other.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)


@pytest.mark.parametrize("spoil", [foreign_table, newer_schema, broken_schema])
def test_names_of_a_database_stay_on_the_line(tmp_path, spoil):
    fill(tmp_path / "irmap.db")
    spoil(tmp_path / "irmap.db")
    for use in (current, entries_of, fill):
        with pytest.raises(DatabaseError) as caught:
            use(tmp_path / "irmap.db")
        assert str(caught.value).isprintable()
        assert r"a\x1b[31m\nb\u202e" in str(caught.value)


_NEVER_DONE = {
    "view": """
        DROP TABLE alembic_version;
        CREATE VIEW alembic_version AS
        WITH RECURSIVE n(version_num) AS (SELECT '0003' UNION ALL SELECT version_num FROM n)
        SELECT version_num FROM n
    """,
    "trigger": """
        CREATE TRIGGER slow AFTER INSERT ON image_entry BEGIN
            INSERT INTO image_seen
            WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
            SELECT x, 1, 1, 1, 1 FROM n;
        END
    """,
    "trigger in capitals": "CREATE TRIGGER slow AFTER INSERT ON IMAGE_ENTRY BEGIN SELECT 1; END",
    "view in capitals": "ALTER TABLE tried RENAME TO t; CREATE VIEW TRIED AS SELECT * FROM t",
    "virtual table": "DROP TABLE tried; CREATE VIRTUAL TABLE tried USING fts5(a)",
}


@pytest.mark.parametrize(("what", "sql"), _NEVER_DONE.items(), ids=_NEVER_DONE)
def test_nothing_runs_because_a_database_says_so(tmp_path, what, sql):
    path = tmp_path / "irmap.db"
    fill(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(sql)
    for way in (*WAYS, entries_of, fill):
        with pytest.raises(DatabaseError, match=f"is a {what.removesuffix(' in capitals')}"):
            way(path)


@pytest.mark.parametrize("way", WAYS[1:], ids=["open old", "read", "current", "up", "backup"])
def test_opening_without_create_makes_no_database(tmp_path, way):
    path = tmp_path / "irmap.db"
    with pytest.raises(DatabaseError, match="no such database"):
        way(path)
    path.touch()
    with pytest.raises(DatabaseError, match="an empty database"):
        way(path)
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [("irmap.db", 0)]


def test_a_new_database_is_private_and_closes_without_a_trace(tmp_path):
    path = tmp_path / "irmap.db"
    before = os.umask(0)
    fds = open_files()
    try:
        with Store.open(path, create=True) as store:
            with store.step() as step:
                step.import_entries([ENTRY], NOW)
            modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
            store.close()
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert os.listdir(tmp_path) == ["irmap.db"]
    assert open_files() == fds
    assert journal_mode(path) == "wal"


@pytest.mark.parametrize("header", [b"", "wal"], ids=["0 bytes", "only a header"])
def test_a_database_that_was_never_finished_is_a_new_one(tmp_path, header):
    path = tmp_path / "irmap.db"
    path.touch()
    if header:
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA journal_mode = WAL")
        assert path.stat().st_size > 0
    fill(path)
    assert entries_of(path) == [ENTRY]


class NoUseError(Exception):
    pass


def fail_a_step(store):
    with suppress(NoUseError), store.step() as step:
        step.import_entries([ENTRY], NOW)
        raise NoUseError


def fail_the_first_step(path):
    with Store.open(path, create=True) as store:
        fail_a_step(store)


def test_a_database_whose_first_step_failed_is_removed(tmp_path):
    path = tmp_path / "irmap.db"
    fail_the_first_step(path)
    assert list(tmp_path.iterdir()) == []
    fill(path)
    fail_the_first_step(path)
    assert entries_of(path) == [ENTRY]


def test_a_database_that_another_process_uses_by_then_stays(tmp_path):
    path = tmp_path / "irmap.db"
    with Store.open(path, create=True) as store:
        with Store.open(path, create=True) as other, other.step() as step:
            step.import_entries([ENTRY], NOW)
        fail_a_step(store)
    assert entries_of(path) == [ENTRY]

    for has_step in (True, False):
        new = tmp_path / f"new{has_step}.db"
        with Store.open(new, create=True) as store:
            fail_a_step(store)
            with Store.open(new, create=True) as other:
                store.close()
                if has_step:
                    with other.step() as step:
                        step.import_entries([ENTRY], NOW)
        assert new.exists()


def test_a_step_that_is_done_after_one_that_failed_keeps_the_database(tmp_path):
    path = tmp_path / "irmap.db"
    with Store.open(path, create=True) as store:
        fail_a_step(store)
        with store.step() as step:
            step.import_entries([ENTRY], NOW)
    assert entries_of(path) == [ENTRY]


@pytest.mark.parametrize("name", [b"a b?c#%41&mode=ro.db", "ü.db".encode(), b"\xff\n.db", b"-x"])
def test_any_name_will_do(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    fill(path)
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    backup(path, path + b"2")
    assert entries_of(path + b"2") == [ENTRY]


def test_a_relative_path_is_of_the_directory_at_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store.open(b"irmap.db", create=True) as store:
        monkeypatch.chdir("/")
        with store.step() as step:
            step.import_entries([ENTRY], NOW)
    assert store.path == os.fsencode(tmp_path / "irmap.db")
    assert entries_of(tmp_path / "irmap.db") == [ENTRY]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("missing/irmap.db", "there is no directory"),
        ("file/irmap.db", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("/".join(["x" * 200] * 3) + "/irmap.db", "too long for SQLite"),
    ],
)
def test_where_nothing_can_be_made_it_says_why(tmp_path, place, said):
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=said):
        Store.open(tmp_path / place, create=True)


def test_a_read_only_store_reads_the_committed_rows_and_writes_nothing(tmp_path):
    path = tmp_path / "irmap.db"
    fill(path)
    with Store.open(path, create=False) as writer, Store.open_readonly(path) as reader:
        with writer.step() as step:
            step.import_entries([ENTRY._replace(path=b"/new")], NOW)
            assert reader.image_entries() == [ENTRY]
        assert len(reader.image_entries()) == 2
        before = path.read_bytes()
        with pytest.raises(DatabaseError, match="cannot be written"), reader.step():
            pass
        assert path.read_bytes() == before


def test_a_backup_is_whole_private_and_never_replaces_a_file(tmp_path):
    path, copy = tmp_path / "irmap.db", tmp_path / "copy.db"
    fill(path)
    # The file of a killed copy.
    (tmp_path / ".copy.db.0123456789abcdef.irmapdb-new").write_bytes(b"half")
    with Store.open(path, create=False) as store, store.step() as step:
        step.import_entries([ENTRY._replace(path=b"/not yet")], NOW)
        backup(path, copy)
    assert sorted(os.listdir(tmp_path)) == ["copy.db", "irmap.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert entries_of(copy) == [ENTRY]
    with pytest.raises(DatabaseError, match="is there already"):
        backup(path, copy)


def backup_fails(path, copy):
    with pytest.raises(DatabaseError) as caught:
        backup(path, copy)
    assert not os.path.lexists(copy)
    return str(caught.value).removeprefix(f"{copy}: cannot be written: ")


def test_an_error_of_the_backup_names_the_backup(tmp_path, area):
    path = tmp_path / "irmap.db"
    fill(path)
    said = backup_fails(path, tmp_path / "missing" / "copy.db")
    assert said == ("No such file or directory; make the directory first, or name a file elsewhere")
    said = backup_fails(path, path / "copy.db")
    assert said == "Not a directory; check the path, or name a file elsewhere"
    said = backup_fails(path, tmp_path / ("x" * 256))
    assert said == "File name too long; give it a shorter name, or name a file elsewhere"
    small = private_tmpfs(area)
    fill_up(small / "ballast")
    said = backup_fails(path, small / "copy.db")
    assert said == "No space left on device; free disk space, or name a file elsewhere"
    run("mount", "-o", "remount,ro", small)
    assert backup_fails(path, small / "copy.db") == "Read-only file system; name a file elsewhere"
    assert os.listdir(small) == ["ballast"]


def test_a_reader_rolls_back_the_journal_of_a_killed_writer(tmp_path):
    path = tmp_path / "irmap.db"
    fill(path)
    killed = tmp_path / "killed.db"
    kill_a_writer(path, killed)
    with Store.open_readonly(killed) as store:
        assert store.image_entries() == [ENTRY]
    assert sorted(os.listdir(tmp_path)) == ["irmap.db", "killed.db"]


def test_without_shared_memory_there_is_a_rollback_journal(area, tmp_path):
    """On a real FUSE filesystem; a WAL database may move there."""
    require_program("bindfs")
    source, mountpoint = tmp_path / "source", area.path / "fuse"
    source.mkdir()
    mountpoint.mkdir()
    # With direct_io the kernel maps nothing; the area takes the mount down.
    run("bindfs", "-o", "direct_io", source, mountpoint)
    fill(source / "irmap.db")
    with pytest.raises(DatabaseError, match="no shared memory"):
        Store.open_readonly(mountpoint / "irmap.db")
    for name in ("irmap.db", "new.db"):
        fill(mountpoint / name)
        assert entries_of(mountpoint / name) == [ENTRY]
        assert journal_mode(source / name) == "delete"


def test_on_a_read_only_filesystem_it_is_read_and_not_written(area):
    mountpoint = private_tmpfs(area)
    path = mountpoint / "irmap.db"
    fill(path)
    run("mount", "-o", "remount,ro", mountpoint)
    assert entries_of(path) == [ENTRY]
    assert current(path) == HEAD
    with pytest.raises(DatabaseError, match="read-only"):
        Store.open(path, create=True)
    with pytest.raises(DatabaseError, match="Read-only file system"):
        Store.open(mountpoint / "new.db", create=True)
    with pytest.raises(DatabaseError, match="Read-only file system"):
        backup(path, mountpoint / "copy.db")
    assert os.listdir(mountpoint) == ["irmap.db"]


def test_on_a_full_disk_no_database_is_made(area):
    mountpoint = private_tmpfs(area)
    fill_up(mountpoint / "ballast")
    with pytest.raises(DatabaseError, match="disk is full"):
        Store.open(mountpoint / "irmap.db", create=True)
    assert os.listdir(mountpoint) == ["ballast"]


def test_a_step_that_fills_the_disk_changes_nothing(area):
    mountpoint = private_tmpfs(area)
    path = mountpoint / "irmap.db"
    fill(path)
    with Store.open(path, create=False) as store:
        big = [ENTRY._replace(ino=ino, path=b"/" + b"x" * 4000) for ino in range(8000)]
        with pytest.raises(DatabaseError, match="disk is full"), store.step() as step:
            step.import_entries(big, NOW)
        assert store.image_entries() == [ENTRY]
    fill_up(mountpoint / "ballast")
    with pytest.raises(DatabaseError, match="No space left"):
        backup(path, mountpoint / "copy.db")
    assert not list(mountpoint.glob("*copy*"))
    (mountpoint / "ballast").unlink()
    fill(path)
    assert entries_of(path) == [ENTRY]


def fill_up(path):
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
