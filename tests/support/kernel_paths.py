"""Reads the kernel's data about a path or a watch in other ways than irmapdb.

The mount of a path is read from fdinfo of an open descriptor, the identity of a watch from the
watching process's fdinfo, cut into words.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb.model import FileHandle, Identity
from tests.support.features import require_filesystem, require_program
from tests.support.filesystems import unmount
from tests.support.programs import SYSTEM_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.watcher import Task, Watched

__all__ = ["Server", "as_nobody", "mount_id", "open_descriptors", "served", "watched_identity"]

_NOBODY = 65534


def mount_id(path: bytes | str | Path) -> int:
    """The id of the mount that the kernel meets at `path`, a final link not followed."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        words = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
    finally:
        os.close(fd)
    return int(words[words.index("mnt_id:") + 1])


def watched_identity(task: Task, watched: Watched) -> Identity:
    """The values of one watch in fdinfo, now."""
    found = []
    for line in Path(f"/proc/{task.pid}/fdinfo/{watched.fd}").read_text().splitlines():
        words = dict(word.split(":") for word in line.split()[1:] if ":" in word)
        if watched.kind == "inotify":
            mine = int(words.get("wd", "-1"), 16) == watched.wd
        else:
            mine = "ino" in words and int(words["ino"], 16) == watched.st_ino
        if mine:
            handle = None
            if "f_handle" in words:
                handle = FileHandle(
                    int(words["fhandle-type"], 16), bytes.fromhex(words["f_handle"])
                )
            found.append(Identity(int(words["sdev"], 16), int(words["ino"], 16), handle))
    (identity,) = found
    return identity


def open_descriptors() -> set[str]:
    """The numbers of our own open descriptors, to see that none is left behind."""
    gc.collect()  # those of an earlier test that are still to be closed
    return {
        name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")
    }


@contextmanager
def as_nobody() -> Iterator[None]:
    """Look at files without root's rights: setfsuid follows the effective ids."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


class Server:
    """A FUSE server (bindfs) that can be stopped from answering."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, each lookup of its files waits."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def served(source: Path, mountpoint: Path) -> Iterator[Server]:
    """`source` through a FUSE server that keeps nothing in the kernel's cache."""
    require_filesystem("fuse")
    require_program("bindfs")
    mountpoint.mkdir(parents=True, exist_ok=True)
    options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
    with (
        open("/proc/self/mountinfo", "rb") as table,
        subprocess.Popen(
            ["bindfs", "-f", "-o", options, source, mountpoint],
            env={**os.environ, "PATH": SYSTEM_PATH},
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while not os.path.ismount(mountpoint):
            assert process.poll() is None, "bindfs has ended"
            changes.poll(1000)
        try:
            yield Server(process)
        finally:
            unmount(mountpoint)
            process.terminate()  # should another mount have been in the way
            process.wait()
