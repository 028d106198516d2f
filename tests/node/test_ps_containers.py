"""ps and the containers of runc: which process is in which, and which paths it watches."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from irmapdb.config import Config
from irmapdb.node import process_places
from irmapdb.node.container_info import ContainerInfo
from irmapdb.node.ps import PsOptions, take
from tests.support.cli import irmapdb
from tests.support.watcher import Watcher
from tests.support.watching import program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from irmapdb.kernel.proc.containers import Container
    from tests.node.conftest import Node


def test_containers_are_rows(node: Node, tmp_path: Path) -> None:
    one, other = node.container(), node.container()
    for number in range(3):
        one.add_inotify(f"/srv/app/file-{number}")
    child = one.fork()
    child.add_inotify("/srv/app", fd=child.inotify())
    other.add_inotify("/srv/app/file-0")
    with Watcher() as host:
        host.add_inotify(tmp_path)
        found = take(PsOptions(by="container", config=Config(hints=())))
        out = irmapdb("ps", "--by", "container").out
    rows = {row.container and row.container.id: row for row in found.groups}
    assert (rows[one.id].processes, rows[one.id].instances, rows[one.id].watches) == (2, 2, 4)
    assert (rows[other.id].processes, rows[other.id].watches) == (1, 1)
    assert rows[None].watches >= 1
    assert f"2        4          2  {one.id}\n" in out
    # The row of the others is no container.
    head, total = out.index("CONTAINER\n"), out.index("total: ")
    named = out[head:total].count("\n") - 2
    assert "(in no container)\n" in out[head:total]
    assert out[total:].startswith(f"total: {named} containers\n")
    places = {row.pid: row.place for row in found.processes}
    assert places[one.pid] == places[child.pid] == one.id


def test_a_directory_of_a_container_is_named_with_it(node: Node) -> None:
    one, other = node.container(), node.container()
    for container in (one, other):
        container.add_inotify("/srv/app")
        container.add_inotify("/srv/app/file-0")
    found = take(PsOptions(by="directory", config=Config(hints=())))
    rows = {
        (row.container and row.container.id, row.name): row.watches
        for row in found.groups
        if row.mntns
    }
    assert rows[one.id, b"/srv/app"] == 2
    assert rows[other.id, b"/srv/app"] == 2
    out = irmapdb("ps", "--by", "directory").out
    assert f"  {one.id}: /srv/app\n" in out
    listed = take(PsOptions(processes=(str(one.pid), str(other.pid)), config=Config(hints=())))
    assert {os.fsdecode(row.path) for row in listed.watches} == {"/srv/app", "/srv/app/file-0"}
    assert len({row.mntns for row in listed.watches}) == 2
    out = irmapdb("ps", one.pid, other.pid).out
    assert f"  {one.id}: /srv/app\n" in out
    assert f"  {other.id}: /srv/app/file-0\n" in out


def test_a_process_that_entered_a_container_later_is_in_it(node: Node) -> None:
    # As `podman exec` does: its parent is outside, and here also its cgroup.
    container = node.container()
    container.add_inotify("/srv/app")
    enter = ["nsenter", "--mount", "--target", str(container.pid)]
    with program("inotify('/srv/app/file-0', '/srv')", before=enter) as late:
        found = take(PsOptions(by="container", config=Config(hints=())))
        listed = take(PsOptions(processes=(str(late.pid),), config=Config(hints=())))
    (row,) = (one for one in found.processes if one.pid == late.pid)
    assert row.container is not None
    assert row.container.id == container.id
    (group,) = (one for one in found.groups if one.container and one.container.id == container.id)
    assert (group.processes, group.watches) == (2, 3)
    assert {one.path for one in listed.watches} == {b"/srv/app/file-0", b"/srv"}


def test_a_container_has_the_name_that_its_engine_knows(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = node.container()
    container.add_inotify("/srv/app")

    def describe_all(containers: Sequence[Container]) -> tuple[ContainerInfo, ...]:
        # A tenant has chosen it.
        return tuple(
            ContainerInfo(one.name.id, "app\x1b[2J", "image", "shop/web-1", "cri-o", "/kubepods/x")
            if one.pid == container.pid
            else ContainerInfo(one.name.id, None, None, None, None, "")
            for one in containers
        )

    monkeypatch.setattr(process_places, "describe_all", describe_all)
    shown = "shop/web-1/app\\x1b[2J"
    assert f"1        1          1  {shown}\n" in irmapdb("ps", "--by", "container").out
    assert f"  {shown}: /srv/app\n" in irmapdb("ps", "--by", "directory").out
    assert f"  {shown}: /srv/app\n" in irmapdb("ps", container.pid).out
    document = json.loads(irmapdb("ps", "--by", "container", "--json").out)
    (row,) = (row for row in document["processes"] if row["pid"] == container.pid)
    assert row["container"] == {
        "id": container.id,
        "name": "app\x1b[2J",
        "image": "image",
        "pod": "shop/web-1",
        "engine": "cri-o",
        "cgroup": "/kubepods/x",
    }
    assert row["container"] in [one["container"] for one in document["rows"]]
