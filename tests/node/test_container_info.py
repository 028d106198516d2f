"""The names of containers, from files of the engines as they write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irmapdb.kernel.proc.containers import find_containers
from irmapdb.node.container_info import runtime_of
from irmapdb.node.guarded_json import host_root
from tests.support import engine_host
from tests.support.engine_host import HEX, OTHER, PID, Host
from tests.support.proc_tree import OWN_MOUNTS, task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = ("app", "registry.example/app:3", "shop/web-1")


@pytest.mark.parametrize(
    ("make", "id_", "rest"),
    [
        (engine_host.docker, HEX, ("web", "nginx:1.27", None, "docker")),
        (engine_host.docker_elsewhere, HEX, ("web", "nginx:1.27", None, "docker")),
        (engine_host.docker_pod, HEX, (*APP, "docker")),
        (engine_host.docker_without_its_files, HEX, (None, None, None, "docker")),
        (engine_host.podman, HEX, ("web", "localhost/web:1", None, "podman")),
        (engine_host.podman_without_conmon, HEX, ("web", "localhost/web:1", None, "podman")),
        (engine_host.crio, HEX, (*APP, "cri-o")),
        (engine_host.crio_sandbox, HEX, ("POD", *APP[1:], "cri-o")),
        (engine_host.containerd_pod, HEX, (*APP, "containerd")),
        (engine_host.k3s, HEX, (*APP, "containerd")),
        (engine_host.ctr, "own/group", ("c1", None, None, "containerd")),
        (engine_host.nerdctl, HEX, ("web", None, None, "containerd")),
        (engine_host.runc, "user.slice/runc-web.scope", ("web", None, "shop/web-1", "runc")),
        (engine_host.crun, "any/group", ("web", None, "shop/web-1", "crun")),
    ],
)
def test_the_engines_files_have_the_names(
    host: Host, make: Callable[[Host], None], id_: str, rest: tuple[str | None, ...]
) -> None:
    make(host)
    info = host.info()
    assert (info.id, info[1:5]) == (id_, rest)
    assert info.cgroup.startswith("/")


@pytest.mark.parametrize(
    ("cgroup", "id_", "name", "engine"),
    [
        (
            "machine.slice/machine-a\\x2db.scope/payload/init.scope",
            "machine.slice/machine-a\\x2db.scope",
            "a-b",
            "systemd-nspawn",
        ),
        (  # `machinectl start`, which most machines are started with
            "machine.slice/systemd-nspawn@web-1.service/payload/init.scope",
            "machine.slice/systemd-nspawn@web-1.service",
            "web-1",
            "systemd-nspawn",
        ),
        ("machine.slice/web", "machine.slice/web", None, None),
        (
            f"machine.slice/machine-libpod_pod_{OTHER}.slice/web",
            f"machine.slice/machine-libpod_pod_{OTHER}.slice/web",
            None,
            None,
        ),
        ("lxc.payload.web/init.scope", "lxc.payload.web", "web", "lxc"),
        ("lxc.payload.web.service", "lxc.payload.web.service", "web.service", "lxc"),
        ("lxc.payload/web-1/init.scope", "lxc.payload/web-1", "web-1", "lxc"),  # 3.1
        (  # 3.0, without root: below the session of the user
            "user.slice/user-1000.slice/session-1.scope/lxc/web/system.slice/a.service",
            "user.slice/user-1000.slice/session-1.scope/lxc/web/system.slice/a.service",
            "web",
            "lxc",
        ),
        (
            "machine.slice/machine-lxc\\x2d4711\\x2dweb\\x2d1.scope/libvirt/init.scope",
            "machine.slice/machine-lxc\\x2d4711\\x2dweb\\x2d1.scope",
            "web-1",
            "libvirt-lxc",
        ),
        (  # libvirt 1.2
            "machine.slice/machine-lxc\\x2dweb.scope",
            "machine.slice/machine-lxc\\x2dweb.scope",
            "web",
            "libvirt-lxc",
        ),
        (  # without systemd
            "machine/shop.partition/web.libvirt-lxc",
            "machine/shop.partition/web.libvirt-lxc",
            "web",
            "libvirt-lxc",
        ),
        ("libvirt/lxc/web", "libvirt/lxc/web", "web", "libvirt-lxc"),  # 1.0
        ("one/lxc", "one/lxc", None, None),
        ("one/two", "one/two", None, None),
    ],
)
def test_a_cgroup_has_the_name(
    host: Host, cgroup: str, id_: str, name: str | None, engine: str | None
) -> None:
    host.container(f"/{cgroup}")
    info = host.info()
    assert (info.id, info[1:5]) == (id_, (name, None, None, engine))
    assert info.cgroup.startswith("/")


def test_the_monitor_has_the_runtime(host: Host) -> None:
    engine_host.podman(host)
    (found,) = find_containers()
    assert runtime_of(found) == "crun"


def test_a_container_without_a_monitor_has_no_runtime(host: Host) -> None:
    engine_host.runc(host)
    (found,) = find_containers()
    assert runtime_of(found) is None


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


def test_a_task_is_in_one_container_or_none(host: Host) -> None:
    host.container(f"/docker/{HEX}")
    task(host.proc, 201, PID, 2200, OWN_MOUNTS.replace("0:50", "0:200"), f"0::/docker/{HEX}\n")
    (found,) = find_containers()
    assert 201 in found.pids
    assert not {50, 999} & {*found.pids}
