"""Finds the services of the host itself that watch files: the tasks that are in no container.

A service is the tasks of one cgroup: a unit of systemd, or another cgroup. Its root task is the
task whose parent is outside of the cgroup, as CRIU would dump it.
"""

from __future__ import annotations

import os

from irmapdb.kernel.proc import fdinfo, procfs, tasks
from irmapdb.node.container_info import ContainerInfo
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from irmapdb.kernel.proc.tasks import Task

__all__ = ["Service", "find_services"]

_INIT = 1
_UNITS = (".service", ".scope")


class Service(Record):
    """A service that watches a file."""

    info: ContainerInfo
    """Its `id` is the path of the cgroup without its first slash; `name` the unit, or the name of
    the root task."""
    pid: int
    """The root task."""
    starttime: int


def find_services(inside: Collection[int]) -> tuple[Service, ...]:
    """The services with an inotify or fanotify descriptor, by their cgroups.

    `inside`: the tasks of the containers. The init of the machine is no service.
    """
    host = {one.pid: one for one in tasks.all_tasks() if one.pid not in inside}
    groups = {pid: _cgroup(pid) for pid in host}
    tops: dict[int, Task] = {}
    for pid in host:
        if pid != _INIT and _has_watch(pid):
            top = _top(pid, host, groups)
            tops[top.pid] = top
    found = [Service(_info(top, groups[pid]), pid, top.starttime) for pid, top in tops.items()]
    return tuple(sorted(found, key=lambda one: (one.info.cgroup, one.pid)))


def _top(pid: int, host: dict[int, Task], groups: dict[int, str]) -> Task:
    task = host[pid]
    while (above := host.get(task.ppid)) is not None:
        if above.pid == _INIT or groups[above.pid] != groups[task.pid]:
            break
        task = above
    return task


def _has_watch(pid: int) -> bool:
    try:
        return bool(fdinfo.watch_descriptors(pid))
    except OSError:
        return False  # gone, or hidden from us


def _cgroup(pid: int) -> str:
    # The one that names a unit; systemd's own hierarchies first.
    try:
        lines = procfs.read_file(f"{procfs.ROOT}/{pid}/cgroup").split(b"\n")[:-1]
    except OSError:
        return ""
    fields = [os.fsdecode(line).split(":", 2) for line in lines]
    paths = {hierarchy: path for _, hierarchy, path in fields}
    ordered = [paths.pop(one, "") for one in ("", "name=systemd")] + [*paths.values()]
    return next(filter(_unit, ordered), max(ordered, key=len))


def _unit(cgroup: str) -> str | None:
    return next((one for one in reversed(cgroup.split("/")) if one.endswith(_UNITS)), None)


def _info(top: Task, cgroup: str) -> ContainerInfo:
    unit = _unit(cgroup)
    name = os.fsdecode(top.comm) if unit is None else unit
    id_ = cgroup.lstrip("/") or f"task {top.pid}"
    return ContainerInfo(id_, name, None, None, None if unit is None else "systemd", cgroup)
