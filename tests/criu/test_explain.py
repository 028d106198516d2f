"""`irmapdb explain` of logs that CRIU of each version wrote: the right cause, watch and command."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cli import irmapdb
from tests.support.criu import write_cache
from tests.support.explained import explained, stop_of
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.notify import FAN_OPEN, IN_OPEN
from tests.support.other_tasks import PROGRAMS, other_task

if TYPE_CHECKING:
    from tests.support.area import MountArea
    from tests.support.criu import Criu
    from tests.support.watcher import Watcher

_HOOK = "irmapdb hook --install criu"
_VERBOSITY = {"4.1": "-v1", "4.2": "-v2", "4.3": "-v4"}
"""Where the test is the same for each verbosity, another one for each version."""


@pytest.mark.parametrize("verbosity", ["-v4", "-v3", "-v2", "-v1"])
def test_a_watch_on_overlayfs(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path, verbosity: str
) -> None:
    # With layers on two filesystems the walk of 4.3 finds no file either.
    place = area.place("overlay-two-filesystems")
    watched = target.add_inotify(place.mountpoint / "dir/file")
    done = each_criu.dump(target.pid, tmp_path / "images", force_irmap=True, options=[verbosity])
    assert not done.ok
    stop = stop_of(explained(done))
    watch = stop["watch"]
    if verbosity == "-v1" and each_criu.version < "4.3":
        assert (stop["name"], stop["command"], watch) == ("no-path", _HOOK, None)
        assert "irmapdb check" in stop["find_out"]
        return
    pid = target.pid if verbosity in {"-v4", "-v3"} else "PID"
    assert (stop["name"], stop["command"]) == ("no-path", f"irmapdb check -t {pid}")
    assert "layers on several filesystems" in stop["why"]
    assert "xino=on" in stop["help"]
    assert (watch["dev"], watch["ino"]) == (superblock_kdev(place.mountpoint), watched.st_ino)
    assert watch["now"]["pid"] == target.pid
    assert watch["now"]["fd"] == watched.fd
    if verbosity in {"-v4", "-v3"}:
        assert (watch["wd"], watch["fd"]) == (watched.wd, watched.fd)


def test_the_file_comes_from_the_machine_the_database_and_the_cache(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    place = area.place("overlay-lower")
    watched = target.add_inotify(place.directory / "file")
    done = criu.dump(target.pid, tmp_path / "images")
    stop = stop_of(explained(done))
    watch = stop["watch"]
    assert stop["command"] == _HOOK
    assert "overlayfs" in stop["why"]
    assert (os.fsencode(watch["path"]), watch["path_from"]) == (watched.path, "task")

    def stored(*options: str | Path) -> tuple[str, str]:
        watch = stop_of(explained(done, "--offline", *options))["watch"]
        return watch["path"], watch["path_from"]

    assert stored() == (None, None)
    assert irmapdb("pre-dump", "-t", str(target.pid), "-D", tmp_path / "other").code == 0
    path = os.fsdecode(watched.path)
    assert stored("-W", tmp_path / "other") == (path, "database")
    assert stored("--db", tmp_path / "other/irmap.db") == (path, "database")
    entry = superblock_kdev(place.mountpoint), watched.st_ino, watched.path
    write_cache(done.work, [entry])
    assert stored() == (path, "irmap-cache")


def test_the_same_numbers_with_another_handle(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    target.add_inotify(area.place("overlay-lower").directory / "file")
    done = criu.dump(target.pid, tmp_path / "images")
    assert stop_of(explained(done))["watch"]["now"] is not None
    log = done.work / "dump.log"
    log.write_text(re.sub(r"(__handle 0x)..", r"\1ee", done.log))
    watch = stop_of(explained(done))["watch"]
    assert (watch["now"], watch["path"]) == (None, None)


def test_a_database_that_cannot_be_read(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    target.add_inotify(area.place("overlay-lower").directory / "file")
    done = criu.dump(target.pid, tmp_path / "images")
    database = done.work / "irmap.db"
    database.write_bytes(b"no database")
    document = explained(done, "--offline")
    assert stop_of(document)["name"] == "no-path"
    assert "irmap.db" in document["notes"][0]
    named = irmapdb("explain", done.work / "dump.log", "--db", database)
    assert (named.code, named.out) == (1, "")
    assert "irmap.db" in named.err


def test_by_the_handle_in_the_log(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    file = area.place("ext4").mountpoint / "dir/file"
    watched = target.add_inotify(file)
    done = criu.dump(target.pid, tmp_path / "images", force_irmap=True, env={"CRIU_FAULT": "128"})
    assert not done.ok
    target.remove(watched)
    file.read_bytes()  # its name is cached
    watch = stop_of(explained(done))["watch"]
    assert watch["path_from"] == "handle"
    assert os.path.samefile(watch["path"], file)


@pytest.mark.parametrize("place", ["ext4", "btrfs"])
def test_force_irmap(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path, place: str
) -> None:
    mountpoint = area.place(place).mountpoint
    target.add_fanotify(mountpoint / "dir/file")
    for _ in range(6):  # another process can look the name up again
        drop_caches(mountpoint)
        done = each_criu.dump(target.pid, tmp_path / "images", force_irmap=True)
        if not done.ok:
            break
    stop = stop_of(explained(done))
    assert stop["name"] == "no-path"
    assert "--force-irmap" in stop["why"]
    assert stop["watch"]["kind"] == "fanotify"
    command = _HOOK if place == "ext4" else "sed -i '/^ *force-irmap/d' /etc/criu/default.conf"
    assert stop["command"] == command


def test_a_deleted_file_on_tmpfs(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    file = area.tmpfs() / "file"
    file.touch()
    watched = target.add_inotify(file)
    target.open(file)
    file.unlink()
    done = each_criu.dump(target.pid, tmp_path / "images")
    stop = stop_of(explained(done))
    assert stop["name"] == "no-path-tmpfs"
    assert "was deleted" in stop["why"]
    assert stop["watch"]["last_name"] == str(file)
    assert (stop["watch"]["path"], stop["find_out"]) == (None, None)
    assert stop["watch"]["ino"] == watched.st_ino
    assert stop["command"] == f"irmapdb check -t {target.pid}"


def test_a_deleted_file(area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path) -> None:
    place = area.place("overlay-upper")
    file = place.mountpoint / "alone"
    file.touch()
    target.add_inotify(file)
    target.open(file)
    file.unlink()
    done = each_criu.dump(target.pid, tmp_path / "images", force_irmap=True)
    stop = stop_of(explained(done))
    assert stop["name"] == "no-path"
    assert "was deleted" in stop["why"]
    assert "remove the watch" in stop["help"]
    assert stop["command"] == f"irmapdb check -t {target.pid}"


@pytest.mark.parametrize("name", ["/sys/kernel/uevent_seqnum", "/proc/sys/kernel/hostname"])
def test_a_file_of_the_kernel(each_criu: Criu, target: Watcher, tmp_path: Path, name: str) -> None:
    target.add_inotify(Path(name))
    for _ in range(6):
        drop_caches()
        done = each_criu.dump(target.pid, tmp_path / "images")
        document = explained(done)
        if stop_of(document)["watch"]["path"] is None:
            break
    stop = stop_of(document)
    assert stop["name"] == "no-path"
    if name.startswith("/proc"):
        assert "new inode at each lookup" in stop["why"]
        assert "remove the watch" in stop["help"]
    else:
        assert stop["command"] == _HOOK


def test_a_file_that_only_a_nested_namespace_has(
    each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    directory = tmp_path / "nested"
    directory.mkdir()
    child = target.fork()
    child.unshare_mounts()
    child.mount("tmpfs", directory, "tmpfs")
    child.add_inotify(directory)
    done = each_criu.dump(target.pid, tmp_path / "images")
    assert not done.ok
    stop = stop_of(explained(done))
    if stop["ours"]:
        assert "another mount namespace" in stop["why"]
    else:  # CRIU refuses the namespace itself
        assert stop["topic"] in {"mount", "nested namespace"}


def test_no_handle_in_fdinfo(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    mountpoint = area.place("overlay-nfs-export").mountpoint
    watched = target.add_inotify(mountpoint / "dir")
    for _ in range(6):
        drop_caches(mountpoint)
        done = each_criu.dump(target.pid, tmp_path / "images")
        if not done.ok:
            break
    stop = stop_of(explained(done))
    assert stop["name"] == "no-handle"
    assert (stop["watch"]["wd"], stop["watch"]["ino"]) == (watched.wd, watched.st_ino)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cache-empty", lambda data: data[:0]),
        ("cache-magic", lambda data: b"\0" * 8 + data[8:]),
        ("cache-cut", lambda data: data[:-3]),
        ("cache-entry", lambda data: data[:12] + b"\xff" * len(data[12:])),
    ],
)
def test_a_damaged_cache(
    each_criu: Criu, target: Watcher, tmp_path: Path, name: str, damage: Any
) -> None:
    target.add_inotify(tmp_path)
    verbosity = _VERBOSITY[each_criu.version]
    cache = write_cache(tmp_path / "images", [(1, 2, b"/srv")])
    cache.write_bytes(damage(cache.read_bytes()))
    done = each_criu.dump(target.pid, tmp_path / "images", options=[verbosity])
    assert not done.ok
    stop = stop_of(explained(done))
    assert (stop["name"], stop["topic"]) == (name, "irmap-cache")
    assert stop["command"] == "mv irmap-cache irmap-cache.broken"


def test_an_action_script(each_criu: Criu, target: Watcher, tmp_path: Path) -> None:
    script = tmp_path / "irmapdb-hook"
    done = each_criu.dump(target.pid, tmp_path / "missing", action_script=script)
    assert stop_of(explained(done))["name"] == "script-missing"
    script.write_text("#!/bin/sh\necho irmapdb-hook: not done: no memory\nexit 1\n")
    script.chmod(0o755)
    done = each_criu.dump(target.pid, tmp_path / "fails", action_script=script)
    stop = stop_of(explained(done))
    assert (stop["name"], stop["topic"]) == ("script-failed", "action script")
    assert "no memory" in stop["why"]


def test_the_hook_ran_without_a_path(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    target.add_inotify(area.place("overlay-two-filesystems").mountpoint / "dir/file")
    script = tmp_path / "script"
    for said, command in (
        ("1 watch: 0 proved (0 known before), in 9 ms; 1 without a path", "irmapdb pre-dump"),
        ("not done: no memory", "irmapdb pre-dump"),
        ("1 watch: 1 proved (0 known before), in 9 ms", "irmapdb check"),
    ):
        script.write_text(f"#!/bin/sh\necho 'irmapdb-hook: {said}'\n")
        script.chmod(0o755)
        done = criu.dump(target.pid, tmp_path / "images", action_script=script)
        stop = stop_of(explained(done, "--offline"))
        assert said in stop["why"]
        assert stop["command"].startswith(command)


def test_a_dump_and_a_restore_that_pass(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    place = area.place("overlay-lower")
    watched = [
        target.add_inotify(place.directory / "file", IN_OPEN),
        target.add_inotify(place.directory / "dir", IN_OPEN),
        target.add_fanotify(place.directory / "file", FAN_OPEN),
    ]
    kdev = superblock_kdev(place.mountpoint)
    images = tmp_path / "images"
    write_cache(images, [(kdev, one.st_ino, one.path) for one in watched])
    dumped = each_criu.dump(target.pid, images, leave_running=False, options=["--display-stats"])
    assert dumped.ok, dumped
    document = explained(dumped)
    assert (document["outcome"], document["action"], document["right"]) == ("success", "dump", True)
    assert (document["watches"], document["marks"], document["without_path"]) == (2, 1, 0)
    assert document["root"]["pid"] == target.pid
    assert document["irmap"]["entries"] == 3
    stats = each_criu.stats(dumped)
    assert (document["irmap"]["time_us"], document["frozen_us"]) == (
        stats["irmap_resolve"],
        stats["frozen_time"],
    )
    os.utime(images / "stats-dump", (1, 1))  # of another dump
    assert explained(dumped)["frozen_us"] is None
    (images / "stats-dump").write_bytes(b"damaged")
    assert "stats-dump" in explained(dumped)["notes"][0]
    from_irmap = document["irmap"]["found"] + document["irmap"]["walked"]
    assert from_irmap == 3

    restored = each_criu.restore(target, images)
    assert restored.ok, restored
    document = explained(restored)
    assert (document["outcome"], document["action"]) == ("success", "restore")
    assert (document["watches"], document["marks"]) == (2, 1)


def test_a_dump_without_a_path(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    mountpoint = area.place("ext4").mountpoint
    target.add_inotify(mountpoint / "dir/file")
    target.add_inotify(mountpoint / "dir")
    images = tmp_path / "images"
    for _ in range(6):
        drop_caches(mountpoint)
        dumped = each_criu.dump(target.pid, images)
        if None in [one.path for one in each_criu.dumped_watches(images)]:
            break
    document = explained(dumped)
    assert (document["outcome"], document["right"]) == ("success", False)
    assert document["without_path"] == 1
    (finding,) = document["findings"]
    assert (finding["name"], finding["stops"]) == ("dumped-without-path", False)


def test_a_restore_without_a_path(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    mountpoint = area.place("ext4").mountpoint
    watched = target.add_inotify(mountpoint / "dir/file")
    images = tmp_path / "images"
    for _ in range(6):
        drop_caches(mountpoint)
        dumped = each_criu.dump(target.pid, images)
        if None in [one.path for one in each_criu.dumped_watches(images)]:
            break
    assert each_criu.dump(target.pid, images, leave_running=False).ok
    restored = each_criu.restore(target, images)
    if restored.ok:
        pytest.skip("the name was cached again")
    stop = stop_of(explained(restored))
    assert (stop["name"], stop["command"]) == ("restore-no-path", _HOOK)
    assert stop["watch"]["wd"] == watched.wd
    del dumped


def test_a_path_that_is_gone_before_the_restore(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    file = area.place("ext4").mountpoint / "alone"
    file.touch()
    watched = target.add_inotify(file)
    images = tmp_path / "images"
    assert each_criu.dump(target.pid, images, leave_running=False).ok
    file.unlink()
    restored = each_criu.restore(target, images)
    assert not restored.ok
    document = explained(restored)
    stop = stop_of(document)
    assert document["action"] == "restore"
    assert stop["name"] == "restore-path-missing"
    assert "No such file or directory" in stop["why"]
    watch = stop["watch"]
    assert (watch["path"], watch["path_from"], watch["wd"]) == (str(file), "log", watched.wd)


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_cause_that_is_not_a_watch(each_criu: Criu, tmp_path: Path, name: str) -> None:
    verbosity = _VERBOSITY[each_criu.version]
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with other_task(name, tmp_path / "task", path) as pid:
            peer = server.accept()[0] if name == "unix-external" else server
            done = each_criu.dump(pid, tmp_path / "images", options=[verbosity])
            peer.close()
    assert not done.ok
    stop = stop_of(explained(done))
    if (each_criu.version, stop["name"]) == ("4.1", "socket-option"):
        return  # since Linux 6.16, before CRIU looks at the connection
    assert (stop["name"], stop["ours"], stop["watch"]) == (name, False, None)


def test_a_log_of_runc_names_its_engine(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    target.add_inotify(area.place("overlay-lower").directory / "file")
    done = criu.dump(target.pid, tmp_path / "images")
    log = done.work / "dump.log"
    assert explained(done)["engine"] is None
    line = b"(00.000176) Would overwrite RPC settings with values from /etc/criu/%s.conf\n"
    for runtime in (b"runc", b"crun"):
        log.write_bytes(line % runtime + done.log.encode())
        document = explained(done)
        assert document["engine"] == runtime.decode()
        assert stop_of(document)["command"] == f"irmapdb hook --install {runtime.decode()}"
    document = explained(done, "--engine", "cri-o")
    assert (document["engine"], document["engine_is_given"]) == ("cri-o", True)


def test_paths_of_scans_and_stale_entries(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    place = area.place("ext4")
    first = target.add_inotify(place.mountpoint / "dir/file")
    second = target.add_inotify(place.directory)
    target.add_fanotify(place.mountpoint, what="mount")
    kdev = superblock_kdev(place.mountpoint)
    other = os.fsencode(place.mountpoint)
    write_cache(tmp_path / "images", [(kdev, first.st_ino, other), (kdev, 1, b"/no-such-path")])
    done = each_criu.dump(
        target.pid,
        tmp_path / "images",
        force_irmap=True,
        scan_paths=[place.mountpoint],
        env={"CRIU_FAULT": "128"},
    )
    assert done.ok, done
    document = explained(done)
    assert document["outcome"] == "success"
    irmap = document["irmap"]
    assert (irmap["entries"], irmap["stale"], irmap["scanned"]) == (2, 1, 2)
    assert (document["watches"], document["marks"]) == (2, 1)
    assert {one.path for one in each_criu.dumped_watches(done.images)} >= {os.fsdecode(second.path)}


def test_criu_pre_dump(each_criu: Criu, target: Watcher, tmp_path: Path) -> None:
    target.add_inotify(tmp_path)
    done = subprocess.run(
        [each_criu.program, "pre-dump", "-t", str(target.pid), "-D", tmp_path, "-v4"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    said = irmapdb("explain", "--json", stdin=done.stdout + done.stderr)
    document = json.loads(said.out)
    if done.returncode == 0:
        assert (document["outcome"], document["action"]) == ("success", "pre-dump")
    else:  # a kernel without soft-dirty tracking
        (finding,) = document["findings"]
        assert (finding["name"], finding["ours"]) == ("soft-dirty", False)


def test_statistics(each_criu: Criu, target: Watcher, tmp_path: Path) -> None:
    target.add_inotify(tmp_path)
    command = [each_criu.program, "dump", "-t", str(target.pid), "-D", tmp_path, "-R", "-v4"]
    done = subprocess.run(
        [*command, "--display-stats", "--no-default-config"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    document = json.loads(irmapdb("explain", "--json", stdin=done.stdout).out)
    stats = each_criu.show(tmp_path / "stats-dump")[0]["dump"]
    assert document["frozen_us"] == stats["frozen_time"] > 0
    assert document["irmap"]["time_us"] == stats["irmap_resolve"]
