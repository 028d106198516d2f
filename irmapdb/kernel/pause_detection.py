"""Detects whether a task is paused already: its cgroup is frozen, or all its threads are stopped.

Facts: Documentation/admin-guide/cgroup-v2.rst (`frozen` in cgroup.events also reports a frozen
parent) and cgroup-v1/freezer-subsystem.rst (freezer.state likewise); cgroup_namespaces(7): paths in
/proc/PID/cgroup and roots in mountinfo are relative to the reader's cgroup root. If no file of a
cgroup can be read, the function in which the tasks wait decides: do_freezer_trap() of
kernel/cgroup/freezer.c and __refrigerator() of kernel/freezer.c. A tree also counts as paused if a
signal has stopped every task.
"""

from __future__ import annotations

import os

from irmapdb.kernel.proc import procfs
from irmapdb.kernel.proc.mountinfo import read_mountinfo
from irmapdb.kernel.proc.procfs import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from irmapdb.model import Mount

__all__ = ["FANOTIFY_PERMISSION", "find_pause", "has_permission_listener"]

FANOTIFY_PERMISSION = 0x4 | 0x8
"""FAN_CLASS_CONTENT and FAN_CLASS_PRE_CONTENT of fanotify_init(2): the kernel may ask these groups
before an open, and the open then waits."""

_WAITS_FROZEN = (b"do_freezer_trap", b"__refrigerator")
_STANDS_STILL = (b"T", b"t", b"Z", b"X")
_FANOTIFY = "anon_inode:[fanotify]"


def find_pause(pid: int, tree: Callable[[], Iterable[int]] = tuple) -> str:
    """The cause of the pause of a task and its tree, as text; "" if they run, or it is unknown.

    `tree` returns the tasks of the tree. It is called only if no cgroup is frozen.
    """
    if _frozen_cgroups(pid):
        return "frozen cgroup"
    pids = [pid, *tree()]
    return "stopped tasks" if all(_stands_still(one) for one in pids) else ""


def has_permission_listener(pid: int, tree: Iterable[int] = ()) -> bool:
    """Whether the kernel may ask a task of the tree, or of its frozen cgroup, before an open.

    If these are paused, such an open would wait for them.
    """
    pids = dict.fromkeys((pid, *tree))
    for directory in _frozen_cgroups(pid):
        for name in ("cgroup.threads", "cgroup.procs", "tasks"):
            try:
                pids.update(dict.fromkeys(map(int, read_file(f"{directory}/{name}").split())))
                break
            except OSError:
                continue
    return any(_is_listener(one) for one in pids)


def _frozen_cgroups(pid: int) -> list[str]:
    found = []
    for directory, v2 in _cgroups(pid):
        try:
            if v2:
                frozen = b"frozen 1" in read_file(f"{directory}/cgroup.events").split(b"\n")
            else:
                # FREEZING: some tasks are not frozen yet, and none will run again before a thaw.
                frozen = read_file(f"{directory}/freezer.state").strip() != b"THAWED"
        except OSError:
            continue  # a root cgroup has no freezer
        if frozen:
            found.append(directory)
    return found


def _cgroups(pid: int) -> Iterator[tuple[str, bool]]:
    """The directories of a task's cgroups that can be frozen, and whether each is of v2."""
    try:
        lines = read_file(f"{procfs.ROOT}/{pid}/cgroup").split(b"\n")[:-1]
        mounts = read_mountinfo("self")
    except OSError:
        return
    for number, controllers, path in (line.split(b":", 2) for line in lines):
        if number == b"0" and not controllers:
            for mount in mounts:
                if mount.fstype == "cgroup2" and (found := _directory(mount, path)):
                    yield found, True
                    break
        elif b"freezer" in controllers.split(b","):
            for mount in mounts:
                is_freezer = b"freezer" in mount.super_options.split(b",")
                if mount.fstype == "cgroup" and is_freezer and (found := _directory(mount, path)):
                    yield found, False
                    break


def _directory(mount: Mount, path: bytes) -> str:
    # "" where the mount does not show it.
    root = mount.root.rstrip(b"/")
    if path != root and not path.startswith(root + b"/"):
        return ""
    return os.fsdecode(mount.mountpoint.rstrip(b"/") + path[len(root) :].rstrip(b"/"))


def _stands_still(pid: int) -> bool:
    try:
        threads: Sequence[str] = os.listdir(f"{procfs.ROOT}/{pid}/task")
        for tid in threads:
            stat = read_file(f"{procfs.ROOT}/{pid}/task/{tid}/stat")
            if stat[stat.rindex(b")") + 2 :][:1] in _STANDS_STILL:
                continue
            if read_file(f"{procfs.ROOT}/{pid}/task/{tid}/wchan").strip() not in _WAITS_FROZEN:
                return False
    except (OSError, ValueError):
        return False
    return True


def _is_listener(pid: int) -> bool:
    # Unknown counts as yes, because an open must be safe.
    try:
        for fd in os.listdir(f"{procfs.ROOT}/{pid}/fd"):
            if os.readlink(f"{procfs.ROOT}/{pid}/fd/{fd}") != _FANOTIFY:
                continue
            for line in read_file(f"{procfs.ROOT}/{pid}/fdinfo/{fd}").split(b"\n"):
                if line.startswith(b"fanotify flags:"):
                    flags = int(line[len(b"fanotify flags:") :].split()[0], 16)
                    if flags & FANOTIFY_PERMISSION:
                        return True
    except FileNotFoundError:
        return False  # it has ended, or closed it
    except (OSError, ValueError):
        return True
    return False
