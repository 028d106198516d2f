"""containerd end to end: it pauses a container, and runc and CRIU checkpoint it, on its overlay."""

from __future__ import annotations

import os

import pytest

from irmapdb.archive.dumped import read_dumped
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from tests.support.containerd import ContainerdDaemon, ContainerdTask, require_containerd
from tests.support.engine_watches import PATHS, add_watches, assert_all_hear
from tests.support.hook import hook_command, hook_program
from tests.support.notify import IN_OPEN
from tests.support.programs import SYSTEM_PATH, ProgramError


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
    script = tmp_path / "libexec" / "irmapdb-hook"
    where = ("--script", script, "--criu-dir", task.container.criu_dir)
    hook_command(hook_program(tmp_path), "--install", "runc", *where)
    return script


def _checkpoint(task, criu, images):
    """The log of the dump, which has every path."""
    try:
        task.container.checkpoint("checkpoint")
    except ProgramError as error:
        pytest.fail(f"{error}\n{task.container.log()[-3000:]}")
    log = task.container.log()
    task.container.images("checkpoint", images)
    assert {watch.path for watch in criu.dumped_watches(images)} == PATHS
    archive = images.with_name("export.tar")
    task.container.export("checkpoint", archive)
    dumped = read_dumped(archive)
    assert {os.fsdecode(one.watch.path) for one in dumped.watches} == PATHS
    assert dumped.container.engine == "containerd"
    return log


def _restore(task):
    try:
        task.restore("checkpoint")
    except ProgramError as error:
        pytest.fail(f"{error}\n{task.container.log()[-3000:]}")


def test_without_the_hook_it_fails(task):
    watches = add_watches(task, task.container.rootfs)
    with pytest.raises(ProgramError):
        task.container.checkpoint("checkpoint")
    assert "Can't dump that handle" in task.container.log()
    assert_all_hear(task, task.container.rootfs, watches)


def test_with_the_hook(task, installed, criu, tmp_path):
    watches = add_watches(task, task.container.rootfs)
    log = _checkpoint(task, criu, tmp_path / "images")
    assert "3 watches: 3 proved" in log
    assert "of a pause (frozen cgroup)" in log
    assert_all_hear(task, task.container.rootfs, watches)
    _restore(task)
    assert_all_hear(task, task.container.rootfs, watches)


def test_with_the_service(task, warm, lone_service, criu, tmp_path):
    task.container.call_hook(lone_service)
    watches = add_watches(task, task.container.rootfs)
    warm.wait_ready(len(watches))
    assert "proved by the service" in _checkpoint(task, criu, tmp_path / "images")
    assert_all_hear(task, task.container.rootfs, watches)
    _restore(task)
    assert_all_hear(task, task.container.rootfs, watches)
    # The restored container is another one, and is found again.
    warm.wait_for(lambda seen: [(one["pid"], one["resolved"]) for one in seen] == [(task.pid, 3)])


@pytest.mark.parametrize("has_layer", [True, False])
def test_a_file_of_the_container_needs_its_layer(task, installed, tmp_path, has_layer):
    container, archive = task.container, tmp_path / "export.tar"
    task.write("/srv/state")
    watched = task.add_inotify("/srv/state", IN_OPEN)
    if has_layer:
        container.checkpoint("checkpoint")
    else:
        container.daemon.ctr("containers", "checkpoint", "--task", container.id, "checkpoint")
    container.export("checkpoint", archive)
    (one,) = check_images(archive).watches
    assert one.verdict is (RestoreVerdict.BROUGHT if has_layer else RestoreVerdict.MISSING)
    assert one.right is has_layer
    if has_layer:
        _restore(task)
        assert task.hears(watched, (container.rootfs / "srv" / "state").read_bytes)
        return
    container.kill()
    task.wait_dead()
    words = ("containers", "restore", "--live", container.id, "checkpoint")
    with pytest.raises(ProgramError):  # ctr waits for the task, and would not end
        container.daemon.ctr(*words, timeout_s=20)
    assert "/srv/state" in container.log()
