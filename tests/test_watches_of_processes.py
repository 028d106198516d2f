"""The watches of real processes: of one without its first thread, and of one that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irmapdb.kernel.proc import fdinfo, mountinfo, open_files, tasks
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import WatchKind
from tests.support.names import ODD_NAMES, deep_file
from tests.support.notify import IN_ATTRIB, IN_MODIFY


def test_the_watches_of_a_real_process(watcher, tmp_path):
    paths = [
        os.fsencode(tmp_path / "plain"),
        *(os.fsencode(tmp_path) + b"/" + n for n in ODD_NAMES),
    ]
    for path in paths:
        Path(os.fsdecode(path)).touch()
    watched = [watcher.add_inotify(path, IN_MODIFY | IN_ATTRIB) for path in paths]
    assert fdinfo.watch_descriptors(watcher.pid) == [(watched[0].fd, WatchKind.INOTIFY)]
    raw = fdinfo.read_raw(watcher.pid, watched[0].fd, WatchKind.INOTIFY)
    assert raw.raw == Path(f"/proc/{watcher.pid}/fdinfo/{watched[0].fd}").read_bytes()
    file = raw.parse()
    assert (file.pid, file.fd, file.flags) == (watcher.pid, watched[0].fd, os.O_NONBLOCK)
    # In the kernel's order, the newest first.
    assert [(w.wd, w.identity.ino, w.mask) for w in file.watches] == [
        (w.wd, w.st_ino, IN_MODIFY | IN_ATTRIB) for w in reversed(watched)
    ]


def test_a_file_that_is_deeper_than_a_link_can_tell_hides_no_watch(watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path)
    deep = deep_file(tmp_path, length=4200)
    here = os.open(tmp_path, os.O_PATH)
    for part in Path(os.fsdecode(deep)).relative_to(tmp_path).parts[:-1]:
        below = os.open(part, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    watcher.chdir(f"/proc/{os.getpid()}/fd/{here}")
    os.close(here)
    fd = watcher.open("file")
    with pytest.raises(OSError, match="too long"):
        os.readlink(f"/proc/{watcher.pid}/fd/{fd}")
    assert fdinfo.watch_descriptors(watcher.pid) == [(watched.fd, WatchKind.INOTIFY)]
    assert all(len(file.path) < 4096 for file in open_files.open_files(watcher.pid))


HEADLESS = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
inotify = libc.inotify_init1(0)
libc.inotify_add_watch(inotify, os.fsencode(os.getcwd()), 2)
if os.fork() == 0:
    time.sleep(1000)
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
libc.syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""


@pytest.fixture
def headless(tmp_path):
    """A process whose first thread has ended while another lives on, and that watches tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HEADLESS], stdout=subprocess.PIPE, cwd=tmp_path, process_group=0
    ) as process:
        try:
            assert process.stdout.readline() == b"\n"
            while tasks.read_task(process.pid).state != "Z":
                time.sleep(0.001)
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_watches_of_a_process_whose_first_thread_has_ended(headless, tmp_path):
    assert os.listdir(f"/proc/{headless}/fd") == []
    (descriptor,) = fdinfo.watch_descriptors(headless)
    (watch,) = fdinfo.read_raw(headless, *descriptor).parse().watches
    assert (watch.pid, watch.identity.ino) == (headless, tmp_path.stat().st_ino)
    assert os.fsencode(tmp_path) in {file.path for file in open_files.open_files(headless)}
    assert mountinfo.mount_namespace(headless) == mountinfo.mount_namespace("self")
    assert headless in {task.pid for task in tasks.all_tasks()}
    # Its child has inherited the descriptor: it is one.
    survey = read_survey(tasks.task_tree(headless))
    assert ([raw.pid for raw in survey.files], len(survey.copies)) == ([headless], 1)
    with open_root(headless) as root:
        assert identify(root, os.fsencode(tmp_path)).matches(watch.identity)


def test_a_process_that_ends_is_left_out(watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path)
    spare = watcher.inotify()
    assert [fd for fd, _ in fdinfo.watch_descriptors(watcher.pid)] == [watched.fd, spare]
    watcher.close_fd(spare)
    assert fdinfo.read_raw(watcher.pid, spare, WatchKind.INOTIFY) is None
    watcher.kill()
    assert fdinfo.read_raw(watcher.pid, watched.fd, WatchKind.INOTIFY) is None
    assert tasks.namespace_pids(watcher.pid) == ()
    assert list(open_files.open_files(watcher.pid)) == []
    with pytest.raises(OSError, match="No such"):
        fdinfo.watch_descriptors(watcher.pid)
    with pytest.raises(OSError, match="No such"):
        mountinfo.read_mountinfo(watcher.pid)
    with pytest.raises(OSError, match="No such"):
        mountinfo.mount_namespace(watcher.pid)
