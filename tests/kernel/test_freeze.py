"""frozen(): every task stops and runs again, and no signal or exit code is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from irmapdb.errors import FreezeError, TaskError, UsageError
from irmapdb.kernel.own_freezer.cgroup import guarded, is_frozen, open_freezer
from irmapdb.kernel.own_freezer.stop_tree import frozen
from tests.support.freezing import (
    HELD,
    PATIENCE_S,
    Cgroup,
    _libc,
    descendants,
    stat_fields,
    state,
    states,
    threads,
    until,
)


def in_child(work: Callable[[], object]) -> int:
    """Fork, call `work` in the child, and end the child without pytest's cleanup; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return pid


# All tasks stop, and only for the block.


def test_every_thread_of_every_task_stops_and_then_runs(start, way):
    target = start("tree", 5, 3)
    pids = target.told["pids"]
    options = way(*descendants(target.pid))
    for _ in range(3):
        target.runs(range(15))
        with frozen(target.pid, **options) as held:
            assert held.pids[0] == target.pid
            assert set(held.pids) == descendants(target.pid) >= set(pids)
            assert states(held.pids) == {"t"}
            counted = target.cells.tolist()
            assert held.since_ns <= time.monotonic_ns()
            assert 0 < held.freezing_us < PATIENCE_S * 1e6
            assert states(held.pids) == {"t"}
            assert target.cells.tolist() == counted
        assert not states(held.pids) & HELD
    target.runs(range(15))


def test_parents_come_before_their_children(start):
    target = start("tree", 7, 1)
    with frozen(target.pid) as held:
        place = {pid: number for number, pid in enumerate(held.pids)}
        for pid in held.pids[1:]:
            assert place[int(stat_fields(pid)[1])] < place[pid]


@pytest.mark.parametrize("what", ["forks", "chain"])
def test_every_task_of_a_growing_tree_is_stopped(start, way, what):
    target = start(what, 300)
    options = way(target.pid)
    sizes = []
    for _ in range(10):
        with frozen(target.pid, **options) as held:
            sizes.append(len(held.pids))
            assert len(set(held.pids)) == sizes[-1]
            assert set(held.pids) == descendants(target.pid)
            assert states(held.pids) == {"t"}
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1


def test_threads_that_come_and_go_are_held(start, way):
    target = start("threads")
    options = way(target.pid)
    for _ in range(40):
        with frozen(target.pid, **options):
            assert states([target.pid]) == {"t"}
            inside = threads(target.pid)
            assert threads(target.pid) == inside
        target.runs()


def test_children_that_end_meanwhile_give_their_parent_the_right_code(start, way):
    target = start("children")
    options = way(target.pid)
    for _ in range(60):
        with frozen(target.pid, **options) as held:
            assert states(held.pids) <= {"t", "Z"}
    told = target.end()
    assert told["wrong"] == 0
    assert told["started"] > 0


def test_no_task_escapes_by_execve_of_a_thread(start):
    target = start("execs", 40)
    rounds = 0
    while not select.select([target.process.stdout], [], [], 0)[0]:
        with frozen(target.pid) as held:
            assert held.pids == (target.pid,)
            assert states(held.pids) <= {"t", "Z"}
            assert state(target.pid) == "t"
        rounds += 1
    assert target.hear() == {"done": True}
    assert rounds > 0


def test_a_parent_blocked_in_vfork_counts_as_stopped(start, way, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    target = start("vfork", fifo)
    until(lambda: len(descendants(target.pid)) == 2, "the child of vfork")
    until(lambda: state(target.pid) == "D", "its parent sleeps")
    options = way(*descendants(target.pid))
    with frozen(target.pid, **options) as held:
        assert set(held.pids) == descendants(target.pid)
        assert states(held.pids[:1]) == {"D", "t"}  # it has another thread
        assert states(held.pids[1:]) == {"t"}
    fifo.write_bytes(b"")
    assert target.hear() == {"code": 7}


def test_a_task_whose_first_thread_has_ended_is_held_by_the_others(start, way):
    target = start("headless")
    until(lambda: state(target.pid) == "Z", "the first thread has ended")
    with frozen(target.pid) as held:  # a zombie's number cannot be put into a cgroup
        assert held.pids == (target.pid,)
        assert states(held.pids) == {"t", "Z"}
    target.runs()


def test_the_tasks_run_again_after_the_time_limit(start, way):
    """The time limit ends any block, for example a lookup that waits for a new mount."""
    target = start("tree", 1, 3)
    options = way(target.pid)
    with (  # noqa: PT012
        pytest.raises(FreezeError, match=r"run again after 2 s"),
        frozen(target.pid, hold_s=2, **options) as held,
    ):
        held.confirm()
        assert states(held.pids) <= {"t"}
        until(lambda: "t" not in states(held.pids), "they run again")
    target.runs()


def test_the_parent_reaps_a_task_that_is_killed_while_stopped(start, way):
    target = start("tree", 1, 3)
    options = way(target.pid)
    with frozen(target.pid, **options):
        os.kill(target.pid, signal.SIGKILL)
        until(lambda: state(target.pid) == "Z", "it is dead")
    assert target.process.wait() == -signal.SIGKILL


# Nothing is lost.


def test_a_task_that_was_stopped_before_stays_stopped(start, way):
    target = start("tree", 2, 3)
    other = target.told["pids"][1]
    options = way(*descendants(target.pid))
    os.kill(other, signal.SIGSTOP)
    until(lambda: states([other]) == {"T"}, "it is stopped")
    for _ in range(3):
        with frozen(target.pid, **options) as held:
            assert states(held.pids) == {"t"}
            stopped = target.cells[3:6].tolist()
        until(lambda: states([other]) == {"T"}, "it is stopped again")
        target.runs(range(3))
    assert target.cells[3:6].tolist() == stopped
    os.kill(other, signal.SIGCONT)
    target.runs(range(6))


def test_a_stop_and_a_continue_that_come_meanwhile_take_effect_afterwards(start, way):
    target = start("tree", 1, 3)
    options = way(target.pid)
    with frozen(target.pid, **options):
        os.kill(target.pid, signal.SIGSTOP)
    until(lambda: states([target.pid]) == {"T"}, "it is stopped")
    with frozen(target.pid, **options):
        os.kill(target.pid, signal.SIGCONT)
        assert states([target.pid]) == {"t"}
    target.runs(range(3))


def test_sleeping_system_calls_continue(start, way):
    target = start("sleepers")
    options = way(*descendants(target.pid))
    for _ in range(20):
        until(lambda: states([target.pid]) == {"S"}, "all sleep")
        with frozen(target.pid, **options):
            assert states([target.pid]) == {"t"}
    told = target.end()
    results = {name: result for name, (result, _) in told["results"].items()}
    assert results == {
        "nanosleep": 0,
        "poll": 1,
        "select": 1,
        "read": 1,
        "futex": 0,
        "waitpid": told["child"],
    }


class Sender:
    """Sends SIGRTMIN, which queues, and counts."""

    def __init__(self, pid: int) -> None:
        self.sent = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._over.wait(0.0002):
            os.kill(self._pid, signal.SIGRTMIN)
            self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_every_signal_arrives_once(start, way):
    target = start("signals")
    options = way(target.pid)
    with Sender(target.pid) as sender:
        for _ in range(100):
            with frozen(target.pid, **options):
                pass
    until(lambda: target.cells[0] >= sender.sent, f"{sender.sent} signals")
    assert target.cells[0] == sender.sent > 0


def test_nothing_is_lost_when_the_freezer_is_killed_at_any_moment(start, way):
    target = start("tree", 4, 3)
    counter = start("signals")
    stopped = target.told["pids"][3]
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: states([stopped]) == {"T"}, "it is stopped")
    running = descendants(target.pid) - {stopped}
    options = way(*descendants(target.pid), counter.pid)
    cgroup = Cgroup(options["cgroup"]) if options else None
    chance = random.Random(11)

    def freeze_on_and_on() -> None:
        while True:
            for pid in (target.pid, counter.pid):
                with frozen(pid, **options):
                    pass

    with Sender(counter.pid) as sender:
        for _ in range(100):
            freezer = in_child(freeze_on_and_on)
            time.sleep(chance.uniform(0, 0.03))  # the moment
            os.kill(freezer, signal.SIGKILL)
            _, status = os.waitpid(freezer, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            if cgroup is not None:
                until(lambda: cgroup.thawed, "the guard has thawed")
            assert not states([*running, counter.pid]) & HELD
            until(lambda: states([stopped]) == {"T"}, "the stopped task is so again")
    target.runs(range(9))
    until(lambda: counter.cells[0] >= sender.sent, f"{sender.sent} signals")
    assert counter.cells[0] == sender.sent > 0
    os.kill(stopped, signal.SIGCONT)
    target.runs(range(12))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_all_tasks_run_after_a_signal_ends_the_freezer(start, way, number):
    target = start("tree", 3, 2)
    options = way(*descendants(target.pid))
    read_end, write_end = os.pipe()

    def hold() -> None:
        signal.signal(number, signal.SIG_DFL)
        with frozen(target.pid, **options):
            os.write(write_end, b"x")
            signal.pause()

    freezer = in_child(hold)
    os.read(read_end, 1)
    assert states(descendants(target.pid)) == {"t"}
    os.kill(freezer, number)
    assert os.waitstatus_to_exitcode(os.waitpid(freezer, 0)[1]) == -number
    target.runs(range(6))
    os.close(read_end)
    os.close(write_end)


def test_all_tasks_run_after_an_exception_in_the_block(start, way):
    target = start("tree", 3, 2)
    options = way(*descendants(target.pid))
    for error in (ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error), frozen(target.pid, leave_stopped=True, **options) as held:
            raise error
        assert not states(held.pids) & HELD
    target.runs(range(6))


def test_all_tasks_run_after_ctrl_c_at_any_moment(start, way):
    target = start("tree", 3, 2)
    pids = descendants(target.pid)
    options = way(*pids)
    chance = random.Random(5)
    read_end, write_end = os.pipe()

    def freeze_until_interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            os.write(write_end, b"x")
            while True:
                with frozen(target.pid, **options):
                    pass
        # This process still runs, so the end of the block has released the tasks.
        until(lambda: not states(pids) & HELD, "all run")

    for _ in range(40):
        freezer = in_child(freeze_until_interrupted)
        os.read(read_end, 1)
        time.sleep(chance.uniform(0, 0.01))  # the moment
        os.kill(freezer, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(freezer, 0)[1]) == 0
    target.runs(range(6))
    os.close(read_end)
    os.close(write_end)


def test_left_stopped_means_until_sigcont(start, way):
    target = start("tree", 3, 2)
    options = way(*descendants(target.pid))
    with frozen(target.pid, leave_stopped=True, **options) as held:
        pass
    until(lambda: states(held.pids) == {"T"}, "all are stopped")
    for pid in held.pids:
        os.kill(pid, signal.SIGCONT)
    target.runs(range(6))


# The cgroup.


@pytest.fixture(params=["v1", "v2"])
def cgroup(request, make_cgroup) -> Cgroup:
    return make_cgroup(request.param)


def test_a_cgroup_that_another_process_froze_is_named(start, cgroup):
    target = start("tree", 2, 2)
    cgroup.put(*descendants(target.pid))
    below = cgroup.path / "below"
    for freezing in (cgroup, Cgroup(below)):
        freezing.path.mkdir(exist_ok=True)
        freezing.put(*descendants(target.pid))
        freezing.freeze()
        if freezing.control.name == "cgroup.freeze":  # it reaches its ptrace stop in any case
            with frozen(target.pid) as held:
                assert states(held.pids) == {"t"}
            freezing.thaw()
            continue
        with pytest.raises(FreezeError) as caught, frozen(target.pid, timeout_s=0.3):
            pass
        assert f": its cgroup {freezing.path} is frozen" in str(caught.value)
        assert caught.value.remedy == "freeze cgroup"
        with frozen(target.pid, cgroup=freezing.path) as held:
            assert set(held.pids) == descendants(target.pid)
        freezing.thaw()
        target.runs(range(4))
    cgroup.put(*descendants(target.pid))
    below.rmdir()


def test_a_cgroup_that_another_process_froze_stays_frozen(start, cgroup):
    target = start("tree", 3, 2)
    pids = target.told["pids"]
    cgroup.put(*descendants(target.pid) - {pids[2]})
    cgroup.freeze()
    counted = target.cells.tolist()
    with frozen(target.pid, cgroup=cgroup.path) as held:
        assert set(held.pids) == descendants(target.pid)
        assert state(pids[2]) == "t"  # the one outside
    assert is_frozen(open_freezer(cgroup.path))
    assert target.cells.tolist()[:4] == counted[:4]
    target.runs(range(4, 6))
    cgroup.thaw()
    target.runs(range(6))


def test_a_v1_freeze_that_another_process_ends_is_noticed(start, make_cgroup):
    cgroup = make_cgroup("v1")
    target = start("tree", 1, 2)
    cgroup.put(target.pid)
    cgroup.freeze()
    with (
        pytest.raises(FreezeError, match="thawed by another process"),
        frozen(target.pid, cgroup=cgroup.path),
    ):
        cgroup.thaw()
    target.runs(range(2))


def test_the_whole_cgroup_is_stopped_and_only_the_tree_is_listed(start, cgroup):
    target = start("tree", 2, 2)
    neighbour = start("tree", 2, 2)
    below = Cgroup(cgroup.path / "below")
    below.path.mkdir()
    cgroup.put(*descendants(target.pid))
    below.put(*descendants(neighbour.pid))
    with frozen(target.pid, cgroup=cgroup.path) as held:
        assert cgroup.thawed  # ptrace holds them now
        assert set(held.pids) == descendants(target.pid)
        assert states(descendants(neighbour.pid)) == {"t"}
    neighbour.runs(range(4))
    target.runs(range(4))
    until(below.removed, "the cgroup below is empty")


def test_the_cgroup_is_thawed_when_its_freezer_is_killed(start, cgroup):
    target = start("tree", 1, 2)
    cgroup.put(target.pid)
    freezer = open_freezer(cgroup.path)

    def freeze_and_die() -> None:
        with guarded(freezer) as guard:
            guard.freeze()
            until(lambda: is_frozen(freezer), "frozen")
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(freeze_and_die), 0)[1]) == -9
    until(lambda: cgroup.thawed, "thawed by the guard")
    target.runs(range(2))


def test_a_later_freeze_by_another_process_is_not_undone(start, cgroup):
    target = start("tree", 1, 2)
    cgroup.put(target.pid)
    with frozen(target.pid, cgroup=cgroup.path):
        cgroup.control.write_text("1" if cgroup.control.name == "cgroup.freeze" else "FROZEN")
    assert not cgroup.thawed


# Refusals and their messages. No task is left stopped.


def test_the_root_must_be_in_the_cgroup(start, cgroup):
    target = start("tree", 1, 1)
    with (
        pytest.raises(FreezeError, match=rf"task {target.pid} \(.*\) is not in the cgroup"),
        frozen(target.pid, cgroup=cgroup.path),
    ):
        pass


def test_a_cgroup_that_we_are_in_is_refused(start, cgroup):
    target = start("tree", 1, 1)
    cgroup.put(target.pid)

    def freeze_myself() -> None:
        cgroup.put(os.getpid())
        with pytest.raises(UsageError, match="cannot freeze itself"):
            frozen(target.pid, cgroup=cgroup.path).__enter__()

    child = in_child(freeze_myself)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cgroup.thawed


def test_a_directory_that_is_no_cgroup_is_refused(start, tmp_path, hierarchies):
    target = start("tree", 1, 1)
    for path in (tmp_path, tmp_path / "not-there", hierarchies["v2"] or tmp_path):
        with pytest.raises(UsageError, match=str(path)), frozen(target.pid, cgroup=path):
            pass


def test_ourselves_and_our_ancestors_are_refused():
    for pid in (os.getpid(), os.getppid(), 1):
        with pytest.raises(UsageError, match=f"task {pid} .*outside of its tree"), frozen(pid):
            pass


def test_a_missing_task_is_reported():
    pid = in_child(lambda: None)
    os.waitpid(pid, 0)
    with pytest.raises(TaskError, match=f"task {pid} is not there"), frozen(pid):
        pass


def test_the_tracer_of_a_traced_task_is_named(start, way):
    target = start("tree", 3, 2)
    traced = target.told["pids"][2]
    tracer = start("tree", 1, 1)
    read_end, write_end = os.pipe()

    def trace() -> None:
        Path("/proc/self/comm").write_text("debugger")
        assert _libc.ptrace(0x4206, traced, 0, 0) == 0
        os.write(write_end, b"x")
        signal.pause()

    tracer = in_child(trace)
    try:
        os.read(read_end, 1)
        options = way(*descendants(target.pid))
        for _ in range(2):
            with (
                pytest.raises(FreezeError, match=rf"{traced} .* by task {tracer} \(debugger\)"),
                frozen(target.pid, **options),
            ):
                pass
            assert not states(descendants(target.pid)) & HELD
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
        os.close(read_end)
        os.close(write_end)
    with frozen(target.pid, **options):
        assert state(traced) == "t"


def test_a_task_that_cannot_stop_is_named_and_all_run(start, make_cgroup):
    cgroup = make_cgroup("v1")
    target = start("tree", 3, 2)
    stuck = target.told["pids"][1]
    cgroup.put(stuck)
    cgroup.freeze()
    assert states([stuck]) == {"D"}
    with (
        pytest.raises(FreezeError, match=rf"task {stuck} \(.*\), state D.* within 0\.3 s"),
        frozen(target.pid, timeout_s=0.3),
    ):
        pass
    target.runs(range(2))
    cgroup.thaw()
    target.runs(range(6))


def test_a_child_of_vfork_that_cannot_stop_does_not_count_as_stopped(start, make_cgroup, tmp_path):
    cgroup = make_cgroup("v1")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    target = start("vfork", fifo)
    until(lambda: len(descendants(target.pid)) == 2, "the child of vfork")
    (child,) = descendants(target.pid) - {target.pid}
    cgroup.put(child)
    cgroup.freeze()
    with (
        pytest.raises(FreezeError, match=r"state D.* did not stop within 0\.3 s"),
        frozen(target.pid, timeout_s=0.3),
    ):
        pass
    cgroup.thaw()
    fifo.write_bytes(b"")
    assert target.hear() == {"code": 7}


def test_without_the_right_to_trace_the_error_names_the_capability(start):
    target = start("tree", 2, 2)

    def freeze_as_nobody() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(FreezeError, match=r"may not be traced: .*CAP_SYS_PTRACE") as caught:
            frozen(target.pid).__enter__()
        assert str(target.pid) in str(caught.value)
        assert os.strerror(errno.EPERM) in str(caught.value)

    child = in_child(freeze_as_nobody)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    target.runs(range(4))
