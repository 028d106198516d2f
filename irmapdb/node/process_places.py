"""Finds the container and systemd unit of each process, without an engine or systemd."""

from __future__ import annotations

from irmapdb.kernel.proc import mountinfo
from irmapdb.kernel.proc.containers import cgroup_paths, find_containers, name_by_cgroup
from irmapdb.kernel.proc.units import cgroup_of, unit_of
from irmapdb.node.container_info import ContainerInfo, describe_all
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Place", "find_places"]


class Place(Record):
    """The place of one process. Each part may be absent."""

    container: ContainerInfo | None = None
    root_pid: int | None = None
    """The root task of the container; None also if irmapdb may not read its namespaces."""
    unit: str | None = None
    """The systemd unit: `ssh.service`, `user@1000.service/code.service`. A container's engine makes
    a unit for it too."""
    cgroup: str | None = None
    """The path of its cgroup; None if that is the root."""

    @property
    def label(self) -> str:
        """The container, else the unit, for people; "" for none.

        A tenant may have chosen it: print it with `irmapdb.model.printable`.
        """
        if self.container is not None:
            return self.container.label
        units = [] if self.unit is None else self.unit.split("/")
        return "/".join(unit.removesuffix(".service") for unit in units)


def find_places(pids: Iterable[int]) -> dict[int, Place]:
    """The place of each process; an empty one if it is gone."""
    containers = find_containers()
    infos = dict(zip(containers, describe_all(containers), strict=True))
    by_pid = {pid: one for one in containers for pid in one.pids}
    by_mntns = {one.mntns: one for one in containers}
    places: dict[int, Place] = {}
    for pid in pids:
        cgroups = cgroup_paths(pid)
        place = Place(unit=unit_of(cgroups), cgroup=cgroup_of(cgroups))
        try:
            # A process that the engine has started later (`podman exec`) has another parent.
            found = by_pid.get(pid) or by_mntns.get(mountinfo.mount_namespace(pid))
        except FileNotFoundError:
            found = None  # it has ended
        except OSError:
            # We may not read its namespaces, so only the name of its cgroup is left.
            found = None
            place = place._replace(container=_by_cgroup(cgroups))
        if found is not None:
            place = place._replace(container=infos[found], root_pid=found.pid)
        places[pid] = place
    return places


def _by_cgroup(cgroups: dict[str, str]) -> ContainerInfo | None:
    name = name_by_cgroup(cgroups)
    if name is None:
        return None
    return ContainerInfo(name.id, None, None, None, None, cgroup_of(cgroups) or "")
