"""Several processes at one database, and processes that die in the middle."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
import traceback
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from irmapdb.errors import DatabaseError
from irmapdb.model import (
    CacheEntry,
    Change,
    ChangeKind,
    Event,
    FileHandle,
    Identity,
    Resolved,
    RunStats,
    Source,
    Watch,
    WatchKind,
)
from irmapdb.store.database import Store
from irmapdb.store.records import WatchRow

NOW = datetime(2026, 11, 23, tzinfo=UTC)
KDEV = 254 << 20
FILES_A_STEP = 40
KILLS = 50


@contextmanager
def child(work):
    """A forked process that does `work`; killed at the end if it still runs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a forked test must not go on as pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def holder_of(path):
    """A process that is inside a step of `path`."""
    inside, tell = os.pipe()

    def hold():
        with Store.open(path, create=False) as store, store.step():
            os.write(tell, b"!")
            signal.pause()

    with child(hold) as pid:
        os.close(tell)
        assert os.read(inside, 1) == b"!"
        os.close(inside)
        yield pid


def one_step(path, number, wait_s=10.0):
    """A step that writes to every table, with values of its own."""
    files = [
        (Identity(KDEV, number, FileHandle(1, b"%d" % at)), b"/srv/%d/%d" % (number, at))
        for at in range(FILES_A_STEP)
    ]
    with Store.open(path, create=True, wait_s=wait_s) as store, store.step() as step:
        step.flag_all()
        step.prove((Resolved(one, path, Source.SCAN) for one, path in files), NOW)
        step.set_image(CacheEntry(KDEV, number, path) for _, path in files)
        run = step.add_run(
            Event.DUMP,
            pid=number,
            comm=None,
            started_at=NOW,
            finished_at=NOW,
            stats=RunStats(watches=FILES_A_STEP),
            outcome="done",
        )
        step.add_watches(
            run,
            (
                WatchRow(Watch(1, 1, WatchKind.INOTIFY, 1, one, 1, 0, 0), None, path, None)
                for one, path in files
            ),
        )
        step.add_changes(run, (Change(ChangeKind.FOUND, *file) for file in files), NOW)


def check_whole_steps(path):
    """Every step is there whole or not at all. Returns how many are."""
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert other.execute("PRAGMA foreign_key_check").fetchall() == []
    with Store.open(path, create=False) as store:
        runs = list(store.runs())
        numbers = [run.pid for run in runs]
        wanted = {
            (number, b"/srv/%d/%d" % (number, at))
            for number in numbers
            for at in range(FILES_A_STEP)
        }
        assert {(one.identity.ino, one.path) for one in store.all_mappings()} == wanted
        assert [row.change.path for row in store.changes()] == [
            b"/srv/%d/%d" % (number, at) for number in numbers for at in range(FILES_A_STEP)
        ]
        for run in runs:
            assert sum(1 for _ in store.watches(run.id)) == FILES_A_STEP
        assert {entry.ino for entry in store.image_entries()} == set(numbers[-1:])
    return len(runs)


@pytest.fixture(params=["wal", "delete"])
def path(request, tmp_path):
    path = tmp_path / "irmap.db"
    Store.open(path, create=True).close()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute(f"PRAGMA journal_mode = {request.param}").fetchone() == (
            request.param,
        )
    return path


def test_a_locked_database_names_the_process_that_has_it(path):
    with holder_of(path) as pid:
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        with pytest.raises(DatabaseError) as locked:
            one_step(path, 1, wait_s=0.05)
        assert f"locked by pid {pid} ({comm}), for longer than the 0.05 s" in str(locked.value)
        with Store.open_readonly(path, wait_s=0) as reader:
            assert list(reader.runs()) == []
    one_step(path, 1)
    assert check_whole_steps(path) == 1


def test_asking_for_the_owner_of_a_lock_keeps_the_lock(path):
    def find_it_locked_by(pid):
        with pytest.raises(DatabaseError, match=f"locked by pid {pid} "):
            one_step(path, 1, wait_s=0)

    with Store.open(path, create=False) as first, first.step():
        # Our own process is asked too: POSIX locks of one process never stand in its own way.
        with pytest.raises(DatabaseError, match="locked by another process"):
            one_step(path, 1, wait_s=0)
        me = os.getpid()
        with child(lambda: find_it_locked_by(me)) as pid:
            assert exit_code(pid) == 0


def test_processes_that_make_and_fill_one_database_wait_for_each_other(tmp_path):
    path = tmp_path / "irmap.db"

    def fill(first):
        for number in range(first, first + 5):
            one_step(path, number, wait_s=60)

    with (
        child(lambda: fill(10)) as one,
        child(lambda: fill(20)) as two,
        child(lambda: fill(30)) as three,
    ):
        assert [exit_code(pid) for pid in (one, two, three)] == [0, 0, 0]
    assert check_whole_steps(path) == 15
    assert os.listdir(tmp_path) == ["irmap.db"]


def seconds_of(work):
    """How long `work` takes in a process of its own here and now."""
    before = time.monotonic()
    with child(work) as pid:
        assert exit_code(pid) == 0
    return time.monotonic() - before


@pytest.mark.slow
def test_after_a_kill_each_step_is_whole_or_absent(tmp_path):
    path = tmp_path / "irmap.db"
    chance = random.Random(20261123)

    def go_on(first):
        for number in range(first, first + 1000):
            one_step(path, number)

    span = 3 * seconds_of(lambda: one_step(path, 0))
    done = 1
    for _ in range(KILLS):
        with child(lambda first=done: go_on(first)):
            time.sleep(chance.uniform(0.0, span))  # the moment of the kill
        before, done = done, check_whole_steps(path)
        assert done >= before
    assert done > 1


@pytest.mark.slow
def test_a_kill_while_a_database_is_made_leaves_one_that_opens(tmp_path):
    chance = random.Random(20261124)

    def make(path):
        Store.open(path, create=True).close()

    span = 1.5 * seconds_of(lambda: make(tmp_path / "whole.db"))
    for number in range(KILLS):
        path = tmp_path / f"{number}.db"
        with child(lambda path=path: make(path)):
            time.sleep(chance.uniform(0.0, span))  # the moment of the kill
        one_step(path, 1)
        assert check_whole_steps(path) == 1


def test_a_kill_between_two_batches_undoes_the_step(tmp_path):
    path = tmp_path / "irmap.db"
    one_step(path, 1)

    def die_half_way():
        for ino in range(20_000):
            if ino == 15_000:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Resolved(Identity(KDEV, ino, None), b"/x/%d" % ino, Source.SCAN)

    def work():
        with Store.open(path, create=False) as store, store.step() as step:
            step.prove(die_half_way(), NOW)

    with child(work) as pid:
        assert exit_code(pid) == -signal.SIGKILL
    assert check_whole_steps(path) == 1
