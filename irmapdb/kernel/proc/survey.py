"""Reads all watches of a task tree without stopping a task.

If several tasks inherited a descriptor, it is one open file description. It is read once, as CRIU
dumps it once (criu/file-ids.c). kcmp(2) detects this. It also gives all descriptions of the machine
one order, so each descriptor is compared with only a few of those with the same text.
"""

from __future__ import annotations

from types import MappingProxyType

from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import fdinfo, procfs
from irmapdb.kernel.proc.fdinfo_files import FdinfoFiles
from irmapdb.kernel.proc.tasks import HIDDEN, threads_apart
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Mapping as MappingABC

    from irmapdb.kernel.proc.fdinfo import RawWatchFile
    from irmapdb.kernel.proc.tasks import Task

__all__ = ["Denied", "SharedDescriptor", "Survey", "read_survey"]


class Denied(Record):
    """A task whose descriptors may not be looked at."""

    task: Task
    why: str


class SharedDescriptor(Record):
    """A descriptor that shares its open file description with one that was read."""

    pid: int
    fd: int
    of: RawWatchFile


class Survey(Record):
    """The watches of the tasks. `files` are in the order of the tasks, then of descriptors."""

    files: tuple[RawWatchFile, ...]
    denied: tuple[Denied, ...]
    copies: tuple[SharedDescriptor, ...] = ()
    unread: int = 0
    """The number of tasks that were not read completely because the time was up."""
    threads: MappingABC[int, int] = MappingProxyType({})
    """The threads that have their own descriptors, and their tasks."""

    def owners(self) -> dict[tuple[int, int], list[int]]:
        """The other tasks that have a read descriptor, by (pid, fd) of the one in `files`."""
        owners: dict[tuple[int, int], list[int]] = {}
        for copy in self.copies:
            owners.setdefault((copy.of.pid, copy.of.fd), []).append(copy.pid)
        return owners


def read_survey(
    tasks: Sequence[Task],
    over: Callable[[], bool] = lambda: False,
    texts: FdinfoFiles | None = None,
) -> Survey:
    """Read every inotify and fanotify descriptor of the tasks.

    A task or descriptor that vanishes is left out; one that may not be read is in `denied`. If
    `over` returns True, the time is up and the rest is not read. `texts` make a second read faster.
    """
    if texts is None:
        with FdinfoFiles() as own:
            return read_survey(tasks, over, own)
    found = _Descriptions(texts)
    denied: list[Denied] = []
    for number, task in enumerate(tasks):
        if over():
            return found.survey(denied, len(tasks) - number)
        if task.state == HIDDEN:
            denied.append(Denied(task, f"{procfs.ROOT} hides it"))
            continue
        try:
            if not found.read(task.pid, over):
                return found.survey(denied, len(tasks) - number)
            for tid in threads_apart(task.pid):
                found.threads[tid] = task.pid
                found.read(tid, over)
        except PermissionError as error:
            denied.append(Denied(task, error.strerror or "denied"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found.survey(denied)


class _Descriptions:
    """The open file descriptions that were read, each once, and the copies of them."""

    def __init__(self, texts: FdinfoFiles) -> None:
        self._texts = texts
        self.threads: dict[int, int] = {}
        self._files: list[RawWatchFile] = []
        self._copies: list[SharedDescriptor] = []
        # Different text means another description. A text with a unique size need not be hashed.
        self._alone: dict[int, RawWatchFile] = {}
        self._alike: dict[bytes, _Alike] = {}

    def read(self, pid: int, over: Callable[[], bool]) -> bool:
        """The descriptors of a task or thread; False if the time was up.

        OSError where it is gone or denied.
        """
        for fd, kind in fdinfo.watch_descriptors(pid):
            if over():
                return False
            raw = self._texts.read(pid, fd, kind)
            if raw is not None:
                self.add(raw)
        return True

    def add(self, raw: RawWatchFile) -> None:
        """Add one descriptor: the first of its description, or a copy."""
        first = self._alone.setdefault(len(raw.raw) - _start_of_shared(raw), raw)
        original = None
        if first is not raw:
            known, new = _shared_text(first), _shared_text(raw)
            if known not in self._alike:
                self._alike[known] = _Alike(first)
            alike = self._alike.get(new)
            if alike is None:
                self._alike[new] = _Alike(raw)
            else:
                original = alike.find_or_add(raw)
        if original is None:
            self._files.append(raw)
        else:
            self._copies.append(SharedDescriptor(raw.pid, raw.fd, original))

    def survey(self, denied: Sequence[Denied], unread: int = 0) -> Survey:
        """All of it."""
        return Survey(tuple(self._files), tuple(denied), tuple(self._copies), unread, self.threads)


def _start_of_shared(raw: RawWatchFile) -> int:
    # The line before has flags of the descriptor (O_CLOEXEC) and flags of the description
    # (fs/proc/fd.c, seq_show). Copies of one description differ there.
    return max(raw.raw.find(b"\nmnt_id:"), 0)


def _shared_text(raw: RawWatchFile) -> bytes:
    return raw.raw[_start_of_shared(raw) :]


class _Comparable(Record):
    """A descriptor that kcmp(2) can compare."""

    pid: int
    """The task's, or a living thread's: a first thread that has ended has no descriptors."""
    raw: RawWatchFile


class _Alike:
    """Descriptors with equal text: one of each description, in the order of kcmp(2)."""

    def __init__(self, first: RawWatchFile) -> None:
        self._sorted: list[_Comparable] = []
        self._by_fd: dict[int, _Comparable] = {}
        self.find_or_add(first)

    def find_or_add(self, raw: RawWatchFile) -> RawWatchFile | None:
        """The descriptor of the same description that was read; None if this is the first.

        None also if the two cannot be compared: to count one twice does no harm.
        """
        new = _comparable(raw)
        if new is None:
            return None
        # A child inherits a description under the same number.
        namesake = self._by_fd.get(raw.fd)
        if namesake is not None and _order(new, namesake) == 0:
            return namesake.raw
        found = self._search(new)
        self._by_fd[raw.fd] = found or new
        return None if found is None else found.raw

    def _search(self, new: _Comparable) -> _Comparable | None:
        low, high = 0, len(self._sorted)
        while low < high:
            middle = (low + high) // 2
            order = _order(new, self._sorted[middle])
            if order == 0:
                return self._sorted[middle]
            if order is not None:
                low, high = (low, middle) if order < 0 else (middle + 1, high)
            elif _comparable(new.raw) is None:
                return None
            else:  # the one before was closed, or its task has ended
                del self._sorted[middle]
                high -= 1
        self._sorted.insert(low, new)
        return None


def _order(one: _Comparable, other: _Comparable) -> int | None:
    # None where they cannot be compared (any more).
    try:
        return syscalls.compare_files(one.pid, one.raw.fd, other.pid, other.raw.fd)
    except OSError:
        return None


def _comparable(raw: RawWatchFile) -> _Comparable | None:
    # None where it is gone, may not be looked at, or the kernel has no kcmp(2).
    try:
        syscalls.compare_files(raw.pid, raw.fd, raw.pid, raw.fd)
    except OSError:
        pass
    else:
        return _Comparable(raw.pid, raw)
    try:
        thread = int(procfs.living_thread(raw.pid))
        syscalls.compare_files(thread, raw.fd, thread, raw.fd)
    except OSError:
        return None
    return _Comparable(thread, raw)
