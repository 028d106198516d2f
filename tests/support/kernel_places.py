"""Filesystems that the kernel fills by itself: a file to watch on each, made for one test.

Their files have no hard links and are not renamed. Sources: proc(5), sysfs(5), pts(4),
cgroups(7), https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.support.features import require_filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.area import MountArea

__all__ = ["KERNEL_PLACES", "KernelPlace", "kernel_place"]

_NAME = f"irmapdb-test-{os.getpid()}"


class KernelPlace(NamedTuple):
    """A file and a directory of one filesystem, and a function that removes the file."""

    file: Path
    directory: Path
    remove: Callable[[], None] | None
    """None if it stays, or if no process can have it open when it goes."""


@contextlib.contextmanager
def _proc(area: MountArea, pid: int) -> Iterator[KernelPlace]:
    yield KernelPlace(Path(f"/proc/{pid}/status"), Path(f"/proc/{pid}"), None)


@contextlib.contextmanager
def _sysfs(area: MountArea, pid: int) -> Iterator[KernelPlace]:
    yield KernelPlace(Path("/sys/kernel/uevent_seqnum"), Path("/sys/kernel"), None)


@contextlib.contextmanager
def _cgroup2(area: MountArea, pid: int) -> Iterator[KernelPlace]:
    # All mounts of it show the one hierarchy.
    group = area.mount("none", "cgroup2", "cgroup2") / _NAME
    group.mkdir()
    try:
        yield KernelPlace(group / "cgroup.procs", group, group.rmdir)
    finally:
        if group.is_dir():
            group.rmdir()


@contextlib.contextmanager
def _devtmpfs(area: MountArea, pid: int) -> Iterator[KernelPlace]:
    directory = Path("/dev") / _NAME
    with contextlib.ExitStack() as stack:
        directory.mkdir()
        stack.callback(directory.rmdir)
        file = directory / "file"
        file.touch()
        stack.callback(file.unlink, missing_ok=True)
        yield KernelPlace(file, directory, file.unlink)


@contextlib.contextmanager
def _devpts(area: MountArea, pid: int) -> Iterator[KernelPlace]:
    # It goes away with its master, but who has it open is hung up on.
    master, slave = os.openpty()
    try:
        file = Path(os.ttyname(slave))
        yield KernelPlace(file, file.parent, None)
    finally:
        os.close(slave)
        os.close(master)


_PLACES = {
    "procfs": _proc,
    "sysfs": _sysfs,
    "cgroup2": _cgroup2,
    "devtmpfs": _devtmpfs,
    "devpts": _devpts,
}
KERNEL_PLACES = tuple(_PLACES)
"""The kinds of kernel_place()."""

_FSTYPES = {"procfs": "proc"}


@contextlib.contextmanager
def kernel_place(kind: str, area: MountArea, pid: int) -> Iterator[KernelPlace]:
    """A place on a filesystem of a `kind` of KERNEL_PLACES; of procfs, the directory of `pid`."""
    require_filesystem(_FSTYPES.get(kind, kind))
    with _PLACES[kind](area, pid) as place:
        yield place
