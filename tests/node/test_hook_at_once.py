"""The hook killed at any moment, called twice at once, and called while the service restarts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from irmapdb.image.cache import decode_cache
from tests.support.hook import hook_program, start_as_criu
from tests.support.warm import write_hook
from tests.support.watcher import Watcher

KILLS = 200
AT_ONCE = 8
RESTARTS = 5
WAIT_S = 60.0
FILES = 12


class Tree:
    """Watched files that swap their names, and the hook in a work dir of its own."""

    def __init__(self, task: Watcher, directory: Path, inside: str, work: Path) -> None:
        self.task, self.directory, self.inside, self.work = task, directory, inside, work
        self.names = [f"file-{index}" for index in range(FILES)]
        work.mkdir(mode=0o700)
        for name in self.names:
            (directory / name).touch()
            task.add_inotify(f"{inside}/{name}")

    def swap(self, chance: random.Random) -> None:
        """Swap the names of two files, so that the hook has a change to write."""
        one, other = chance.sample(self.names, 2)
        spare = self.directory / "spare"
        (self.directory / one).rename(spare)
        (self.directory / other).rename(self.directory / one)
        spare.rename(self.directory / other)

    def truth(self) -> set[tuple[int, bytes]]:
        """(inode number, path in the task's root) of each, as lstat(2) says it now."""
        return {
            (os.lstat(self.directory / name).st_ino, os.fsencode(f"{self.inside}/{name}"))
            for name in self.names
        }

    def image(self) -> set[tuple[int, bytes]]:
        """The same of irmap-cache; it raises where that is not whole."""
        data = (self.work / "irmap-cache").read_bytes()
        return {(entry.ino, entry.path) for entry in decode_cache(data, "irmap-cache")}

    def call(self, program: Path) -> subprocess.Popen[str]:
        """Start the hook as CRIU does."""
        patient = {"IRMAPDB_HOOK_TIMEOUT": "30"}  # the test must pass on a busy machine
        return start_as_criu(
            program, self.task.pid, self.work, environment=patient, stderr=subprocess.DEVNULL
        )


@pytest.fixture
def tree(tmp_path):
    directory = tmp_path / "watched"
    directory.mkdir()
    with Watcher() as task:
        yield Tree(task, directory, os.fspath(directory), tmp_path / "work")


@pytest.fixture
def hook(tmp_path):
    return hook_program(tmp_path)


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_gone(pid: int) -> None:
    """Wait until the process has ended; a zombie has."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        if stat[stat.rindex(")") + 2] in "ZX":
            return
        time.sleep(0.005)
    pytest.fail(f"process {pid} of the hook does not end")


def assert_sound(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _processes_of(
    call: subprocess.Popen[bytes], delay_s: float = 0, *, child: bool = True
) -> tuple[list[int], list[int]]:
    """Pids of the hook and of its child, so many seconds after the child, or the hook, is there.

    Without those that had ended before they were seen.
    """
    hooks: list[int] = []
    workers: list[int] = []
    until_s: float | None = None
    while True:
        ended = call.poll() is not None
        hooks = hooks or children_of(call.pid)
        workers = workers or [pid for hook in hooks for pid in children_of(hook)]
        if until_s is None and (workers if child else hooks):
            until_s = time.monotonic() + delay_s
        if ended if until_s is None else time.monotonic() >= until_s:
            return hooks, workers
        time.sleep(0.002)


def _times_s(tree: Tree, program: Path, chance: random.Random) -> tuple[float, float]:
    """Seconds of the hook, and seconds until its child has stored the run: the least of some."""
    answers_s, wholes_s = [], []
    for _ in range(4):
        tree.swap(chance)
        start_s = time.monotonic()
        call = tree.call(program)
        _, workers = _processes_of(call)
        assert call.wait(WAIT_S) == 0
        answers_s.append(time.monotonic() - start_s)
        for pid in workers:
            wait_gone(pid)
        wholes_s.append(time.monotonic() - start_s)
    return min(answers_s), min(wholes_s)


@pytest.mark.slow
def test_killed_at_any_moment(tree, hook):
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    answer_s, whole_s = _times_s(tree, hook, chance)
    killed = {"hook": 0, "child": 0, "both": 0}
    for index in range(KILLS):
        before = tree.image()
        tree.swap(chance)
        whom = chance.choice(sorted(killed))
        call = tree.call(hook)
        until_s = chance.uniform(0, answer_s if whom == "hook" else whole_s)
        hooks, workers = _processes_of(call, until_s, child=whom != "hook")
        for pid in {"hook": hooks, "child": workers, "both": [*hooks, *workers]}[whom]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed[whom] += 1
        code = call.wait(WAIT_S)
        for pid in (*hooks, *workers):
            wait_gone(pid)
        about = f"seed {seed}, round {index}, {whom} killed"
        # CRIU gets its 0, unless the very process is killed that it waits for.
        assert code == 0 or whom != "child", about
        image, truth = tree.image(), tree.truth()
        if whom != "hook":
            assert image in (before, truth), about
        # A child stops its search if no process waits for it; unproved rows stay as they were.
        assert before & truth <= image <= before | truth, about
        assert tree.task.state() in "SR", about
        if (tree.work / "irmap.db").exists():
            assert_sound(tree.work / "irmap.db")
    assert min(killed.values()) > KILLS // 10, killed

    tree.swap(chance)
    call = tree.call(hook)
    _, workers = _processes_of(call)
    assert call.wait(WAIT_S) == 0
    for pid in workers:
        wait_gone(pid)
    assert tree.image() == tree.truth()
    # Until the last one has stored its results, SQLite has files of its own there.
    known = {"irmap-cache", "irmap.db", "irmap.db-shm", "irmap.db-wal", "irmapdb.log"}
    assert {path.name for path in tree.work.iterdir()} <= known | {"irmapdb.log.old"}


def test_two_at_once(tree, hook):
    chance = random.Random(15)
    for _ in range(AT_ONCE):
        tree.swap(chance)
        calls = [tree.call(hook), tree.call(hook)]
        assert [call.wait(WAIT_S) for call in calls] == [0, 0]
        assert tree.image() == tree.truth()
    assert tree.task.state() in "SR"


def test_two_at_once_while_the_service_restarts(node, warm, tmp_path):
    container = node.container()
    directory = node.roots[container.id] / "srv" / "app"
    tree = Tree(container, directory, "/srv/app", tmp_path / "work")
    script = write_hook(tmp_path, warm.run, program=hook_program(tmp_path), patient=False)
    warm.wait_ready(FILES)
    chance = random.Random(16)
    for index in range(RESTARTS):
        # No names are swapped: a slow service writes the image that it proved last.
        (tree.work / "irmap-cache").unlink(missing_ok=True)
        calls = [tree.call(script), tree.call(script)]
        time.sleep(chance.uniform(0, 0.15))
        warm.end(signal.SIGKILL if index % 2 else signal.SIGTERM)
        warm.start()
        calls.append(tree.call(script))
        assert [call.wait(WAIT_S) for call in calls] == [0, 0, 0]
        assert tree.image() == tree.truth()
        assert container.state() in "SR"
    warm.wait_ready(FILES)
    assert {path.name for path in tree.work.iterdir() if path.name.startswith("irmap-cache")} == {
        "irmap-cache"
    }
