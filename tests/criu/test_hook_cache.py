"""The cache that the hook gives to CRIU: only entries that CRIU accepts, and one run for a dump."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from irmapdb.image.cache import decode_cache
from tests.support.criu import write_cache
from tests.support.hook import hook_program, log_until_stored
from tests.support.notify import IN_CREATE, IN_OPEN
from tests.support.warm import write_hook


@pytest.fixture
def hook(tmp_path):
    return hook_program(tmp_path)


def _entries(work):
    return decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")


def _kdev(status):
    return os.major(status.st_dev) << 20 | os.minor(status.st_dev)


def _mapped(work):
    """The mappings of the database, (ino, path)."""
    log_until_stored(work)
    with closing(sqlite3.connect(work / "irmap.db")) as database:
        return set(database.execute("SELECT ino, CAST(path AS BLOB) FROM mapping"))


@pytest.mark.parametrize("kind", ["btrfs-subvolume", "overlay-two-filesystems"])
def test_only_paths_that_criu_would_find(kind, area, criu, target, hook, tmp_path):
    place = area.place(kind)
    (place.directory / "upper").write_bytes(b"upper")
    names = ("file", "upper", "dir")
    watched = [target.add_inotify(place.directory / name, IN_OPEN) for name in names]
    watched.append(target.add_inotify(tmp_path, IN_CREATE))

    done = criu.dump(target.pid, tmp_path / "images", action_script=hook)
    entries = _entries(done.work)
    for entry in entries:
        status = os.lstat(entry.path)
        assert (_kdev(status), status.st_ino) == entry.key
    # Only paths of other filesystems, and the directory of such an overlay.
    found = {entry.path for entry in entries}
    expected = {os.fsencode(tmp_path)}
    if kind.startswith("overlay"):
        expected.add(os.fsencode(place.directory / "dir"))
    assert found == expected
    # The rest is not lost, and people can ask for it.
    assert {path for _, path in _mapped(done.work)} >= {one.path for one in watched}
    assert "is invalid" not in done.log


def test_called_twice_for_one_action_it_works_once(criu, target, hook, tmp_path):
    target.add_inotify(tmp_path)
    config = tmp_path / "criu.conf"
    config.write_text(f"action-script {hook}\n")
    done = criu.dump(target.pid, tmp_path / "images", options=["--config", str(config)])
    assert done.ok
    script = f"[{hook}]"
    before, after = done.log.split("Loading irmap cache")
    # CRIU 4.1.1 calls a script of a configuration file twice; newer versions do not.
    assert before.count(script) in {1, 2}
    assert before.count("irmapdb-hook: ") == 1
    # At all other actions it prints no line.
    assert "irmapdb-hook: " not in after
    assert len(log_until_stored(done.work)) == 2
    # The next dump is another one.
    assert criu.dump(target.pid, tmp_path / "images", options=["--config", str(config)]).ok
    assert len(log_until_stored(done.work, 2)) == 4


def _with_script(directory):
    run = directory / "run"
    run.mkdir(mode=0o700)
    script = write_hook(directory, run, hook_program(directory))
    config = directory / "criu.conf"
    config.write_text(f"action-script {script}\n")
    return ["--config", str(config)]


def test_the_time_of_the_freeze_is_that_of_criu(criu, target, tmp_path):
    target.add_inotify(tmp_path)
    options = _with_script(tmp_path)
    expected = []
    for number in (1, 2):  # the second one finds the file of the first
        done = criu.dump(target.pid, tmp_path / "images", options=options)
        assert done.ok
        log_until_stored(done.work, number)
        stats = criu.stats(done)
        expected.append((stats["freezing_time"], stats["frozen_time"]))
    with closing(sqlite3.connect(done.work / "irmap.db")) as database:
        stored = database.execute("SELECT criu_freezing_us, criu_frozen_us FROM run").fetchall()
        shown = database.execute("SELECT stopped_by, frozen_ms, criu_frozen_ms FROM frozen_dumps")
        assert stored == expected
        assert shown.fetchall() == [
            ("freeze", None, round(frozen_us / 1000, 1)) for _, frozen_us in expected
        ]


def test_no_freeze_is_stored_for_a_dump_that_failed(criu, target, tmp_path):
    target.add_inotify(tmp_path)
    options = _with_script(tmp_path)
    assert criu.dump(target.pid, tmp_path / "images", options=options).ok
    log_until_stored(tmp_path / "images")
    ghost = tmp_path / "ghost"
    ghost.write_bytes(bytes(3 << 20))  # a larger deleted file than CRIU saves
    target.open(ghost)
    ghost.unlink()
    done = criu.dump(target.pid, tmp_path / "images", options=options)
    assert not done.ok
    log_until_stored(done.work, 2)
    with closing(sqlite3.connect(done.work / "irmap.db")) as database:
        stored = database.execute("SELECT criu_frozen_us > 0 FROM run").fetchall()
    assert stored == [(1,), (0,)]


def test_database_elsewhere(area, criu, target, hook, tmp_path):
    place = area.place("overlay-lower")
    target.add_inotify(place.directory / "file", IN_OPEN)
    databases, images = tmp_path / "var" / "irmapdb", tmp_path / "images"
    for number, known in enumerate((0, 1)):
        # As containerd does it: the work dir does not live longer than the dump.
        done = criu.dump(
            target.pid,
            images,
            work=tmp_path / f"work-{number}",
            action_script=hook,
            env={"IRMAPDB_HOOK_DB": str(databases)},
        )
        assert done.ok, done
        assert f"1 proved ({known} known before)" in done.log
        log_until_stored(done.work)
        assert not (done.work / "irmap.db").exists()
    (database,) = databases.glob("*.db")
    assert databases.stat().st_mode & 0o777 == 0o700
    assert database.stat().st_mode & 0o777 == 0o600


def test_an_old_entry_of_an_ambiguous_inode_is_left_for_criu(criu, target, hook, tmp_path):
    """No path of it is proved, and CRIU uses the old entry, as without irmapdb."""
    watched = target.add_inotify("/proc/meminfo", IN_OPEN)
    images = tmp_path / "images"
    for action_script in (None, hook):
        write_cache(images, [(_kdev(watched), watched.st_ino, b"/proc/meminfo")])
        assert criu.dump(target.pid, images, action_script=action_script).ok
    assert [entry.path for entry in _entries(images)] == [b"/proc/meminfo"]
    assert not criu.dump(target.pid, tmp_path / "without", action_script=hook).ok
