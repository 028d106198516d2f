"""The target of a database's name, if another user can put anything under it."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from irmapdb.errors import DatabaseError
from irmapdb.store import place
from irmapdb.store.database import Store
from tests.support.features import require_root
from tests.support.hostile import (
    COMMANDS,
    ENTRY,
    NOW,
    READERS,
    TENANT,
    WRITERS,
    fill,
    give_away,
    run_command,
    run_irmapdb,
)

pytestmark = pytest.mark.slow

FEW = ["sql", "audit", "export", "db backup", "import", "prune", "pre-dump", "hook"]


@pytest.fixture
def work(tmp_path):
    """An empty work dir of another user."""
    require_root()
    directory = tmp_path / "work"
    directory.mkdir()
    give_away(directory)
    return directory


@pytest.fixture
def ours(tmp_path):
    """A database of root's, elsewhere."""
    directory = tmp_path / "ours"
    directory.mkdir(mode=0o700)
    fill(directory / "irmap.db")
    return directory / "irmap.db"


def entries_of(path):
    with Store.open_readonly(path) as store:
        return store.image_entries()


def status(path):
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def check_refused(name, done, work, said):
    assert "Traceback" not in done.said
    if name == "hook":  # it has a temporary database
        assert done.code == 0
        assert said in (work / "irmapdb.log").read_text()
    else:
        assert done.code == 1, done
        assert said in done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_fifo_a_link_and_a_directory_are_refused_at_once(work, ours, name):
    path = work / "irmap.db"
    os.mkfifo(path)
    check_refused(name, run_command(name, work), work, "FIFO" if name in FILES else "pipe")
    path.unlink()
    path.mkdir()
    check_refused(name, run_command(name, work), work, "directory")
    path.rmdir()
    before = ours.read_bytes()
    path.symlink_to(ours)
    done = run_command(name, work)
    if name not in FILES:
        check_refused(name, done, work, "symbolic link")
    assert ours.read_bytes() == before


FILES = {"show", "convert"}  # the bytes of a file are read first


@pytest.mark.parametrize("name", FEW)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(work, name):
    path = work / "irmap.db"
    path.write_bytes(b"SQLite format 3\0")
    os.truncate(path, 1 << 42)
    give_away(work)
    check_refused(name, run_command(name, work), work, f"has {1 << 42} bytes")


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_written_through_a_hard_link(work, ours, name):
    os.link(ours, work / "irmap.db")
    before = ours.read_bytes(), status(ours), ours.stat().st_mtime_ns
    done = run_command(name, work)
    assert done.code in {0, 3}, done
    assert (ours.read_bytes(), status(ours), ours.stat().st_mtime_ns) == before
    assert os.listdir(ours.parent) == ["irmap.db"]


@pytest.mark.parametrize("name", sorted(READERS.keys() | WRITERS.keys()))
def test_a_hard_link_in_a_directory_of_ours_is_not_written_through_either(tmp_path, name):
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    fill(work / "irmap.db")
    os.link(work / "irmap.db", tmp_path / "kept.db")
    before = (tmp_path / "kept.db").read_bytes()
    done = run_command(name, work)
    assert done.code in {0, 3}, done
    assert (tmp_path / "kept.db").read_bytes() == before


@pytest.mark.parametrize("name", FEW)
def test_a_link_of_another_user_leads_to_no_directory_of_ours(tmp_path, ours, name):
    require_root()
    home = tmp_path / "home"
    home.mkdir()
    (home / "ckpt").symlink_to(ours.parent)
    give_away(home)
    before = ours.read_bytes(), sorted(os.listdir(ours.parent))
    arguments = {
        "sql": ("sql", "SELECT 1"),
        "audit": ("audit",),
        "export": ("export", tmp_path / "exported"),
        "db backup": ("db", "backup", tmp_path / "copy.db"),
        "prune": ("prune",),
    }.get(name)
    if arguments is None:
        with pytest.raises(DatabaseError, match=f"symbolic link of uid {TENANT}"):
            Store.open(home / "ckpt" / "irmap.db", create=True)
    else:
        words = (*map(str, arguments), "--db", str(home / "ckpt" / "irmap.db"))
        done = run_irmapdb(words, tmp_path)
        assert done.code == 1
        assert f"symbolic link of uid {TENANT}" in done.err
    assert (ours.read_bytes(), sorted(os.listdir(ours.parent))) == before


def test_a_link_of_another_user_to_their_directory_is_followed(tmp_path):
    require_root()
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    data.mkdir()
    (home / "ckpt").symlink_to("../data")
    give_away(home)
    give_away(data)
    fill(home / "ckpt" / "irmap.db")
    assert entries_of(data / "irmap.db") == [ENTRY]


def test_a_link_of_ours_is_followed_and_sqlite_works_in_place(tmp_path):
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "ckpt").symlink_to("data")
    with Store.open(tmp_path / "ckpt" / "irmap.db", create=True) as store:
        assert store.why_copied == ""
    assert os.listdir(tmp_path / "data") == ["irmap.db"]


# --- a race for the name --------------------------------------------------------------------------


def test_a_link_that_comes_after_the_look_changes_no_other_file(work, ours, tmp_path, monkeypatch):
    """The look says that it is a regular file; when it is opened, it is a link."""
    path, empty = work / "irmap.db", tmp_path / "empty"
    empty.touch()
    fill(path)
    for victim in (ours, empty):
        before = victim.read_bytes()
        look = place.status_of

        def swap(*arguments, victim=victim, look=look):
            found = look(*arguments)
            path.unlink()
            path.symlink_to(victim)
            return found

        monkeypatch.setattr(place, "status_of", swap)
        with suppress(DatabaseError):
            Store.open(path, create=True).close()
        with suppress(DatabaseError):
            Store.open_readonly(path).close()
        monkeypatch.setattr(place, "status_of", look)
        assert victim.read_bytes() == before
        path.unlink()
        fill(path)


def test_names_that_change_all_the_time_reach_no_other_file(work, ours, tmp_path):
    """The real race: root opens the database again and again while another user swaps its name."""
    path, own, empty = work / "irmap.db", work / "own", tmp_path / "empty"
    empty.touch()
    fill(own)
    victims = {ours: ours.read_bytes(), empty: b""}
    ended = threading.Event()

    def swap():
        while not ended.is_set():
            for victim in victims:
                with suppress(OSError):
                    os.symlink(victim, work / "new")
                    os.rename(work / "new", path)
                    os.link(own, work / "new")
                    os.rename(work / "new", path)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(100):
            with (
                suppress(DatabaseError, OSError),
                Store.open(path, create=True, wait_s=0) as store,
                store.step() as step,
            ):
                step.import_entries([ENTRY], NOW)
    finally:
        ended.set()
        swapping.join()
    assert {victim: victim.read_bytes() for victim in victims} == victims


# --- which directories are ours -------------------------------------------------------------------


def stay(directory):
    return directory


def below_a_sticky_one(directory):
    (directory / "tmp").mkdir()
    (directory / "tmp").chmod(0o1777)
    return directory / "tmp" / "work"


def below_one_of_somebody(directory):
    (directory / "home").mkdir()
    (directory / "home" / "root").mkdir(mode=0o700)
    os.chown(directory / "home", TENANT, TENANT)
    return directory / "home" / "root"


def below_one_that_others_write(directory):
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    return directory / "open" / "work"


def a_sticky_one(directory):
    directory.chmod(0o1777)
    return directory


def one_of_a_group(directory):
    directory.chmod(0o775)
    return directory


def with_a_file_of_somebody(directory):
    fill(directory / "irmap.db")
    os.chown(directory / "irmap.db", TENANT, TENANT)
    return directory


def with_a_file_that_others_write(directory):
    fill(directory / "irmap.db")
    (directory / "irmap.db").chmod(0o666)
    return directory


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (stay, ""),
        (below_a_sticky_one, ""),
        (a_sticky_one, "can be written by others"),
        (one_of_a_group, "can be written by others"),
        (below_one_of_somebody, f"home belongs to uid {TENANT}"),
        (below_one_that_others_write, "open can be written by others"),
        (with_a_file_of_somebody, f"a file of it belongs to uid {TENANT}"),
        (with_a_file_that_others_write, "a file of it can be written by others"),
    ],
)
def test_where_sqlite_works_in_place(tmp_path, make, why):
    require_root()
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    directory = make(base)
    directory.mkdir(exist_ok=True)
    fill(directory / "irmap.db")
    for store in (
        Store.open(directory / "irmap.db", create=False),
        Store.open_readonly(directory / "irmap.db"),
    ):
        with store:
            assert why in store.why_copied
            assert bool(why) == bool(store.why_copied)
    assert entries_of(directory / "irmap.db") == [ENTRY]
    assert [one for one in os.listdir(directory) if one.startswith("irmap")] == ["irmap.db"]


def test_a_directory_of_another_mount_namespace_is_not_ours(tmp_path):
    """Through /proc/PID/root: the owners of its parents cannot be found by their names."""
    directory = Path(f"/proc/{os.getpid()}/root{tmp_path}")
    fill(directory / "irmap.db")
    with Store.open_readonly(directory / "irmap.db") as store:
        assert store.why_copied == ""  # our own root, by another name
    with closing(sqlite3.connect(tmp_path / "irmap.db")) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
