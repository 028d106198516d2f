"""The mount namespaces of the machine, by the tasks in them: whatever we may look at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from irmapdb.errors import TaskError
from irmapdb.kernel.proc import fdinfo
from irmapdb.kernel.root import Root, open_root

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["mounted_anywhere", "open_namespace"]


def open_namespace(mntns: int, proc: str = "/proc") -> Root | None:
    """A namespace's own root, by any task in it that is in no chroot; None where none is."""
    for pid, found in _tasks(proc):
        if found != mntns:
            continue
        try:
            root = open_root(pid, proc)
        except (OSError, TaskError):
            continue
        if root.mntns == mntns and root.is_namespaces_own:
            return root
        root.__exit__()
    return None


def mounted_anywhere(kdevs: Collection[int], proc: str = "/proc") -> set[int]:
    """Which of these devices are mounted in any namespace that we may look at."""
    missing = set(kdevs)
    seen: set[tuple[int, str]] = set()
    for pid, mntns in _tasks(proc):
        if not missing:
            break
        try:
            # A chroot shows only the mounts below it.
            table = (mntns, os.readlink(f"{proc}/{pid}/root"))
            if table not in seen:
                missing.difference_update(m.kdev for m in fdinfo.read_mountinfo(pid, proc))
                seen.add(table)
        except OSError:
            continue
    return set(kdevs) - missing


def _tasks(proc: str) -> Iterator[tuple[int, int]]:
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                yield int(name), fdinfo.mount_namespace(name, proc)
            except OSError:
                continue
