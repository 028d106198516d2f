"""The names of containers that podman, containerd and runc have started."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

from typer.main import get_command

from irmapdb import commands
from irmapdb.commands.completion import Proposal, propose
from irmapdb.kernel.proc.containers import find_containers
from irmapdb.node.container_info import (
    describe,
    describe_all,
    find_container,
    runtime_of,
)
from tests.support.cli import irmapdb
from tests.support.containerd import ContainerdDaemon, ContainerdTask
from tests.support.features import require_program
from tests.support.podman import PodmanContainer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from irmapdb.kernel.proc.containers import Container
    from irmapdb.node.container_info import ContainerInfo
    from tests.node.conftest import Node
    from tests.support.watcher import Task


def _values(proposals: Iterable[Proposal]) -> set[str]:
    return {one.value for one in proposals}


def _container_of(pid: int) -> Container | None:
    return next((one for one in find_containers() if pid in one.pids), None)


def _info(task: Task) -> ContainerInfo:
    container = _container_of(task.pid)
    assert container is not None
    assert container in find_containers()
    return describe(container)


def test_podman(tmp_path: Path) -> None:
    require_program("runc")
    require_program("podman")
    with PodmanContainer(tmp_path / "podman") as container:
        info = _info(container)
        assert (info.name, info.engine) == (container.name, "podman")
        found = _container_of(container.pid)
        assert found is not None
        assert runtime_of(found) == "runc"
        assert info.image == "localhost/irmapdb-test:1"
        assert info.id == container._inspect("{{.Id}}")
        assert info.id in info.cgroup
        assert find_container(container.name).pid == container.pid
        assert find_container(info.id[:12]).pid == container.pid
        done = irmapdb("ps", "--container", container.name, "--json")
        assert done.code == 0, done.err
        group = get_command(commands.app)
        named = Proposal(container.name, "localhost/irmapdb-test:1")
        assert named in propose(group, ["check", "--container", container.name[:-2]])
        assert named in propose(group, ["pre-dump", "--container", ""])
        by_id = [*propose(group, ["dump", "--container", info.id[:6]])]
        assert by_id == [Proposal(info.id, container.name)]
        assert _values(propose(group, ["ps", f"--container={info.id[:6]}"])) == {
            f"--container={info.id}"
        }


def test_containerd(tmp_path: Path) -> None:
    require_program("runc")
    require_program("containerd")
    with (
        ContainerdDaemon(tmp_path / "containerd") as daemon,
        ContainerdTask(daemon, tmp_path / "task") as task,
    ):
        info = _info(task)
        assert (info.name, info.engine) == (task.container.id, "containerd")
        assert find_container(task.container.id).pid == task.pid


def test_runc(node: Node, tmp_path: Path) -> None:
    """runc with its state in another directory is known by its cgroup alone."""
    container = node.container()
    info = _info(container)
    assert (info.id, info.name, info.engine) == (container.id, None, None)
    assert find_container(container.id[:-3]).pid == container.pid
    (shown,) = describe_all([c for c in find_containers() if c.pid == container.pid])
    assert shown == info


def test_each_command_takes_a_container(node: Node, tmp_path: Path) -> None:
    container = node.container()
    container.add_inotify("/srv/app/file-1")
    named = ("--container", container.id[:-2])
    images = tmp_path / "images"
    for command in ("pre-dump", "dump", "check"):
        done = irmapdb(command, *named, "-D", images, "--json")
        document = json.loads(done.out)
        assert (document["pid"], done.code) == (container.pid, 0), done.err
        assert [one["path"] for one in document["watches"]] == ["/srv/app/file-1"]
    (images / "irmap-cache").unlink()
    assert irmapdb("hook", *named, "-D", images).code == 0
    assert (images / "irmap-cache").exists()
    done = irmapdb("audit", *named, "-W", images, "--all", "--json")
    assert [one["verdict"] for one in json.loads(done.out)["mappings"]] == ["valid"]
    for command in ("pre-dump", "dump", "check", "hook", "audit", "ps"):
        done = irmapdb(command, "--container", "irmapdb-absent")
        assert (done.code, done.out) == (1, "")
        assert "no container is called irmapdb-absent" in done.err
        assert len(done.err.splitlines()) == 1


def test_runc_with_its_own_state(node: Node) -> None:
    """A container that a person starts with `runc run`, in a cgroup that does not tell its id."""
    container = node.container()
    state = container._directory / "state" / container.id
    place = f"/run/runc/name-of-{os.getpid()}"
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    subprocess.run(["cp", "-r", state, place], check=True)
    try:
        info = _info(container)
        assert (info.name, info.engine) == (os.path.basename(place), "runc")
    finally:
        subprocess.run(["rm", "-r", place], check=True)
