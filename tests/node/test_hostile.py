"""Containers that are large, busy or hostile: no other one waits for them, and no path is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from irmapdb.errors import TaskError
from irmapdb.kernel.rename_monitor import RenameMonitor
from irmapdb.node.answer import confirm
from irmapdb.node.keep import KeepOptions, keep
from irmapdb.node.look import look_around
from irmapdb.node.rundir import RunDirectory
from irmapdb.node.service import Service
from tests.support.notify import FAN_ONDIR, IN_OPEN
from tests.support.silent_fuse import SilentFuse
from tests.support.warm import OURS, Asked
from tests.support.watcher import Watcher

FAN_CLASS_CONTENT = 0x04
FAN_OPEN_PERM = 0x00010000

FORKS = """
import os, sys
os.chroot(sys.argv[1])
os.chdir("/")
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""


@contextmanager
def in_cgroup(name: str):
    """A cgroup that `put` moves a process into."""
    top = next(one for one in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if one.is_dir())
    path = top / f"irmapdb-{os.getpid()}-{name}"
    path.mkdir()
    try:
        yield lambda pid: (path / "cgroup.procs").write_text(str(pid))
    finally:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                path.rmdir()
                break
            except OSError:  # its last task is on its way out
                assert time.monotonic() < deadline_s
                time.sleep(0.05)


def states(seen):
    return {one["id"]: (one["resolved"], one["state"]) for one in seen}


@pytest.mark.timeout(600)
def test_a_hundred_thousand_watches(node, warm, hook, tmp_path, area):
    small = node.container()
    small.add_inotify("/srv/app/file-0")
    rootfs = area.tmpfs("big")
    for number in range(100):
        (rootfs / f"d{number}").mkdir()
        for index in range(1000):
            (rootfs / f"d{number}" / f"f{index}").touch()
    paths = [f"/d{number}/f{index}" for number in range(100) for index in range(1000)]
    with in_cgroup("big") as put, Watcher(unshare=["mount"], rootfs=rootfs) as big:
        put(big.pid)
        big.add_many(paths)
        name = next(
            one["id"]
            for one in warm.wait_for(lambda seen: any(one["pid"] == big.pid for one in seen))
            if one["pid"] == big.pid
        )
        warm.wait_for(lambda seen: states(seen).get(small.id) == (1, "ready"))
        asked = Asked.ask(hook, small.pid, tmp_path / "small")
        assert (asked.alone, asked.paths) == (False, [b"/srv/app/file-0"])
        # At idle priority, and on a busy machine only at the second try.
        warm.wait_for(lambda seen: states(seen).get(name) == (len(paths), "ready"), within_s=400)
        (image,) = warm.run.glob(f"image-{big.pid}-*")
        assert image.read_bytes().count(b"/d") == len(paths)
        asked = Asked.ask(hook, small.pid, tmp_path / "small")
        assert (asked.alone, asked.paths) == (False, [b"/srv/app/file-0"])


def test_a_container_that_forks_all_the_time(node, warm, hook, tmp_path, area):
    small = node.container()
    small.add_inotify("/srv/app/file-0")
    rootfs = area.tmpfs("forks")
    command = ["unshare", "--mount", sys.executable, "-ISc", FORKS, rootfs]
    with in_cgroup("forks") as put, subprocess.Popen(command) as forks:
        put(forks.pid)
        try:
            warm.wait_for(lambda seen: any(one["pid"] == forks.pid for one in seen))
            warm.wait_for(lambda seen: states(seen).get(small.id) == (1, "ready"))
            asked = Asked.ask(hook, small.pid, tmp_path / "work")
            assert (asked.alone, asked.paths) == (False, [b"/srv/app/file-0"])
        finally:
            forks.kill()


@pytest.fixture
def hostile(area):
    """A tree of its own that watches one file."""
    rootfs = area.ext4("hostile").mountpoint
    (rootfs / "file").write_text("content")
    with in_cgroup("hostile") as put, Watcher(unshare=["mount"], rootfs=rootfs) as made:
        put(made.pid)
        made.add_inotify("/file", IN_OPEN)
        yield made


def listen(task):
    """Make the kernel ask it before each open of a directory, and never answer."""
    group = task.fanotify(flags=FAN_CLASS_CONTENT)
    task.add_fanotify("/", FAN_OPEN_PERM | FAN_ONDIR, "mount", fd=group)


def test_a_listener_that_never_answers_holds_no_other_container(node, warm, hostile):
    listen(hostile)
    others = [node.container() for _ in range(3)]
    for one in others:
        one.add_inotify("/srv/app/file-0")
    warm.wait_for(lambda seen: [states(seen).get(one.id) for one in others] == [(1, "ready")] * 3)
    assert warm.end() == 0
    assert hostile.state() == "S"


def test_a_listener_that_never_answers_does_not_hold_the_answer(warm, hook, tmp_path, hostile):
    warm.wait_ready(1)
    listen(hostile)
    asked = Asked.ask(hook, hostile.pid, tmp_path / "work")
    assert (asked.code, asked.alone, asked.paths) == (0, False, [b"/file"]), asked.said


def waiting_for_fuse():
    """The processes that wait for a FUSE server, and that no signal ends."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/wchan"):
        with suppress(OSError):
            if path.read_text() == "request_wait_answer":
                found.add(path.parent.name)
    return found


def test_servers_that_never_answer_leave_one_process(node, warm, tmp_path, area):
    """Otherwise a tenant could use up the processes of the service."""
    rootfs = area.ext4("silent").mountpoint
    names = [f"fuse-{number}" for number in range(3)]
    for name in (*names, "one", "two"):
        (rootfs / name).mkdir()
    before = waiting_for_fuse()
    with ExitStack() as stack:
        servers = [stack.enter_context(SilentFuse(rootfs / name)) for name in names]
        put = stack.enter_context(in_cgroup("silent"))
        silent = stack.enter_context(Watcher(unshare=["mount"], rootfs=rootfs))
        put(silent.pid)
        silent.add_many([f"/{name}" for name in names])
        for server in servers:
            server.silent = True

        def is_done(watches):
            return lambda seen: (
                [(one["watches"], one["state"]) for one in seen if one["pid"] == silent.pid]
                == [(watches, "ready")]
            )

        warm.wait_for(is_done(3))
        for watches, name in ((4, "one"), (5, "two")):
            silent.add_inotify(f"/{name}")
            (found,) = warm.wait_for(is_done(watches))
        assert found["resolved"] == 2
        assert len(waiting_for_fuse() - before) == 1


def test_a_pid_that_was_given_to_another_task(node, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    options = node.options()
    with Service(options) as service:
        service.once()
    (seen,) = look_around(OURS).seen
    other = seen._replace(container=seen.container._replace(starttime=seen.container.starttime - 1))
    databases = options.config.warm.directory
    with RenameMonitor() as monitor:
        how = KeepOptions(RunDirectory(tmp_path / "run"), databases, options.config, 10.0)
        with pytest.raises(TaskError, match="has ended"):
            keep(other, how, monitor)
        kept = keep(seen, how, monitor)
        assert confirm(kept, options.config).resolved == 1
        with pytest.raises(TaskError, match="another one"):
            confirm(kept._replace(container=other.container), options.config)


def test_containers_that_come_and_go(node, warm):
    last = None
    for _ in range(6):
        container = node.container()
        container.add_inotify("/srv/app/file-0")
        time.sleep(0.1)
        if last is not None:
            node.end(last)
        last = container
    warm.wait_for(lambda seen: states(seen) == {last.id: (1, "ready")})
    assert len(list(warm.run.glob("image-*"))) == 1
    assert not list(warm.run.glob("work-*"))
