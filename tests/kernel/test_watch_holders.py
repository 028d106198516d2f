"""Each watch is found, for every holder of the descriptor and every place of the path."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.config import Config
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.proc.tasks import read_task
from irmapdb.model import MarkKind
from irmapdb.node import ps
from tests.support.area import MountArea
from tests.support.features import require
from tests.support.searching import mntns_of
from tests.support.stepping import new_work_dir, options_for
from tests.support.watcher import Task, Watcher

_HEAD = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result
def ready(*words):
    print("ready", *words, flush=True)
    time.sleep(600)
"""


@contextmanager
def _program(text: str, *arguments: object) -> Iterator[tuple[int, list[str]]]:
    """A Python program that ends with `ready(…)`; its pid and the words."""
    command = [sys.executable, "-I", "-S", "-c", _HEAD + text, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line[:1] == ["ready"], line
            yield process.pid, line[1:]
        finally:
            process.kill()


_OWN_TABLE = """
fd = None
def run():
    global fd
    check(libc.unshare(0x400))  # CLONE_FILES
    fd = check(libc.inotify_init1(0))
    check(libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0x20))
    ready(threading.get_native_id(), fd)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_a_descriptor_that_only_a_thread_has(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with _program(_OWN_TABLE, file) as (pid, (tid, fd)):
        task = read_task(pid)
        assert task is not None
        survey = read_survey([task])
        assert [(raw.pid, raw.fd) for raw in survey.files] == [(int(tid), int(fd))]
        assert survey.threads == {int(tid): pid}
        options = steps.StepOptions(pid, new_work_dir(tmp_path), config=Config(hints=()))
        for report in (steps.pre_dump(options), steps.dump(options, steps.FreezeOptions())):
            ((row),) = report.watches
            assert (row.watch.pid, row.path) == (int(tid), os.fsencode(file))
            assert row.comm == task.comm
        taken = ps.take(ps.PsOptions(pid=pid))
        assert [row.path for row in taken.watches] == [os.fsencode(file)]
        assert [(row.pid, row.watches) for row in taken.processes] == [(pid, 1)]


def test_threads_that_share_their_table_are_not_asked(watcher: Watcher, tmp_path: Path) -> None:
    watcher.threads(3)
    watcher.add_inotify(tmp_path)
    task = read_task(watcher.pid)
    assert task is not None
    survey = read_survey([task])
    assert len(survey.files) == 1
    assert survey.threads == {}
    assert survey.copies == ()


_ON_NAMESPACE = """
fd = check(libc.fanotify_init(0x4000, 0))  # FAN_REPORT_MNT
libc.fanotify_mark.argtypes = (
    ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p
)
namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
check(libc.fanotify_mark(fd, 0x111, 0x3000000, namespace, None))
ready(fd)
"""


def _knows_namespace_marks() -> bool:
    fd = ctypes.CDLL(None).fanotify_init(0x4000, 0)
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


def test_a_mark_on_a_mount_namespace(tmp_path: Path) -> None:
    require(_knows_namespace_marks(), "FAN_REPORT_MNT (Linux 6.14)")
    with _program(_ON_NAMESPACE) as (pid, (fd,)):
        options = steps.StepOptions(pid, new_work_dir(tmp_path), config=Config(hints=()))
        mine = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        for report in (steps.pre_dump(options), steps.dump(options, steps.FreezeOptions())):
            (row,) = report.marks
            assert (row.mark.kind, row.mark.target) == (MarkKind.NAMESPACE, mine)
            assert (row.mark.fd, row.mark.mask) == (int(fd), 0x3000000)
            assert row.target == b"mount namespace %d" % mine
            assert row.is_dropped
        taken = ps.take(ps.PsOptions(pid=pid))
        (mark,) = taken.watches
        assert f"mount namespace {mine}" in (mark.why or "")
        assert [(row.pid, row.groups, row.marks) for row in taken.processes] == [(pid, 1, 1)]


_INHERITED = """
fd = check(libc.inotify_init1(0))
check(libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0x20))
reading, writing = os.pipe()
child = os.fork()
if not child:
    check(libc.unshare(0x20000))
    check(libc.mount(b"none", b"/", None, 0x44000, None))
    check(libc.mount(os.fsencode(sys.argv[2]), os.fsencode(sys.argv[3]), None, 0x1000, None))
    os.write(writing, b"x")
    time.sleep(600)
os.read(reading, 1)
os.kill(os.getpid(), 0)
ready(child)
"""


def test_an_inherited_descriptor_is_looked_for_in_each_owners_root(
    area: MountArea, tmp_path: Path
) -> None:
    """The parent's root hides a file that the child still sees: the first owner cannot name it."""
    top = area.ext4().mountpoint
    (top / "dir").mkdir()
    (top / "dir" / "file").touch()
    (area.path / "seen").mkdir()
    with _program(_INHERITED, top / "dir" / "file", top / "dir", area.path / "seen") as (
        pid,
        (child,),
    ):
        try:
            # The parent's root loses it.
            area.bind(area.path / "seen", top)
            options = steps.StepOptions(pid, new_work_dir(tmp_path), config=Config(hints=()))
            report = steps.pre_dump(options)
            ((row),) = report.watches
            assert row.path in {os.fsencode(top / "dir/file"), os.fsencode(area.path / "seen/file")}
            assert {row.mntns for row in report.watches} == {
                os.stat(f"/proc/{child}/ns/mnt").st_ino
            }
            taken = ps.take(ps.PsOptions(pid=pid, search=True))
            assert [one.path for one in taken.watches] == [row.path]
        finally:
            os.kill(int(child), 9)


@pytest.fixture
def mounted_by_a_child(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A task that watches a directory on a tmpfs which its child alone has mounted."""
    place = tmp_path / "place"
    place.mkdir()
    text = """
reading, writing = os.pipe()
child = os.fork()
if not child:
    check(libc.unshare(0x20000))
    check(libc.mount(b"none", b"/", None, 0x44000, None))
    check(libc.mount(b"none", os.fsencode(sys.argv[1]), b"tmpfs", 0, None))
    os.mkdir(sys.argv[1] + "/dir")
    fd = os.open(sys.argv[1] + "/dir", os.O_RDONLY)
    os.write(writing, b"%d" % fd)
    time.sleep(600)
fd = int(os.read(reading, 9))
inotify = check(libc.inotify_init1(0))
check(libc.inotify_add_watch(inotify, b"/proc/%d/fd/%d" % (child, fd), 0x20))
ready(child)
"""
    with _program(text, place) as (pid, (child,)):
        yield pid, int(child)
        os.kill(int(child), 9)


def test_a_directory_that_only_a_child_has_mounted(
    mounted_by_a_child: tuple[int, int], tmp_path: Path
) -> None:
    pid, child = mounted_by_a_child
    options = steps.StepOptions(pid, new_work_dir(tmp_path), config=Config(hints=()))
    for report in (steps.pre_dump(options), steps.dump(options, steps.FreezeOptions())):
        ((row),) = report.watches
        assert row.path == os.fsencode(tmp_path / "place" / "dir"), row.why
        assert row.mntns == os.stat(f"/proc/{child}/ns/mnt").st_ino
    taken = ps.take(ps.PsOptions(pid=pid, search=True))
    assert [row.path for row in taken.watches] == [os.fsencode(tmp_path / "place" / "dir")]


@pytest.mark.parametrize("own_mounts", [True, False])
def test_a_tasks_own_directory_in_a_nested_pid_namespace(
    tmp_path: Path,
    own_mounts: bool,  # noqa: FBT001
) -> None:
    unshare = ("pid", "mount") if own_mounts else ("pid",)
    with Watcher(unshare=unshare) as task:
        own = f"/proc/{task.own_pid if own_mounts else task.pid}"
        if own_mounts:
            task.mount("proc", "/proc", "proc")
        holding = _hold(task, own)
        names = ("", "/status", "/ns", f"/task/{own.rpartition('/')[2]}/status")
        for name in names:
            task.add_inotify(own + name)
        report = steps.pre_dump(options_for(task, new_work_dir(tmp_path)))
        assert {row.path for row in report.watches} == {os.fsencode(own + name) for name in names}
        assert mntns_of(task)
        for fd in holding:
            task.close_fd(fd)


def _hold(task: Task, own: str) -> list[int]:
    # An open file keeps its inode.
    return [
        task.open(own + name, os.O_PATH)
        for name in ("", "/status", "/ns", f"/task/{own.rpartition('/')[2]}/status")
    ]
