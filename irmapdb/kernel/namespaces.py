"""The mount namespaces of the machine, by the tasks in them: whatever we may look at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from irmapdb.errors import TaskError
from irmapdb.kernel import procfs
from irmapdb.kernel.root import Root, open_root

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["open_namespace"]


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


def _tasks(proc: str) -> Iterator[tuple[int, int]]:
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                yield int(name), procfs.mount_namespace(name, proc)
            except OSError:
                continue
