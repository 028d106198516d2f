"""Programs to be frozen: `python freeze_target.py WHAT [ARGUMENT]…`.

Each prints a line of JSON when it is ready. Most end when their stdin is closed, and some print a
result then. Their counters are in a file of u64s that the test maps too: COUNTERS names it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import sys
import threading
import time

_libc = ctypes.CDLL(None, use_errno=True)
_IS_X86 = os.uname().machine == "x86_64"
_SYS_FUTEX = 202 if _IS_X86 else 98
_SYS_EXIT = 60 if _IS_X86 else 93
_TICK_S = 0.001


def ready(**what: object) -> None:
    """One line of JSON to the test."""
    os.write(1, json.dumps(what).encode() + b"\n")


def await_end() -> None:
    """Block until the test closes our stdin."""
    while os.read(0, 1):
        pass


def _counters() -> memoryview:
    with open(os.environ["COUNTERS"], "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def _count(cells: memoryview, index: int) -> None:
    while True:
        cells[index] += 1
        time.sleep(_TICK_S)


def _in_threads(cells: memoryview, first: int, count: int) -> None:
    for index in range(first, first + count):
        threading.Thread(target=_count, args=(cells, index), daemon=True).start()


def tree(processes: str, threads: str) -> None:
    """A root, children of it, a grandchild each; every thread counts in a cell of its own."""
    cells = _counters()
    step = int(threads)
    read_end, write_end = os.pipe()
    for number in range(1, int(processes)):
        if os.fork() == 0:
            # Every second one is the child of the one before.
            if number % 2 == 0 or os.fork() == 0:
                _in_threads(cells, number * step, step - 1)
                os.write(write_end, b"%d %d\n" % (number, os.getpid()))
                _count(cells, number * step + step - 1)
            signal.pause()
    with open(read_end, "rb") as lines:
        told = sorted(lines.readline().split() for _ in range(1, int(processes)))
    _in_threads(cells, 0, step)
    ready(pids=[os.getpid(), *(int(pid) for _, pid in told)])
    await_end()


def forks(count: str, *, chain: bool = False) -> None:
    """Forks children that stay, as fast as possible; in a chain, each is a child of the last."""
    parent = os.getpid()
    ready()
    for _ in range(int(count)):
        if (os.fork() != 0) is chain:
            break
    if os.getpid() == parent and not chain:
        await_end()
    signal.pause()


def chain(count: str) -> None:
    """See `forks`."""
    forks(count, chain=True)


def children() -> None:
    """Children that end at once, each with its own code; prints the wrong codes."""
    ready()
    wrong = started = 0
    while not select.select([0], [], [], 0)[0]:
        code = started % 100
        pid = os.fork()
        if pid == 0:
            os._exit(code)
        started += 1
        wrong += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != code
    ready(wrong=wrong, started=started)


def threads() -> None:
    """Threads that come and go all the time."""
    cells = _counters()
    ready()
    while not select.select([0], [], [], 0)[0]:
        batch = [threading.Thread(target=time.sleep, args=(_TICK_S,)) for _ in range(3)]
        for thread in batch:
            thread.start()
        for thread in batch:
            thread.join()
        cells[0] += 1
    ready()


def execs(left: str) -> None:
    """Calls execve again and again, not from its first thread, which so gets a new body."""
    if int(left) == 0:
        ready(done=True)
        await_end()
        return
    if "AGAIN" not in os.environ:
        os.environ["AGAIN"] = "1"
        ready()

    def again() -> None:
        os.execv(sys.executable, [sys.executable, "-SE", __file__, "execs", str(int(left) - 1)])

    for _ in range(3):
        threading.Thread(target=signal.pause, daemon=True).start()
    threading.Thread(target=again).start()
    signal.pause()


def vfork(fifo: str) -> None:
    """Asleep in vfork until a process opens the FIFO for writing; then prints the child's code."""
    threading.Thread(target=signal.pause, daemon=True).start()
    ready()
    action = (os.POSIX_SPAWN_OPEN, 0, fifo, os.O_RDONLY, 0)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {}, file_actions=[action])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ready(code=code)
    await_end()


def headless() -> None:
    """The first thread has ended, another one counts."""
    cells = _counters()
    _in_threads(cells, 0, 1)
    while not cells[0]:
        time.sleep(_TICK_S)
    ready()
    _libc.syscall(_SYS_EXIT, 0)


def signals() -> None:
    """Counts each delivery of SIGRTMIN in cell 0, exactly, and prints the number at the end.

    Python's own handler runs once for several signals; its C handler writes a byte for each.
    """
    cells = _counters()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGRTMIN, lambda *_: None)
    ready()
    while True:
        arrived, _, _ = select.select([read_end, 0], [], [])
        if read_end in arrived:
            cells[0] += len(os.read(read_end, 65536))
        elif not os.read(0, 1):
            return


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Pollfd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def sleepers() -> None:
    """A thread in each of some system calls that the kernel restarts; prints their results.

    Called by ctypes, because Python itself calls again after EINTR.
    """
    word = ctypes.c_int(0)
    ends = {name: os.pipe() for name in ("poll", "read", "select", "wait")}
    results: dict[str, tuple[int, int]] = {}

    def call(name: str, function: object, *args: object) -> None:
        ctypes.set_errno(0)
        results[name] = (function(*args), ctypes.get_errno())  # type: ignore[operator]

    poll = _Pollfd(ends["poll"][0], select.POLLIN, 0)
    bits = (ctypes.c_long * 16)()
    bits[ends["select"][0] // 64] |= 1 << ends["select"][0] % 64
    buffer = ctypes.create_string_buffer(8)
    child = os.fork()
    if child == 0:
        os.close(ends["wait"][1])
        os._exit(len(os.read(ends["wait"][0], 8)))
    jobs = (
        ("nanosleep", _libc.nanosleep, ctypes.byref(_Timespec(1, 0)), None),
        ("poll", _libc.poll, ctypes.byref(poll), 1, -1),
        ("select", _libc.select, ends["select"][0] + 1, ctypes.byref(bits), None, None, None),
        ("read", _libc.read, ends["read"][0], buffer, 8),
        ("futex", _libc.syscall, _SYS_FUTEX, ctypes.byref(word), 0, 0, None, None, 0),
        ("waitpid", _libc.waitpid, child, None, 0),
    )
    callers = [threading.Thread(target=call, args=job) for job in jobs]
    for caller in callers:
        caller.start()
    ready(tids={job[0]: caller.native_id for job, caller in zip(jobs, callers, strict=True)})
    await_end()
    for name in ("poll", "read", "select", "wait"):
        os.write(ends[name][1], b"x")
    while any(caller.is_alive() for caller in callers):
        _libc.syscall(_SYS_FUTEX, ctypes.byref(word), 1, 1, None, None, 0)
        time.sleep(_TICK_S)
    ready(results=results, child=child)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        globals()[sys.argv[1]](*sys.argv[2:])
