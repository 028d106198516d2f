"""A machine with one container, and the files that its engine writes about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from irmapdb.kernel.proc.containers import find_containers
from irmapdb.node.container_info import ContainerInfo, describe
from irmapdb.node.guarded_json import GuardedFiles
from tests.support.proc_tree import HOST_MOUNTS, OWN_MOUNTS, task

if TYPE_CHECKING:
    from pathlib import Path

HEX = "0123456789abcdef" * 4
OTHER = HEX[::-1]
PID, MONITOR = 200, 100
POD = {"io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop"}
CRI = {
    "io.kubernetes.cri.container-name": "app",
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.image-name": "registry.example/app:3",
    "io.kubernetes.cri.sandbox-id": OTHER,
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.sandbox-namespace": "shop",
}
CRIO = {
    **POD,
    "io.container.manager": "cri-o",
    "io.kubernetes.container.name": "app",
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.cri-o.ImageName": "registry.example/app:3",
}
TASKS = "/run/containerd/io.containerd.runtime.v2.task"
GRAPH = "/var/lib/containers/storage/overlay-containers"
RUN = "/run/containers/storage/overlay-containers"


class Host:
    """A machine with one container, whose engine's files are below a directory."""

    def __init__(self, proc: Path, root: Path) -> None:
        self.proc = proc
        self.root = root
        root.mkdir()

    def container(self, cgroup: str, pid: int = PID, parent: int = MONITOR) -> None:
        mounts = OWN_MOUNTS.replace("0:50", f"0:{pid}")
        task(self.proc, pid, parent, 2000 + pid, mounts, f"0::{cgroup}\n", inner=1)

    def monitor(self, program: str, *words: str, cwd: str = "/", pid: int = MONITOR) -> None:
        task(self.proc, pid, 1, 1000, HOST_MOUNTS, "0::/system.slice/engine.service\n")
        place = self.proc / str(pid)
        (place / "exe").symlink_to(f"/usr/bin/{program}")
        (place / "cwd").symlink_to(cwd)
        (place / "cmdline").write_bytes("\0".join((program, *words, "")).encode())

    def write(self, path: str, content: object) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    def info(self) -> ContainerInfo:
        (found,) = find_containers()
        return describe(found, GuardedFiles(str(self.root)))


def docker(host: Host) -> None:
    """A container with a name and labels."""
    host.container(f"/system.slice/docker-{HEX}.scope")
    state = {"Running": True, "Pid": PID}
    config = {"Image": "nginx:1.27", "Labels": {"maintainer": "x"}}
    host.write(
        f"/var/lib/docker/containers/{HEX}/config.v2.json",
        {"ID": HEX, "Name": "/web", "State": state, "Config": config, "Image": "sha256:12"},
    )


def docker_elsewhere(host: Host) -> None:
    """The same, with the `data-root` of daemon.json."""
    docker(host)
    host.write("/etc/docker/daemon.json", {"data-root": "/data/docker"})
    (host.root / "data").mkdir()
    (host.root / "var/lib/docker").rename(host.root / "data/docker")


def docker_pod(host: Host) -> None:
    """A container of a pod, as cri-dockerd makes it."""
    host.container(f"/kubepods/burstable/podx/{HEX}")
    labels = {**POD, "io.kubernetes.container.name": "app"}
    host.write(
        f"/var/lib/docker/containers/{HEX}/config.v2.json",
        {
            "Name": "/k8s_app_web-1_shop_x_0",
            "State": {"Pid": PID},
            "Config": {"Image": "registry.example/app:3", "Labels": labels},
        },
    )


def docker_without_its_files(host: Host) -> None:
    """Only the files of containerd, which docker uses, are there."""
    host.container(f"/docker/{HEX}")
    host.write(f"{TASKS}/moby/{HEX}/init.pid", f"{PID}")


def _podman_list(name: str, image: str) -> list[dict[str, Any]]:
    about = {"image-name": image, "image-id": OTHER, "name": name, "created-at": 1}
    other = {"id": OTHER, "names": ["other"], "metadata": "{}"}
    return [other, {"id": HEX, "names": [name], "image": OTHER, "metadata": json.dumps(about)}]


def podman(host: Host) -> None:
    """A container whose monitor, conmon, is in /proc."""
    host.container(f"/machine.slice/libpod-{HEX}.scope/container")
    bundle = f"/srv/store/overlay-containers/{HEX}/userdata"
    words = ("--api-version", "1", "-c", HEX, "-r", "/usr/bin/crun", "-b", bundle, "-n", "web")
    host.monitor("conmon", *words)
    host.write(f"{bundle}/config.json", {"annotations": {"io.container.manager": "libpod"}})
    host.write(f"{bundle}/../../containers.json", _podman_list("web", "localhost/web:1"))


def podman_without_conmon(host: Host) -> None:
    """A container whose monitor has ended."""
    host.container(f"/libpod_parent/libpod-{HEX}", parent=1)
    host.write(f"{RUN}/{HEX}/userdata/pidfile", f"{PID}")
    host.write(f"{GRAPH}/{HEX}/userdata/config.json", {"annotations": {}})
    host.write(f"{GRAPH}/volatile-containers.json", _podman_list("web", "localhost/web:1"))


def crio(host: Host) -> None:
    """A container of a pod, with its conmon."""
    host.container(f"/kubepods.slice/kubepods-podx.slice/crio-{HEX}.scope")
    bundle = f"{RUN}/{HEX}/userdata"
    host.monitor("conmon", "-b", bundle, "-c", HEX, "-n", "k8s_app_web-1_shop_x_0")
    host.write(f"{bundle}/config.json", {"annotations": CRIO})


def crio_sandbox(host: Host) -> None:
    """The sandbox of a pod."""
    host.container(f"/kubepods.slice/kubepods-podx.slice/crio-{HEX}.scope")
    host.write(f"{RUN}/{HEX}/userdata/pidfile", f"{PID}\n")
    kind = {"io.kubernetes.cri-o.ContainerType": "sandbox"}
    host.write(f"{RUN}/{HEX}/userdata/config.json", {"annotations": {**CRIO, **kind}})


def containerd_pod(host: Host) -> None:
    """A container of a pod, as the CRI plugin makes it."""
    host.container(f"/system.slice/kubepods-podx.slice:cri-containerd:{HEX}")
    host.write(f"{TASKS}/k8s.io/{HEX}/init.pid", f"{PID}")
    host.write(f"{TASKS}/k8s.io/{HEX}/config.json", {"annotations": CRI})


def k3s(host: Host) -> None:
    """The same in the directory of k3s."""
    # One shim has all containers of a pod, and runs in the bundle of the first.
    host.container(f"/kubepods.slice/cri-containerd-{HEX}.scope")
    state = "/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io"
    host.monitor("containerd-shim-runc-v2", "-namespace", "k8s.io", cwd=f"{state}/{OTHER}")
    host.write(f"{state}/{OTHER}/init.pid", "150")
    host.write(f"{state}/{HEX}/init.pid", f"{PID}")
    host.write(f"{state}/{HEX}/config.json", {"annotations": CRI})


def ctr(host: Host) -> None:
    """`ctr run --cgroup`: the cgroup does not show the id."""
    host.container("/own/group")
    host.monitor("containerd-shim-runc-v2", "-id", "c1", cwd=f"{TASKS}/default/c1")
    host.write(f"{TASKS}/default/c1/init.pid", f"{PID}")
    host.write(f"{TASKS}/default/c1/config.json", {"annotations": None})


def nerdctl(host: Host) -> None:
    """A container with the annotations of nerdctl."""
    host.container(f"/default/{HEX}")
    host.write(f"{TASKS}/default/{HEX}/init.pid", f"{PID}")
    annotations = {"nerdctl/name": "web", "nerdctl/namespace": "default"}
    host.write(f"{TASKS}/default/{HEX}/config.json", {"annotations": annotations})


def runc(host: Host) -> None:
    """A container of runc, with an older state of another task beside it."""
    host.container("/user.slice/runc-web.scope")
    state = {"id": "web", "init_process_pid": PID, "init_process_start": PID}
    labels = ["bundle=/srv/web", *(f"{name}={value}" for name, value in POD.items())]
    host.write("/run/runc/web/state.json", {**state, "config": {"labels": labels}})
    host.write("/run/runc/old/state.json", {**state, "init_process_start": 3})
    # The bundle may be a tenant's, who can change the file after the start.
    host.write("/srv/web/config.json", {"annotations": CRI})


def crun(host: Host) -> None:
    """A container of crun."""
    host.container("/any/group")
    host.write(
        "/run/crun/web/status", {"pid": PID, "process-start-time": PID, "bundle": "/srv/web"}
    )
    host.write("/run/crun/web/config.json", {"annotations": POD})
    host.write("/srv/web/config.json", {"annotations": CRI})


FILES = {
    docker: f"var/lib/docker/containers/{HEX}/config.v2.json",
    podman: "srv/store/overlay-containers/containers.json",
    crio: f"{RUN}/{HEX}/userdata/config.json"[1:],
    containerd_pod: f"{TASKS}/k8s.io/{HEX}/config.json"[1:],
    runc: "run/runc/web/state.json",
}
"""The file of each engine that has the name of the container."""
