"""Finds the user that inotify and fanotify objects are charged to, and the limits of each user.

The kernel charges an instance and all its watches to the effective user who made it, in the user
namespace of that user. It charges them also to the owner of that namespace in the parent namespace,
and so on up to the first namespace (inc_ucount() of kernel/ucount.c). Each namespace has its own
limits, the same for every user in it. /proc/sys/user/ shows the limits of the reader's namespace,
namespaces(7). In the first namespace they are fs.inotify and fs.fanotify of proc_sys_fs(5). A new
namespace has no limits, so usually the owner outside reaches a limit first.

The kernel shows neither its counts nor the user who made an instance. Marks of a fanotify group
with FAN_UNLIMITED_MARKS are not charged.
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

__all__ = [
    "ChargedUser",
    "LimitKind",
    "effective_uid",
    "is_unlimited",
    "payer_of",
    "read_limits",
    "read_queue_limits",
    "sysctl_to_raise",
]


class LimitKind(enum.StrEnum):
    """The counted objects, each named by its sysctl."""

    INOTIFY_INSTANCES = "inotify/max_user_instances"
    INOTIFY_WATCHES = "inotify/max_user_watches"
    FANOTIFY_GROUPS = "fanotify/max_user_groups"
    FANOTIFY_MARKS = "fanotify/max_user_marks"

    @property
    def sysctl(self) -> str:
        """The name that sysctl(8) takes: `fs.inotify.max_user_watches`."""
        return f"fs.{self.replace('/', '.')}"


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

_QUEUES = ("inotify/max_queued_events", "fanotify/max_queued_events")


def read_limits() -> dict[LimitKind, int]:
    """The limits of each user, in our own user namespace and in the first one.

    A limit that this kernel does not have (fanotify's, before Linux 5.13) is left out.
    """
    limits: dict[LimitKind, int] = {}
    for account in LimitKind:
        both = (_of_machine(account), _of_namespace(account))
        numbers = [number for number in both if number is not None]
        if numbers:
            limits[account] = min(numbers)
    return limits


def read_queue_limits() -> dict[str, int]:
    """The largest number of events that wait in one instance or group, by sysctl.

    The kernel discards later events, and reports an overflow (inotify(7), fanotify(7)). Programs
    can make fanotify groups without this limit.
    """
    found = ((name, _number(f"{procfs.ROOT}/sys/fs/{name}")) for name in _QUEUES)
    return {f"fs.{name.replace('/', '.')}": number for name, number in found if number is not None}


def sysctl_to_raise(account: LimitKind) -> str:
    """The name of the sysctl that has the smaller limit: of the machine, or of our user namespace.

    In the first user namespace both are one number (inotify_table of fs/notify/inotify/
    inotify_user.c, user_table of kernel/ucount.c).
    """
    machine, namespace = _of_machine(account), _of_namespace(account)
    if namespace is not None and (machine is None or namespace < machine):
        return f"user.{_BY_NAMESPACE[account]}"
    return account.sysctl


def _of_machine(account: LimitKind) -> int | None:
    return _number(f"{procfs.ROOT}/sys/fs/{account}")


def _of_namespace(account: LimitKind) -> int | None:
    return _number(f"{procfs.ROOT}/sys/user/{_BY_NAMESPACE[account]}")


def _number(path: str) -> int | None:
    try:
        return int(procfs.read_file(path))
    except (OSError, ValueError):
        return None


def effective_uid(pid: int) -> int | None:
    """The effective user of a task, by the numbers of our user namespace; None if it is gone."""
    try:
        status = procfs.read_file(f"{procfs.ROOT}/{pid}/status")
    except OSError:
        return None
    found = re.search(rb"^Uid:\t\d+\t(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None


class ChargedUser(Record):
    """The user in our user namespace that is charged for the objects of a task."""

    uid: int | None
    """None if the task is gone, or may not be looked at."""
    is_below: bool
    """Whether the task is in a user namespace within ours. Then the user is its owner."""


def payer_of(pid: int) -> ChargedUser:
    """The user that is charged for a task's new instances."""
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
    # A namespace and its parents, as far as we may see them. Closes each.
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
