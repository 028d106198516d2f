"""The hook through a real runtime: with its one line a checkpoint passes, without it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.features import require_program
from tests.support.hook import installed_for_runc
from tests.support.notify import IN_CREATE, IN_OPEN
from tests.support.programs import SYSTEM_PATH
from tests.support.runc import Container, fill_rootfs_with_app

ETC_CRIU = Path("/etc/criu")
PATHS = {"/srv/app/settings", "/.", "/srv/state", "/data", "/data/file"}


@pytest.fixture
def overlay(area):
    require_program("runc")
    base = area.ext4("layers").mountpoint
    lower = base / "lower"
    fill_rootfs_with_app(lower)
    made = area.overlay(lower=lower, upper_base=base)
    (made.mountpoint / "srv" / "state").write_text("upper")
    return made


@pytest.fixture
def data(area):
    directory = area.ext4("data").mountpoint
    (directory / "file").write_text("bound")
    return directory


@pytest.fixture
def container(overlay, data, rig, tmp_path):
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    with Container(tmp_path / "runc", overlay.mountpoint, {data: "/data"}, path) as made:
        yield made


def _files_of_criu() -> dict[str, bytes] | None:
    if not ETC_CRIU.exists():
        return None
    return {path.name: path.read_bytes() for path in ETC_CRIU.iterdir() if path.is_file()}


@pytest.fixture
def installed(tmp_path):
    before = _files_of_criu()
    with installed_for_runc(tmp_path) as script:
        yield script
    assert _files_of_criu() == before
    assert not script.exists()


def _watch_everywhere(container, overlay, data):
    """[(task, its watch, a function that causes an event)], each on an instance of its own."""
    rootfs = overlay.mountpoint
    child = container.fork()

    def watch(task, path, mask, act):
        return task, task.add_inotify(path, mask, fd=task.inotify()), act

    return [
        watch(container, "/srv/app/settings", IN_OPEN, (rootfs / "srv/app/settings").read_bytes),
        # CRIU would not find the root by the name "/".
        watch(container, "/", IN_CREATE, (rootfs / "new").touch),
        watch(container, "/data/file", IN_OPEN, (data / "file").read_bytes),
        watch(child, "/srv/state", IN_OPEN, (rootfs / "srv/state").read_bytes),
        watch(child, "/data", IN_CREATE, (data / "new").touch),
    ]


def test_runc_checkpoint_fails_without_the_hook(container, overlay, data, tmp_path):
    assert b"irmapdb-hook" not in (_files_of_criu() or {}).get("runc.conf", b"")
    watches = _watch_everywhere(container, overlay, data)
    done = container.checkpoint(tmp_path / "images", tmp_path / "work")
    assert not done.ok
    assert "Can't dump that handle" in (tmp_path / "work" / "dump.log").read_text(errors="replace")
    for task, watched, act in watches:
        assert task.hears(watched, act)


def test_runc_checkpoint_and_restore_with_the_hook(
    container, overlay, data, installed, criu, tmp_path
):
    watches = _watch_everywhere(container, overlay, data)
    images, work = tmp_path / "images", tmp_path / "work"
    done = container.checkpoint(images, work)
    assert done.ok, (done.log, (work / "dump.log").read_text(errors="replace")[-3000:])
    assert {dumped.path for dumped in criu.dumped_watches(images)} == PATHS

    restored = container.restore(images, work)
    assert restored.ok, (restored.log, (work / "restore.log").read_text(errors="replace")[-3000:])
    for task, watched, act in watches:
        assert task.hears(watched, act)


def test_a_paused_container(container, overlay, data, installed, criu, tmp_path, monkeypatch):
    monkeypatch.setenv("IRMAPDB_HOOK_PAUSED_TIMEOUT", "20")  # enough, on a busy machine as well
    # As containerd, CRI-O and docker do it: the cgroup is frozen before the runtime calls CRIU.
    watches = _watch_everywhere(container, overlay, data)
    images, work = tmp_path / "images", tmp_path / "work"
    container.pause()
    done = container.checkpoint(images, work)
    assert done.ok, (done.log, (work / "dump.log").read_text(errors="replace")[-3000:])
    assert "5 watches: 5 proved" in (work / "dump.log").read_text(errors="replace")
    assert "of a pause (frozen cgroup)" in (work / "dump.log").read_text(errors="replace")
    assert {dumped.path for dumped in criu.dumped_watches(images)} == PATHS
    restored = container.restore(images, work)
    assert restored.ok, (restored.log, (work / "restore.log").read_text(errors="replace")[-3000:])
    container.resume()
    for task, watched, act in watches:
        assert task.hears(watched, act)


def test_with_the_service(container, overlay, data, warm, served, criu, tmp_path):
    watches = _watch_everywhere(container, overlay, data)
    warm.wait_ready(len(watches))
    images, work = tmp_path / "images", tmp_path / "work"
    done = container.checkpoint(images, work)
    log = (work / "dump.log").read_text(errors="replace")
    assert done.ok, (done.log, log[-3000:])
    assert "proved by the service" in log
    assert {dumped.path for dumped in criu.dumped_watches(images)} == PATHS
    restored = container.restore(images, work)
    assert restored.ok, (restored.log, (work / "restore.log").read_text(errors="replace")[-3000:])
    for task, watched, act in watches:
        assert task.hears(watched, act)
    # The restored container is another one, and is found again.
    warm.wait_for(
        lambda seen: [(one["pid"], one["resolved"]) for one in seen] == [(container.pid, 5)]
    )
