"""All watches of a tree, each once, also if other tasks hold the same descriptor."""

import errno
import os
import signal
from pathlib import Path

import pytest

from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import fdinfo, procfs, tasks
from irmapdb.kernel.proc.survey import Denied, read_survey
from irmapdb.kernel.proc.tasks import HIDDEN, Task, read_task, task_tree
from irmapdb.model import MarkKind, WatchKind
from tests.support.filesystems import superblock_kdev
from tests.support.kernel_paths import as_nobody, mount_id, watched_identity
from tests.support.names import deep_file
from tests.support.notify import FAN_MODIFY, FAN_ONDIR, FAN_OPEN, IN_ATTRIB, IN_CREATE
from tests.support.watcher import Watcher


def survey_of(watcher):
    return read_survey(task_tree(watcher.pid))


def test_the_survey_has_exactly_the_watches_that_were_made(area, watcher):
    top = area.ext4().mountpoint
    (top / "file").touch()
    one = watcher.add_inotify(top, IN_CREATE | IN_ATTRIB)
    two = watcher.add_inotify(top / "file")
    mark = watcher.add_fanotify(top / "file", FAN_OPEN)
    watcher.add_fanotify(top, FAN_MODIFY | FAN_ONDIR, "mount")
    watcher.add_fanotify(top, FAN_MODIFY, "filesystem")
    inotify, fanotify = [raw.parse() for raw in survey_of(watcher).files]
    assert (inotify.kind, inotify.fd, fanotify.fd) == (WatchKind.INOTIFY, one.fd, mark.fd)
    assert {watch.wd: watch.mask for watch in inotify.watches} == {
        one.wd: IN_CREATE | IN_ATTRIB,
        two.wd: two.mask,
    }
    shown = {watch.wd: watch.identity for watch in inotify.watches}
    assert shown == {w.wd: watched_identity(watcher, w) for w in (one, two)}
    assert [(w.identity, w.mask & FAN_OPEN) for w in fanotify.watches] == [
        (shown[two.wd], FAN_OPEN)
    ]
    assert {(one.kind, one.target) for one in fanotify.marks} == {
        (MarkKind.MOUNT, mount_id(top)),
        (MarkKind.FILESYSTEM, superblock_kdev(top)),
    }


def test_an_inherited_descriptor_is_read_once(watcher, tmp_path):
    shared = watcher.add_inotify(tmp_path)
    child = watcher.fork()
    grandchild = child.fork()
    # Of its own, with the very same text in fdinfo.
    own = child.inotify()
    child.add_inotify(tmp_path, fd=own)
    survey = survey_of(watcher)
    found = [(raw.pid, raw.fd) for raw in survey.files]
    assert found == [(watcher.pid, shared.fd), (child.pid, own)]
    assert survey.denied == ()
    assert {(copy.pid, copy.fd, copy.of.pid) for copy in survey.copies} == {
        (child.pid, shared.fd, watcher.pid),
        (grandchild.pid, shared.fd, watcher.pid),
    }


def test_copies_that_differ_in_close_on_exec_are_one_description(tmp_path):
    # dup(2) clears the flag; CRIU dumps the description once.
    first = syscalls.inotify_init()
    copy = other = -1
    try:
        assert not os.get_inheritable(first)
        copy = os.dup(first)
        os.set_inheritable(copy, True)
        other = syscalls.inotify_init()
        os.set_inheritable(other, True)
        for fd in (first, other):
            syscalls.inotify_add_watch(fd, os.fsencode(tmp_path), IN_CREATE)
        survey = read_survey([read_task(os.getpid())])
    finally:
        for fd in {first, copy, other} - {-1}:
            os.close(fd)
    assert [raw.fd for raw in survey.files] == [first, other]
    assert [(found.fd, found.of.fd) for found in survey.copies] == [(copy, first)]


def test_many_instances_without_a_watch_are_not_one(watcher):
    numbers = [watcher.inotify() for _ in range(5)]
    child = watcher.fork()
    survey = survey_of(watcher)
    assert [(raw.pid, raw.fd) for raw in survey.files] == [(watcher.pid, fd) for fd in numbers]
    assert [copy.pid for copy in survey.copies] == [child.pid] * 5


def test_equal_descriptors_are_sorted_and_not_compared_pairwise(monkeypatch):
    """Copies by dup and by fork are found in a number of calls that grows as n log n."""
    number = 100
    calls = 0
    compare = syscalls.compare_files

    def count_and_compare(*descriptors):
        nonlocal calls
        calls += 1
        return compare(*descriptors)

    mine = [syscalls.inotify_init() for _ in range(number)]
    copies = [os.dup(fd) for fd in mine[::3]]
    child = os.fork()
    if not child:
        signal.pause()
    try:
        monkeypatch.setattr(syscalls, "compare_files", count_and_compare)
        survey = read_survey([read_task(os.getpid()), read_task(child)])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for fd in (*mine, *copies):
            os.close(fd)
    assert {(one.pid, one.fd) for one in survey.files} == {(os.getpid(), fd) for fd in mine}
    of = {(copy.pid, copy.fd): copy.of.fd for copy in survey.copies}
    same = {(os.getpid(), copy): fd for fd, copy in zip(mine[::3], copies, strict=True)}
    assert of == same | {(child, fd): fd for fd in mine} | {
        (child, copy): fd for (_, copy), fd in same.items()
    }
    descriptors = 2 * (number + len(copies))
    assert calls < descriptors * (4 + number.bit_length())


def test_a_description_whose_first_descriptor_is_closed_meanwhile(watcher, monkeypatch):
    """The first descriptor may be closed when the next one is compared with it."""
    numbers = sorted(watcher.inotify() for _ in range(8))
    child = watcher.fork()
    read = fdinfo.read_raw

    def read_and_close(pid, fd, kind):
        raw = read(pid, fd, kind)
        if (pid, fd) == (child.pid, numbers[0]):
            for number in numbers[::2]:
                watcher.close_fd(number)
        return raw

    monkeypatch.setattr(fdinfo, "read_raw", read_and_close)
    survey = survey_of(watcher)
    found = [(raw.pid, raw.fd) for raw in survey.files]
    assert found[:8] == [(watcher.pid, fd) for fd in numbers]
    assert {copy.fd for copy in survey.copies} >= set(numbers[1::2]), "those are there still"
    assert {copy.of.pid for copy in survey.copies} == {watcher.pid}


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_without_kcmp_each_is_counted(watcher, monkeypatch, code):
    def refuse(pid, *_):
        raise OSError(code, os.strerror(code), pid)

    numbers = [watcher.inotify() for _ in range(3)]
    child = watcher.fork()
    monkeypatch.setattr(syscalls, "compare_files", refuse)
    found = [(raw.pid, raw.fd) for raw in survey_of(watcher).files]
    assert found == [(task.pid, fd) for task in (watcher, child) for fd in numbers]


def test_descriptors_that_are_not_read_in_time_are_counted(watcher):
    for _ in range(3):
        watcher.inotify()
    tasks = [read_task(watcher.pid), *(read_task(watcher.fork().pid) for _ in range(2))]
    looks = iter([False] * 6)  # a look for each task and descriptor
    survey = read_survey(tasks, over=lambda: next(looks, True))
    assert (len(survey.files), survey.unread) == (3, 2)
    assert read_survey(tasks, over=lambda: False).unread == 0


def test_a_task_that_ends_is_left_out(watcher, tmp_path):
    watcher.add_inotify(tmp_path)
    with Watcher() as other:
        other.add_inotify(tmp_path)
        tasks = [*task_tree(other.pid), *task_tree(watcher.pid)]
        assert len(read_survey(tasks).files) == 2
        other.signal(9)
        other.wait_dead()  # a zombie, until it is waited for
        assert [raw.pid for raw in read_survey(tasks).files] == [watcher.pid]
    survey = read_survey(tasks)
    assert [raw.pid for raw in survey.files] == [watcher.pid]
    assert survey.denied == ()


def test_a_task_that_may_not_be_read_is_named(watcher, tmp_path):
    watcher.add_inotify(tmp_path)
    task = read_task(watcher.pid)
    hidden = Task(watcher.pid, 1, b"", HIDDEN, 0)
    with as_nobody():
        survey = read_survey([task, hidden])
    assert survey.files == ()
    assert survey.denied == (
        Denied(task, "Permission denied"),
        Denied(hidden, "/proc hides it"),
    )


def test_another_proc_may_hide_a_task(area, watcher, tmp_path, monkeypatch):
    watcher.add_inotify(tmp_path)
    proc = os.fspath(area.mount("proc", "proc", "proc", "hidepid=invisible"))
    task = read_task(watcher.pid)
    monkeypatch.setattr(procfs, "ROOT", proc)
    assert len(read_survey([task]).files) == 1
    for directory in [area.path, *area.path.parents]:
        directory.chmod(directory.stat().st_mode | 0o711)
    with as_nobody(), pytest.raises(FileNotFoundError):
        fdinfo.watch_descriptors(watcher.pid)


def test_a_file_too_deep_for_a_link_does_not_end_the_survey(watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path)
    here = os.open(tmp_path, os.O_PATH)
    for name in (
        Path(os.fsdecode(deep_file(tmp_path, length=5000))).relative_to(tmp_path).parts[:-1]
    ):
        below = os.open(name, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    watcher.chdir(f"/proc/{os.getpid()}/fd/{here}")
    os.close(here)
    watcher.open("file")
    assert [raw.fd for raw in survey_of(watcher).files] == [watched.fd]


def test_the_pids_of_a_namespace(tmp_path):
    with Watcher(unshare={"pid"}) as watcher:
        assert tasks.namespace_pids(watcher.pid) == (watcher.pid, 1)
        child = watcher.fork()
        assert tasks.namespace_pids(child.pid) == (child.pid, child.own_pid)
        watcher.add_inotify(tmp_path)
        assert [raw.pid for raw in survey_of(watcher).files] == [watcher.pid]
