"""podman end to end: a container on its overlay, which ends with its checkpoint or goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.cli import irmapdb
from tests.support.engine_watches import PATHS, add_watches, assert_all_hear
from tests.support.features import require_program
from tests.support.hook import CHECKOUT, installed_for_runc
from tests.support.podman import PodmanContainer
from tests.support.programs import SYSTEM_PATH, ProgramError

both_ways = pytest.mark.parametrize("options", [(), ("--leave-running",)], ids=["ends", "goes-on"])


@pytest.fixture(autouse=True)
def _enough_time(monkeypatch):
    monkeypatch.setenv("IRMAPDB_HOOK_PAUSED_TIMEOUT", "20")  # enough, on a busy machine as well


@pytest.fixture
def container(rig, tmp_path):
    require_program("runc")
    require_program("podman")
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    with PodmanContainer(tmp_path / "podman", path) as made:
        yield made


@pytest.fixture
def installed(tmp_path):
    with installed_for_runc(tmp_path) as script:
        yield script


def _checkpoint(container, options, criu):
    """The log of the dump, which has every path."""
    dump_log = container.work / "dump.log"
    try:
        container.checkpoint(*options)
    except ProgramError as error:
        talk = dump_log.read_text(errors="replace")[-3000:] if dump_log.exists() else ""
        pytest.fail(f"{error}\n{talk}")
    dumped = criu.dumped_watches(container.work / "checkpoint")
    assert {watch.path for watch in dumped} == PATHS
    return dump_log.read_text(errors="replace")


def _circle(container, watches, options, criu):
    """Checkpoint and restore; every watch reports an event. Returns the log of the dump."""
    log = _checkpoint(container, options, criu)
    if options:
        assert_all_hear(container, container.rootfs, watches)
        container.kill()
    container.restore()
    assert_all_hear(container, container.rootfs, watches)
    return log


@both_ways
def test_without_the_hook_it_fails(container, options):
    watches = add_watches(container, container.rootfs)
    with pytest.raises(ProgramError):
        container.checkpoint(*options)
    log = (container.work / "dump.log").read_text(errors="replace")
    assert "Can't dump that handle" in log
    assert_all_hear(container, container.rootfs, watches)


@both_ways
def test_with_the_hook(container, installed, criu, options):
    log = _circle(container, add_watches(container, container.rootfs), options, criu)
    assert "3 watches: 3 proved" in log
    assert "of a pause" not in log  # containerd pauses, podman does not


@both_ways
def test_with_the_service(container, warm, served, criu, options):
    watches = add_watches(container, container.rootfs)
    warm.wait_ready(len(watches))
    assert "proved by the service" in _circle(container, watches, options, criu)


def _predicted(container, cwd):
    # In a directory with an irmap-cache, which podman's CRIU never reads.
    done = subprocess.run(
        [sys.executable, "-m", "irmapdb", "check", "--container", container.name, "--json"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(done.stdout)
    return document["fails"], {one["advice"] for one in document["watches"]}


def test_the_check_of_a_container_is_of_the_dump_by_podman(container, tmp_path, rig, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join((str(rig), os.environ["PATH"])))
    container.add_inotify("/srv/app/settings")
    done = irmapdb("pre-dump", "-t", container.pid, "-D", tmp_path)
    assert done.code == 0, done.said
    assert (tmp_path / "irmap-cache").exists()
    fails, advice = _predicted(container, tmp_path)
    assert fails
    assert all("irmapdb hook --install podman" in one for one in advice)
    assert not any("pre-dump" in one or "CRIU with" in one for one in advice)
    with pytest.raises(ProgramError):
        container.checkpoint()
    # The advice helps.
    with installed_for_runc(tmp_path):
        assert _predicted(container, tmp_path)[0] is False
        container.checkpoint()
