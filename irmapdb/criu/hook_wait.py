"""Waits until CRIU has ended.

The hook waits for the CRIU that has executed it, and until the container runs again. Until then the
tasks are frozen, and the hook's remaining work would take CPUs and the disk from CRIU, so that the
freeze would take longer.
"""

from __future__ import annotations

import os
import time

from irmapdb.errors import TaskError
from irmapdb.kernel.pause_detection import find_pause
from irmapdb.kernel.proc import procfs, tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.proc.tasks import Task

__all__ = ["find_criu", "wait_for_all", "wait_for_end"]

_LONGEST_S = 60.0
"""In a longer freeze, the remaining work makes no difference."""
_LOOK_S = 0.05
_DEAD = ("Z", "X", "x")
_DIGITS = 20
_WITH_SCRIPTS = frozenset({b"dump", b"restore", b"swrk"})


def find_criu(pid: str) -> Task | None:
    """The task with this number, as the script gives it; None if it is no task's number.

    Scripts of irmapdb 0.2.0 give 1, which is never CRIU's.
    """
    is_number = pid.isascii() and pid.isdecimal() and len(pid) < _DIGITS
    return _read(int(pid)) if is_number and int(pid) > 1 else None


def wait_for_end(criu: Task, pid: int) -> None:
    """Wait until CRIU has ended and task `pid` is not paused any more, for at most 60 s."""
    end_s = time.monotonic() + _LONGEST_S
    while time.monotonic() < end_s and (_lives(criu) or _is_paused(pid)):
        time.sleep(_LOOK_S)


def wait_for_all(most_s: float) -> Task | None:
    """Wait until each CRIU of root that may execute a script now has ended.

    If `most_s` is not enough, one that has not ended.
    """
    from irmapdb.kernel.proc.command_lines import read_command_lines  # noqa: PLC0415 not in the hook

    found = {task.pid: task for task in tasks.all_tasks() if _is_roots(task.pid)}
    lines = {pid: line.split() for pid, line in read_command_lines(tuple(found)).items()}
    left = [found[pid] for pid, words in lines.items() if _executes_scripts(words)]
    end_s = time.monotonic() + most_s
    while left := [criu for criu in left if _lives(criu)]:
        if time.monotonic() > end_s:
            return left[0]
        time.sleep(_LOOK_S)
    return None


def _executes_scripts(words: list[bytes]) -> bool:
    # runc and crun start `criu swrk`.
    is_criu = any(os.path.basename(word) == b"criu" for word in words)
    return is_criu and not _WITH_SCRIPTS.isdisjoint(words)


def _is_roots(pid: int) -> bool:
    try:
        return os.stat(f"{procfs.ROOT}/{pid}").st_uid == 0
    except OSError:
        return False


def _lives(criu: Task) -> bool:
    now = _read(criu.pid)
    return now is not None and now.starttime == criu.starttime


def _is_paused(pid: int) -> bool:
    return _read(pid) is not None and bool(find_pause(pid))


def _read(pid: int) -> Task | None:
    # None also if it is dead, and its parent has not waited for it.
    try:
        task = tasks.read_task(pid)
    except TaskError:
        return None
    return None if task is None or task.state in _DEAD else task
