"""The hook through a real runtime: switched on with one line, a checkpoint works that did not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.features import require_program
from tests.support.hook import CHECKOUT, hook_program
from tests.support.notify import IN_CREATE, IN_OPEN
from tests.support.programs import SYSTEM_PATH
from tests.support.runc import Container, fill_rootfs

ETC_CRIU = Path("/etc/criu")


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


def _irmapdb_hook(programs: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "irmapdb", "hook", *arguments]
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "PATH": path},
        check=True,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture
def installed(tmp_path):
    """The hook, switched on for runc by `irmapdb hook --install` until the test ends."""
    program = hook_program(tmp_path)
    script = tmp_path / "libexec" / "irmapdb-hook"
    before = _files_of_criu()
    _irmapdb_hook(program.parent, "--install", "runc", "--script", script)
    try:
        yield script
    finally:
        _irmapdb_hook(program.parent, "--uninstall", "runc", "--script", script)
        assert _files_of_criu() == before
        assert not script.exists()


def _watch_everywhere(container, overlay, data):
    """[(task, its watch, what to do to be heard)], each on an instance of its own."""
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
    paths = {dumped.path for dumped in criu.dumped_watches(images)}
    assert paths == {"/srv/app/settings", "/.", "/srv/state", "/data", "/data/file"}

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
    paths = {dumped.path for dumped in criu.dumped_watches(images)}
    assert paths == {"/srv/app/settings", "/.", "/srv/state", "/data", "/data/file"}
    restored = container.restore(images, work)
    assert restored.ok, (restored.log, (work / "restore.log").read_text(errors="replace")[-3000:])
    container.resume()
    for task, watched, act in watches:
        assert task.hears(watched, act)
