"""`irmapdb hook --try`: a checkpoint by real CRIU, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irmapdb.criu import hook_runs
from tests.support.cli import irmapdb
from tests.support.programs import SYSTEM_PATH

_VENV = Path(sys.executable).parent
_MARK = f"{os.getpid()}-{time.time_ns()}"


@pytest.fixture
def options(tmp_path, monkeypatch, rig):
    monkeypatch.setenv("PATH", f"{rig}:{_VENV}:{SYSTEM_PATH}")
    monkeypatch.setenv("IRMAPDB_TEST_TRIAL", _MARK)
    return ("--criu-dir", tmp_path / "etc", "--script", tmp_path / "bin" / "irmapdb-hook")


def _state() -> tuple[set[str], set[str], str]:
    """Temporary directories, processes of a trial, and mounts."""
    places = ("/dev/shm", "/var/tmp", "/tmp")
    names = {
        f"{place}/{name}"
        for place in places
        if os.path.isdir(place)
        for name in os.listdir(place)
        if name.startswith("irmapdb-trial.")
    }
    running = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        # Another worker may have a trial too.
        if b"irmapdb-trial." in words and _MARK.encode() in environment:
            running.add(pid)
    return names, running, Path("/proc/self/mountinfo").read_text()


def _try(*options: object) -> tuple[int, dict]:
    before = _state()
    done = irmapdb("hook", "--try", "--json", *options)
    assert _state() == before
    return done.code, json.loads(done.out)


def test_it_passes_with_the_hook_of_a_configuration_file(options, tmp_path):
    for runtime, file in (("runc", "runc.conf"), ("criu", "default.conf")):
        assert irmapdb("hook", "--install", runtime, *options).code == 0
        runs = len(hook_runs.read_runs("/run/irmapdb").last)
        code, document = _try(*options)
        assert (code, document["passed"], document["log"]) == (0, True, []), document
        assert document["called_by"] == str(tmp_path / "etc" / file)
        assert [one["name"] for one in document["steps"]] == [
            *("watch", "dump", "hook", "restore", "event")
        ]
        by_name = {one["name"]: one["text"] for one in document["steps"]}
        assert by_name["hook"].startswith("1 watch: 1 proved")
        # The run is one of those that --status shows.
        last = hook_runs.read_runs("/run/irmapdb").last
        assert len(last) == min(runs + 1, 200)
        assert (last[-1].outcome, last[-1].watches, last[-1].resolved) == ("done", 1, 1)


def test_without_a_line_it_names_the_hook_itself(options):
    code, document = _try(*options)
    assert (code, document["passed"], document["called_by"]) == (0, True, ""), document


def test_a_hook_that_does_nothing_is_found(options, tmp_path):
    (tmp_path / "etc").mkdir()
    script = tmp_path / "irmapdb-hook"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    (tmp_path / "etc" / "runc.conf").write_text(f"action-script {script}\n")
    code, document = _try(*options)
    assert code == 3
    failed = document["steps"][-1]
    assert not failed["passed"]
    # CRIU 4.1 finds no path on an overlay; a newer one dumps it, and the hook was not called.
    assert failed["name"] in {"dump", "hook"}
    assert document["log"]
    if failed["name"] == "dump":
        assert any("Can't dump that handle" in line for line in document["log"])


def test_a_hook_that_fails_is_found(options, tmp_path):
    assert irmapdb("hook", "--install", "runc", *options).code == 0
    script = tmp_path / "bin" / "irmapdb-hook"
    text = script.read_bytes()
    script.write_bytes(text.replace(b"\nprogram='", b"\nprogram='/absent"))
    code, document = _try(*options)
    assert code == 3
    assert any("is missing" in line for line in document["log"]), document


def test_nothing_is_left_if_it_is_killed(options):
    before = _state()
    command = [sys.executable, "-m", "irmapdb", "hook", "--try", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not _state()[1] - before[1]:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    while _state()[1] - before[1]:
        assert time.monotonic() < until
        time.sleep(0.01)
    # The directory is empty, and the next run removes it.
    code, _ = _try_again(options)
    assert code == 0
    assert _state() == before


def _try_again(options: tuple[object, ...]) -> tuple[int, str]:
    done = irmapdb("hook", "--try", *options)
    return done.code, done.said


def test_without_criu_it_says_so(options, monkeypatch, tmp_path):
    monkeypatch.setattr("irmapdb.criu.usable.which", lambda _name: None)
    done = irmapdb("hook", "--try", *options)
    assert done.code == 1
    assert "no criu is on PATH; install CRIU 4.1.1 or newer" in done.err
