"""A database in a directory of another user: irmapdb works on a copy and puts it back whole."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from irmapdb import files, scratch
from irmapdb.errors import DatabaseError, FileError
from irmapdb.store.database import Store
from irmapdb.store.entries import read_entries
from irmapdb.store.version import HEAD
from tests.support.features import require_root
from tests.support.hostile import (
    ENTRY,
    NOW,
    TENANT,
    fill,
    give_away,
    run_command,
    run_forked,
    run_irmapdb,
)

OTHER = ENTRY._replace(path=b"/srv/b")


@pytest.fixture
def home(tmp_path):
    """A home, as root sees it under sudo."""
    require_root()
    directory = tmp_path / "home"
    directory.mkdir(mode=0o755)
    give_away(directory)
    return directory


def status(path):
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def scratch_names():
    """The copies that no process holds: those of other tests may be in use."""
    places = map(Path, ("/dev/shm", "/var/tmp", "/tmp"))
    return {path for place in places for path in place.glob("irmapdb-copy.*") if is_free(path)}


def is_free(path):
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return path.exists()


def test_a_home_under_sudo_works(home):
    before = scratch_names()
    for name in ("pre-dump", "sql", "audit", "import", "export", "db backup", "prune", "hook"):
        done = run_command(name, home)
        assert done.code in {0, 3}, done
        if name != "hook":
            said = f"{home}/irmap.db: worked on a private copy, as {home} belongs to uid {TENANT}"
            assert said in done.err
    assert f"as {home} belongs to uid {TENANT}" in (home / "irmapdb.log").read_text()
    assert sorted(os.listdir(home)) == ["irmap-cache", "irmap.db", "irmapdb.log"]
    assert status(home / "irmap.db") == (0, 0, 0o600)
    with closing(sqlite3.connect(home / "irmap.db")) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert scratch_names() <= before


def test_the_json_has_the_reason(home):
    fill(home / "irmap.db")
    why = f"{home} belongs to uid {TENANT}"
    for command in ("audit", "prune"):
        assert json.loads(run_irmapdb([command, "--json"], home).out)["private_copy"] == why
    os.chown(home, 0, 0)
    for command in ("audit", "prune"):
        assert json.loads(run_irmapdb([command, "--json"], home).out)["private_copy"] is None


def test_its_owner_and_mode_stay(home):
    path = home / "irmap.db"
    fill(path)
    os.chown(path, TENANT, TENANT + 1)
    path.chmod(0o6640)
    fill(path, OTHER)
    assert status(path) == (TENANT, TENANT + 1, 0o640)
    assert read_entries(path) == [ENTRY, OTHER]


def test_the_owner_and_root_may_take_turns(home):
    path = home / "irmap.db"

    def as_owner():
        os.setgid(TENANT)
        os.setuid(TENANT)
        with Store.open(path, create=True) as store, store.step() as step:
            step.import_entries([OTHER], NOW)
        return 0

    for above in home.parents:
        if not above.stat().st_mode & 0o077:  # those that pytest made
            above.chmod(0o755)
    assert run_forked(as_owner, home) == (0, "", "")
    fill(path, ENTRY)
    assert run_forked(as_owner, home).code == 0
    assert set(read_entries(path)) == {ENTRY, OTHER}
    assert status(path)[:2] == (TENANT, TENANT)


def test_an_older_schema_is_upgraded_with_its_backup_there(home):
    old = Path(__file__).parent / "data" / "db" / "0001.db"
    (home / "irmap.db").write_bytes(old.read_bytes())
    give_away(home)
    done = run_irmapdb(["prune", "--json"], home)
    assert f"{home}/irmap.db: schema 0001 → {HEAD}, the old one kept as" in done.err
    assert json.loads(done.out)["upgraded_from"] == "0001"
    assert sorted(os.listdir(home)) == ["irmap.db", "irmap.db.backup-0001"]
    assert run_irmapdb(["db", "current"], home).out == f"{HEAD}\n"
    assert json.loads(run_irmapdb(["prune", "--json"], home).out)["upgraded_from"] is None


# --- two at once ----------------------------------------------------------------------------------


def test_two_writers_exclude_each_other(home):
    path = home / "irmap.db"
    fill(path)
    with Store.open(path, create=False) as first, first.step() as step:
        with pytest.raises(DatabaseError, match="another process has locked"):
            Store.open(path, create=False, wait_s=0)
        assert read_entries(path) == [ENTRY]  # a reader does not wait
        step.import_entries([OTHER], NOW)
    assert read_entries(path) == [ENTRY, OTHER]


def test_many_writers_lose_no_update(home):
    path = home / "irmap.db"
    fill(path)
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            try:
                fill(path, ENTRY._replace(ino=100 + number))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
    assert {entry.ino for entry in read_entries(path)} == {ENTRY.ino, *range(100, 106)}


def overwrite(path):
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("CREATE TABLE theirs (a)")


def replace(path):
    files.replace_whole(path, path.read_bytes())


@pytest.mark.parametrize("change", [overwrite, replace, Path.unlink, Path.touch])
def test_rows_that_another_program_wrote_meanwhile_are_not_lost(home, change):
    path = home / "irmap.db"
    fill(path)
    after = []
    with Store.open(path, create=False) as store:
        for _ in range(2):  # the second step would stand on one that was not kept
            with pytest.raises(DatabaseError, match="written by another program meanwhile"):
                take_in(store, lambda: after or after.append(changed(path, change)))
    assert content(path) == after[0]


def test_a_database_that_came_meanwhile_is_not_replaced(home):
    path = home / "irmap.db"
    with (
        Store.open(path, create=True) as store,
        pytest.raises(DatabaseError, match="written by another program"),
    ):
        take_in(store, lambda: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"


def content(path):
    return path.read_bytes() if path.exists() else None


def changed(path, change):
    change(path)
    return content(path)


def take_in(store, then):
    with store.step() as step:
        step.import_entries([OTHER], NOW)
        then()


def test_a_program_that_has_it_open_in_place_is_not_cut_off(home):
    path = home / "irmap.db"
    fill(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("SELECT * FROM mapping").fetchone()
            os.write(ready[1], b"x")
            os.close(go_on[1])
            os.read(go_on[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        before = path.read_bytes()
        with pytest.raises(DatabaseError, match=f"locked by pid {child}"):
            fill_without_waiting(path)
        assert path.read_bytes() == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (*ready, *go_on):
            os.close(end)


def fill_without_waiting(path):
    with Store.open(path, create=False, wait_s=0) as store, store.step() as step:
        step.import_entries([OTHER], NOW)


# --- leftovers ------------------------------------------------------------------------------------


def test_a_step_that_fails_puts_nothing_back(home):
    path = home / "irmap.db"
    fill(path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with Store.open(path, create=False) as store:
        with pytest.raises(ZeroDivisionError):
            take_in(store, lambda: 1 / 0)
        with store.step(more=True) as step:
            step.import_entries([OTHER], NOW)
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert read_entries(path) == [ENTRY, OTHER]


def test_the_next_run_removes_the_copy_of_a_killed_one(home):
    path = home / "irmap.db"
    fill(path)
    before = scratch_names()

    def be_killed():
        with Store.open(path, create=False) as store, store.step() as step:
            step.import_entries([OTHER], NOW)
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert run_forked(be_killed, home).code == -signal.SIGKILL
    (left,) = scratch_names() - before
    assert read_entries(path) == [ENTRY]
    run_irmapdb(["db", "history"], home)  # of any kind
    assert not left.exists()


def test_a_scratch_directory_in_use_stays_and_is_private():
    with scratch.scratch_directory("copy") as made:
        assert re.fullmatch(rb".*/irmapdb-copy\.[a-z0-9_]{8}", made)
        assert stat.S_IMODE(os.stat(made).st_mode) == 0o700
        scratch.remove_leftovers()
        assert os.path.isdir(made)
    assert not os.path.exists(made)
    with (
        pytest.raises(FileError, match="No space left"),
        scratch.scratch_directory("x", room_bytes=1 << 60),
    ):
        pass


def test_a_disk_that_is_full_leaves_the_old_database(area):
    mountpoint = area.tmpfs()
    path = mountpoint / "irmap.db"
    fill(path)
    give_away(mountpoint)
    os.chown(path, 0, 0)
    ballast = mountpoint / "ballast"
    with Store.open(path, create=False) as store:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
        with pytest.raises(DatabaseError, match="disk is full"), store.step() as step:
            step.import_entries([OTHER], NOW)
        ballast.unlink()
    assert sorted(os.listdir(mountpoint)) == ["irmap.db"]
    assert read_entries(path) == [ENTRY]


# --- other files that are appended to -------------------------------------------------------------


@pytest.mark.parametrize("make", [os.link, os.symlink, "fifo"])
def test_no_log_is_written_through_a_link_or_waits_for_a_fifo(home, tmp_path, make):
    victim = tmp_path / "victim"
    victim.write_text("root's own\n")
    for name in ("irmapdb.log", "pre-dump.log"):
        if make == "fifo":
            os.mkfifo(home / name)
        else:
            make(victim, home / name)
    done = run_command("hook", home)
    assert done.code == 0
    assert "cannot write irmapdb.log" in done.err
    done = run_irmapdb(["pre-dump", "-t", str(os.getpid()), "-o", "pre-dump.log"], home)
    assert done.code == 1
    assert "pre-dump.log: " in done.err
    assert victim.read_text() == "root's own\n"


def test_stdin_is_not_cut_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT_BYTES", 100)

    def run():
        reader, writer = os.pipe()
        os.write(writer, bytes.fromhex("40591055594000 57".replace(" ", "")) + bytes(200))
        os.close(writer)
        os.dup2(reader, 0)

        from irmapdb import commands  # noqa: PLC0415

        sys.argv = ["irmapdb", "show", "-"]
        try:
            commands.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    done = run_forked(run, tmp_path)
    assert done.code == 1
    assert "cannot read /dev/stdin: it has more than 100 bytes" in done.err


def test_json_keeps_every_column(tmp_path):
    fill(tmp_path / "irmap.db")
    question = 'SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS a, 5 AS "A"'
    done = run_irmapdb(["sql", question, "--json"], tmp_path)
    (row,) = json.loads(done.out)
    assert row == {"a": 1, "a_3": 2, "a_2": 3, "a_4": 4, "A": 5}


def test_the_lock_is_given_back(home):
    fill(home / "irmap.db")
    fd = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(DatabaseError, match="another process has locked"):
            Store.open(home / "irmap.db", create=False, wait_s=0.1)
    finally:
        os.close(fd)
    fill(home / "irmap.db", OTHER)


# --- signals and memory ---------------------------------------------------------------------------

SLOW = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"


def test_sigint_ends_a_statement_that_is_running(home):
    """SQLite is in C for as long as it likes: the signal comes through the progress handler."""
    fill(home / "irmap.db")

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with Store.open_readonly(home / "irmap.db") as store:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                store._raw.execute(SLOW).fetchall()
            except KeyboardInterrupt:
                return 5
        return 6

    assert run_forked(run, home)[:2] == (5, "")


def test_sigint_while_closing_leaves_the_database_whole(home):
    path = home / "irmap.db"
    fill(path)
    before = scratch_names()

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        put = files.put_file

        def interrupted(*arguments, **options):
            done = put(*arguments, **options)
            signal.raise_signal(signal.SIGINT)
            return done

        files.put_file = interrupted
        try:
            fill(path, OTHER)
        except KeyboardInterrupt:
            return 5
        return 6

    assert run_forked(run, home).code == 5
    assert read_entries(path) == [ENTRY, OTHER]
    assert scratch_names() <= before
    assert os.listdir(home) == ["irmap.db"]


def test_lack_of_memory_is_one_line(home):
    fill(home / "irmap.db", *(ENTRY._replace(ino=ino) for ino in range(2000)))

    def run():
        from irmapdb import commands  # noqa: PLC0415 in the child
        from irmapdb.store import entries  # noqa: PLC0415

        def fail(*_):
            raise MemoryError

        entries.from_ino = fail
        sys.argv = ["irmapdb", "show", "irmap.db"]
        try:
            commands.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    done = run_forked(run, home)
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        f"irmapdb: {home}/irmap.db: there is not enough memory; free some, and run this again"
    )
