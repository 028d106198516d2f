"""The list of runs and the metrics beside real CRIU: each dump is there once, with its freeze."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from irmapdb.criu import hook_runs
from irmapdb.criu.hook_runs import read_runs
from irmapdb.node.metrics import LastRun, MetricsOptions, collect
from tests.support.hook import hook_program

# The tests have a /run of their own.
_RUN = Path("/run/irmapdb")


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    (_RUN / hook_runs.NAME).unlink(missing_ok=True)


def _last_run() -> LastRun:
    # The hook answers CRIU first.
    until = time.monotonic() + 60
    while not read_runs(_RUN).last:
        assert time.monotonic() < until
        time.sleep(0.01)
    (last,) = collect(MetricsOptions(_RUN, cgroup="/absent*")).last_runs
    return last


def test_a_dump_is_there_with_the_freeze_of_its_stats(criu, target, tmp_path):
    (tmp_path / "watched").touch()
    target.add_inotify(tmp_path / "watched")
    images, work = tmp_path / "images", tmp_path / "caf\udce9 work"
    program = hook_program(tmp_path)
    begun_s = time.time()
    done = criu.dump(target.pid, images, work=work, action_script=program)
    assert done.ok, done
    last = _last_run()
    run = last.run
    assert (run.by, run.outcome, run.watches, run.resolved) == ("hook", "done", 1, 1)
    assert (run.pid, run.work, run.paused) == (target.pid, os.fsencode(work), False)
    assert begun_s - 1 < run.at_s < time.time() + 1
    stats = criu.stats(done)
    assert last.frozen_s == stats["frozen_time"] / 1_000_000
    assert last.freezing_s == stats["freezing_time"] / 1_000_000
    # Figures of an older dump in the same work dir are not those of this run.
    os.utime(work / "stats-dump", (begun_s - 100, begun_s - 100))
    assert _last_run().frozen_s is None
    for damage in (b"", b"no image", (work / "irmap-cache").read_bytes()):
        (work / "stats-dump").write_bytes(damage)
        assert _last_run().frozen_s is None


def test_a_run_that_fails_is_there(tmp_path):
    environment = {"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": "none"}
    program = hook_program(tmp_path)
    subprocess.run([program], cwd=tmp_path, env=environment, capture_output=True, check=True)
    (run,) = read_runs(_RUN).last
    assert (run.outcome, run.pid) == ("failed", None)
    assert run.text == "not done: CRTOOLS_INIT_PID is 'none', which is no process id"
    environment["CRTOOLS_INIT_PID"] = "4194305"
    subprocess.run([program], cwd=tmp_path, env=environment, capture_output=True, check=True)
    runs = read_runs(_RUN)
    assert (runs.last[-1].outcome, runs.last[-1].pid) == ("failed", 4194305)
    assert [(one.by, one.outcome, one.runs) for one in runs.totals] == [("hook", "failed", 2)]
