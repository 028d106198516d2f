"""Task trees are read from /proc as they are, also while they change."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.errors import TaskError
from irmapdb.kernel.proc import procfs, tasks
from irmapdb.kernel.proc.tasks import HIDDEN, Task, parse_stat, read_task, task_tree
from tests.support.features import require_root

PATIENCE_S = 60.0
NOBODY = 65534
PR_SET_DUMPABLE = 4

# A family: a child of the first thread, one of another thread, a grandchild, and a zombie.
FAMILY = """
import os, signal, sys, threading
def child(*below):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = [child(*below[1:])] if below else []
        os.write(write_end, repr([os.getpid(), *told]).encode())
        os.read(0, 1)
        os._exit(0)
    return eval(os.read(read_end, 4096))
found = [child(1)]
forked, over = threading.Event(), threading.Event()
def other():
    found.append(child())
    forked.set()
    over.wait()
threading.Thread(target=other, daemon=True).start()
forked.wait()
zombie = os.fork() or os._exit(0)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
print([os.getpid(), found, zombie], flush=True)
os.read(0, 1)
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.001)


@contextlib.contextmanager
def running(source: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program, killed with all of its children at the end."""
    process = subprocess.Popen(
        [sys.executable, "-SE", "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def family() -> Iterator[tuple[int, int, int, int, int]]:
    """Root, child, grandchild, the other thread's child, and a zombie."""
    with running(FAMILY) as process:
        root, found, zombie = eval(process.stdout.readline())  # noqa: S307 - our own program
        ((child, (grandchild,)), (other,)) = found
        yield root, child, grandchild, other, zombie


def in_child(work: Callable[[], object]) -> int:
    """Fork, work there, and give the exit code: 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@given(
    pid=st.integers(1, 2**22),
    ppid=st.integers(0, 2**22),
    comm=st.binary(max_size=64).filter(lambda comm: b"\0" not in comm),
    state=st.sampled_from("RSDTtZXI"),
    starttime=st.integers(0, 2**64 - 1),
)
def test_a_stat_line_with_any_command_is_parsed(pid, ppid, comm, state, starttime):
    # proc_pid_stat(5): fields 5 to 21 lie between, 30 more come after.
    line = b"%d (%s) %c %d %s %d %s\n" % (
        pid,
        comm,
        state.encode(),
        ppid,
        b" ".join(b"%d" % number for number in range(5, 22)),
        starttime,
        b" ".join([b"0"] * 30),
    )
    assert parse_stat(line) == Task(pid, ppid, comm, state, starttime)


def test_a_task_is_read_as_it_is():
    source = "import os; open('/proc/self/comm', 'wb').write(b'a) R 1 (\\n'); os.read(0, 1)"
    with running(source) as process:
        until(lambda: read_task(process.pid).comm == b"a) R 1 (\n", "it has its name")
        task = read_task(process.pid)
        assert (task.pid, task.ppid) == (process.pid, os.getpid())
        until(lambda: read_task(process.pid).state == "S", "it waits")
        assert task.starttime >= read_task(os.getpid()).starttime
    assert read_task(process.pid) is None
    assert tasks.read_process(process.pid) is None
    assert tasks.leader_of(process.pid) is None


def test_the_name_of_a_task_cannot_fake_other_fields():
    source = "import os; open('/proc/self/comm', 'wb').write(b'x\\rTgid:\\t1'); os.read(0, 1)"
    with running(source) as process:
        until(lambda: read_task(process.pid).comm == b"x\rTgid:\t1", "it has its name")
        assert tasks.leader_of(process.pid) == process.pid
        assert [task.pid for task in task_tree(process.pid)] == [process.pid]


def test_the_tree_has_every_thread_s_children_and_no_zombie(family):
    root, child, grandchild, other, zombie = family
    tree = task_tree(root)
    pids = [task.pid for task in tree]
    assert pids[0] == root
    assert sorted(pids) == sorted([root, child, grandchild, other])
    assert pids.index(child) < pids.index(grandchild)
    assert {task.pid: task.ppid for task in tree} == {
        root: os.getpid(),
        child: root,
        grandchild: child,
        other: root,
    }
    assert read_task(zombie).state == "Z"
    assert [task.pid for task in task_tree(grandchild)] == [grandchild]


def test_without_the_kernel_s_lists_the_parents_tell(family, monkeypatch):
    expected = task_tree(family[0])
    parents = tasks._scan()  # a kernel without CONFIG_PROC_CHILDREN
    monkeypatch.setattr(tasks, "children_index", lambda: parents)
    monkeypatch.setattr(tasks, "_children", lambda *_: [])
    found = {(task.pid, task.ppid, task.starttime) for task in task_tree(family[0])}
    assert found == {(task.pid, task.ppid, task.starttime) for task in expected}


def test_a_process_whose_first_thread_has_ended_is_found():
    number = 60 if os.uname().machine == "x86_64" else 93
    source = f"""
import ctypes, os, threading
print(os.fork() or os.read(0, 1), flush=True)
threading.Thread(target=os.read, args=(0, 1)).start()
ctypes.CDLL(None).syscall({number}, 0)
"""
    with running(source) as process:
        child = int(process.stdout.readline())
        until(lambda: read_task(process.pid).state == "Z", "the first thread has ended")
        assert [task.pid for task in task_tree(process.pid)] == [process.pid, child]


def test_a_tree_that_changes_all_the_time_can_be_read():
    source = """
import os, threading
def churn():
    while True:
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)
keeper = os.fork()
if keeper == 0:
    os.read(0, 1)
    os._exit(0)
for _ in range(2):
    threading.Thread(target=churn, daemon=True).start()
print(keeper, flush=True)
os.read(0, 1)
"""
    with running(source) as process:
        keeper = int(process.stdout.readline())
        for _ in range(300):
            pids = [task.pid for task in task_tree(process.pid)]
            assert pids[0] == process.pid
            assert keeper in pids
            assert len(set(pids)) == len(pids)
            assert all(task.state != HIDDEN for task in task_tree(process.pid))


def test_a_root_that_was_replaced_by_another_task_is_noticed(family, monkeypatch):
    earlier = read_task(family[0])
    earlier = earlier._replace(starttime=earlier.starttime - 1)
    monkeypatch.setattr(tasks, "require_task", lambda *_: earlier)
    with pytest.raises(TaskError, match=rf"task {family[0]} .* ended while its tree was read"):
        task_tree(family[0])


@pytest.mark.parametrize("pid", [0, -1, -(2**40)])
def test_a_number_that_is_no_process_is_refused(pid):
    with pytest.raises(TaskError, match=f"{pid} is not a process id"):
        task_tree(pid)


@pytest.mark.parametrize("unused", [True, False])
def test_a_task_that_has_ended_is_reported(unused):
    with running("pass") as process:
        process.stdout.read()
    pid = 2**40 if unused else process.pid
    with pytest.raises(TaskError, match=f"task {pid} is not there"):
        task_tree(pid)


def test_a_zombie_is_named_as_one(family):
    with pytest.raises(TaskError, match=rf"task {family[4]} \(.*\) is a zombie"):
        task_tree(family[4])


def test_a_thread_is_no_root_and_its_process_is_named(family):
    root = family[0]
    thread = next(tid for tid in map(int, os.listdir(f"/proc/{root}/task")) if tid != root)
    with pytest.raises(TaskError, match=f"{thread} is no process.* thread of {root}"):
        task_tree(thread)


@pytest.fixture
def hiding_proc(tmp_path) -> Iterator[Callable[[int], str]]:
    """A /proc mounted with the given hidepid."""
    require_root()
    mounted: list[Path] = []

    def mount(hidepid: int) -> str:
        where = tmp_path / f"proc-{hidepid}"
        where.mkdir()
        argv = ["mount", "-t", "proc", "-o", f"hidepid={hidepid}", "proc", where]
        subprocess.run(argv, check=True)
        mounted.append(where)
        # Its directory is for root alone: another user gets there by a descriptor.
        fd = os.open(where, os.O_PATH)
        return f"/proc/self/fd/{fd}"

    yield mount
    for where in mounted:
        subprocess.run(["umount", "--lazy", where], check=True)


@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_task_that_proc_hides_is_reported_as_hidden(family, hiding_proc, hidepid, monkeypatch):
    monkeypatch.setattr(procfs, "ROOT", hiding_proc(hidepid))

    def look_as_nobody() -> None:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # or /proc/self/fd is root's alone
        for look in (task_tree, read_task, tasks.read_process, tasks.leader_of):
            if hidepid == 2 and look in (read_task, tasks.leader_of):
                assert not look(family[0])  # they do not ask twice
                continue
            with pytest.raises(TaskError, match=rf"hides it from uid {NOBODY}.*hidepid"):
                look(family[0])

    assert in_child(look_as_nobody) == 0
    assert len(task_tree(family[0])) == 4  # root sees all


def test_a_hidden_child_is_in_the_tree_without_a_name(hiding_proc, monkeypatch):
    monkeypatch.setattr(procfs, "ROOT", hiding_proc(2))
    over, keep = os.pipe()

    def become_nobody_with_a_child_of_root() -> None:
        hidden = os.fork()
        if hidden == 0:
            os.close(keep)
            os._exit(len(os.read(over, 1)))
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # we ourselves must be shown
        me, child = task_tree(os.getpid())
        assert me.pid == os.getpid()
        assert child == Task(hidden, os.getpid(), b"", HIDDEN, 0)

    assert in_child(become_nobody_with_a_child_of_root) == 0
    os.close(keep)  # and so the child ends
    os.close(over)
