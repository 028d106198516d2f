"""All watches of a task tree, read without stopping anyone.

A descriptor that several tasks inherited is one open file description and is read once, as CRIU
dumps it once (criu/file-ids.c); kcmp(2) tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from irmapdb.kernel import procfs, syscalls
from irmapdb.kernel.tasks import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.kernel.procfs import RawWatchFile
    from irmapdb.kernel.tasks import Task

__all__ = ["Copy", "Denied", "Survey", "read_survey"]


class Denied(NamedTuple):
    """A task whose descriptors may not be looked at."""

    task: Task
    why: str


class Copy(NamedTuple):
    """A descriptor that shares its open file description with one that was read."""

    pid: int
    fd: int
    of: RawWatchFile


class Survey(NamedTuple):
    """What the tasks watch. `files` are in the order of the tasks, then of descriptors."""

    files: tuple[RawWatchFile, ...]
    denied: tuple[Denied, ...]
    copies: tuple[Copy, ...] = ()


def read_survey(tasks: Sequence[Task], proc: str = "/proc") -> Survey:
    """Read every inotify and fanotify descriptor of the tasks.

    A task or descriptor that vanishes drops out; one that may not be read is in `denied`.
    """
    files: list[RawWatchFile] = []
    by_size: dict[int, list[RawWatchFile]] = {}
    copies: list[Copy] = []
    denied = []
    for task in tasks:
        if task.state == HIDDEN:
            denied.append(Denied(task, f"{proc} hides it"))
            continue
        try:
            descriptors = procfs.watch_descriptors(task.pid, proc)
            for fd, kind in descriptors:
                raw = procfs.read_raw(task.pid, fd, kind, proc)
                if raw is None:
                    continue
                alike = by_size.setdefault(len(raw.raw), [])
                original = next((other for other in alike if _shared(raw, other)), None)
                if original is None:
                    alike.append(raw)
                    files.append(raw)
                else:
                    copies.append(Copy(task.pid, fd, original))
        except PermissionError as error:
            denied.append(Denied(task, error.strerror or "denied"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Survey(tuple(files), tuple(denied), tuple(copies))


def _shared(one: RawWatchFile, other: RawWatchFile) -> bool:
    # Unequal text is another description, and needs no call to know.
    if one.raw != other.raw:
        return False
    try:
        return syscalls.same_file(one.pid, one.fd, other.pid, other.fd)
    except OSError:
        pass
    try:
        # A first thread that has ended has no descriptors to compare.
        pid, other_pid = (int(procfs.living_thread(raw.pid)) for raw in (one, other))
        return syscalls.same_file(pid, one.fd, other_pid, other.fd)
    except OSError:
        return False  # counted twice does no harm
