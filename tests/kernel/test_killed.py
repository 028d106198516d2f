"""kill -9 at any moment: the tasks run, the database opens, the image is whole."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.config import Config
from irmapdb.image import cache
from irmapdb.store.database import Store
from tests.support.watcher import Watcher

_ROUNDS = 150
_STOPPED = "tT"


def _fork(step: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        step()
        os._exit(0)
    finally:
        os._exit(1)


def _whole_run_s(step: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        start = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(_fork(step), 0)[1]) == 0
        times.append(time.monotonic() - start)
    # The shortest: on a machine that was busy for a moment, the others would end before the kill.
    return min(times[1:])  # the first one made the database


def _assert_whole(work: Path, watched: int) -> None:
    entries = cache.decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    assert len(entries) == watched
    with Store.open(work / "irmap.db", create=False) as store:
        assert sum(not mapping.stale for mapping in store.all_mappings()) >= watched
        assert len(store.image_entries()) == watched


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pre-dump", "dump"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_kill_tasks_run_and_each_file_is_whole(
    watcher: Watcher, tmp_path: Path, name: str
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    names = [tmp_path / f"f{number}" for number in range(20)]
    for path in names:
        path.touch()
        watcher.add_inotify(path)
    work = tmp_path / "work"
    work.mkdir()
    options = StepOptions(watcher.pid, images_dir=work, config=Config(hints=()))
    pre_dump = partial(steps.pre_dump, options)
    step = pre_dump if name == "pre-dump" else partial(steps.dump, options, FreezeOptions())
    whole_s = _whole_run_s(step)

    killed = 0
    for _ in range(_ROUNDS):
        # The step has rows to write, so that the kill comes in the middle of them.
        one, other = chance.sample(names, 2)
        one.rename(tmp_path / "spare")
        other.rename(one)
        (tmp_path / "spare").rename(other)
        pid = _fork(step)
        time.sleep(chance.uniform(0, whole_s))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        killed += os.WIFSIGNALED(status)
        assert watcher.state() not in _STOPPED, f"seed {seed}"
        _assert_whole(work, len(names))

    assert killed > _ROUNDS // 4, "most runs ended before they were killed"
    assert {row.path for row in steps.dump(options, FreezeOptions()).watches} == set(
        map(os.fsencode, names)
    )
    leftovers = {path.name for path in work.iterdir()} - {
        "irmap-cache",
        "irmap.db",
        "irmap.db-shm",
        "irmap.db-wal",
        "inotify.img",
        "fanotify.img",
    }
    assert not leftovers, "temporary files of the killed are cleared by the next run"
