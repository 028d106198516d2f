"""podman end to end: a container on its overlay, which ends with its checkpoint or goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.features import require_program
from tests.support.hook import CHECKOUT, hook_program
from tests.support.notify import IN_CREATE, IN_OPEN
from tests.support.podman import PodmanContainer
from tests.support.programs import SYSTEM_PATH, ProgramError
from tests.support.warm import Warm, write_hook

RUNC_CONF = Path("/etc/criu/runc.conf")
PATHS = {"/srv/app/settings", "/.", "/srv/state"}

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


def _irmapdb_hook(programs: Path, *arguments: str | Path) -> None:
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    subprocess.run(
        [sys.executable, "-m", "irmapdb", "hook", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PATH": path},
        check=True,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture
def installed(tmp_path):
    program = hook_program(tmp_path)
    script = tmp_path / "libexec" / "irmapdb-hook"
    _irmapdb_hook(program.parent, "--install", "runc", "--script", script)
    try:
        yield script
    finally:
        _irmapdb_hook(program.parent, "--uninstall", "runc", "--script", script)


@pytest.fixture
def warm(tmp_path):
    service = Warm(tmp_path)
    try:
        yield service
    finally:
        service.end(9)


@pytest.fixture
def served(tmp_path, warm):
    """CRIU under runc calls the script, which has the service alone: its program is not there."""
    script = write_hook(tmp_path, warm.run, program=tmp_path / "no-such-program")
    before = RUNC_CONF.read_bytes() if RUNC_CONF.exists() else None
    RUNC_CONF.parent.mkdir(exist_ok=True)
    RUNC_CONF.write_text(f"action-script {script}\n")
    try:
        yield script
    finally:
        if before is None:
            RUNC_CONF.unlink()
        else:
            RUNC_CONF.write_bytes(before)


def _watches(container):
    """[(its watch, what to do to be heard)], each on an instance of its own."""
    container.rootfs.joinpath("srv/state").write_text("upper")

    def watch(path, mask):
        return container.add_inotify(path, mask, fd=container.inotify())

    return [
        (
            watch("/srv/app/settings", IN_OPEN),
            lambda root: (root / "srv/app/settings").read_bytes(),
        ),
        # CRIU would not find the root by the name "/".
        (watch("/", IN_CREATE), lambda root: (root / "new").touch()),
        (watch("/srv/state", IN_OPEN), lambda root: (root / "srv/state").read_bytes()),
    ]


def _assert_all_hear(container, watches):
    root = container.rootfs  # mounted anew by a restore
    for watched, act in watches:
        (root / "new").unlink(missing_ok=True)
        assert container.hears(watched, lambda act=act: act(root))


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
    """Checkpoint, restore, and every watch hears; the log of the dump."""
    log = _checkpoint(container, options, criu)
    if options:
        _assert_all_hear(container, watches)
        container.kill()
    container.restore()
    _assert_all_hear(container, watches)
    return log


@both_ways
def test_without_the_hook_it_fails(container, options):
    watches = _watches(container)
    with pytest.raises(ProgramError):
        container.checkpoint(*options)
    log = (container.work / "dump.log").read_text(errors="replace")
    assert "Can't dump that handle" in log
    _assert_all_hear(container, watches)


@both_ways
def test_with_the_hook(container, installed, criu, options):
    log = _circle(container, _watches(container), options, criu)
    assert "3 watches: 3 proved" in log
    assert "of a pause" not in log  # containerd pauses, podman does not


@both_ways
def test_with_the_service(container, warm, served, criu, options):
    watches = _watches(container)
    warm.wait_ready(len(watches))
    assert "proved by the service" in _circle(container, watches, options, criu)
