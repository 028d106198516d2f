"""Files of another user beside a database, under the names of SQLite's own files.

SQLite believes these: it rolls a journal back, deletes the file that the journal names as its
super-journal, opens a FIFO, writes through a hard link.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing

import pytest

from tests.support.features import require_root
from tests.support.hostile import COMMANDS, READERS, fill, give_away, hot_journal, run_command
from tests.support.killed import kill_a_writer

pytestmark = pytest.mark.slow


@pytest.fixture
def victim(tmp_path):
    """A file that only root may change, elsewhere."""
    path = tmp_path / "victim"
    path.write_text("root's own\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def work(tmp_path):
    """A work dir of another user, with a database in it that root has made."""
    require_root()
    directory = tmp_path / "work"
    directory.mkdir()
    fill(directory / "irmap.db")
    with closing(sqlite3.connect(directory / "irmap.db")) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
    give_away(directory)
    return directory


def content(directory):
    return {
        path.name: (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in directory.iterdir()
    }


def tear(path, table):
    """Half of a page is that of another transaction."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as raw:
        (size,) = raw.execute("PRAGMA page_size").fetchone()
        question = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = raw.execute(question, (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * (size // 2))


def check_done(name, done):
    assert done.code in {0, 3}, done
    assert "Traceback" not in done.said
    if name != "hook":
        assert f"uid {os.stat('.').st_uid}" not in done.err
        assert "worked on a private copy" in done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_elsewhere_is_deleted(work, victim, name):
    (work / "irmap.db-journal").write_bytes(hot_journal(work / "irmap.db", victim))
    done = run_command(name, work)
    assert victim.read_text() == "root's own\n"
    check_done(name, done)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_database_in_wal_mode_has_no_super_journal_either(work, victim, name):
    with closing(sqlite3.connect(work / "irmap.db")) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
    (work / "irmap.db-journal").write_bytes(hot_journal(work / "irmap.db", victim))
    give_away(work)
    done = run_command(name, work)
    assert victim.read_text() == "root's own\n"
    check_done(name, done)


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_waits_for_a_fifo(work, name, suffix):
    os.mkfifo(work / f"irmap.db{suffix}")
    check_done(name, run_command(name, work))


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("name", ["sql", "audit", "pre-dump", "prune", "hook"])
def test_a_directory_or_a_link_in_its_place_is_not_used(work, victim, name, suffix):
    for make in (os.mkdir, lambda path: os.symlink(victim, path)):
        beside = work / f"irmap.db{suffix}"
        make(beside)
        check_done(name, run_command(name, work))
        assert victim.read_text() == "root's own\n"
        for left in work.glob(f"irmap.db{suffix}*"):
            left.unlink() if left.is_symlink() else left.rmdir()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_written_through_a_hard_link(work, victim, name, suffix):
    with closing(sqlite3.connect(work / "irmap.db")) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
    os.link(victim, work / f"irmap.db{suffix}")
    check_done(name, run_command(name, work))
    assert victim.read_text() == "root's own\n"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", READERS)
def test_a_command_that_reads_writes_nothing_there(work, victim, name):
    (work / "irmap.db-journal").write_bytes(hot_journal(work / "irmap.db", victim))
    (work / "irmap.db-wal").write_bytes(b"log")
    before = content(work)
    run_command(name, work)
    assert content(work) == before


@pytest.mark.parametrize("name", ["sql", "audit", "import", "hook"])
def test_a_database_that_needs_the_journal_is_refused_and_left(work, tmp_path, name):
    killed = tmp_path / "killed"
    killed.mkdir()
    kill_a_writer(work / "irmap.db", killed / "irmap.db")
    tear(killed / "irmap.db", "image_seen")  # which most of the commands do not use
    give_away(killed)
    before = content(killed)
    done = run_command(name, killed)
    assert "Traceback" not in done.said
    if name != "hook":
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith(f"irmapdb: {killed}/irmap.db: ")
        assert "damaged" in done.err
    after = content(killed)
    assert {one: after[one] for one in before} == before


def test_a_log_that_was_not_read_is_kept_beside_the_new_database(work):
    log = b"data of another user"
    (work / "irmap.db-wal").write_bytes(log)
    give_away(work)
    done = run_command("import", work)
    assert f"{work}/irmap.db-wal: was not read" in done.err
    assert (work / "irmap.db-wal.unread").read_bytes() == log
    assert sorted(os.listdir(work)) == ["irmap.db", "irmap.db-wal.unread"]


@pytest.mark.parametrize("name", ["sql", "import"])
def test_where_only_root_can_write_the_journal_is_rolled_back(tmp_path, name):
    """A killed writer of our own is undone, as ever."""
    require_root()
    work, killed = tmp_path / "work", tmp_path / "killed"
    for directory in (work, killed):
        directory.mkdir()
    fill(work / "irmap.db")
    kill_a_writer(work / "irmap.db", killed / "irmap.db")
    for file in killed.iterdir():
        file.chmod(0o600)
    done = run_command(name, killed)
    assert done.code == 0, done
    assert "private copy" not in done.err
    shutil.rmtree(work)
    assert os.listdir(killed) == ["irmap.db"]
