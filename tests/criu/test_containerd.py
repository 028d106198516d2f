"""containerd end to end: it pauses a container, and runc and CRIU checkpoint it, on its overlay."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.containerd import ContainerdDaemon, ContainerdTask, require_containerd
from tests.support.hook import CHECKOUT, hook_program
from tests.support.notify import IN_CREATE, IN_OPEN
from tests.support.programs import SYSTEM_PATH, ProgramError
from tests.support.warm import Warm, write_hook

PATHS = {"/srv/app/settings", "/.", "/srv/state"}


@pytest.fixture
def daemon(area, rig, monkeypatch):
    require_containerd()
    # Given on to CRIU by containerd: enough, on a busy machine as well.
    monkeypatch.setenv("IRMAPDB_HOOK_PAUSED_TIMEOUT", "20")
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    disk = area.ext4("containerd", size_mib=64).mountpoint
    with ContainerdDaemon(disk / "containerd", path) as made:
        yield made


@pytest.fixture
def task(daemon, tmp_path):
    with ContainerdTask(daemon, tmp_path / "container") as made:
        yield made


@pytest.fixture
def installed(tmp_path, task):
    """The hook, switched on for runc by `irmapdb hook --install`."""
    program = hook_program(tmp_path)
    script = tmp_path / "libexec" / "irmapdb-hook"
    command = [sys.executable, "-m", "irmapdb", "hook", "--install", "runc"]
    subprocess.run(
        [*command, "--script", script, "--criu-dir", task.container.criu_dir],
        cwd=CHECKOUT,
        env={**os.environ, "PATH": os.pathsep.join((str(program.parent), os.environ["PATH"]))},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return script


@pytest.fixture
def warm(tmp_path):
    service = Warm(tmp_path)
    try:
        yield service
    finally:
        service.end(9)


def _watches(task):
    """[(its watch, what to do to be heard)], each on an instance of its own."""
    task.container.rootfs.joinpath("srv/state").write_text("upper")

    def watch(path, mask):
        return task.add_inotify(path, mask, fd=task.inotify())

    return [
        (
            watch("/srv/app/settings", IN_OPEN),
            lambda root: (root / "srv/app/settings").read_bytes(),
        ),
        # CRIU would not find the root by the name "/".
        (watch("/", IN_CREATE), lambda root: (root / "new").touch()),
        (watch("/srv/state", IN_OPEN), lambda root: (root / "srv/state").read_bytes()),
    ]


def _assert_all_hear(task, watches):
    root = task.container.rootfs
    for watched, act in watches:
        (root / "new").unlink(missing_ok=True)
        assert task.hears(watched, lambda act=act: act(root))


def _checkpoint(task, criu, images):
    """The log of the dump, which has every path."""
    try:
        task.container.checkpoint("checkpoint")
    except ProgramError as error:
        pytest.fail(f"{error}\n{task.container.log()[-3000:]}")
    log = task.container.log()
    task.container.images("checkpoint", images)
    assert {watch.path for watch in criu.dumped_watches(images)} == PATHS
    return log


def _restore(task):
    try:
        task.restore("checkpoint")
    except ProgramError as error:
        pytest.fail(f"{error}\n{task.container.log()[-3000:]}")


def test_without_the_hook_it_fails(task):
    watches = _watches(task)
    with pytest.raises(ProgramError):
        task.container.checkpoint("checkpoint")
    assert "Can't dump that handle" in task.container.log()
    _assert_all_hear(task, watches)


def test_with_the_hook(task, installed, criu, tmp_path):
    watches = _watches(task)
    log = _checkpoint(task, criu, tmp_path / "images")
    assert "3 watches: 3 proved" in log
    assert "of a pause (frozen cgroup)" in log
    _assert_all_hear(task, watches)
    _restore(task)
    _assert_all_hear(task, watches)


def test_with_the_service(task, warm, criu, tmp_path):
    # CRIU calls the script, which has the service alone: its program is not there.
    task.container.call_hook(write_hook(tmp_path, warm.run, program=tmp_path / "no-such-program"))
    watches = _watches(task)
    warm.wait_ready(len(watches))
    assert "proved by the service" in _checkpoint(task, criu, tmp_path / "images")
    _assert_all_hear(task, watches)
    _restore(task)
    _assert_all_hear(task, watches)
    # The restored container is another one, and is found again.
    warm.wait_for(lambda seen: [(one["pid"], one["resolved"]) for one in seen] == [(task.pid, 3)])
