"""ps and the containers of runc: which process is in which, and which paths it watches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from irmapdb.config import Config
from irmapdb.node.ps import PsOptions, take
from tests.support.cli import irmapdb
from tests.support.watcher import Watcher
from tests.support.watching import program

if TYPE_CHECKING:
    from pathlib import Path

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
    assert "(in no container)" in out
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
