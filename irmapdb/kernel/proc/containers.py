"""Finds the containers of this machine, from /proc only, without any container engine.

A container is a tree of tasks whose mount namespace has a root filesystem of its own. A service of
systemd with private mounts has the root of the host, so it is no container. The cgroup of the root
task has the container's id. The hook and the service use the id as the name of the container's
database.

Facts: proc_pid_cgroup(5), proc_pid_mountinfo(5), cgroup_namespaces(7); the cgroups of the
engines: `cgroupsPath` of the OCI runtime specification (runc, crun, and containerd's `ctr`);
libpod's, CRI-O's and cri-containerd's scopes below machine.slice and kubepods.slice;
`machine-NAME.scope/payload` of systemd-nspawn(1); `lxc.payload.NAME` of LXC;
`machine-lxc….scope/libvirt` of libvirt.
"""

from __future__ import annotations

import os
import stat

from irmapdb.errors import TaskError
from irmapdb.kernel.proc import procfs, tasks
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.model import AnyPath

__all__ = [
    "Container",
    "ContainerName",
    "cgroup_paths",
    "container_of",
    "database_name",
    "find_containers",
    "find_database",
    "is_container_database",
    "name_by_cgroup",
]

_ID_DIGITS = 64
_DIGEST_DIGITS = 16
_HEX = frozenset("0123456789abcdef")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")

# Below the cgroup of a container, made by the runtime, libvirt, or the systemd inside of it.
_INNER_CGROUPS = frozenset({"container", "init.scope", "libvirt", "payload", "supervisor"})

# The hierarchies of cgroup v1 in the order of the search: every engine uses these.
_HIERARCHIES = ("", "name=systemd", "pids", "devices", "freezer")

_KTHREADD = 2
"""The parent of all kernel threads (kernel/kthread.c), which only the first pid namespace shows."""

_MOST_WITH_ONE_NAME = 4
"""The largest number of trees in one cgroup: a tenant can make any number of them."""


class ContainerName(Record):
    """The names of a container."""

    id: str
    """The engine's id: 64 hex digits, or the path of the cgroup without its first slash."""
    file_stem: str
    """The name of its database without `.db`."""


class Container(Record):
    """A running container. (`pid`, `starttime`) is never used twice."""

    name: ContainerName
    pid: int
    """The root task, as we see it."""
    starttime: int
    mntns: int
    cgroups: tuple[str, ...]
    """The paths of the root task's cgroups, one for each hierarchy."""
    pids: tuple[int, ...]
    """The tasks of the tree, the root task first, parents before children."""

    @property
    def key(self) -> tuple[int, int]:
        """Identifies it among all containers since boot."""
        return self.pid, self.starttime


def find_containers(
    pattern: str | None = None, tables: dict[int, bytes] | None = None
) -> tuple[Container, ...]:
    """The containers that run now, by their ids; a container inside of another is a part of it.

    The function stores the mountinfo of the mount namespaces that it reads in `tables`.

    `pattern`: a shell pattern for the path of a cgroup of the root task. Containers that start or
    end meanwhile may be missing. Our own mount namespace is no container.
    """
    import fnmatch  # noqa: PLC0415 imports `re`, which the hook does without

    foreign = _foreign_tasks({} if tables is None else tables)
    children: dict[int, list[int]] = {}
    tops: dict[int, list[int]] = {}
    for pid, (task, mntns) in foreign.items():
        if task.ppid in foreign:
            children.setdefault(task.ppid, []).append(pid)
        else:
            tops.setdefault(mntns, []).append(pid)
    found: dict[ContainerName, list[Container]] = {}
    for mntns, candidates in tops.items():
        task = _root_task([foreign[pid][0] for pid in candidates])
        cgroups = cgroup_paths(task.pid)
        if pattern is not None and not any(
            fnmatch.fnmatchcase(path, pattern) for path in cgroups.values()
        ):
            continue
        name = name_by_cgroup(cgroups, any_form=True) or ContainerName(f"mntns/{mntns}", "")
        pids = _descendants(task.pid, children)
        paths = tuple(dict.fromkeys(cgroups.values()))
        container = Container(name, task.pid, task.starttime, mntns, paths, pids)
        found.setdefault(name, []).append(container)
    return tuple(
        container for name in sorted(found) for container in _told_apart(name, found[name])
    )


def database_name(pid: int, images: str) -> str:
    """The name of a container's database in the directory: the same for each dump.

    64 hex digits, if a part of the task's cgroup path is such an id. A digest of the ids below it
    follows, for a container in a container, or one that has made a cgroup with the name of another.
    Otherwise, in a container, the end of the cgroup path and a digest of the whole path. Outside of
    containers, the last part of the images dir and a digest of the whole path.
    """
    name = container_of(pid)
    return name_by_images(images) if name is None else f"{name.file_stem}.db"


def container_of(pid: int) -> ContainerName | None:
    """The container of a task by its cgroup; None outside of containers."""
    cgroups = cgroup_paths(pid)
    return name_by_cgroup(cgroups) or (
        name_by_cgroup(cgroups, any_form=True) if _is_in_container(pid) else None
    )


def find_database(directory: AnyPath, pid: int) -> bytes | None:
    """The service's database for the container of a task; None if it has none.

    Only in a directory that only we can change: other users could choose the names in any other.
    """
    try:
        found = os.lstat(directory)
    except OSError:
        return None
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or not stat.S_ISDIR(found.st_mode):
        return None
    container = container_of(pid)
    if container is None:
        return None
    name = f"{container.file_stem}.db"
    path = os.path.join(os.fsencode(directory), os.fsencode(name))
    return path if is_container_database(name) and os.path.isfile(path) else None


def name_by_images(images: str) -> str:
    """The name of the database for a dump into this images dir, outside of containers."""
    whole = os.path.realpath(images or ".")
    return f"{_readable(os.path.basename(whole))}-{_digest(whole)}.db"


def is_container_database(file_name: str) -> bool:
    """Whether a file name is that of a container's database, and not of an images dir's."""
    stem = file_name.removesuffix(".db")
    if stem == file_name:
        return False
    name, dot, digest = stem.rpartition(".")
    if dot:
        return _PLAIN.issuperset(name) and _is_hex(digest, _DIGEST_DIGITS)
    name, dash, digest = stem.partition("-")
    return _is_hex(name, _ID_DIGITS) and (not dash or _is_hex(digest, _DIGEST_DIGITS))


def name_by_cgroup(cgroups: dict[str, str], *, any_form: bool = False) -> ContainerName | None:
    """The container's name from its root task's cgroups, hierarchy → path; None if none has an id.

    Without `any_form`, only 64 hex digits count as an id.
    """
    for path in cgroups.values():
        ids = [found for part in path.split("/") if (found := _hex_id(part))]
        if ids:
            first, *below = ids
            stem = f"{first}-{_digest('/'.join(below))}" if below else first
            return ContainerName("/".join(ids), stem)
    if not any_form:
        return None
    for hierarchy in (*_HIERARCHIES, *cgroups):
        # Seen from another cgroup namespace, a path begins with "..".
        parts = [part for part in cgroups.get(hierarchy, "").split("/") if part not in {"", ".."}]
        while parts and parts[-1] in _INNER_CGROUPS:
            parts.pop()
        if parts:
            path = "/".join(parts)
            return ContainerName(path, f"{_readable(parts[-1])}.{_digest(path)}")
    return None


# --- the tasks ------------------------------------------------------------------------------------


def _foreign_tasks(tables: dict[int, bytes]) -> dict[int, tuple[Task, int]]:
    # Every task whose root filesystem is not the host's, and its mount namespace.
    kthreadd = tasks.read_task(_KTHREADD)
    if kthreadd is not None and (kthreadd.ppid, kthreadd.comm) != (0, b"kthreadd"):
        kthreadd = None
    host = _host_root()
    found: dict[int, tuple[Task, int]] = {}
    for mntns, pids in _by_namespace().items():
        root = None
        for pid in pids:
            raw = _mount_table(pid)
            root = _mounted_on_root(raw)
            if root is not None:
                tables[mntns] = raw
                break
        if root in {None, host}:
            continue
        for pid in pids:
            try:
                task = tasks.read_task(pid)
            except TaskError:
                continue
            # One of the kernel's threads has a root of its own: kdevtmpfs.
            if task is not None and not (kthreadd and task.ppid == _KTHREADD):
                found[pid] = (task, mntns)
    return found


def _by_namespace() -> dict[int, list[int]]:
    # The tasks of each mount namespace but ours and that of the machine's init.
    by_namespace: dict[int, list[int]] = {}
    for name in os.listdir(procfs.ROOT):
        if name.isdecimal() and (mntns := _mount_namespace(name)):
            by_namespace.setdefault(mntns, []).append(int(name))
    for known in ("1", "self"):
        by_namespace.pop(_mount_namespace(known), None)
    return by_namespace


def _mount_namespace(pid: int | str) -> int:
    # 0 if the task is gone, or we may not look at it. Reading the link is faster than following it.
    try:
        try:
            link = os.readlink(f"{procfs.ROOT}/{pid}/ns/mnt")
        except FileNotFoundError:
            link = os.readlink(f"{procfs.ROOT}/{procfs.living_thread(pid)}/ns/mnt")
    except OSError:
        return 0
    return int(link[link.index("[") + 1 : -1])


def _is_in_container(pid: int) -> bool:
    mntns = _mount_namespace(pid)
    if mntns in {0, *(_mount_namespace(known) for known in ("1", "self"))}:
        return False
    return _root_mount(pid) not in {None, _host_root()}


def _host_root() -> tuple[bytes, bytes] | None:
    return _root_mount(1) or _root_mount("self")


def _root_mount(pid: int | str) -> tuple[bytes, bytes] | None:
    return _mounted_on_root(_mount_table(pid))


def _mount_table(pid: int | str) -> bytes:
    # b"" where the task is gone.
    try:
        return procfs.read_file(f"{procfs.ROOT}/{pid}/mountinfo")
    except OSError:
        return b""


def _mounted_on_root(raw: bytes) -> tuple[bytes, bytes] | None:
    # Device and directory that are mounted on a task's root, as mountinfo has them; None for a
    # chroot to no mount point.
    found = None
    for line in raw.split(b"\n"):
        fields = line.split(b" ", 5)
        if len(fields) > 4 and fields[4] == b"/":  # noqa: PLR2004 the fifth is the mount point
            found = fields[2], fields[3]  # the last one is on top
    return found


def _root_task(candidates: Sequence[Task]) -> Task:
    # Of the tasks of one mount namespace whose parents are outside: the init of its pid
    # namespace, else the oldest. The others were started by `exec` of the engine.
    def rank(task: Task) -> tuple[bool, int, int]:
        pids = tasks.namespace_pids(task.pid)
        return len(pids) < 2 or pids[-1] != 1, task.starttime, task.pid  # noqa: PLR2004 nested

    return candidates[0] if len(candidates) == 1 else min(candidates, key=rank)


def _descendants(root: int, children: dict[int, list[int]]) -> tuple[int, ...]:
    found = [root]
    for pid in found:  # grows as we go
        found.extend(children.get(pid, ()))
    return tuple(found)


def _told_apart(name: ContainerName, containers: list[Container]) -> Iterable[Container]:
    # Several in one cgroup: the oldest has its name, as the hook's has.
    containers.sort(key=lambda one: (one.starttime, one.pid))
    for index, one in enumerate(containers[:_MOST_WITH_ONE_NAME]):
        if index == 0 and name.file_stem:
            yield one
        else:
            label = f"{name.id}@{one.pid}-{one.starttime}"
            yield one._replace(name=ContainerName(label, f"tree.{_digest(label)}"))


# --- the names ------------------------------------------------------------------------------------


def cgroup_paths(pid: int) -> dict[str, str]:
    """The cgroups of a task: hierarchy ("" for cgroup v2) → path, in the order of the file.

    {} where the task is gone.
    """
    try:
        # By newlines alone: the name of a cgroup may hold a carriage return.
        lines = procfs.read_file(f"{procfs.ROOT}/{pid}/cgroup").split(b"\n")[:-1]
        fields = [os.fsdecode(line).split(":", 2) for line in lines]
        return {hierarchy: path for _, hierarchy, path in fields}
    except (OSError, ValueError):
        return {}


def _readable(text: str) -> str:
    return "".join(one if one in _PLAIN else "_" for one in text[:40])


def _hex_id(part: str) -> str:
    # The id, or the id between a prefix and ".scope"; "" for the cgroup of anything else.
    name = part.removesuffix(".scope")
    found, before = name[-_ID_DIGITS:], name[:-_ID_DIGITS]
    is_id = _is_hex(found, _ID_DIGITS) and (not before or before[-1] in "-:")
    return found if is_id else ""


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and _HEX.issuperset(text)


def _digest(text: str) -> str:
    import hashlib  # noqa: PLC0415 it loads OpenSSL, and most ids need none

    return hashlib.sha256(os.fsencode(text)).hexdigest()[:_DIGEST_DIGITS]
