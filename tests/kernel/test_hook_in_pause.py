"""The hook in a pause: the tasks stand still before it is called, as container engines have it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from irmapdb.config import Config, HookConfig
from irmapdb.criu.hook_job import Job, serve
from irmapdb.image.cache import decode_cache
from irmapdb.kernel.pause_detection import find_pause, has_permission_listener
from irmapdb.kernel.proc import procfs
from tests.support.features import require
from tests.support.freezing import until
from tests.support.hook import hook_program, log_until_stored
from tests.support.notify import FAN_ONDIR, IN_OPEN
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.area import MountArea
    from tests.support.freezing import Cgroup

FAN_OPEN_PERM, FAN_CLASS_CONTENT = 0x10000, 0x4
VERSIONS = ("v1", "v2")
_LONGER_THAN_ATTRIBUTES_ARE_VALID_S = 1.5


class Hook:
    def __init__(self, directory: Path, pid: int) -> None:
        self.work = directory / "hook-work"
        self.work.mkdir()
        self._program = hook_program(directory)
        self._pid = pid
        self.dumps = 0

    def __call__(self, **environment: str) -> str:
        """One dump; CRIU's line."""
        variables = {
            **os.environ,
            "CRTOOLS_SCRIPT_ACTION": "pre-dump",
            "CRTOOLS_INIT_PID": str(self._pid),
            "IRMAPDB_HOOK_SCRIPT": "",  # each call counts
            "IRMAPDB_HOOK_PAUSED_TIMEOUT": "20",  # enough, on a busy machine as well
            **environment,
        }
        (self.work / "irmap-cache").unlink(missing_ok=True)
        done = subprocess.run(
            [self._program],
            cwd=self.work,
            env=variables,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0
        self.dumps += 1
        return done.stderr

    def stored(self) -> list[str]:
        """The log, when the last dump is in the database."""
        return log_until_stored(self.work, self.dumps)

    def paths(self) -> list[bytes]:
        data = (self.work / "irmap-cache").read_bytes()
        return [entry.path for entry in decode_cache(data, "irmap-cache")]


@pytest.fixture
def hook(watcher: Watcher, tmp_path: Path) -> Hook:
    return Hook(tmp_path, watcher.pid)


@pytest.fixture
def pause(make_cgroup: Callable[[str], Cgroup]) -> Callable[..., Cgroup]:
    def pause(version: str, *pids: int) -> Cgroup:
        cgroup = make_cgroup(version)
        cgroup.put(*pids)
        cgroup.freeze()
        until(lambda: find_pause(pids[0]) == "frozen cgroup", "paused")
        return cgroup

    return pause


@pytest.mark.parametrize("version", VERSIONS)
def test_a_frozen_cgroup_is_seen(version, watcher, make_cgroup):
    cgroup = make_cgroup(version)
    below = cgroup.path / "below"
    below.mkdir()
    try:
        (below / "cgroup.procs").write_text(str(watcher.pid))
        assert find_pause(watcher.pid) == ""
        cgroup.freeze()  # a parent's freeze counts
        until(lambda: find_pause(watcher.pid) == "frozen cgroup", "paused")
        cgroup.thaw()
        until(lambda: find_pause(watcher.pid) == "", "runs")
    finally:
        cgroup.thaw()
        (cgroup.path / "cgroup.procs").write_text(str(watcher.pid))
        below.rmdir()


def test_stopped_tasks_are_seen_when_all_of_them_are(watcher):
    child = watcher.fork()
    tree = (watcher.pid, child.pid)
    watcher.signal(signal.SIGSTOP)
    until(lambda: watcher.state() == "T", "stopped")
    assert find_pause(watcher.pid, lambda: tree) == ""
    child.signal(signal.SIGSTOP)
    until(lambda: child.state() == "T", "stopped")
    assert find_pause(watcher.pid, lambda: tree) == "stopped tasks"
    for task in (child, watcher):
        task.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("cgroup", "root", "directory"),
    [
        ("0::/pod/c1", "/", "pod/c1"),
        ("0::/pod/c1", "/pod", "c1"),
        ("0::/pod/c1", "/pod/c1", ""),
        ("0::/podium/c1", "/pod", None),  # the mount does not show it
        ("0::/../c2", "/", "../c2"),
        ("5:freezer:/pod/c1\n0::/", "/", "pod/c1"),
        ("5:cpu,freezer:/pod\rc1\n0::/", "/", "pod\rc1"),
    ],
)
def test_where_the_cgroup_is(cgroup, root, directory, tmp_path, monkeypatch):
    # As /proc shows it in the host's cgroup namespace and in others.
    v1 = "freezer" in cgroup
    fstype, options = ("cgroup", "rw,freezer") if v1 else ("cgroup2", "rw")
    proc, top = tmp_path / "proc", tmp_path / "cgroup"
    monkeypatch.setattr(procfs, "ROOT", str(proc))
    for name, text in (
        ("7/cgroup", cgroup + "\n"),
        ("7/task/7/stat", "7 (x) S 1"),
        ("7/wchan", ""),
    ):
        (proc / name).parent.mkdir(parents=True, exist_ok=True)
        (proc / name).write_text(text, newline="\n")
    (proc / "self").mkdir()
    (proc / "self" / "mountinfo").write_text(
        f"30 1 0:26 {root} {top} rw - {fstype} none {options}\n"
    )
    group = top / "x" if directory is None else top / directory
    (top / "x").mkdir(parents=True)
    group.mkdir(parents=True, exist_ok=True)
    for frozen in (True, False):
        state = ("FROZEN" if frozen else "THAWED") if v1 else f"populated 1\nfrozen {int(frozen)}"
        (group / ("freezer.state" if v1 else "cgroup.events")).write_text(state + "\n")
        expected = "frozen cgroup" if frozen and directory is not None else ""
        assert find_pause(7) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_overlay_in_a_pause(version, area: MountArea, watcher, hook, pause):
    place = area.place("overlay-lower")
    watched = [watcher.add_inotify(place.directory / name, IN_OPEN) for name in ("file", "dir")]
    pause(version, watcher.pid)
    for known in (0, 2):
        said = hook()
        assert f"2 watches: 2 proved ({known} known before)" in said
        assert "of a pause (frozen cgroup)" in said
        assert set(hook.paths()) == {one.path for one in watched}
        assert "of a pause" in "\n".join(hook.stored())
    with closing(sqlite3.connect(hook.work / "irmap.db")) as database:
        assert database.execute("SELECT count(*) FROM run WHERE paused AND paused_us").fetchone()
        rows = database.execute("SELECT stopped_by, paused_ms > 0, frozen_ms FROM frozen_dumps")
        assert rows.fetchall() == [("pause", 1, None)] * 2


def test_a_slow_start_leaves_the_time_for_directories(area, watcher, hook, pause, monkeypatch):
    """On a busy machine `paused-timeout` may be over before Python has started."""
    place = area.place("overlay-lower")
    watched = watcher.add_inotify(place.directory / "file", IN_OPEN)
    pause("v1", watcher.pid)
    monkeypatch.chdir(hook.work)
    called_s = time.monotonic() - 5
    job = Job(watcher.pid, "", Config(), HookConfig(paused_timeout_s=4), called_s)
    assert "1 watch: 1 proved" in serve(job).done.summary
    assert hook.paths() == [watched.path]


def test_in_a_pause_the_disk_is_waited_for_after_the_answer(watcher, hook, pause, monkeypatch):
    place = hook.work
    watcher.add_inotify(place)
    pause("v1", watcher.pid)
    monkeypatch.chdir(place)
    synced: list[str] = []
    sync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    served = serve(Job(watcher.pid, "", Config(), HookConfig(), time.monotonic()))
    assert (len(hook.paths()), synced) == (1, [])
    assert "stored in" in served.keep()[-1]
    assert synced[:2] == [f"{place}/irmap-cache", str(place)]


def test_without_a_pause_nothing_says_so(watcher, hook, tmp_path):
    watcher.add_inotify(tmp_path)
    assert "pause" not in hook()
    hook.stored()
    with closing(sqlite3.connect(hook.work / "irmap.db")) as database:
        assert database.execute("SELECT paused, paused_us FROM run").fetchall() == [(0, 0)]
        assert database.execute("SELECT * FROM frozen_dumps").fetchall() == []


def _listen(watcher: Watcher, path: Path) -> None:
    # Each open on that filesystem waits until the watcher allows it.
    fd = watcher.fanotify(flags=FAN_CLASS_CONTENT)
    watcher.add_fanotify(path, FAN_OPEN_PERM | FAN_ONDIR, "filesystem", fd=fd)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_paused_permission_listener_holds_nothing(version, area, watcher, hook, pause):
    place = area.place("overlay-lower")
    watched = watcher.add_inotify(place.directory / "file", IN_OPEN)
    hook()
    hook.stored()
    _listen(watcher, place.mountpoint)
    new = watcher.add_inotify(place.directory / "dir", IN_OPEN)
    assert has_permission_listener(watcher.pid)
    pause(version, watcher.pid)
    said = hook()
    assert "known before)" in said
    assert watched.path in hook.paths()
    # Without an open directory, only an overlay gives the path; else the log has the reason.
    log = "\n".join(hook.stored())
    assert new.path in hook.paths() or "may be asked before a directory is opened" in log


def test_a_paused_listener_of_a_child_is_seen(watcher, area):
    place = area.place("ext4")
    child = watcher.fork()
    assert not has_permission_listener(watcher.pid, [child.pid])
    fd = child.fanotify(flags=FAN_CLASS_CONTENT)
    child.add_fanotify(place.directory / "file", FAN_OPEN_PERM, fd=fd)
    assert has_permission_listener(watcher.pid, [child.pid])


def test_a_listener_that_cannot_be_seen_holds_nothing_for_long(
    area, watcher, hook, pause, tmp_path
):
    # Its descriptor belongs to a paused task of no tree of ours.

    place = area.place("ext4")
    watched = watcher.add_inotify(place.directory / "file", IN_OPEN)
    other = watcher.add_inotify(tmp_path)
    with Watcher() as stranger:
        _listen(stranger, place.mountpoint)
        cgroup = pause("v1", watcher.pid)
        stranger.signal(signal.SIGSTOP)
        said = hook(IRMAPDB_HOOK_PAUSED_TIMEOUT="0.2")
        assert "of a pause" in said
        assert "2 watches" in said
        assert watched.path not in hook.paths()
        assert "the time for a pause was over" in "\n".join(hook.stored())
        cgroup.thaw()
        stranger.kill()
    assert other.path is not None


def test_a_fuse_server_in_the_pause_is_not_asked(area, watcher, hook, pause, tmp_path):
    mountpoint = area.fuse(area.ext4().mountpoint)
    (mountpoint / "file").write_bytes(b"content")
    watcher.add_inotify(mountpoint / "file")
    watched = watcher.add_inotify(tmp_path)
    pause("v1", watcher.pid, *_servers_of(mountpoint))
    said = hook()
    assert "2 watches: 1 proved" in said
    assert hook.paths() == [watched.path]
    assert "is not asked in a pause" in "\n".join(hook.stored())


def test_a_root_of_a_stopped_fuse_server_holds_nothing(area, pause, tmp_path):
    top = area.ext4().mountpoint
    (top / "file").touch()
    mountpoint = area.fuse(top)
    with Watcher(unshare=["mount"], rootfs=mountpoint) as watcher:
        watcher.add_inotify("/file")
        cgroup = pause("v2", watcher.pid, *_servers_of(mountpoint))
        time.sleep(_LONGER_THAN_ATTRIBUTES_ARE_VALID_S)
        hook = Hook(tmp_path, watcher.pid)
        assert "1 watch: 0 proved" in hook()
        assert "is not asked in a pause" in "\n".join(hook.stored())
        cgroup.thaw()


def _servers_of(mountpoint: Path) -> list[int]:
    servers = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if os.fsencode(mountpoint) in _read(path)
    ]
    require(servers, "the FUSE server's process")
    return servers


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
