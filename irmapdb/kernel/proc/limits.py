"""Finds the user that inotify and fanotify objects are charged to, and the limits of each user.

An instance and all its watches are charged to the effective user who made it, in the user
namespace that this was done in, and to the owner of that namespace in the one around it, up to
the first (inc_ucount() of kernel/ucount.c). Each namespace has limits of its own, the same for
every user in it: /proc/sys/user/ shows those of the reader's, namespaces(7), and in the first
one they are what proc_sys_fs(5) calls fs.inotify and fs.fanotify. A new namespace has none, so
the account that runs full is mostly the one of its owner outside.

What the kernel has counted is not to be read anywhere; who made an instance neither. Marks of a
fanotify group with FAN_UNLIMITED_MARKS are not charged.
"""

from __future__ import annotations

import enum
import fcntl
import os
import re
import struct

from irmapdb.kernel.proc import procfs
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ChargedUser", "LimitKind", "effective_uid", "is_unlimited", "payer_of", "read_limits"]


class LimitKind(enum.StrEnum):
    """What is counted, by the name of its sysctl."""

    INOTIFY_INSTANCES = "inotify/max_user_instances"
    INOTIFY_WATCHES = "inotify/max_user_watches"
    FANOTIFY_GROUPS = "fanotify/max_user_groups"
    FANOTIFY_MARKS = "fanotify/max_user_marks"


# The same limits below /proc/sys/user, since Linux 4.10 and 5.13.
_BY_NAMESPACE = {
    LimitKind.INOTIFY_INSTANCES: "max_inotify_instances",
    LimitKind.INOTIFY_WATCHES: "max_inotify_watches",
    LimitKind.FANOTIFY_GROUPS: "max_fanotify_groups",
    LimitKind.FANOTIFY_MARKS: "max_fanotify_marks",
}

# include/uapi/linux/nsfs.h, include/uapi/linux/fanotify.h
_NS_GET_PARENT = 0xB702
_NS_GET_OWNER_UID = 0xB704
_FAN_UNLIMITED_MARKS = 0x20
_UID = struct.Struct("=I")


def read_limits() -> dict[LimitKind, int]:
    """How much each user may have, in our own user namespace and in the first one.

    An account that this kernel does not have (fanotify's, before Linux 5.13) is left out.
    """
    limits: dict[LimitKind, int] = {}
    for account in LimitKind:
        files = (
            f"{procfs.ROOT}/sys/fs/{account}",
            f"{procfs.ROOT}/sys/user/{_BY_NAMESPACE[account]}",
        )
        numbers = [number for number in map(_number, files) if number is not None]
        if numbers:
            limits[account] = min(numbers)
    return limits


def _number(path: str) -> int | None:
    try:
        return int(procfs.read_file(path))
    except (OSError, ValueError):
        return None


def effective_uid(pid: int) -> int | None:
    """The effective user of a task, as our user namespace numbers it; None if it is gone."""
    try:
        status = procfs.read_file(f"{procfs.ROOT}/{pid}/status")
    except OSError:
        return None
    found = re.search(rb"^Uid:\t\d+\t(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None


class ChargedUser(Record):
    """Who is charged in our user namespace for what a task makes."""

    uid: int | None
    """None if the task is gone, or may not be looked at."""
    is_below: bool
    """Whether the task is in a user namespace within ours: then this is the owner of that."""


def payer_of(pid: int) -> ChargedUser:
    """Whose account a task's new instances are charged to."""
    owner = None
    try:
        own = os.stat(f"{procfs.ROOT}/self/ns/user").st_ino
        fd = os.open(f"{procfs.ROOT}/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        for namespace in _upwards(fd):
            if os.fstat(namespace).st_ino == own:
                uid = effective_uid(pid) if owner is None else owner
                return ChargedUser(uid, owner is not None)
            answer = bytearray(_UID.size)
            fcntl.ioctl(namespace, _NS_GET_OWNER_UID, answer)
            (owner,) = _UID.unpack(answer)
    except OSError:
        return ChargedUser(None, is_below=False)
    return ChargedUser(None, is_below=False)


def _upwards(fd: int) -> Iterator[int]:
    # A namespace and those around it, as far as they are ours to see. Closes each.
    while fd >= 0:
        try:
            yield fd
            try:
                parent = fcntl.ioctl(fd, _NS_GET_PARENT)
            except OSError:  # EPERM: ours was the last
                parent = -1
        finally:
            os.close(fd)
        fd = parent


def is_unlimited(faflags: int) -> bool:
    """Whether the marks of a fanotify group with these flags are not charged."""
    return bool(faflags & _FAN_UNLIMITED_MARKS)
