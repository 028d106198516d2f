"""Reads task trees from /proc.

Facts: proc_pid_stat(5), proc_tid_children(5) (CONFIG_PROC_CHILDREN; exact only while the tasks are
stopped), proc(5) on `hidepid`. A descriptor of /proc/PID belongs to that very task: once it is
gone, lookups through it fail, also when the number was given to another task (proc_pid_lookup and
get_proc_task in fs/proc/base.c).
"""

from __future__ import annotations

import os

from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import procfs
from irmapdb.kernel.proc.procfs import living_thread, read_file
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "HIDDEN",
    "Process",
    "Task",
    "all_tasks",
    "children_index",
    "leader_of",
    "namespace_pids",
    "parse_stat",
    "read_process",
    "read_task",
    "read_thread",
    "require_task",
    "task_tree",
    "thread_children",
    "threads_apart",
]

HIDDEN = "?"
"""The state of a task that exists, but is hidden from us in /proc."""

_DEAD = frozenset("ZXx")
_KTHREADD = (2, 0, b"kthreadd")
_WALKS = 3
"""The number of repeated walks of a tree that changed during a walk."""

# Fields of proc_pid_stat(5), counted from the one after the command.
_STATE, _PPID, _FLAGS, _NUM_THREADS, _STARTTIME = 0, 1, 6, 17, 19
_PF_KTHREAD = 0x00200000
"""Of include/linux/sched.h."""


class Task(Record):
    """The part of /proc/PID/stat that identifies a task."""

    pid: int
    ppid: int
    """0 if the parent is outside of our pid namespace."""
    comm: bytes
    state: str
    """One letter, proc_pid_stat(5); HIDDEN if /proc does not show the task."""
    starttime: int
    """Clock ticks since boot. (pid, starttime) is never used twice."""

    @property
    def name(self) -> str:
        """The name of the task in messages."""
        return f"task {self.pid} ({printable(self.comm)})" if self.comm else f"task {self.pid}"


class Process(Record):
    """One task with its threads and children, all read through one descriptor of /proc/PID."""

    task: Task
    tids: tuple[int, ...]
    children: tuple[int, ...]
    dead: bool
    """Whether it is a zombie. Other live threads keep a process alive without its first thread."""


def parse_stat(data: bytes) -> Task:
    """Parse /proc/PID/stat. The command may hold anything, also parentheses and newlines."""
    end = data.rfind(b")")
    fields = data[end + 2 :].split()
    start = data.index(b"(")
    return Task(
        pid=int(data[:start]),
        ppid=int(fields[_PPID]),
        comm=data[start + 1 : end],
        state=fields[_STATE].decode("ascii"),
        starttime=int(fields[_STARTTIME]),
    )


def read_task(pid: int) -> Task | None:
    """Read one task (or thread). None if it does not exist, or has just ended.

    Raises TaskError if /proc hides it from us.
    """
    return _read_stat(f"{procfs.ROOT}/{pid}/stat", pid)


def _read_stat(path: str, pid: int) -> Task | None:
    try:
        return parse_stat(read_file(path))
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        raise _hidden(pid) from None


def read_thread(pid: int, tid: int) -> Task | None:
    """The same for one thread of a task, read below /proc/PID/task."""
    return _read_stat(f"{procfs.ROOT}/{pid}/task/{tid}/stat", tid)


def leader_of(tid: int) -> int | None:
    """The process that a thread belongs to, its first thread's number. None if it is gone."""
    try:
        status = read_file(f"{procfs.ROOT}/{tid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        raise _hidden(tid) from None
    # By newlines alone: these the kernel escapes in the name of a task, but no carriage return.
    return next(int(line[5:]) for line in status.split(b"\n") if line.startswith(b"Tgid:"))


def children_index() -> dict[int, list[int]] | None:
    """Every task's children, from one scan of /proc; None if the kernel lists them itself."""
    if os.path.exists(f"{procfs.ROOT}/thread-self/children"):
        return None
    return _scan()


def thread_children(pid: int, tid: int) -> tuple[int, ...]:
    """The children of one thread; of its whole process, if the kernel does not list them."""
    try:
        with _directory(f"{procfs.ROOT}/{pid}/task", flags=os.O_RDONLY) as task_fd:
            index = children_index()
            return _children(task_fd, (tid,)) if index is None else tuple(index.get(pid, ()))
    except (FileNotFoundError, ProcessLookupError):
        return ()
    except PermissionError:
        raise _hidden(pid) from None


def read_process(
    pid: int,
    index: Mapping[int, Sequence[int]] | None = None,
) -> Process | None:
    """Read a task, its threads, and its children (from `index`, where there is one).

    None if it does not exist, or ended meanwhile. Raises TaskError if /proc hides it.
    """
    try:
        with _directory(f"{procfs.ROOT}/{pid}") as pid_fd:
            with _directory("task", pid_fd, flags=os.O_RDONLY) as task_fd:
                tids = tuple(int(name) for name in os.listdir(task_fd))
                children = _children(task_fd, tids) if index is None else tuple(index.get(pid, ()))
            stat = read_file("stat", pid_fd)
            # Twice: a first thread that has ended is replaced by one that calls execve (de_thread
            # in fs/exec.c), and is seen alone for a moment.
            dead = _is_dead(stat) and _is_dead(stat := read_file("stat", pid_fd))
            return Process(parse_stat(stat), tids, children, dead)
    except (FileNotFoundError, ProcessLookupError):
        if _exists(pid):
            raise _hidden(pid) from None
        return None
    except PermissionError:
        raise _hidden(pid) from None


def require_task(pid: int) -> Task:
    """Read the task that a user named. TaskError if it cannot be the root of a tree."""
    if pid <= 0:
        raise TaskError(f"{pid} is not a process id", advice="give the number of a running process")
    process = read_process(pid)
    if process is None:
        raise TaskError(
            f"task {pid} is not there", advice="it has ended, or lives in another pid namespace"
        )
    leader = leader_of(pid)
    if leader not in (pid, None):
        raise TaskError(
            f"{pid} is no process of its own", advice=f"it is a thread of {leader}: name that"
        )
    if _is_kernel_thread(pid):
        raise TaskError(
            f"{process.task.name} is a kernel thread",
            advice="it watches nothing, and cannot be dumped: name a process",
        )
    if process.dead:
        raise TaskError(
            f"{process.task.name} is a zombie",
            advice="it has ended and waits for its parent to notice",
        )
    return process.task


def namespace_pids(pid: int) -> tuple[int, ...]:
    """A task's pid in each pid namespace that it is in: `NSpid:` of proc_pid_status(5).

    Empty where the task is gone.
    """
    try:
        status = read_file(f"{procfs.ROOT}/{pid}/status")
    except OSError:
        return ()
    _, found, rest = status.partition(b"\nNSpid:")
    return tuple(map(int, rest.partition(b"\n")[0].split())) if found else (pid,)


_LINKS_OF_ONE_THREAD = 3


def threads_apart(pid: int) -> list[int]:
    """The threads of a task that have a table of descriptors of their own (CLONE_FILES unset).

    Empty where the task is gone. Each number can be looked up in /proc like a task's.
    """
    try:
        # proc_task_getattr() of fs/proc/base.c: two links, and one for each thread.
        if os.stat(f"{procfs.ROOT}/{pid}/task").st_nlink <= _LINKS_OF_ONE_THREAD:
            return []
        first = int(living_thread(pid))
        threads = [int(tid) for tid in os.listdir(f"{procfs.ROOT}/{pid}/task")]
    except OSError:
        return []
    # A first thread that has ended has no table at all.
    others = (tid for tid in threads if tid not in {pid, first})
    return sorted(tid for tid in others if not syscalls.same_descriptors(first, tid))


def task_tree(root_pid: int) -> tuple[Task, ...]:
    """Walk the live descendants of a task, the task itself first, parents before children.

    Zombies are left out. A task that ends or begins during the walk may be in it or not. A
    descendant that /proc hides is in it with the state HIDDEN, an empty command and no children.
    Raises TaskError if the root is missing, a zombie, a thread, or hidden.
    """
    root = require_task(root_pid)
    tasks: list[Task] = []
    for _ in range(_WALKS):
        tasks, calm = _walk(root)
        if calm:
            break
    return tuple(tasks)


def all_tasks() -> tuple[Task, ...]:
    """Every process in /proc, by number, without zombies and kernel threads.

    A hidden process has the state HIDDEN and an empty command.
    """
    tasks = []
    for pid in sorted(int(name) for name in os.listdir(procfs.ROOT) if name.isdecimal()):
        try:
            stat = read_file(f"{procfs.ROOT}/{pid}/stat")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            tasks.append(Task(pid, 0, b"", HIDDEN, 0))
            continue
        if not _is_dead(stat):
            tasks.append(parse_stat(stat))
    # All kernel threads are children of one (kernel/kthread.c), which only the first pid
    # namespace shows.
    kthreadd = next((t.pid for t in tasks if (t.pid, t.ppid, t.comm) == _KTHREADD), None)
    return tuple(t for t in tasks if kthreadd is None or kthreadd not in {t.pid, t.ppid})


def _walk(root: Task) -> tuple[list[Task], bool]:
    # The tree, and whether no task changed its place meanwhile.
    index = children_index()
    tasks: list[Task] = []
    calm = True
    queue = [(root.pid, root.ppid)]
    seen = {root.pid}
    for pid, ppid in queue:  # grows as we go
        try:
            process = read_process(pid, index)
        except TaskError:
            tasks.append(Task(pid, ppid, b"", HIDDEN, 0))
            continue
        if pid == root.pid:
            if process is None or process.task.starttime != root.starttime:
                raise TaskError(f"{root.name} ended while its tree was read")
        elif process is None or process.task.ppid != ppid:
            # Ended, given to another parent, or the number is another task's by now.
            calm = False
            continue
        if process.dead:
            continue
        tasks.append(process.task)
        queue.extend((child, pid) for child in process.children if child not in seen)
        seen.update(process.children)
    return tasks, calm


def _is_dead(stat: bytes) -> bool:
    fields = stat[stat.rfind(b")") + 2 :].split()
    return fields[_STATE].decode("ascii") in _DEAD and int(fields[_NUM_THREADS]) <= 1


def _is_kernel_thread(pid: int) -> bool:
    try:
        stat = read_file(f"{procfs.ROOT}/{pid}/stat")
    except OSError:
        return False  # gone: the next call detects it
    return bool(int(stat[stat.rfind(b")") + 2 :].split()[_FLAGS]) & _PF_KTHREAD)


def _scan() -> dict[int, list[int]]:
    index: dict[int, list[int]] = {}
    for name in os.listdir(procfs.ROOT):
        if not name.isdecimal():
            continue
        try:
            task = parse_stat(read_file(f"{procfs.ROOT}/{name}/stat"))
        except OSError:
            continue  # gone, or hidden: then we may not look at it
        index.setdefault(task.ppid, []).append(task.pid)
    return index


def _children(task_fd: int, tids: Sequence[int]) -> tuple[int, ...]:
    # As short as possible: it runs for every thread while all tasks are stopped.
    found = []
    for tid in tids:
        try:
            fd = os.open(f"{tid}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=task_fd)
        except (FileNotFoundError, ProcessLookupError):
            continue
        try:
            while part := os.read(fd, 4096):
                found.append(part)
        finally:
            os.close(fd)
    return tuple(int(pid) for pid in b"".join(found).split())


def _directory(path: str, dir_fd: int | None = None, flags: int = os.O_PATH) -> Descriptor:
    return Descriptor(os.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd))


def _exists(pid: int) -> bool:
    # kill(2) does not depend on the options of the /proc mount.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: more than a pid_t
        return False
    except PermissionError:
        pass
    return True


def _hidden(pid: int) -> TaskError:
    return TaskError(
        f"task {pid} is there, but {procfs.ROOT} hides it from uid {os.geteuid()}",
        advice="run as root, or mount /proc without hidepid (or with gid= of one of your groups)",
    )
