"""The test support itself: no test may pass because the support is broken."""

import errno
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import packages
from tests.support.area import PLACES, MountArea
from tests.support.criu import write_cache
from tests.support.features import require, require_root
from tests.support.filesystems import btrfs_layout, drop_caches, superblock_kdev
from tests.support.hook import CHECKOUT
from tests.support.names import ODD_NAMES, deep_file
from tests.support.notify import (
    FAN_MODIFY,
    FAN_REPORT_FID,
    IN_CREATE,
    IN_MODIFY,
    IN_OPEN,
    FanotifyEvent,
    InotifyEvent,
)
from tests.support.programs import ProgramError, run
from tests.support.watcher import TaskDiedError, Watcher, WatchLimitError

FSTYPES = {"xfs-parents": "xfs", "fuse": "fuse", "bind": None}


def fstype(path):
    return run("findmnt", "-n", "-o", "FSTYPE", "--target", path).decode().split()[-1]


@pytest.fixture(autouse=True)
def _root():
    require_root()


# Features


def test_a_missing_feature_skips_or_fails(monkeypatch):
    require(condition=True, what="nothing")
    monkeypatch.delenv("IRMAPDB_REQUIRE_KERNEL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs a unicorn"):
        require(condition=False, what="a unicorn")
    monkeypatch.setenv("IRMAPDB_REQUIRE_KERNEL", "1")
    with pytest.raises(pytest.fail.Exception, match="lacks a unicorn"):
        require(condition=False, what="a unicorn")


# Filesystems


@pytest.mark.parametrize("kind", PLACES)
def test_a_place_has_its_type_and_can_be_watched(kind, area, watcher):
    place = area.place(kind)
    expected = FSTYPES.get(kind, kind.partition("-")[0])
    if expected is not None:
        assert fstype(place.directory) == expected
    file, linked, link = place.directory / "file", place.linked, place.directory / "dir" / "hard"
    for path in (file, linked, linked.parent):
        watched = watcher.add_inotify(path, IN_OPEN)
        assert (watched.st_dev, watched.st_ino) == path.lstat()[2:0:-1]
    assert linked.lstat().st_ino == link.lstat().st_ino
    drop_caches()
    assert watcher.hears(watcher.watched[0], file.read_bytes)
    writable = os.access(place.directory, os.W_OK)
    assert writable == place.writable


def test_btrfs_snapshot_shares_inode_numbers(area):
    layout = btrfs_layout(area.btrfs().mountpoint)
    in_sub, in_snapshot = (place / "dir" / "file" for place in (layout.sub, layout.snapshot))
    assert in_sub.lstat().st_ino == in_snapshot.lstat().st_ino
    assert not in_sub.samefile(in_snapshot)
    assert (layout.nested / "dir" / "file").exists()


def test_overlay_over_two_filesystems_shows_two_devices(area):
    place = area.place("overlay-two-filesystems")
    upper = place.directory / "new"
    upper.touch()
    assert upper.lstat().st_dev != (place.directory / "file").lstat().st_dev


def test_xfs_has_parent_pointers_where_asked_for(area):
    for filesystem in (area.xfs(), area.xfs_with_parent_pointers()):
        asked = filesystem.mountpoint.name == "xfs-parents"
        features = run(packages.xfs_db_wrapper(), "-r", "-c", "version", filesystem.device)
        assert (b"PARENT" in features) == asked


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_remount_keeps_inodes_and_changes_the_device(kind, area):
    filesystem = getattr(area, kind)()
    file = filesystem.mountpoint / "file"
    file.touch()
    ino, device, kdev = file.lstat().st_ino, filesystem.device, superblock_kdev(file.parent)
    assert kdev == superblock_kdev(file.parent)
    filesystem.remount_on_another_device()
    assert filesystem.device != device
    assert file.lstat().st_ino == ino
    if kind != "btrfs":  # btrfs gets a new device number at each mount
        assert superblock_kdev(file.parent) != kdev
        assert os.makedev(kdev >> 20, kdev & 0xFFFFF) != file.lstat().st_dev
    filesystem.remount()
    assert file.lstat().st_ino == ino


def test_nothing_is_left_behind(tmp_path):
    def fail():
        with MountArea(tmp_path) as area:
            # Busy: open files, and a mount that no process removes.
            opened.extend(
                (area.place(kind).directory / "file").open()
                for kind in ("ext4", "overlay-two-filesystems", "fuse")
            )
            (tmp_path / "ext4" / "odd name\n").mkdir()
            run("mount", "-t", "tmpfs", "none", tmp_path / "ext4" / "odd name\n")
            raise RuntimeError

    opened = []
    with pytest.raises(RuntimeError):
        fail()
    assert os.fsencode(tmp_path) not in Path("/proc/self/mountinfo").read_bytes()
    for file in opened:
        file.close()
    assert os.fsencode(tmp_path) not in run("losetup", "--list", "--output", "BACK-FILE")


# Watching processes


def test_the_watcher_agrees_with_lstat_and_gets_events(watcher, tmp_path):
    file = tmp_path / "file"
    file.touch()
    by_inotify = watcher.add_inotify(file, IN_MODIFY)
    by_fanotify = watcher.add_fanotify(file, FAN_MODIFY)
    on_directory = watcher.add_inotify(tmp_path, IN_CREATE)
    status = file.lstat()
    for watched in (by_inotify, by_fanotify):
        assert watched.path == os.fsencode(file)
        assert (watched.st_dev, watched.st_ino) == (status.st_dev, status.st_ino)
    assert by_inotify.st_kdev == os.major(status.st_dev) * 2**20 + os.minor(status.st_dev)
    assert watcher.watched == [by_inotify, by_fanotify, on_directory]

    assert watcher.hears(by_inotify, lambda: file.write_bytes(b"1"))
    assert watcher.hears(by_fanotify, lambda: file.write_bytes(b"1"))
    assert not watcher.hears(by_inotify, (tmp_path / "other").touch)
    (tmp_path / "another").touch()
    assert watcher.events() == [
        InotifyEvent(on_directory.fd, on_directory.wd, IN_CREATE, 0, b"another")
    ]
    assert watcher.events() == []
    watcher.remove(by_inotify)
    assert not watcher.hears(by_inotify, lambda: file.write_bytes(b"1"))


def test_fanotify_marks_of_every_kind(watcher, area):
    place = area.place("tmpfs")
    file = place.directory / "file"
    for what in ("inode", "mount", "filesystem"):
        target = file if what == "inode" else place.mountpoint
        watched = watcher.add_fanotify(target, FAN_MODIFY, what, fd=watcher.fanotify())
        file.write_bytes(b"1")
        (event,) = [event for event in watcher.events() if event.fd == watched.fd]
        assert event[1:5] == (FAN_MODIFY, os.getpid(), file.stat().st_dev, file.stat().st_ino)
    by_handle = watcher.add_fanotify(file, FAN_MODIFY, fd=watcher.fanotify(flags=FAN_REPORT_FID))
    file.write_bytes(b"1")
    (event,) = [event for event in watcher.events() if event.fd == by_handle.fd]
    assert isinstance(event, FanotifyEvent)
    assert event.st_ino is None
    assert event.info


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names(name, watcher, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        watched = watcher.add_inotify(path)
        assert watched.path == path
        assert watched.st_ino == os.lstat(path).st_ino
        assert watcher.hears(watched, lambda: file.write(b"x") + (file.flush() or 0))
    renamed = watcher.add_inotify(tmp_path, IN_CREATE)
    watcher.unlink(path)
    watcher.write(path)
    assert watcher.events()[-1] == InotifyEvent(renamed.fd, renamed.wd, IN_CREATE, 0, name)


@pytest.mark.parametrize("length", [4090, 9000])
def test_paths_beyond_path_max(length, watcher, tmp_path):
    path = deep_file(tmp_path, length=length)
    assert len(path) > 4096
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        os.lstat(path)
    # The same inode, asked in another way: from the top of the tree down.
    (found,) = [
        os.lstat(name, dir_fd=fd).st_ino for _, _, files, fd in os.fwalk(tmp_path) for name in files
    ]
    assert watcher.add_inotify(path).st_ino == found
    assert watcher.add_fanotify(path).st_ino == found


def test_many_watches_at_once(watcher, tmp_path):
    paths = [tmp_path / str(i) for i in range(1000)]
    for path in paths:
        path.touch()
    added = watcher.add_many(paths)
    assert [(w.path, w.st_ino) for w in added] == [
        (os.fsencode(path), path.lstat().st_ino) for path in paths
    ]
    fdinfo = Path(f"/proc/{watcher.pid}/fdinfo/{added[0].fd}").read_text()
    assert fdinfo.count("inotify wd:") == 1000
    assert watcher.hears(added[-1], lambda: paths[-1].write_bytes(b"1"))
    paths[3].unlink()
    with pytest.raises(FileNotFoundError, match="/3'"):
        watcher.add_many(paths)


def test_limit_is_named(tmp_path):
    # A user namespace has limits of its own, so that no other process feels these.
    with Watcher(unshare=["user"]) as watcher:
        for i in range(4):
            (tmp_path / str(i)).touch()
        watcher.write("/proc/sys/user/max_inotify_watches", b"2")
        watcher.write("/proc/sys/user/max_inotify_instances", b"1")
        with pytest.raises(WatchLimitError, match="max_user_watches"):
            watcher.add_many(tmp_path.iterdir())
        with pytest.raises(WatchLimitError, match="max_user_instances"):
            watcher.inotify()


def test_children_share_watches_and_add_their_own(tmp_path):
    with Watcher(children=2) as watcher:
        first, second = watcher.children
        mine = first.add_inotify(tmp_path, IN_CREATE)
        grandchild = first.fork()
        pids = [watcher.pid, first.pid, second.pid, grandchild.pid]
        assert len(set(pids)) == 4
        assert run("ps", "-o", "ppid=", "-p", str(grandchild.pid)).split() == [
            str(first.pid).encode()
        ]
        assert grandchild.hears(mine, (tmp_path / "new").touch)
        assert second.watched == []
        assert len(second.threads(3)) == 3
        assert len(list(Path(f"/proc/{second.pid}/task").iterdir())) == 4
    for pid in pids:
        assert not Path(f"/proc/{pid}/fd/0").exists()


@pytest.mark.parametrize("pipes", [False, True])
def test_exec_keeps_pid_and_watches(pipes, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with Watcher(pipes=tmp_path / "pipes" if pipes else None) as watcher:
        watched = watcher.add_inotify(file)
        watcher.threads(2)
        watcher.exec()
        assert len(list(Path(f"/proc/{watcher.pid}/task").iterdir())) == 1
        assert watcher.hears(watched, lambda: file.write_bytes(b"1"))


def test_namespaces_and_roots(area):
    root = area.place("tmpfs").directory
    (root / "proc").mkdir()
    namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "user")}

    def differ(pid):
        return {n for n, own in namespaces.items() if os.readlink(f"/proc/{pid}/ns/{n}") != own}

    inside = os.fsencode("/dir/file")
    ino = (root / "dir" / "file").lstat().st_ino
    with Watcher(unshare=["mount", "pid"], rootfs=root, cwd="/dir", children=1) as watcher:
        assert differ(watcher.pid) == {"mnt", "pid"}
        assert (watcher.own_pid, watcher.children[0].own_pid) == (1, 2)
        assert watcher.add_inotify(inside).st_ino == ino
        assert watcher.children[0].add_inotify("file").st_ino == ino
        # A mount in there is not seen out here.
        (root / "m").mkdir()
        watcher.mount("tmpfs", "/m", "tmpfs")
        watcher.write("/m/hidden")
        assert not (root / "m" / "hidden").exists()
        watcher.unmount("/m")
        watcher.rename("/file", "/renamed")
        assert (root / "renamed").exists()
        watcher.chdir("/")
        assert watcher.open("renamed") > 2
    with Watcher(chroot=root) as watcher:
        assert differ(watcher.pid) == set()
        assert watcher.add_inotify(inside).st_ino == ino
        with pytest.raises(FileNotFoundError):
            watcher.add_inotify(root)
    with Watcher(unshare=["user", "mount"]) as watcher:
        assert differ(watcher.pid) == {"user", "mnt"}
    with pytest.raises(FileNotFoundError):
        Watcher(chroot=root / "missing")


def test_a_task_that_has_ended_is_named(tmp_path):
    with Watcher() as watcher:
        assert watcher.state() in "SR"
        watcher.signal(signal.SIGKILL)
        watcher.wait_dead()
        assert watcher.state() in "ZX"
        with pytest.raises(TaskDiedError):
            watcher.events()
    with Watcher(pipes=tmp_path / "pipes") as watcher:
        watcher.signal(signal.SIGKILL)
        with pytest.raises(TaskDiedError):
            watcher.events()


def test_no_process_outlives_its_driver(tmp_path):
    driver = (
        "import os; from tests.support.watcher import Watcher; w = Watcher(children=1);"
        "print(w.pid, w.children[0].pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", driver], stdout=subprocess.PIPE, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(20_000)
            os.close(pidfd)


def test_no_process_outlives_tests_that_a_signal_ends(tmp_path):
    assert signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, signal.SIG_IGN}
    tests = (
        "import os, pathlib, signal, sys, time\n"
        "from tests.support.ending import interrupt_on_sigterm\n"
        "from tests.support.watcher import Watcher\n"
        "interrupt_on_sigterm()\n"
        "with Watcher(pipes=pathlib.Path(sys.argv[1])) as watcher:\n"
        "    ready, told = os.pipe()\n"
        "    if (child := os.fork()) == 0:\n"
        "        os.write(told, b'.')\n"  # a signal before that is lost: os.fork() clears it
        "        while True:\n"
        "            time.sleep(0.05)\n"
        "    os.read(ready, 1)\n"
        "    print(watcher.pid, child, flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", tests, tmp_path / "pipes"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=CHECKOUT
    ) as running:
        watcher, child = map(int, running.stdout.readline().split())
        pidfds = [os.pidfd_open(pid) for pid in (watcher, child)]
        os.kill(child, signal.SIGTERM)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == -signal.SIGINT
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(20_000)
        os.close(pidfd)


# Programs and packages


def test_program_that_fails_says_why():
    with pytest.raises(ProgramError, match="exit code 1 from findmnt /no/such"):
        run("findmnt", "/no/such")
    with pytest.raises(ProgramError, match="no program certainly-not-there"):
        run("certainly-not-there")


def test_packages_run_from_their_own_folder(rig):
    assert b"Version: 4." in run(rig / "criu", "--version")
    assert b"Looks good." in run(rig / "criu", "check")
    version = run(rig / "mkfs.xfs", "-V").split()[-1].split(b".")
    assert (int(version[0]), int(version[1])) >= (6, 10)
    # Asked for once more, it is there without a download.
    assert packages.criu_wrapper() == rig / "criu"


def test_program_can_be_linked_to(rig, tmp_path):
    (tmp_path / "criu").symlink_to(rig / "criu")
    assert b"Version: 4." in run(tmp_path / "criu", "--version")


def test_cache_written_by_hand_is_read_by_crit(crit, tmp_path):
    entries = [(254 << 20, 739, b"/etc/passwd"), (38, 2**64 - 1, b"/."), (0, 0, b"/" + b"n" * 4000)]
    file = write_cache(tmp_path, entries)
    decoded = json.loads(run(crit, "decode", "-i", file))
    assert [(e["dev"], e["inode"], e["path"].encode()) for e in decoded["entries"]] == entries
