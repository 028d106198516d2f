"""Lists the files that a task has open or mapped, by the names that the kernel has for them."""

from __future__ import annotations

import itertools
import os

from irmapdb.kernel.proc import procfs
from irmapdb.kernel.proc.procfs import living_thread
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["OpenFile", "mapped_files", "open_files"]


class OpenFile(Record):
    """A file that a task has open or mapped, and its name in the kernel."""

    link: str
    """The magic link: /proc/PID/fd/N, cwd, root, exe, or one of map_files."""
    path: bytes
    """The text of the link; ` (deleted)` at its end may be a part of the name."""


# A task may have 65,530 maps (vm.max_map_count of proc_sys_vm(5)), or more if that is raised.
_MOST_MAPS = 10_000


def open_files(pid: int) -> Iterator[OpenFile]:
    """The named files, directories and executables that a task has open.

    Sockets, pipes and anonymous inodes have no path and are left out. Files that vanish or are
    denied are left out too.
    """
    try:
        base = f"{procfs.ROOT}/{living_thread(pid)}"
        links = [f"{base}/{name}" for name in ("cwd", "root", "exe")]
        links += [f"{base}/fd/{name}" for name in os.listdir(f"{base}/fd")]
    except OSError:
        return
    yield from _named(links)


def mapped_files(pid: int) -> Iterator[OpenFile]:
    """The named files that a task has mapped, also those that are not open any more.

    Each name once, of the first 10,000 maps. To follow the links takes CAP_SYS_ADMIN or
    CAP_CHECKPOINT_RESTORE in the machine's own user namespace (proc_pid_map_files(5)).
    """
    try:
        directory = f"{procfs.ROOT}/{living_thread(pid)}/map_files"
        with os.scandir(directory) as entries:
            links = [entry.path for entry in itertools.islice(entries, _MOST_MAPS)]
    except OSError:
        return
    known: set[bytes] = set()
    for file in _named(links):
        if file.path not in known:
            yield file
        # Any number of deleted files can have had one name.
        if not file.path.endswith(b" (deleted)"):
            known.add(file.path)


def _named(links: Iterable[str]) -> Iterator[OpenFile]:
    for link in links:
        try:
            path = os.fsencode(os.readlink(link))
        except OSError:
            continue
        if path.startswith(b"/"):
            yield OpenFile(link, path)
