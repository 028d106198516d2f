"""A mount namespace and a filesystem of its own for one process that runs tests.

Each worker of a parallel run has both. Only that worker sees the mounts of its tests, and they end
with it in any case. The files of the tests are on an ext4 of the worker, so a test can drop its
names from the kernel's caches without a loss for another worker. The image is in memory, because
tests write, sync and remove much.

Sources: unshare(2), mount(2), mke2fs(8), mount_namespaces(7), tmpfs(5).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tests.support.caches import mounts, ours_are_newer_than
from tests.support.programs import run

__all__ = ["DISK_MIB", "give_disk", "unshare_mounts"]

DISK_MIB = 8192
"""The size of a disk. It is sparse, and the blocks of removed files are freed."""

_OWN = (
    ("tmpfs", "/etc/criu", "mode=755"),  # options of every CRIU that a runtime starts
    ("tmpfs", "/dev/shm", "mode=1777"),  # podman's locks
    ("tmpfs", "/run", "mode=755"),  # the state of CRIU, runc, podman and irmapdb
    ("proc", "/proc", ""),  # the same content, with other inodes
)
"""Mounts over the machine's own directories: type, mount point and options."""

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def unshare_mounts() -> None:
    """Put this process, which has one thread or calls this in its first, into a new namespace.

    Nothing spreads between it and another one. Needs root.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
    ours_are_newer_than(mounts())
    for fstype, path, options in _OWN:
        Path(path).mkdir(exist_ok=True)
        run("mount", "-t", fstype, *(("-o", options) if options else ()), fstype, path)


def give_disk(directory: Path) -> None:
    """Mount a new ext4 on an empty directory, in a namespace of unshare_mounts().

    It goes with the namespace.
    """
    run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", directory)
    image = directory / "disk"
    with image.open("xb") as file:
        file.truncate(DISK_MIB << 20)
    # No journal: the disk does not outlive the run.
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "nodiscard", image)
    run("mount", "-t", "ext4", "-o", "loop,discard", image, directory)
    directory.joinpath("lost+found").rmdir()
    directory.chmod(0o700)
