"""After any failure of irmapdb, CRIU's dump ends as it would without irmapdb, or better."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from tests.support.criu import Verdict, write_cache
from tests.support.filesystems import superblock_kdev, tmpfs
from tests.support.hook import hook_program, log_until_stored

PATH, FAILS = Verdict.PATH, Verdict.FAILS


class _Dumps:
    """Dumps of one task with one watch, each with CRIU's verdict."""

    def __init__(self, criu, target, watched, tmp_path, hook) -> None:
        self._criu, self._target, self._watched, self._hook = criu, target, watched, hook
        self._images = tmp_path / "images"
        self.work = tmp_path / "work"
        self.work.mkdir()
        self.number = 0

    def __call__(self, **environment):
        return self._dump(self._hook, environment)

    def without_us(self):
        return self._dump(None, {})

    def _dump(self, hook, environment):
        self.number += 1
        self.last = self._criu.dump(
            self._target.pid,
            self._images / str(self.number),
            work=self.work,
            action_script=hook,
            env=environment,
        )
        return self._criu.verdict(self.last, self._watched)

    @property
    def log(self) -> str:
        return (self.work / "irmapdb.log").read_text()


@pytest.fixture
def place(request, area):
    return area.place(request.param)


@pytest.fixture
def dumps(place, criu, target, tmp_path):
    file = place.directory / "file"
    watched = target.add_inotify(file)
    made = _Dumps(criu, target, watched, tmp_path, hook_program(tmp_path))
    made.entry = superblock_kdev(place.mountpoint), watched.st_ino, watched.path
    # An open file keeps its name in the kernel's cache, also if another process drops caches.
    with file.open():
        yield made


# On this one CRIU fails by itself, and on ext4 it does not.
on_overlay = pytest.mark.parametrize("place", ["overlay-lower"], indirect=True)
on_ext4 = pytest.mark.parametrize("place", ["ext4"], indirect=True)
on_both = pytest.mark.parametrize("place", ["overlay-lower", "ext4"], indirect=True)


@pytest.mark.alone  # the hook has two seconds
@on_overlay
def test_locked_database(dumps):
    assert dumps() is PATH
    log_until_stored(dumps.work)
    with closing(sqlite3.connect(dumps.work / "irmap.db")) as locker:
        locker.execute("BEGIN IMMEDIATE")
        (dumps.work / "irmap-cache").unlink()
        # Its rows can still be read, and the dump does not wait for more.
        assert dumps(IRMAPDB_HOOK_TIMEOUT="2") is PATH
        assert "(1 known before)" in dumps.last.log
        assert dumps.log.count("stored in") == 1
    assert log_until_stored(dumps.work, 2)[-1].endswith("as run 2")


@on_overlay
def test_corrupt_database(dumps):
    assert dumps() is PATH
    log_until_stored(dumps.work)
    database, cache = dumps.work / "irmap.db", dumps.work / "irmap-cache"
    garbage = b"SQLite format 3\0" + os.urandom(4096)
    for content in (garbage, b"no database"):
        database.write_bytes(content)
        cache.unlink()
        assert dumps() is PATH
        log_until_stored(dumps.work, dumps.number)
        assert database.read_bytes() == content
    assert 'it begins with "no database"' in dumps.log


@on_overlay
def test_database_that_cannot_be_made(dumps, tmp_path):
    (tmp_path / "file").touch()
    assert dumps(IRMAPDB_HOOK_DB=str(tmp_path / "file" / "databases")) is PATH
    assert dumps(IRMAPDB_HOOK_DB="not/absolute") is PATH
    assert "IRMAPDB_HOOK_DB: 'not/absolute' is no absolute path" in dumps.log


@on_overlay
@pytest.mark.parametrize("content", [b"", b"\x40\x59", b"no image", "cut off"], ids=repr)
def test_corrupt_cache(dumps, content):
    cache = write_cache(dumps.work, [dumps.entry])
    cache.write_bytes(cache.read_bytes()[:-1] if content == "cut off" else content)
    before = cache.read_bytes()
    assert dumps.without_us() is FAILS
    assert dumps() is PATH
    assert (dumps.work / "irmap-cache.broken").read_bytes() == before


@on_both
def test_full_disk(dumps, place):
    with tmpfs(dumps.work, size_mib=1):
        # The old cache stays as long as there is no room for a new one.
        write_cache(dumps.work, [dumps.entry])
        with (dumps.work / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                if os.statvfs(dumps.work).f_bavail == 0:
                    break
        assert dumps() is PATH
        cache = dumps.work / "irmap-cache"
        cache.write_bytes(b"")
        # A broken one is out of CRIU's way even so.
        without = dumps.without_us()
        assert without is FAILS
        cache.unlink()
        without = dumps.without_us()
        cache.write_bytes(b"")
        assert dumps() is without
        assert without is (FAILS if place.kind.startswith("overlay") else PATH)


@pytest.mark.alone  # the time of the hook is tested
@on_both
def test_time_is_over(dumps, place):
    without = dumps.without_us()
    assert dumps(IRMAPDB_HOOK_TIMEOUT="0.000001") is without
    assert "the limit of 1e-06 s was reached" in dumps.log
    # The old entry, which CRIU would use without irmapdb, is still there.
    write_cache(dumps.work, [dumps.entry])
    assert dumps.without_us() is PATH
    assert dumps(IRMAPDB_HOOK_TIMEOUT="0.000001") is PATH
    assert dumps() is PATH


CRASHES = {
    "missing": "raise ImportError('not there')",
    "out of memory": "raise MemoryError",
    "exit": "raise SystemExit(7)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "aborted": "import os; os.abort()",
    "hanging": "import time; time.sleep(1000)",
}


@on_ext4
@pytest.mark.parametrize("crash", CRASHES)
def test_irmapdb_crashes(dumps, crash, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sqlite3.py").write_text(CRASHES[crash])
    assert dumps(PYTHONPATH=str(broken), IRMAPDB_HOOK_TIMEOUT="0.1") is PATH
    assert "irmapdb-hook: not done: the worker" in dumps.last.log
    assert "not done: the worker" in dumps.log


@on_ext4
@pytest.mark.parametrize("crash", CRASHES)
def test_irmapdb_crashes_when_criu_has_gone_on(dumps, crash, tmp_path):
    # These modules are imported after the answer: only the history of this run is lost.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tempfile.py").write_text(CRASHES[crash].replace("sleep(1000)", "sleep(5)"))
    assert dumps(PYTHONPATH=str(broken), IRMAPDB_HOOK_STRICT="1") is PATH
    assert "irmapdb-hook: 1 watch: 1 proved" in dumps.last.log
    assert (dumps.work / "irmap-cache").exists()
    assert dumps() is PATH
    log_until_stored(dumps.work)


@on_ext4
def test_strict_fails_the_dump_on_an_error_only(dumps, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sqlite3.py").write_text("raise ImportError")
    assert dumps(PYTHONPATH=str(broken), IRMAPDB_HOOK_STRICT="1") is FAILS
    assert "exited with" in dumps.last.log
    assert dumps(IRMAPDB_HOOK_STRICT="1") is PATH


@on_overlay
def test_unwritable_places(dumps, tmp_path):
    # A log that would lead elsewhere is not written, and a cache that would is not replaced.
    elsewhere = tmp_path / "elsewhere"
    (dumps.work / "irmapdb.log").symlink_to(elsewhere)
    assert dumps() is PATH
    (dumps.work / "irmap-cache").unlink()
    (dumps.work / "irmap-cache").symlink_to(elsewhere)
    without = dumps.without_us()
    assert dumps() is without
    assert not elsewhere.exists()
