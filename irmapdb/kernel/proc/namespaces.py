"""Finds the mount namespaces of the machine, by the tasks that we may look at."""

from __future__ import annotations

import os

from irmapdb.errors import TaskError
from irmapdb.kernel.proc import mountinfo, procfs
from irmapdb.kernel.root import Root, open_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["mounted_anywhere", "open_namespace"]


def open_namespace(mntns: int) -> Root | None:
    """A namespace's own root, from any task in it that is in no chroot; None if all are."""
    for pid, found in _tasks():
        if found != mntns:
            continue
        try:
            root = open_root(pid)
        except (OSError, TaskError):
            continue
        if root.mntns == mntns and root.is_namespaces_own:
            return root
        root.__exit__()
    return None


def mounted_anywhere(kdevs: Collection[int]) -> set[int]:
    """The devices among these that are mounted in a namespace that we may look at."""
    missing = set(kdevs)
    seen: set[tuple[int, str]] = set()
    for pid, mntns in _tasks():
        if not missing:
            break
        try:
            # A chroot shows only the mounts below it.
            table = (mntns, os.readlink(f"{procfs.ROOT}/{pid}/root"))
            if table not in seen:
                missing.difference_update(m.kdev for m in mountinfo.read_mountinfo(pid))
                seen.add(table)
        except OSError:
            continue
    return set(kdevs) - missing


def _tasks() -> Iterator[tuple[int, int]]:
    for name in os.listdir(procfs.ROOT):
        if name.isdecimal():
            try:
                yield int(name), mountinfo.mount_namespace(name)
            except OSError:
                continue
