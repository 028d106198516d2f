"""The containers of a machine, and their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irmapdb.kernel.proc.containers import (
    database_name,
    find_containers,
    find_database,
    is_container_database,
    name_by_cgroup,
    name_by_images,
)
from tests.support.proc_tree import HOST_MOUNTS, OWN_MOUNTS, task
from tests.support.warm import OURS

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("cgroup", "id_", "stem"),
    [
        (f"/docker/{HEX}", HEX, HEX),
        (f"/machine.slice/libpod-{HEX}.scope/container", HEX, HEX),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-{HEX}.scope", HEX, HEX),
        (f"/kubepods/besteffort/pod1/{HEX}", HEX, HEX),
        (f"/system.slice/kubepods-pod1.slice:cri-containerd:{HEX}", HEX, HEX),
        ("/default/c1", "default/c1", "c1."),
        ("/user.slice/runc-web.scope", "user.slice/runc-web.scope", "runc-web_scope."),
        ("/crun-web.scope/container", "crun-web.scope", "crun-web_scope."),
        ("/machine.slice/machine-a\\x2db.scope/payload/init.scope", None, "machine-a_x2db_scope."),
        ("/lxc.payload.web/init.scope", "lxc.payload.web", "lxc_payload_web."),
        ("/lxc/web/init.scope", "lxc/web", "web."),
        (
            "/machine.slice/machine-lxc\\x2d1\\x2da.scope/libvirt",
            None,
            "machine-lxc_x2d1_x2da_scope.",
        ),
        ("/../../default/c1", "default/c1", "c1."),
    ],
)
def test_a_container_is_named_by_its_cgroup_in_each_form_of_the_id(cgroup, id_, stem):
    name = name_by_cgroup({"": cgroup}, any_form=True)
    assert name is not None
    assert id_ is None or name.id == id_
    assert name.file_stem.startswith(stem)
    assert is_container_database(f"{name.file_stem}.db")
    assert "/" not in name.file_stem


def test_names_are_not_shared():
    paths = ["/default/c1", "/other/c1", "/c1", "/default-c1", "/default/c1x", "/lxc/c1"]
    names = [name_by_cgroup({"": path}, any_form=True) for path in paths]
    assert len({name.file_stem for name in names if name}) == len(paths)


def test_a_database_of_an_images_dir_is_none_of_a_container(tmp_path):
    assert not is_container_database(name_by_images(str(tmp_path / "a.b")))
    assert not is_container_database("irmap.db")


def test_the_hook_and_the_service_name_a_container_alike(proc):
    task(proc, 100, 50, 2000, OWN_MOUNTS, "4:pids:/default/c1\n0::/\n", inner=1)
    (found,) = find_containers()
    assert database_name(found.pid, "/images") == f"{found.name.file_stem}.db"
    assert found.name.id == "default/c1"


def test_a_service_with_private_mounts_is_no_container(proc):
    mounts = HOST_MOUNTS + "80 22 0:40 / /tmp rw - tmpfs tmpfs rw\n"
    task(proc, 100, 1, 2000, mounts, "0::/system.slice/private.service\n")
    assert find_containers() == ()
    assert database_name(100, "/images") == name_by_images("/images")


def test_the_init_is_the_root_also_where_an_exec_has_the_lower_number(proc):
    task(proc, 100, 50, 2000, OWN_MOUNTS, "0::/default/c1\n", inner=7)  # exec, pids wrapped
    task(proc, 200, 50, 2000, OWN_MOUNTS, "0::/default/c1\n", inner=1)
    task(proc, 201, 200, 2000, OWN_MOUNTS, "0::/default/c1\n", inner=2)
    (found,) = find_containers()
    assert found.pid == 200
    assert found.pids == (200, 201)


def test_a_container_inside_of_a_container_is_a_part_of_it(proc):
    task(proc, 100, 50, 2000, OWN_MOUNTS, f"0::/docker-{HEX}.scope\n", inner=1)
    inner = OWN_MOUNTS.replace("0:50", "0:60")
    task(proc, 101, 100, 2001, inner, f"0::/docker-{HEX}.scope/{HEX[::-1]}\n", inner=2)
    (found,) = find_containers()
    assert (found.name.id, found.pids) == (HEX, (100, 101))


def test_trees_in_one_cgroup_have_names_of_their_own_and_are_bounded(proc):
    for pid in range(100, 120):
        mounts = OWN_MOUNTS.replace("0:50", f"0:{pid}")
        task(proc, pid, 50, 2000 + pid, mounts, "0::/default/c1\n")
    found = find_containers()
    assert found[0].pid == 100
    assert found[0].name.id == "default/c1"
    assert 1 < len(found) < 10
    assert len({one.name.file_stem for one in found}) == len(found)


def test_a_pattern_chooses_by_the_cgroup(proc):
    task(proc, 100, 50, 2000, OWN_MOUNTS, "0::/default/c1\n")
    task(proc, 101, 50, 2001, OWN_MOUNTS.replace("0:50", "0:60"), "0::/default/d1\n")
    assert [one.pid for one in find_containers("/default/d*")] == [101]


def test_a_thousand_containers(proc):
    for pid in range(1000, 2000):
        mounts = OWN_MOUNTS.replace("0:50", f"0:{pid}")
        task(proc, pid, 50, pid + 10_000, mounts, f"0::/kubepods/pod{pid}/{pid:064x}\n", inner=1)
    found = find_containers()
    assert len({one.name for one in found}) == 1000


def test_a_task_that_ends_meanwhile_is_left_out(proc):
    task(proc, 100, 50, 2000, OWN_MOUNTS, "0::/default/c1\n")
    for name in ("mountinfo", "stat", "cgroup"):
        (proc / "100" / name).rename(proc / name)
        assert [one.pid for one in find_containers()] in ([], [100])
        (proc / name).rename(proc / "100" / name)


def test_a_container_of_runc(node):
    container = node.container()
    child = container.fork()
    (found,) = find_containers(OURS)
    assert found.name.id == container.id
    assert found.pid == container.pid
    assert set(found.pids) == {container.pid, child.pid}
    assert database_name(container.pid, "/images") == f"{found.name.file_stem}.db"


def test_cgroups_without_tasks_and_hundreds_of_them_change_nothing(node):
    container = node.container()
    empty = Path("/sys/fs/cgroup/pids")
    if not (empty / container.id).is_dir():
        empty = Path("/sys/fs/cgroup")
    made = [empty / f"irmapdb-{os.getpid()}-empty-{index}" for index in range(300)]
    try:
        for path in made:
            path.mkdir()
        assert [one.name.id for one in find_containers(OURS)] == [container.id]
    finally:
        for path in made:
            path.rmdir()


def test_the_hook_finds_the_database_that_the_service_keeps(node, tmp_path):
    container = node.container()
    directory = tmp_path / "databases"
    assert find_database(directory, container.pid) is None
    directory.mkdir(mode=0o700)
    assert find_database(directory, container.pid) is None
    path = directory / database_name(container.pid, "/images")
    path.touch()
    assert find_database(directory, container.pid) == os.fsencode(path)
    assert find_database(directory, os.getpid()) is None
    directory.chmod(0o777)
    assert find_database(directory, container.pid) is None
