"""kill -9 at any moment: of the service, of its children, of the script that asks it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from irmapdb.image.cache import decode_cache
from tests.support.hook import start_as_criu
from tests.support.warm import WAIT_S, Asked, Warm

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

SERVICE_KILLS = 25
CHILD_KILLS = 150
HOOK_KILLS = 150

PATHS = {f"/srv/app/file-{index}".encode() for index in range(4)}
EXTRA = b"/srv"


@pytest.fixture
def container(node):
    made = node.container()
    for path in sorted(PATHS):
        made.add_inotify(os.fsdecode(path))
    return made


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def state_of(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone"
    return stat[stat.rindex(")") + 2]


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail if it never comes true."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never came true: {what}"
        time.sleep(0.01)


def assert_whole(warm: Warm, tmp_path: Path, *, also: Collection[bytes] = ()) -> None:
    """Every image is whole, and every database opens and is sound.

    `also`: paths that were watched for a time. An image has them if it is from that time.
    """
    watched = PATHS.union(also)
    for image in [*warm.run.glob("image-*"), *tmp_path.glob("work*/irmap-cache")]:
        with contextlib.suppress(FileNotFoundError):
            paths = {one.path for one in decode_cache(image.read_bytes(), str(image))}
            assert paths <= watched
    for path in (tmp_path / "databases").glob("*.db"):
        with contextlib.closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_its_children(container, warm, hook, tmp_path):
    warm.wait_ready(len(PATHS))
    chance = random.Random(12)
    killed = 0
    deadline_s = time.monotonic() + 240
    while killed < CHILD_KILLS and time.monotonic() < deadline_s:
        # A watch that comes and goes: so that there is work all the time.
        extra = container.add_inotify(EXTRA)
        time.sleep(chance.uniform(0, 0.1))
        for pid in children_of(warm.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        container.remove(extra)
        assert warm.process.poll() is None
    assert killed >= CHILD_KILLS
    assert_whole(warm, tmp_path, also={EXTRA})
    warm.end(signal.SIGKILL)
    warm.start()  # at once: a failed container is tried again only after some time
    warm.wait_ready(len(PATHS))
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert (asked.code, set(asked.paths or ())) == (0, PATHS)
    assert [pid for pid in children_of(warm.process.pid) if state_of(pid) == "Z"] == []
    assert state_of(container.pid) in "SR"


def test_the_script(container, warm, real_hook, tmp_path):
    warm.wait_ready(len(PATHS))
    chance = random.Random(13)
    before = descriptors_of(warm.process.pid)
    for index in range(HOOK_KILLS):
        work = tmp_path / f"work-{index % 10}"
        work.mkdir(mode=0o700, exist_ok=True)
        script = start_as_criu(
            real_hook, container.pid, work, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0, 0.08))
        os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    assert warm.process.poll() is None
    assert_whole(warm, tmp_path)
    asked = Asked.ask(real_hook, container.pid, tmp_path / "work")
    assert asked.code == 0
    assert asked.alone or set(asked.paths) == PATHS
    until(lambda: descriptors_of(warm.process.pid) <= before + 2, "descriptors are closed")
    until(lambda: len(children_of(warm.process.pid)) <= 3, "the children have ended")


def test_the_service(container, warm, real_hook, tmp_path):
    chance = random.Random(14)
    for index in range(SERVICE_KILLS):
        time.sleep(chance.uniform(0.3, 1.5))
        script = start_as_criu(real_hook, container.pid, tmp_path, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 0.05))
        children = children_of(warm.process.pid)
        warm.end(signal.SIGKILL)
        assert script.wait(WAIT_S) == 0  # so the dump goes on after each kill
        until(
            lambda pids=children: all(state_of(pid) in {"gone", "Z"} for pid in pids),
            f"its children end with it, round {index}",
        )
        assert_whole(warm, tmp_path)
        warm.start()
    warm.wait_ready(len(PATHS))
    asked = Asked.ask(real_hook, container.pid, tmp_path / "work")
    assert (asked.code, asked.alone, set(asked.paths)) == (0, False, PATHS)
    assert not list(warm.run.glob("work-*"))
    assert len(list((tmp_path / "databases").glob("*.db"))) == 1
    assert state_of(container.pid) in "SR"
