"""Manages the directory of the containers' databases: `/var/lib/irmapdb` by default.

A database stays for some time after its container has ended, because the container may be restored
or started again. Then it is removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from irmapdb.kernel.proc.containers import is_container_database
from irmapdb.node.rundir import make_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import timedelta

    from irmapdb.model import AnyPath

__all__ = ["care", "make_directory"]

_SUFFIXES = ("", "-wal", "-shm", "-journal")
_TOUCH_S = 3600.0


def make_directory(path: AnyPath) -> None:
    """Make the directory, only for us. FileError if other users can use it."""
    make_private(Path(os.fsdecode(path)))


def care(directory: AnyPath, alive: Collection[str], keep_gone: timedelta) -> list[str]:
    """Remove the databases of containers that ended so long ago; returns their names.

    `alive` are the names, without `.db`, of the containers that run. The change time of a database
    is the time when its container was last seen. Files with other names stay.
    """
    now_s = time.time()
    top = Path(os.fsdecode(directory))
    removed = []
    for name in sorted(os.listdir(top)):
        if not is_container_database(name):
            continue
        path = top / name
        with contextlib.suppress(OSError):
            age_s = now_s - path.lstat().st_mtime
            if name.removesuffix(".db") in alive:
                if age_s > _TOUCH_S:
                    os.utime(path, follow_symlinks=False)
            elif age_s > keep_gone.total_seconds():
                for suffix in _SUFFIXES:
                    (top / f"{name}{suffix}").unlink(missing_ok=True)
                removed.append(name)
    return removed
