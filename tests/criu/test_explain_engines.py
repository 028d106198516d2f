"""`irmapdb explain` of the messages of runc, podman and containerd, and of their logs."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cli import irmapdb
from tests.support.containerd import ContainerdDaemon, ContainerdTask, require_containerd
from tests.support.features import require_program
from tests.support.podman import PodmanContainer
from tests.support.programs import SYSTEM_PATH, ProgramError
from tests.support.runc import Container, fill_rootfs_with_app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.area import MountArea


def _explained(*arguments: str | Path, stdin: str = "") -> dict[str, Any]:
    done = irmapdb("explain", *arguments, "--json", stdin=stdin.encode())
    assert done.code == 3, done.said
    document: dict[str, Any] = json.loads(done.out)
    assert document["outcome"] == "failed"
    return document


def _check(said: str, log: Path, engine: str, pid: int) -> None:
    """Of the message of the engine, and of the log that it names."""
    document = _explained(stdin=said)
    finding = document["findings"][0]
    assert document["engine"] == engine
    assert finding["name"] in {"no-reason", "no-path"}  # newer ones quote the log
    if finding["name"] == "no-reason":
        assert shlex.split(finding["command"])[2] == str(log)
    document = _explained(log)
    (stop,) = (one for one in document["findings"] if one["stops"])
    assert stop["name"] == "no-path"
    assert stop["command"] == f"irmapdb hook --install {engine}"
    assert stop["watch"]["path"] == "/srv/app/settings"
    assert stop["watch"]["now"]["pid"] == pid


def test_runc(area: MountArea, rig: Path, tmp_path: Path) -> None:
    require_program("runc")
    base = area.ext4("layers").mountpoint
    fill_rootfs_with_app(base / "lower")
    rootfs = area.overlay(lower=base / "lower", upper_base=base).mountpoint
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    with Container(tmp_path / "runc", rootfs, {}, path) as container:
        container.add_inotify("/srv/app/settings")
        done = container.checkpoint(tmp_path / "images", tmp_path / "work")
        assert not done.ok
        log = tmp_path / "work" / "dump.log"
        line = b"(00.000176) Would overwrite RPC settings with values from /etc/criu/runc.conf\n"
        log.write_bytes(line + log.read_bytes())
        _check(done.log, log, "runc", container.pid)


def test_podman(rig: Path, tmp_path: Path) -> None:
    require_program("runc")
    require_program("podman")
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    with PodmanContainer(tmp_path / "podman", path) as container:
        container.add_inotify("/srv/app/settings")
        with pytest.raises(ProgramError) as failed:
            container.checkpoint()
        _check(str(failed.value), container.work / "dump.log", "podman", container.pid)


def test_containerd(area: MountArea, rig: Path, tmp_path: Path) -> None:
    require_containerd()
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    disk = area.ext4("containerd", size_mib=64).mountpoint
    with (
        ContainerdDaemon(disk / "containerd", path) as daemon,
        ContainerdTask(daemon, tmp_path / "container") as task,
    ):
        task.add_inotify("/srv/app/settings")
        with pytest.raises(ProgramError) as failed:
            task.container.checkpoint("checkpoint")
        document = _explained(stdin=str(failed.value))
        assert document["engine"] == "containerd"
        assert document["findings"][0]["name"] in {"no-reason", "no-path"}
        document = _explained("--engine", "containerd", stdin=task.container.log())
        (stop,) = (one for one in document["findings"] if one["stops"])
        assert (stop["name"], stop["command"]) == ("no-path", "irmapdb hook --install runc")
        assert stop["watch"]["path"] == "/srv/app/settings"
