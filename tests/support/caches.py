"""Names that leave the kernel's caches, of some filesystems and not of the whole machine.

Reconfiguring a filesystem, also without any change, drops all its dentries that nothing pins
(shrink_dcache_sb() in reconfigure_super() of fs/super.c). An inode without a dentry has no name,
whether it is cached itself or not. Other filesystems, and so other workers of a parallel run,
keep theirs, which /proc/sys/vm/drop_caches would take from all.

Sources: fspick(2), fsconfig(2); https://docs.kernel.org/filesystems/mount_api.html; the numbers:
linux/mount.h, asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Mount", "drop_caches", "has_own_mounts", "mounts", "ours_are_newer_than"]

_SYS_FSCONFIG, _SYS_FSPICK = 431, 433
_AT_FDCWD = -100
_FSPICK_CLOEXEC, _FSPICK_NO_AUTOMOUNT = 1, 4
_FSCONFIG_SET_FLAG, _FSCONFIG_CMD_RECONFIGURE = 0, 7

_libc = ctypes.CDLL(None, use_errno=True)
_foreign: set[int] = set()
"""The ids of the mounts that this run did not make."""


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    id: int
    point: bytes
    is_readonly: bool
    """The filesystem, not only this mount of it."""


def mounts() -> list[Mount]:
    """The mounts of this process's namespace, in the order in which they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes((int(m[1], 8),)), fields[4])
        found.append(Mount(int(fields[0]), point, fields[-1].split(b",")[0] == b"ro"))
    return found


def ours_are_newer_than(known: list[Mount]) -> None:
    """Set the mounts of this process's namespace that drop_caches() must leave alone."""
    _foreign.update(mount.id for mount in known)


def has_own_mounts() -> bool:
    """Whether ours_are_newer_than() was called."""
    return bool(_foreign)


def drop_caches(*elsewhere: Path) -> None:
    """Forget the names of every filesystem that this process has mounted, its disk included.

    Also of the filesystems of the paths `elsewhere`: a filesystem that the kernel fills was mounted
    before.
    """
    if not has_own_mounts():
        raise RuntimeError("this process has no mount namespace of its own to drop caches in")
    # An overlay's dentries pin those of its layers, which were mounted before it.
    for path in elsewhere:
        _forget_names(_mount_point(path))
    for mount in reversed(mounts()):
        if mount.id not in _foreign:
            _forget_names(mount.point, is_readonly=mount.is_readonly)


def _mount_point(path: Path) -> bytes:
    # Not is_mount(), which a subvolume of btrfs is as well.
    points = {mount.point for mount in mounts()}
    return next(one for one in map(os.fsencode, (path, *path.parents)) if one in points)


def _forget_names(path: bytes, *, is_readonly: bool = False) -> None:
    picked = _call(_SYS_FSPICK, _AT_FDCWD, path, _FSPICK_CLOEXEC | _FSPICK_NO_AUTOMOUNT)
    try:
        if is_readonly:  # as it is; an overlay without an upper layer refuses to become writable
            _call(_SYS_FSCONFIG, picked, _FSCONFIG_SET_FLAG, b"ro", None, 0)
        _call(_SYS_FSCONFIG, picked, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    finally:
        os.close(picked)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), arguments[1])
    return result
