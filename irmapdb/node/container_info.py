"""Names the containers of this machine as people do: by name, image and pod.

The container itself comes from /proc alone (irmapdb.kernel.proc.containers); its names come from
the files of its engine (irmapdb.node.engine_names), and no engine is called. A container without
such files has its id and its cgroup.
"""

from __future__ import annotations

import difflib
import os

from irmapdb.errors import TaskError
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.proc.containers import find_containers
from irmapdb.model import printable
from irmapdb.node.engine_names import Subject, monitor_of, names_of, possible_ids
from irmapdb.node.guarded_json import GuardedFiles, host_root
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.kernel.proc.containers import Container
    from irmapdb.node.engine_names import Monitor

__all__ = [
    "LEAST_ID_CHARACTERS",
    "ContainerInfo",
    "describe",
    "describe_all",
    "find_container",
    "find_named",
    "runtime_of",
]

LEAST_ID_CHARACTERS = 4
"""The shortest prefix of an id that names a container."""

_PATIENCE_S, _PATIENCE_FOR_EACH_S = 3.0, 0.03
"""The time limit for the names, and the part for each container, which takes 1.5 ms."""
_A_FEW = 4


class ContainerInfo(Record):
    """A container as people know it."""

    id: str
    """The engine's id, or the path of its cgroup: the id of `irmapdb warm --status`."""
    name: str | None
    """The name that its user or Kubernetes gave it; `POD` for the pause container of a pod."""
    image: str | None
    pod: str | None
    """NAMESPACE/NAME of its pod in Kubernetes."""
    engine: str | None
    """podman, cri-o, docker, containerd, runc, crun, lxc, libvirt-lxc, systemd-nspawn."""
    cgroup: str
    """The path of its root task's cgroup; the longest one with cgroup v1."""

    @property
    def label(self) -> str:
        """Its name for people, in one line: POD/NAME, the name, the short id, or the cgroup.

        A tenant may have chosen it: print it with `irmapdb.model.printable`.
        """
        if self.pod is not None:
            return f"{self.pod}/{self.name or self.short_id}"
        return self.name or self.short_id

    @property
    def short_id(self) -> str:
        """The first 12 digits of an id of 64, else the id."""
        return self.id[:12] if _is_hex_id(self.id[:64]) else self.id


def describe(container: Container, files: GuardedFiles | None = None) -> ContainerInfo:
    """The names of a container. A name that its engine's files do not have is None.

    `files`: the files that were read for other containers of the same listing.
    """
    files = files or GuardedFiles(host_root())
    found = names_of(
        Subject(
            container.pid,
            container.starttime,
            container.cgroups,
            possible_ids(container.cgroups),
            _monitor(container),
        ),
        files,
    )
    cgroup = max(container.cgroups, key=len, default="")
    return ContainerInfo(
        container.name.id, found.name, found.image, found.pod, found.engine, cgroup
    )


def runtime_of(container: Container) -> str | None:
    """The OCI runtime that started it, "runc" or "crun", as conmon has it; None if it is unknown.

    conmon is the monitor of podman and CRI-O.
    """
    monitor = _monitor(container)
    program = None if monitor is None else monitor.option("-r", "--runtime")
    return None if program is None else os.path.basename(program)


def _monitor(container: Container) -> Monitor | None:
    try:
        task = tasks.read_task(container.pid)
    except TaskError:
        return None
    return monitor_of(task.ppid) if task is not None and task.ppid else None


def describe_all(containers: Sequence[Container]) -> tuple[ContainerInfo, ...]:
    """`describe` for each of them, in their order.

    In a child process: if a filesystem does not answer, only ids and cgroups are known.
    """

    def work() -> tuple[ContainerInfo, ...]:
        files = GuardedFiles(host_root())
        return tuple(describe(one, files) for one in containers)

    limit_s = _PATIENCE_S + _PATIENCE_FOR_EACH_S * len(containers)
    return ask_in_child(work, lambda _: tuple(map(_without_names, containers)), limit_s)


def _without_names(container: Container) -> ContainerInfo:
    cgroup = max(container.cgroups, key=len, default="")
    return ContainerInfo(container.name.id, None, None, None, None, cgroup)


def find_container(wanted: str) -> Container:
    """The running container with this id, beginning of an id (4 characters or more), or name.

    A name is that of the container, of its pod (NAMESPACE/NAME or NAME), or both (POD/NAME).
    TaskError if there is none, or if there are several: it names them, and the next step.
    """
    containers = find_containers()
    return containers[find_named(wanted, describe_all(containers))]


def find_named(wanted: str, infos: Sequence[ContainerInfo]) -> int:
    """The index of the container that `wanted` names, as `find_container`."""
    for index, info in enumerate(infos):
        if info.id == wanted:
            return index
    found = [index for index, info in enumerate(infos) if _is_named(info, wanted)]
    if len(found) == 1:
        return found[0]
    shown = _printable(wanted)
    if found:
        some = ", ".join(_shown(infos[index]) for index in found[:_A_FEW])
        more = f" and {len(found) - _A_FEW} more" if len(found) > _A_FEW else ""
        message = f"{len(found)} containers are called {shown}: {some}{more}"
        raise TaskError(message, advice="give more of the id")
    message = f"no container is called {shown}"
    raise TaskError(message, advice=_advice(wanted, infos))


def _is_named(info: ContainerInfo, wanted: str) -> bool:
    if len(wanted) >= LEAST_ID_CHARACTERS and any(
        one.startswith(wanted) for one in (info.id, info.id.rpartition("/")[2])
    ):
        return True
    return wanted in _names(info)


def _names(info: ContainerInfo) -> set[str]:
    # The pause container of a pod has no name of its own.
    names = {info.id.rpartition("/")[2]}
    if info.name is not None and info.name != "POD":
        names.add(info.name)
        if info.pod is not None:
            pod = info.pod.rpartition("/")[2]
            names |= {info.pod, pod, f"{info.pod}/{info.name}", f"{pod}/{info.name}"}
    elif info.pod is not None:
        names.add(f"{info.pod}/POD")
    return names


def _shown(info: ContainerInfo) -> str:
    named = "" if info.label == info.short_id else f" ({_printable(info.label)})"
    return f"{_printable(info.id)}{named}"


def _advice(wanted: str, infos: Sequence[ContainerInfo]) -> str:
    if not infos:
        return "no container runs here, or irmapdb may not read its tasks: run it as root"
    known = {name: info for info in infos for name in (info.name, info.pod, info.label) if name}
    if close := difflib.get_close_matches(wanted, known, n=2):
        return f"did you mean {' or '.join(map(_printable, close))}?"
    return "`irmapdb check --all` lists the containers"


def _printable(text: str) -> str:
    return printable(os.fsencode(text))


def _is_hex_id(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")  # noqa: PLR2004 SHA-256
