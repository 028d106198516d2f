"""Finds the name, image and pod of a container in the files of its engine, without the engine.

The files are found by the container's id, which is in its cgroup path, and by the engine's monitor,
the parent of the container's root task: conmon(8) has the bundle in its command line, the shim of
containerd has it as its working directory. A file counts only if the kernel agrees that it is about
this very root task: each engine stores the pid.

Sources: config.md of the OCI runtime specification; config.v2.json of docker (moby's
container/container.go); `overlay-containers/containers.json` of containers/storage, which podman
and CRI-O use; the bundles of containerd's runtime v2, and the annotations of cri-containerd
(pkg/cri/annotations) and CRI-O (pkg/annotations); `/run/runc/ID/state.json` of runc(8),
`/run/crun/ID/status` of crun(1); cgfsng.c of LXC 2.0, 3.1 and 4.0; virsystemd.c and cgroups.rst of
libvirt. Seen with podman 4.3.1, containerd 1.6.20 and runc 1.1.5.
"""

from __future__ import annotations

import functools
import os
import re

from irmapdb.kernel.proc import procfs, tasks
from irmapdb.node.guarded_json import parsed
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TypeAlias

    from irmapdb.node.guarded_json import GuardedFiles

__all__ = [
    "GRAPH_ROOTS",
    "EngineNames",
    "Monitor",
    "Subject",
    "monitor_of",
    "names_of",
    "possible_ids",
    "runc_annotations",
]

_HEX_ID = re.compile(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_SCOPES = tuple(
    re.compile(rf"(?:^|/){pattern}\Z", re.DOTALL)
    for pattern in (
        r"(?P<engine>machine-lxc)\\x2d(?:[0-9]+\\x2d)?(?P<id>[^/]+?)(?:\.scope)?",
        (
            r"(?P<engine>libpod|crio|docker|cri-containerd|nerdctl|runc|crun|machine)-"
            r"(?P<id>[^/]+?)(?:\.scope)?"
        ),
        r"(?P<engine>lxc\.payload)\.(?P<id>[^/]+?)(?:\.scope)?",
        r"(?P<engine>libvirt/lxc/|lxc\.payload/|lxc/)(?P<id>[^/]+)",
        r"(?P<id>[^/]+)\.(?P<engine>libvirt-lxc)",
        r"(?P<engine>systemd-nspawn)@(?P<id>[^/]+)\.service",
    )
)
"""The cgroups of containers: `libpod-ID.scope`, `machine-NAME.scope`, `lxc.payload.NAME` (since LXC
4; `lxc.payload/NAME` in 3.1 and 3.2, `lxc/NAME` before), the scope machine-lxc-NUMBER-NAME of
libvirt, with its dashes escaped (without systemd `NAME.libvirt-lxc`; before libvirt 1.0.5
`libvirt/lxc/NAME`), `systemd-nspawn@NAME.service`."""
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_INNER = frozenset({"", "..", "container", "init.scope", "libvirt", "payload", "supervisor"})
_ENGINES = {
    "libpod": "podman",
    "libpod_parent": "podman",
    "crio": "cri-o",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "machine": "systemd-nspawn",
    "systemd-nspawn": "systemd-nspawn",
    "lxc/": "lxc",
    "lxc.payload": "lxc",
    "lxc.payload/": "lxc",
    "libvirt-lxc": "libvirt-lxc",
    "libvirt/lxc/": "libvirt-lxc",
    "machine-lxc": "libvirt-lxc",
    "docker": "docker",
    "runc": "runc",
    "crun": "crun",
}
_NAMED_BY_CGROUP = frozenset({"systemd-nspawn", "lxc", "libvirt-lxc"})
"""Programs that use the name of a container as the name of its cgroup."""

_MOST_IDS = 8
_MOST_CHARACTERS = 1024
_LIST_LIMIT_BYTES = 16 << 20
_SANDBOX = "POD"
"""The name of a pod's pause container, as CRI-O and docker have it."""

GRAPH_ROOTS = ("/var/lib/containers/storage", "/run/containers/storage")
_DRIVERS = ("overlay", "vfs", "btrfs", "zfs")
_OWN_PREFIXES = {"containerd": "io.kubernetes.cri.", "cri-o": "io.kubernetes.cri-o."}
"""With these, the names of an engine's own annotations begin."""
_PIDFILES = "/run/containers/storage"
_DOCKER_ROOT = "/var/lib/docker"
_DOCKER_CONFIG = "/etc/docker/daemon.json"
_CONTAINERD_STATE = (
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/containerd/io.containerd.runtime.v1.linux",
)
_RUNC_STATE = "/run/runc"
_CRUN_STATE = "/run/crun"


class EngineNames(Record):
    """The names of a container in the files of its engine. Each may be absent."""

    name: str | None = None
    image: str | None = None
    pod: str | None = None
    """NAMESPACE/NAME of the pod in Kubernetes."""
    engine: str | None = None


class Monitor(Record):
    """The parent of a container's root task, if it is a program of root's engine."""

    program: str
    """The file name of its executable."""
    arguments: tuple[str, ...]
    directory: str
    """Its working directory."""

    def option(self, *names: str) -> str | None:
        """The value of an option; None if it is not given."""
        for name, value in zip(self.arguments, self.arguments[1:], strict=False):
            if name in names:
                return value
        return None


class Subject(Record):
    """A container whose names are wanted."""

    pid: int
    """Its root task."""
    starttime: int
    cgroups: tuple[str, ...]
    ids: tuple[str, ...]
    """The ids that it may have, the most likely first."""
    monitor: Monitor | None


def possible_ids(cgroups: tuple[str, ...]) -> tuple[str, ...]:
    """The ids that a container with these cgroups may have for its engine."""
    found: list[str] = []
    for path in cgroups:
        parts = [part for part in path.split("/") if part not in _INNER]
        found += [match[1] for part in parts if (match := _HEX_ID.search(part))][:1]
        for above in _above(path):
            part = os.path.basename(above)
            if part in _INNER:
                continue
            scope = _scope_of(above)
            if scope is not None:
                found.append(_unescaped(scope["id"]))
            found.append(_unescaped(part.removesuffix(".scope").rpartition(":")[2]))
    return tuple(dict.fromkeys(found))[:_MOST_IDS]


def monitor_of(ppid: int) -> Monitor | None:
    """The monitor with this pid; None if it is gone, no program of root, or in a container.

    A program of a container may have any name, and root's user id. It is in a pid namespace below
    ours.
    """
    place = f"{procfs.ROOT}/{ppid}"
    try:
        if os.stat(place).st_uid not in {0, os.geteuid()}:
            return None
        program = os.path.basename(os.readlink(f"{place}/exe")).removesuffix(" (deleted)")
        if program != "conmon" and not program.startswith("containerd-shim"):
            return None
        if len(tasks.namespace_pids(ppid)) > 1:
            return None
        words = procfs.read_file(f"{place}/cmdline").split(b"\0")
        directory = os.readlink(f"{place}/cwd")
    except OSError:
        return None
    return Monitor(program, tuple(map(os.fsdecode, words)), directory)


def names_of(subject: Subject, files: GuardedFiles) -> EngineNames:
    """The names of a container: those of the first engine that has it."""
    for ask in (_docker, _storage, _containerd, _runc, _crun):
        found = ask(subject, files)
        if found is not None:
            return found
    return _by_cgroup(subject)


# --- docker ---------------------------------------------------------------------------------------


def _docker(subject: Subject, files: GuardedFiles) -> EngineNames | None:
    own = files.once("docker", lambda: _field(files.document(_DOCKER_CONFIG), "data-root"))
    for root in dict.fromkeys(filter(None, (own, _DOCKER_ROOT))):
        for id_ in subject.ids:
            if not _is_file_name(id_):
                continue
            found = files.document(f"{root}/containers/{id_}/config.v2.json")
            if _field(found, "State", "Pid", kind=int) != subject.pid:
                continue
            labels = _own(_field(found, "Config", "Labels", kind=dict), "docker")
            name = _text(labels.get("io.kubernetes.container.name"))
            return EngineNames(
                name or (_field(found, "Name") or "").removeprefix("/") or None,
                _field(found, "Config", "Image"),
                _pod(labels),
                "docker",
            )
    return None


# --- containers/storage: podman and CRI-O ---------------------------------------------------------


def _storage(subject: Subject, files: GuardedFiles) -> EngineNames | None:
    for id_, bundle in _storage_bundles(subject, files):
        config = files.document(f"{bundle}/config.json")
        annotations = _own(_field(config, "annotations", kind=dict), "cri-o")
        listed = _storage_list(os.path.dirname(os.path.dirname(bundle)), files).get(id_)
        if config is None and listed is None:
            continue
        names = _annotated(annotations)
        is_crio = annotations.get("io.container.manager") == "cri-o" or names.pod is not None
        more = listed or EngineNames()
        return EngineNames(
            names.name or more.name,
            names.image or more.image,
            names.pod,
            "cri-o" if is_crio else "podman",
        )
    return None


def _storage_bundles(subject: Subject, files: GuardedFiles) -> Iterator[tuple[str, str]]:
    # Each possible bundle, `…/overlay-containers/ID/userdata`, with the id.
    monitor = subject.monitor
    if monitor is not None and monitor.program == "conmon":
        bundle = os.path.normpath(monitor.option("-b", "--bundle") or "")
        id_ = os.path.basename(os.path.dirname(bundle))
        if id_ in subject.ids and id_ == monitor.option("-c", "--cid"):
            yield id_, bundle
    for id_ in filter(_is_file_name, subject.ids):
        for driver in _DRIVERS:
            below = f"{driver}-containers/{id_}/userdata"
            if files.number(f"{_PIDFILES}/{below}/pidfile") == subject.pid:
                yield from ((id_, f"{root}/{below}") for root in GRAPH_ROOTS)


def _storage_list(directory: str, files: GuardedFiles) -> dict[str, EngineNames]:
    return files.once(directory, lambda: _read_storage_list(directory, files))


def _read_storage_list(directory: str, files: GuardedFiles) -> dict[str, EngineNames]:
    found: dict[str, EngineNames] = {}
    for name in ("volatile-containers.json", "containers.json"):
        listed = files.document(f"{directory}/{name}", limit_bytes=_LIST_LIMIT_BYTES)
        for one in listed if isinstance(listed, list) else ():
            id_ = _field(one, "id")
            if id_ is None:
                continue
            names = _field(one, "names", kind=list) or [None]
            about = parsed(str(one.get("metadata", "")))
            found[id_] = EngineNames(_text(names[0]), _field(about, "image-name"), None, None)
    return found


# --- containerd -----------------------------------------------------------------------------------


def _containerd(subject: Subject, files: GuardedFiles) -> EngineNames | None:
    for bundle in _containerd_bundles(subject, files):
        if files.number(f"{bundle}/init.pid") != subject.pid:
            continue
        namespace, id_ = bundle.split("/")[-2:]
        if namespace == "moby":
            return EngineNames(engine="docker")
        config = files.document(f"{bundle}/config.json")
        names = _annotated(_own(_field(config, "annotations", kind=dict), "containerd"))
        return names._replace(name=names.name or _chosen(id_), engine="containerd")
    return None


def _containerd_bundles(subject: Subject, files: GuardedFiles) -> Iterator[str]:
    ids = [one for one in subject.ids if _is_file_name(one)]
    monitor = subject.monitor
    if monitor is not None and monitor.program != "conmon" and monitor.directory.startswith("/"):
        # The shim of a pod has all its containers, and the bundle of the first is its directory.
        above = os.path.dirname(monitor.directory)
        yield from (f"{above}/{id_}" for id_ in ids)
        yield monitor.directory
    for state in _CONTAINERD_STATE:
        for namespace in files.once(state, functools.partial(files.names, state)):
            yield from (f"{state}/{namespace}/{id_}" for id_ in ids)


# --- runc and crun without an engine --------------------------------------------------------------


class _State(Record):
    """A container as a runtime's state has it.

    The bundle may belong to a tenant, and lie on a filesystem of its own. The state has a copy of
    its annotations, and belongs to root.
    """

    id: str
    annotations: dict[str, Any]


_States: TypeAlias = dict[tuple[int, int], _State]
"""By the pid and start time of the root task."""


def _runc(subject: Subject, files: GuardedFiles) -> EngineNames | None:
    states = files.once(_RUNC_STATE, lambda: _runc_states(files))
    return _by_state(subject, states, "runc")


def _runc_states(files: GuardedFiles) -> _States:
    found: _States = {}
    for id_ in files.names(_RUNC_STATE):
        state = files.document(f"{_RUNC_STATE}/{id_}/state.json")
        pid = _field(state, "init_process_pid", kind=int)
        starttime = _field(state, "init_process_start", kind=int)
        if pid is not None and starttime is not None:
            found[pid, starttime] = _State(id_, runc_annotations(state))
    return found


def runc_annotations(state: object) -> dict[str, Any]:
    """The annotations of a container in runc's state: each is a label, `KEY=VALUE`."""
    labels = _field(state, "config", "labels", kind=list) or []
    return dict(one.partition("=")[::2] for one in labels if isinstance(one, str))


def _crun(subject: Subject, files: GuardedFiles) -> EngineNames | None:
    states = files.once(_CRUN_STATE, lambda: _crun_states(files))
    return _by_state(subject, states, "crun")


def _crun_states(files: GuardedFiles) -> _States:
    found: _States = {}
    for id_ in files.names(_CRUN_STATE):
        status = files.document(f"{_CRUN_STATE}/{id_}/status")
        pid = _field(status, "pid", kind=int)
        starttime = _field(status, "process-start-time", kind=int)
        if pid is not None and starttime is not None:
            config = files.document(f"{_CRUN_STATE}/{id_}/config.json")
            annotations = _field(config, "annotations", kind=dict) or {}
            found[pid, starttime] = _State(id_, annotations)
    return found


def _by_state(subject: Subject, states: _States, engine: str) -> EngineNames | None:
    found = states.get((subject.pid, subject.starttime))
    if found is None:
        return None
    names = _annotated(found.annotations)
    return names._replace(name=names.name or _text(found.id), engine=engine)


# --- no file --------------------------------------------------------------------------------------


def _by_cgroup(subject: Subject) -> EngineNames:
    for path in subject.cgroups:
        for above in _above(path):
            scope = _scope_of(above)
            engine = _ENGINES.get(os.path.basename(above) if scope is None else scope["engine"])
            if engine is not None:
                is_named = scope is not None and engine in _NAMED_BY_CGROUP
                name = _text(_unescaped(scope["id"])) if scope is not None and is_named else None
                return EngineNames(name, None, None, engine)
    return EngineNames()


# --- parts ----------------------------------------------------------------------------------------


def _above(path: str) -> Iterator[str]:
    # The cgroup and those above it, from the innermost to the outermost.
    while path.strip("/"):
        yield path
        path = path.rpartition("/")[0]


def _scope_of(path: str) -> re.Match[str] | None:
    # The cgroup of a container. A slice, as machine.slice, has many containers.
    if path.endswith(".slice"):
        return None
    end = "/".join(path.rsplit("/", 3)[-3:])
    return next((found for one in _SCOPES if (found := one.search(end))), None)


def _own(annotations: Mapping[str, Any] | None, engine: str) -> dict[str, Any]:
    # Without the entries of the other engines: only the user of a pod can have set them.
    others = tuple(prefix for name, prefix in _OWN_PREFIXES.items() if name != engine)
    return {key: one for key, one in (annotations or {}).items() if not key.startswith(others)}


def _annotated(annotations: Mapping[str, Any]) -> EngineNames:
    # The annotations of an OCI config.json, as Kubernetes' engines and nerdctl set them.
    def first(*keys: str) -> str | None:
        return next(filter(None, (_text(annotations.get(key)) for key in keys)), None)

    kind = first("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
    name = first("io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name")
    image = first("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
    return EngineNames(_SANDBOX if kind == "sandbox" else name, image, _pod(annotations), None)


def _pod(annotations: Mapping[str, Any]) -> str | None:
    # The engine's own entries come before the labels, which the user of a pod may set.
    for space, name in (
        ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name"),
        ("io.kubernetes.cri-o.Namespace", "io.kubernetes.cri-o.KubeName"),
        ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name"),
    ):
        parts = _text(annotations.get(space)), _text(annotations.get(name))
        if parts[0] and parts[1]:
            return f"{parts[0]}/{parts[1]}"
    return None


def _field(document: Any, *keys: str, kind: type = str) -> Any:  # noqa: ANN401 JSON of others
    # A value of this kind below the keys; None if there is none.
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    if kind is str:
        return _text(document)
    return document if isinstance(document, kind) and not isinstance(document, bool) else None


def _text(value: object) -> str | None:
    # Of a length that people can read; JSON may have halves of surrogate pairs.
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_CHARACTERS:
        return None
    return value.encode("utf-8", "replace").decode("utf-8")


def _chosen(id_: str) -> str | None:
    # An id that a person has chosen, and no digest.
    return None if re.fullmatch("[0-9a-f]{64}", id_) else _text(id_)


def _is_file_name(id_: str) -> bool:
    return id_ not in {"", ".", ".."} and "/" not in id_ and "\0" not in id_


def _unescaped(text: str) -> str:
    # The name of a systemd unit: systemd-escape(1).
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
