"""The names of containers, from files of the engines: as they write them, damaged, and false."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from irmapdb.errors import TaskError
from irmapdb.kernel.proc.containers import find_containers
from irmapdb.node.container_info import (
    ContainerInfo,
    describe,
    find_named,
    runtime_of,
)
from irmapdb.node.guarded_json import GuardedFiles, host_root
from tests.support.proc_tree import HOST_MOUNTS, OWN_MOUNTS, task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.fixture
def host(proc: Path, tmp_path: Path) -> Host:
    return Host(proc, tmp_path / "host")


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

    def write(self, path: str, content: Any) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    def info(self) -> ContainerInfo:
        (found,) = find_containers()
        return describe(found, GuardedFiles(str(self.root)))


def _docker(host: Host) -> None:
    host.container(f"/system.slice/docker-{HEX}.scope")
    state = {"Running": True, "Pid": PID}
    config = {"Image": "nginx:1.27", "Labels": {"maintainer": "x"}}
    host.write(
        f"/var/lib/docker/containers/{HEX}/config.v2.json",
        {"ID": HEX, "Name": "/web", "State": state, "Config": config, "Image": "sha256:12"},
    )


def _docker_elsewhere(host: Host) -> None:
    _docker(host)
    host.write("/etc/docker/daemon.json", {"data-root": "/data/docker"})
    (host.root / "data").mkdir()
    (host.root / "var/lib/docker").rename(host.root / "data/docker")


def _docker_pod(host: Host) -> None:
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


def _docker_without_its_files(host: Host) -> None:
    host.container(f"/docker/{HEX}")
    host.write(f"{TASKS}/moby/{HEX}/init.pid", f"{PID}")


def _podman_list(name: str, image: str) -> list[dict[str, Any]]:
    about = {"image-name": image, "image-id": OTHER, "name": name, "created-at": 1}
    other = {"id": OTHER, "names": ["other"], "metadata": "{}"}
    return [other, {"id": HEX, "names": [name], "image": OTHER, "metadata": json.dumps(about)}]


def _podman(host: Host) -> None:
    host.container(f"/machine.slice/libpod-{HEX}.scope/container")
    bundle = f"/srv/store/overlay-containers/{HEX}/userdata"
    words = ("--api-version", "1", "-c", HEX, "-r", "/usr/bin/crun", "-b", bundle, "-n", "web")
    host.monitor("conmon", *words)
    host.write(f"{bundle}/config.json", {"annotations": {"io.container.manager": "libpod"}})
    host.write(f"{bundle}/../../containers.json", _podman_list("web", "localhost/web:1"))


def _podman_without_conmon(host: Host) -> None:
    host.container(f"/libpod_parent/libpod-{HEX}", parent=1)
    host.write(f"{RUN}/{HEX}/userdata/pidfile", f"{PID}")
    host.write(f"{GRAPH}/{HEX}/userdata/config.json", {"annotations": {}})
    host.write(f"{GRAPH}/volatile-containers.json", _podman_list("web", "localhost/web:1"))


def _crio(host: Host) -> None:
    host.container(f"/kubepods.slice/kubepods-podx.slice/crio-{HEX}.scope")
    bundle = f"{RUN}/{HEX}/userdata"
    host.monitor("conmon", "-b", bundle, "-c", HEX, "-n", "k8s_app_web-1_shop_x_0")
    host.write(f"{bundle}/config.json", {"annotations": CRIO})


def _crio_sandbox(host: Host) -> None:
    host.container(f"/kubepods.slice/kubepods-podx.slice/crio-{HEX}.scope")
    host.write(f"{RUN}/{HEX}/userdata/pidfile", f"{PID}\n")
    kind = {"io.kubernetes.cri-o.ContainerType": "sandbox"}
    host.write(f"{RUN}/{HEX}/userdata/config.json", {"annotations": {**CRIO, **kind}})


def _containerd_pod(host: Host) -> None:
    host.container(f"/system.slice/kubepods-podx.slice:cri-containerd:{HEX}")
    host.write(f"{TASKS}/k8s.io/{HEX}/init.pid", f"{PID}")
    host.write(f"{TASKS}/k8s.io/{HEX}/config.json", {"annotations": CRI})


def _k3s(host: Host) -> None:
    # One shim has all containers of a pod, and runs in the bundle of the first.
    host.container(f"/kubepods.slice/cri-containerd-{HEX}.scope")
    state = "/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io"
    host.monitor("containerd-shim-runc-v2", "-namespace", "k8s.io", cwd=f"{state}/{OTHER}")
    host.write(f"{state}/{OTHER}/init.pid", "150")
    host.write(f"{state}/{HEX}/init.pid", f"{PID}")
    host.write(f"{state}/{HEX}/config.json", {"annotations": CRI})


def _ctr(host: Host) -> None:
    host.container("/own/group")  # `ctr run --cgroup`: it does not tell the id
    host.monitor("containerd-shim-runc-v2", "-id", "c1", cwd=f"{TASKS}/default/c1")
    host.write(f"{TASKS}/default/c1/init.pid", f"{PID}")
    host.write(f"{TASKS}/default/c1/config.json", {"annotations": None})


def _nerdctl(host: Host) -> None:
    host.container(f"/default/{HEX}")
    host.write(f"{TASKS}/default/{HEX}/init.pid", f"{PID}")
    annotations = {"nerdctl/name": "web", "nerdctl/namespace": "default"}
    host.write(f"{TASKS}/default/{HEX}/config.json", {"annotations": annotations})


def _runc(host: Host) -> None:
    host.container("/user.slice/runc-web.scope")
    state = {"id": "web", "init_process_pid": PID, "init_process_start": PID}
    labels = ["bundle=/srv/web", *(f"{name}={value}" for name, value in POD.items())]
    host.write("/run/runc/web/state.json", {**state, "config": {"labels": labels}})
    host.write("/run/runc/old/state.json", {**state, "init_process_start": 3})
    # The bundle may be a tenant's, who can change the file after the start.
    host.write("/srv/web/config.json", {"annotations": CRI})


def _crun(host: Host) -> None:
    host.container("/any/group")
    host.write(
        "/run/crun/web/status", {"pid": PID, "process-start-time": PID, "bundle": "/srv/web"}
    )
    host.write("/run/crun/web/config.json", {"annotations": POD})
    host.write("/srv/web/config.json", {"annotations": CRI})


def _nspawn(host: Host) -> None:
    host.container("/machine.slice/machine-a\\x2db.scope/payload/init.scope")


def _nspawn_unit(host: Host) -> None:
    # `machinectl start`, which most machines are started with
    host.container("/machine.slice/systemd-nspawn@web-1.service/payload/init.scope")


def _in_a_slice(host: Host) -> None:
    host.container("/machine.slice/web")


def _in_the_slice_of_a_podman_pod(host: Host) -> None:
    host.container(f"/machine.slice/machine-libpod_pod_{OTHER}.slice/web")


def _lxc(host: Host) -> None:
    host.container("/lxc.payload.web/init.scope")


def _lxc_like_a_unit(host: Host) -> None:
    host.container("/lxc.payload.web.service")


def _lxc_3_1(host: Host) -> None:
    host.container("/lxc.payload/web-1/init.scope")


def _lxc_3_0(host: Host) -> None:
    # Without root, below the session of the user.
    host.container("/user.slice/user-1000.slice/session-1.scope/lxc/web/system.slice/a.service")


def _libvirt(host: Host) -> None:
    host.container("/machine.slice/machine-lxc\\x2d4711\\x2dweb\\x2d1.scope/libvirt/init.scope")


def _libvirt_1_2(host: Host) -> None:
    host.container("/machine.slice/machine-lxc\\x2dweb.scope")


def _libvirt_without_systemd(host: Host) -> None:
    host.container("/machine/shop.partition/web.libvirt-lxc")


def _libvirt_1_0(host: Host) -> None:
    host.container("/libvirt/lxc/web")


def _no_lxc(host: Host) -> None:
    host.container("/one/lxc")


def _unknown(host: Host) -> None:
    host.container("/one/two")


APP = ("app", "registry.example/app:3", "shop/web-1")


@pytest.mark.parametrize(
    ("make", "id_", "rest"),
    [
        (_docker, HEX, ("web", "nginx:1.27", None, "docker")),
        (_docker_elsewhere, HEX, ("web", "nginx:1.27", None, "docker")),
        (_docker_pod, HEX, (*APP, "docker")),
        (_docker_without_its_files, HEX, (None, None, None, "docker")),
        (_podman, HEX, ("web", "localhost/web:1", None, "podman")),
        (_podman_without_conmon, HEX, ("web", "localhost/web:1", None, "podman")),
        (_crio, HEX, (*APP, "cri-o")),
        (_crio_sandbox, HEX, ("POD", *APP[1:], "cri-o")),
        (_containerd_pod, HEX, (*APP, "containerd")),
        (_k3s, HEX, (*APP, "containerd")),
        (_ctr, "own/group", ("c1", None, None, "containerd")),
        (_nerdctl, HEX, ("web", None, None, "containerd")),
        (_runc, "user.slice/runc-web.scope", ("web", None, "shop/web-1", "runc")),
        (_crun, "any/group", ("web", None, "shop/web-1", "crun")),
        (_nspawn, "machine.slice/machine-a\\x2db.scope", ("a-b", None, None, "systemd-nspawn")),
        (
            _nspawn_unit,
            "machine.slice/systemd-nspawn@web-1.service",
            ("web-1", None, None, "systemd-nspawn"),
        ),
        (_in_a_slice, "machine.slice/web", (None, None, None, None)),
        (
            _in_the_slice_of_a_podman_pod,
            f"machine.slice/machine-libpod_pod_{OTHER}.slice/web",
            (None, None, None, None),
        ),
        (_lxc, "lxc.payload.web", ("web", None, None, "lxc")),
        (_lxc_like_a_unit, "lxc.payload.web.service", ("web.service", None, None, "lxc")),
        (_lxc_3_1, "lxc.payload/web-1", ("web-1", None, None, "lxc")),
        (
            _lxc_3_0,
            "user.slice/user-1000.slice/session-1.scope/lxc/web/system.slice/a.service",
            ("web", None, None, "lxc"),
        ),
        (
            _libvirt,
            "machine.slice/machine-lxc\\x2d4711\\x2dweb\\x2d1.scope",
            ("web-1", None, None, "libvirt-lxc"),
        ),
        (
            _libvirt_1_2,
            "machine.slice/machine-lxc\\x2dweb.scope",
            ("web", None, None, "libvirt-lxc"),
        ),
        (
            _libvirt_without_systemd,
            "machine/shop.partition/web.libvirt-lxc",
            ("web", None, None, "libvirt-lxc"),
        ),
        (_libvirt_1_0, "libvirt/lxc/web", ("web", None, None, "libvirt-lxc")),
        (_no_lxc, "one/lxc", (None, None, None, None)),
        (_unknown, "one/two", (None, None, None, None)),
    ],
)
def test_the_engines_files_have_the_names(
    host: Host, make: Callable[[Host], None], id_: str, rest: tuple[str | None, ...]
) -> None:
    make(host)
    info = host.info()
    assert (info.id, info[1:5]) == (id_, rest)
    assert info.cgroup.startswith("/")


FILES = {
    _docker: f"var/lib/docker/containers/{HEX}/config.v2.json",
    _podman: "srv/store/overlay-containers/containers.json",
    _crio: f"{RUN}/{HEX}/userdata/config.json"[1:],
    _containerd_pod: f"{TASKS}/k8s.io/{HEX}/config.json"[1:],
    _runc: "run/runc/web/state.json",
}


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _huge(file: Path) -> None:
    with file.open("ab") as opened:
        opened.truncate(1 << 30)  # zeros are no JSON, but nothing may read them


def _deep(file: Path) -> None:
    file.write_text("[" * 500_000)


def _other_types(file: Path) -> None:
    file.write_text(
        '{"Name": 3, "State": 5, "Config": [], "annotations": "x", "id": [], "config": 7,'
        ' "init_process_pid": true}'
    )


def _list_of_anything(file: Path) -> None:
    file.write_text('[1, null, [], {"id": 2}, {"id": "x", "names": {}, "metadata": [1]}]')


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _of_another_user(file: Path) -> None:
    os.chown(file, 12345, 12345)


def _writable_by_others(file: Path) -> None:
    file.chmod(0o666)


def _in_a_directory_of_another_user(file: Path) -> None:
    os.chown(file.parent, 12345, 12345)


def _in_a_directory_that_others_write(file: Path) -> None:
    file.parent.chmod(0o777)


def _through_a_link_of_another_user(file: Path) -> None:
    place = file.parent.parent
    moved = place.with_name("moved")
    place.rename(moved)
    place.symlink_to(moved)
    os.lchown(place, 12345, 12345)
    place.parent.chmod(0o1777)  # as /tmp, where each user can make such a link


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__[1:])
@pytest.mark.parametrize(
    "spoil",
    [
        _half,
        _huge,
        _deep,
        _other_types,
        _list_of_anything,
        _fifo,
        _link,
        _of_another_user,
        _writable_by_others,
        _in_a_directory_of_another_user,
        _in_a_directory_that_others_write,
        _through_a_link_of_another_user,
        os.unlink,
    ],
    ids=lambda spoil: spoil.__name__.strip("_"),
)
@pytest.mark.timeout(20)  # a FIFO must not be waited for
def test_a_file_that_cannot_be_trusted_gives_no_name(
    host: Host, make: Callable[[Host], None], spoil: Callable[[Path], None]
) -> None:
    make(host)
    before = host.info()
    assert before.name is not None
    spoil(host.root / FILES[make])
    after = host.info()
    assert (after.id, after.cgroup) == (before.id, before.cgroup)
    assert (after.name, after.image, after.pod) == (None, None, None)


ODD = (None, True, -1, 1 << 80, 0.5, "", "x", "\ud800", "a/b", "..", [], {}, [None], {"x": []})


def _variants(document: Any) -> Iterator[Any]:
    """The document with one part of it replaced, for each part and each odd value."""
    yield from ODD
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        copy = document.copy()
        for odd in _variants(value) if isinstance(value, dict | list) else ODD:
            copy[key] = odd
            yield copy


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__[1:])
def test_no_document_is_an_error(host: Host, make: Callable[[Host], None]) -> None:
    make(host)
    before = host.info()
    path = host.root / FILES[make]
    for variant in _variants(json.loads(path.read_text())):
        path.write_text(json.dumps(variant))
        info = host.info()
        assert (info.id, info.cgroup) == (before.id, before.cgroup)
        texts = (info.name, info.image, info.pod)
        assert all(one is None or one.encode() for one in texts)
        assert info.label


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (_docker, FILES[_docker]),
        (_podman_without_conmon, f"{RUN}/{HEX}/userdata/pidfile"[1:]),
        (_containerd_pod, f"{TASKS}/k8s.io/{HEX}/init.pid"[1:]),
        (_runc, FILES[_runc]),
    ],
)
def test_a_file_about_another_task_gives_no_name(
    host: Host, make: Callable[[Host], None], file: str
) -> None:
    """A user can make a cgroup with the id of another container, and old files can be left."""
    make(host)
    path = host.root / file
    path.write_text(path.read_text().replace(str(PID), "201"))
    assert host.info()[1:4] == (None, None, None)


def test_the_monitor_has_the_runtime(host: Host) -> None:
    _podman(host)
    (found,) = find_containers()
    assert runtime_of(found) == "crun"


def test_a_container_without_a_monitor_has_no_runtime(host: Host) -> None:
    _runc(host)
    (found,) = find_containers()
    assert runtime_of(found) is None


def test_a_monitor_that_another_user_runs_does_not_count(host: Host) -> None:
    _podman(host)
    os.chown(host.proc / str(MONITOR), 12345, 12345)
    assert host.info().name is None


def test_a_monitor_of_another_container_does_not_count(host: Host) -> None:
    _podman(host)
    words = ("conmon", "-c", OTHER, "-b", f"/srv/store/overlay-containers/{OTHER}/userdata", "")
    (host.proc / str(MONITOR) / "cmdline").write_bytes("\0".join(words).encode())
    assert host.info().name is None


def test_the_fields_of_the_engine_precede_labels_of_the_user(host: Host) -> None:
    _containerd_pod(host)
    lies = {"io.kubernetes.pod.name": "db-0", "io.kubernetes.pod.namespace": "prod"}
    lies["io.kubernetes.container.name"] = "db"
    host.write(f"{TASKS}/k8s.io/{HEX}/config.json", {"annotations": {**lies, **CRI}})
    assert host.info()[1:4] == ("app", "registry.example/app:3", "shop/web-1")


@pytest.mark.parametrize("make", ["crio", "crio_sandbox", "containerd_pod", "docker_pod"])
def test_annotations_of_another_engine_do_not_count(host: Host, make: str) -> None:
    """The rows of the fleet are shown by the namespace."""
    lies = {
        "io.kubernetes.cri.sandbox-name": "dns",
        "io.kubernetes.cri.sandbox-namespace": "kube-system",
        "io.kubernetes.cri.container-name": "dns",
        "io.kubernetes.cri.image-name": "dns",
        "io.kubernetes.cri-o.KubeName": "dns",
        "io.kubernetes.cri-o.Namespace": "kube-system",
        "io.kubernetes.cri-o.ImageName": "dns",
    }
    globals()[f"_{make}"](host)
    honest = host.info()
    for file in (*host.root.rglob("config.json"), *host.root.rglob("config.v2.json")):
        document = json.loads(file.read_text())
        said = document["Config"]["Labels"] if "Config" in document else document["annotations"]
        own = {"crio": "cri-o.", "containerd": "cri."}.get(make.partition("_")[0], "none")
        said |= {
            key: one for key, one in lies.items() if not key.startswith(f"io.kubernetes.{own}")
        }
        file.write_text(json.dumps(document))
    assert honest.pod == "shop/web-1"
    assert host.info() == honest


def test_a_monitor_in_a_container_does_not_count(host: Host) -> None:
    """There root's user id is a tenant's, and a program may be called conmon."""
    _podman(host)
    assert host.info().name == "web"
    status = host.proc / str(MONITOR) / "status"
    status.write_text(f"Name:\tconmon\nNSpid:\t{MONITOR}\t7\n")
    assert host.info().name is None


@pytest.mark.parametrize(
    "name", ["\x1b[2Jweb", "we\nb", "\u202eweb", "caf\u00e9", "\ud800", "../x"]
)
def test_a_name_may_have_any_character(host: Host, name: str) -> None:
    _docker(host)
    path = host.root / FILES[_docker]
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "Name": f"/{name}"}))
    found = host.info().name
    assert found == name.encode("utf-8", "replace").decode()
    with pytest.raises(TaskError) as raised:
        find_named("other", [host.info(), host.info()])
    assert str(raised.value).isprintable()


def test_a_name_that_is_too_long_does_not_count(host: Host) -> None:
    _docker(host)
    path = host.root / FILES[_docker]
    path.write_text(path.read_text().replace("/web", "/" + "w" * 100_000))
    assert host.info()[1:3] == (None, "nginx:1.27")


def test_the_files_of_the_machine_may_be_below_a_mount(proc: Path) -> None:
    """As in a DaemonSet, whose pod has the machine's root in a directory."""
    assert host_root() == ""
    (proc / "self").unlink()
    (proc / "self").symlink_to("60")
    mounts = f"{OWN_MOUNTS}95 90 8:1 /etc/criu /etc/criu rw - ext4 /dev/sda1 rw\n"
    task(proc, 60, 50, 3000, mounts, "0::/kubepods/podx\n")
    assert host_root() == ""
    with (proc / "60" / "mountinfo").open("a") as file:
        file.write("96 90 8:1 / /host ro - ext4 /dev/sda1 rw\n")
    assert host_root() == "/host"
    (proc / "1" / "mountinfo").unlink()
    assert host_root() == ""


# --- the chosen container -------------------------------------------------------------------------


def _info(id_: str, name: str | None = None, pod: str | None = None) -> ContainerInfo:
    return ContainerInfo(id_, name, None, pod, None, f"/{id_}")


NODE = (
    _info(HEX, "web"),
    _info(OTHER, "db"),
    _info("0123" + "f" * 60, "0124"),
    _info("a" * 64, "app", "shop/web-1"),
    _info("b" * 64, "POD", "shop/web-1"),
    _info("c" * 64, "app", "shop/web-2"),
    _info("d" * 64, "log", "shop/web-2"),
    _info("default/c1"),
    _info("other/c1"),
    _info("e" * 64, HEX),
    _info("9" * 64, "aaaa"),
)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (HEX, 0),  # and not the container that has it for a name
        (HEX[:5], 0),
        (OTHER[:12], 1),
        ("web", 0),
        ("0124", 2),
        ("shop/web-1", 3),
        ("web-1", 3),
        ("shop/web-1/app", 3),
        ("web-1/app", 3),
        ("shop/web-1/POD", 4),
        ("bbbb", 4),
        ("web-2/log", 6),
        ("default/c1", 7),
        ("default/", 7),
    ],
)
def test_an_id_its_beginning_or_a_name_is_enough(wanted: str, index: int) -> None:
    assert find_named(wanted, NODE) == index


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("app", "2 containers are called app: aaaa"),
        ("web-2", "2 containers are called web-2"),
        ("c1", "2 containers are called c1: default/c1, other/c1; give more of the id"),
        ("0123", "2 containers are called 0123"),
        ("aaaa", "2 containers are called aaaa"),  # the name of one, the beginning of the other
        ("012", "no container is called 012"),  # too short for an id
        ("wbe", "no container is called wbe; did you mean web?"),
        ("nothing-like-it", "`irmapdb check --all` lists the containers"),
        ("", "no container is called"),
        ("\x1b[31m", r"no container is called \x1b[31m"),
    ],
)
def test_a_key_of_no_or_several_containers_is_refused(wanted: str, said: str) -> None:
    with pytest.raises(TaskError) as raised:
        find_named(wanted, NODE)
    assert said in str(raised.value)


def test_without_containers_the_advice_is_another() -> None:
    with pytest.raises(TaskError, match="no container runs here"):
        find_named("web", [])


def test_a_task_is_in_one_container_or_none(host: Host) -> None:
    host.container(f"/docker/{HEX}")
    task(host.proc, 201, PID, 2200, OWN_MOUNTS.replace("0:50", "0:200"), f"0::/docker/{HEX}\n")
    (found,) = find_containers()
    assert 201 in found.pids
    assert not {50, 999} & {*found.pids}
