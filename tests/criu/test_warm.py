"""The service and a real checkpoint, on a machine whose hook has no Python to start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.features import require_program
from tests.support.notify import IN_CREATE, IN_OPEN
from tests.support.programs import SYSTEM_PATH
from tests.support.runc import Container, fill_rootfs
from tests.support.warm import Warm, write_hook

RUNC_CONF = Path("/etc/criu/runc.conf")


@pytest.fixture
def overlay(area):
    require_program("runc")
    base = area.ext4("layers").mountpoint
    lower = base / "lower"
    fill_rootfs(lower)
    (lower / "srv" / "app").mkdir(parents=True)
    (lower / "srv" / "app" / "settings").write_text("lower")
    made = area.overlay(lower=lower, upper_base=base)
    (made.mountpoint / "srv" / "state").write_text("upper")
    return made


@pytest.fixture
def container(overlay, rig, tmp_path):
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    with Container(tmp_path / "runc", overlay.mountpoint, {}, path) as made:
        yield made


@pytest.fixture
def warm(tmp_path):
    service = Warm(tmp_path)
    yield service
    service.end(9)


@pytest.fixture
def hooked(tmp_path, warm):
    """CRIU under runc calls the script; its program is not there."""
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


def _watches(container, rootfs):
    child = container.fork()

    def watch(task, path, mask, act):
        return task, task.add_inotify(path, mask, fd=task.inotify()), act

    return [
        watch(container, "/srv/app/settings", IN_OPEN, (rootfs / "srv/app/settings").read_bytes),
        watch(container, "/", IN_CREATE, (rootfs / "new").touch),
        watch(child, "/srv/state", IN_OPEN, (rootfs / "srv/state").read_bytes),
    ]


def test_runc_checkpoint_and_restore_with_the_service(
    container, overlay, warm, hooked, criu, tmp_path
):
    watches = _watches(container, overlay.mountpoint)
    warm.wait_ready(len(watches))
    images, work = tmp_path / "images", tmp_path / "work"
    done = container.checkpoint(images, work)
    log = (work / "dump.log").read_text(errors="replace")
    assert done.ok, (done.log, log[-3000:])
    assert "proved by the service" in log
    assert {dumped.path for dumped in criu.dumped_watches(images)} == {
        "/srv/app/settings",
        "/.",
        "/srv/state",
    }
    restored = container.restore(images, work)
    assert restored.ok, (restored.log, (work / "restore.log").read_text(errors="replace")[-3000:])
    for task, watched, act in watches:
        assert task.hears(watched, act)
    # The restored container is another one, and is found again.
    warm.wait_for(
        lambda seen: [(one["pid"], one["resolved"]) for one in seen] == [(container.pid, 3)]
    )
