"""The steps on all places of a watch: filesystems, mounts that come and go, other namespaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.config import Config
from irmapdb.image import fsnotify
from irmapdb.kernel.own_freezer import stop_tree
from irmapdb.model import ChangeKind, StaleReason, kdev_of
from irmapdb.store.database import Store
from tests.support.area import PLACES, MountArea
from tests.support.cli import irmapdb
from tests.support.filesystems import Overlay, drop_caches
from tests.support.freezing import until
from tests.support.programs import run
from tests.support.stepping import NO_HINTS, new_work_dir, options_for
from tests.support.watcher import Watcher

_NESTED = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
place, common = map(os.fsencode, sys.argv[1:])
if os.fork():
    signal.pause()
NEWNS, PRIVATE, MODIFY, MARK_MOUNT = 0x20000, 0x44000, 0x2, 0x11
def done(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
done(libc.unshare(NEWNS))
done(libc.mount(b"none", b"/", None, PRIVATE, None))
done(libc.mount(b"none", place, b"tmpfs", 0, None))
open(place + b"/own", "w").close()
inotify, fanotify = done(libc.inotify_init1(0)), done(libc.fanotify_init(0, 0))
for path in (place + b"/own", common):
    done(libc.inotify_add_watch(inotify, path, MODIFY))
done(libc.fanotify_mark(fanotify, MARK_MOUNT, ctypes.c_uint64(MODIFY), -100, place))
print(os.getpid(), os.stat(place).st_dev, flush=True)
signal.pause()
"""


def test_a_watch_in_another_mount_namespace_is_reported_with_it(
    area: MountArea, tmp_path: Path
) -> None:
    place, common, work = area.path / "private", tmp_path / "common", new_work_dir(tmp_path)
    place.mkdir()
    common.touch()
    command = [sys.executable, "-c", _NESTED, place, common]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as root:
        try:
            assert root.stdout is not None
            pid, st_dev = map(int, root.stdout.readline().split())
            mntns = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            options = StepOptions(root.pid, images_dir=work, config=NO_HINTS)
            report = steps.dump(options, FreezeOptions())
            said = irmapdb("dump", "-t", str(root.pid), "-D", work)
            as_json = json.loads(irmapdb("pre-dump", "-t", str(root.pid), "-D", work, "--json").out)
            watch_list = irmapdb("ps", "-t", str(root.pid))
            check = irmapdb("check", "-t", str(root.pid), "-D", work, "--criu-version", "4.2")
        finally:
            os.killpg(root.pid, signal.SIGKILL)

    assert {row.path: row.mntns for row in report.watches} == {
        os.fsencode(place / "own"): mntns,
        os.fsencode(common): 0,
    }
    assert [(row.target, row.mntns) for row in report.marks] == [(os.fsencode(place), mntns)]
    (fanotify,) = fsnotify.decode_fanotify((work / "fanotify.img").read_bytes(), "fanotify.img")
    assert [mark.kdev for mark in fanotify.mount_marks] == [
        kdev_of(os.major(st_dev), os.minor(st_dev))
    ]
    assert said.code == 0
    assert f"{place}/own (in mount namespace {mntns})\n" in said.out
    assert f"{common}\n" in said.out
    assert f"{place} (in mount namespace {mntns}) (a mark without" in said.out
    assert "2 resolved (1 of them in another mount namespace: not handed to CRIU)" in said.out
    assert [mark["mntns"] for mark in as_json["marks"]] == [mntns]
    # A file that CRIU will not find is reported neither as deleted nor as not found.
    assert check.code == 3
    (why,) = (line for line in check.out.splitlines() if line.startswith("fails: "))
    assert why.endswith(f": it is {place}/own in mount namespace {mntns}")
    assert "deleted" not in check.out
    assert "not find it" not in check.out
    # Every later output has the same reason.
    assert watch_list.code == 0
    assert f"{place}/own (in mount namespace {mntns})\n" in watch_list.out
    assert f"{common}\n" in watch_list.out
    known = irmapdb("lookup", place / "own", "-W", work).out
    assert f"found: {place}/own (in mount namespace {mntns})\n" in known
    (who,) = json.loads(irmapdb("sql", "who", "-p", "path=*/own", "-W", work, "--json").out)
    assert (who["path"], who["mount_namespace"]) == (str(place / "own"), mntns)


@pytest.mark.parametrize("kind", PLACES)
def test_filesystems(area: MountArea, watcher: Watcher, tmp_path: Path, kind: str) -> None:
    place = area.place(kind)
    for path in (place.directory, place.directory / "file", place.mountpoint):
        watcher.add_inotify(path)
        watcher.add_fanotify(path)

    scan = (place.mountpoint,) if kind == "fuse" else ()
    report = steps.dump(options_for(watcher, new_work_dir(tmp_path), *scan), FreezeOptions())

    # A bind mount or a subvolume that is mounted twice has two right names for each file.
    inotify = {one.wd: one.path for one in watcher.watched if one.kind == "inotify"}
    for row in report.watches:
        assert row.path is not None, row.why
        if row.watch.wd > 0:
            assert os.path.samefile(row.path, inotify.pop(row.watch.wd))
    fanotify = [one.path for one in watcher.watched if one.kind == "fanotify"]
    marks = [row.path for row in report.watches if row.watch.wd < 0]
    assert {_inode(path) for path in marks} == {_inode(path) for path in fanotify}
    assert not inotify


def _inode(path: bytes | None) -> tuple[int, int]:
    assert path is not None
    status = os.lstat(path)
    return status.st_dev, status.st_ino


@pytest.mark.alone  # another worker may mount the old device meanwhile
def test_a_filesystem_that_comes_back_as_another_device(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    filesystem = area.ext4()
    path = filesystem.mountpoint / "file"
    path.touch()
    work = new_work_dir(tmp_path)
    before = watcher.add_inotify(path)
    steps.pre_dump(options_for(watcher, work))
    watcher.remove(before)
    filesystem.remount_on_another_device()
    after = watcher.add_inotify(path)

    report = steps.pre_dump(options_for(watcher, work, filesystem.mountpoint))

    assert before.st_kdev != after.st_kdev
    assert [row.path for row in report.watches] == [os.fsencode(path)]
    told = {(change.kind, change.identity.kdev, change.reason) for change in report.changes}
    assert told == {
        (ChangeKind.FOUND, after.st_kdev, None),
        (ChangeKind.STALE, before.st_kdev, StaleReason.UNMOUNTED),
    }


def test_two_trees_that_share_a_database_leave_each_others_mounts_alone(
    area: MountArea, tmp_path: Path
) -> None:
    place, database = area.path / "place", tmp_path / "irmap.db"
    place.mkdir()
    with Watcher(unshare={"mount"}) as one, Watcher(unshare={"mount"}) as other:
        one.mount("tmpfs", place, "tmpfs")
        one.write(place / "file")
        one.add_inotify(place / "file")
        other.add_inotify(area.path)

        def step(watcher: Watcher) -> list[ChangeKind]:
            work = tmp_path / str(watcher.pid)
            work.mkdir(exist_ok=True)
            options = options_for(watcher, work)._replace(database=database)
            return [change.kind for change in steps.pre_dump(options).changes]

        assert step(one) == [ChangeKind.FOUND]
        assert step(other) == [ChangeKind.FOUND]
        assert step(one) == []
        # A file that is mounted nowhere any more is stale in every namespace.
        one.unmount(place)
        one.close_fd(one.watched[0].fd)
        until(lambda: step(other) == [ChangeKind.STALE], "the mount is gone")


# A task, and in a mount namespace of its own a child that watches a file on each of two mounts.
# At the first line it unmounts one of them, at the second it watches nothing more.
_UNMOUNTING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
kept, place = map(os.fsencode, sys.argv[1:])
NEWNS, PRIVATE, MODIFY = 0x20000, 0x44000, 2
def done(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
if os.fork():
    os.wait()
    sys.exit()
done(libc.unshare(NEWNS))
done(libc.mount(b"none", b"/", None, PRIVATE, None))
inotify = done(libc.inotify_init1(0))
for directory in (kept, place):
    done(libc.mount(b"none", directory, b"tmpfs", 0, None))
    open(directory + b"/own", "w").close()
    done(libc.inotify_add_watch(inotify, directory + b"/own", MODIFY))
print(os.stat("/proc/self/ns/mnt").st_ino, flush=True)
sys.stdin.readline()
done(libc.umount2(place, 0))
print(flush=True)
sys.stdin.readline()
os.close(inotify)
print(flush=True)
sys.stdin.readline()
"""


def test_a_path_that_a_nested_namespace_has_unmounted_is_stale(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    directories = [area.path / name for name in ("kept", "place")]
    for directory in directories:
        directory.mkdir()
    kept, gone = (os.fsencode(directory / "own") for directory in directories)
    work = new_work_dir(tmp_path)
    command = [sys.executable, "-c", _UNMOUNTING, *directories]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as root:
        assert root.stdin is not None
        assert root.stdout is not None
        mntns = int(root.stdout.readline())
        options = StepOptions(root.pid, images_dir=work, config=NO_HINTS)

        def step(options: StepOptions) -> set[tuple[bytes | None, StaleReason | None, int]]:
            changes = steps.pre_dump(options).changes
            return {(change.path, change.reason, change.mntns) for change in changes}

        def go_on() -> None:
            assert root.stdin is not None
            assert root.stdout is not None
            root.stdin.write("\n")
            root.stdin.flush()
            root.stdout.readline()

        assert step(options) == {(kept, None, mntns), (gone, None, mntns)}
        go_on()
        # Another tree, which does not look into that namespace, knows nothing of its mounts.
        database = options_for(watcher, tmp_path / "other")._replace(database=work / "irmap.db")
        database.images_dir.mkdir()
        assert step(database) == set()
        assert step(options) == {(gone, StaleReason.UNMOUNTED, mntns)}
        assert step(options) == set()
        # If no task has a watch in it any more, its own rows do not change.
        go_on()
        assert step(options) == set()
        root.stdin.close()


def _opaque(overlay: Overlay, how: str) -> None:
    # Upper directories over lower ones of the same names: `merged`, and `opaque` that hides.
    if how == "xattr":
        run("umount", overlay.mountpoint)
        for name in ("merged", "opaque"):
            (overlay.upper / name).mkdir()
        os.setxattr(overlay.upper / "opaque", "trusted.overlay.opaque", b"y")
        overlay.mount()
    else:
        shutil.rmtree(overlay.mountpoint / "opaque")
        (overlay.mountpoint / "opaque").mkdir()
    for path in ("merged/upper", "opaque/file"):
        (overlay.mountpoint / path).write_text("upper")


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("how", ["xattr", "rm and mkdir"])
def test_merged_and_opaque_directories_of_an_overlay(
    area: MountArea, watcher: Watcher, tmp_path: Path, how: str, *, cold: bool
) -> None:
    base = area.ext4("layers").mountpoint
    for path in ("merged/lower", "opaque/file", "opaque/hidden"):
        (base / "lower" / path).parent.mkdir(parents=True, exist_ok=True)
        (base / "lower" / path).write_text("lower")
    overlay = area.overlay(lower=base / "lower", upper_base=base)
    _opaque(overlay, how)
    top = overlay.mountpoint
    assert sorted(os.listdir(top / "merged")) == ["lower", "upper"]
    assert os.listdir(top / "opaque") == ["file"]
    for path in ("merged", "merged/lower", "merged/upper", "opaque", "opaque/file"):
        watcher.add_inotify(top / path)
    # A hidden file has its own name only on the layer.
    for path in ("opaque", "opaque/file", "opaque/hidden"):
        watcher.add_inotify(base / "lower" / path)
    if cold:
        drop_caches()

    work = new_work_dir(tmp_path)
    for step in (steps.pre_dump, lambda options: steps.dump(options, FreezeOptions())):
        report = step(options_for(watcher, work, top, base))
        assert {row.watch.wd: row.path for row in report.watches} == {
            one.wd: one.path for one in watcher.watched
        }
    with Store.open_readonly(work / "irmap.db") as store:
        paths = sorted(row.path for row in store.all_mappings())
    assert paths == sorted(one.path for one in watcher.watched)


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind.startswith("overlay")])
def test_a_file_that_is_copied_up_between_the_steps(
    area: MountArea, watcher: Watcher, tmp_path: Path, kind: str
) -> None:
    place = area.place(kind)
    path = place.directory / "file"
    watcher.add_inotify(path)
    work = new_work_dir(tmp_path)
    options = options_for(watcher, work, place.mountpoint)
    before = steps.pre_dump(options)
    with path.open("a") as file:
        file.write("copied up")

    after = steps.dump(options, FreezeOptions())

    assert [row.path for row in before.watches] == [os.fsencode(path)]
    assert [row.path for row in after.watches] == [os.fsencode(path)]
    # It is the same file, and its row held.
    assert (after.stats.sources, after.changes) == ({"stored": 1}, ())
    with Store.open_readonly(work / "irmap.db") as store:
        assert [(row.path, row.stale) for row in store.all_mappings()] == [
            (os.fsencode(path), False)
        ]


def test_a_file_that_is_replaced_by_one_of_the_same_number_between_the_steps(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    path = area.ext4().mountpoint / "file"
    path.touch()
    before = watcher.add_inotify(path)
    work = new_work_dir(tmp_path)
    steps.pre_dump(options_for(watcher, work))
    path.unlink()
    path.touch()
    after = watcher.add_inotify(path)
    assert after.st_ino == before.st_ino, "ext4 takes the number that became free last"

    report = steps.dump(options_for(watcher, work), FreezeOptions())

    (row,) = report.watches
    assert (row.watch.wd, row.path) == (after.wd, os.fsencode(path))
    told = [(change.kind, change.reason, change.path) for change in report.changes]
    assert told == [
        (ChangeKind.STALE, StaleReason.REUSED, os.fsencode(path)),
        (ChangeKind.FOUND, None, os.fsencode(path)),
    ]
    stale, found = (change.identity for change in report.changes)
    assert (stale.key, found) == (found.key, row.watch.identity)
    assert stale.handle != found.handle
    # The new file has the row now, as device, number and path are those of the old one's: only
    # the change shows that.
    with Store.open_readonly(work / "irmap.db") as store:
        (mapping,) = store.all_mappings()
    assert (mapping.identity, mapping.stale) == (found, False)


@pytest.fixture
def two_subvolumes(area):
    """An overlay of them; `dA` and `dB` in it have one number, and so has its root."""
    layers = area.btrfs().mountpoint
    for name in "AB":
        run("btrfs", "subvolume", "create", layers / name)
        (layers / name / f"d{name}").mkdir()
    overlay = area.overlay(
        lower=f"{layers}/A:{layers}/B",
        upper_base=layers,
        options="index=on,nfs_export=on",
    ).mountpoint
    assert len({(overlay / name).stat().st_ino for name in ("dA", "dB")}) == 1
    return overlay


def test_a_watch_without_a_handle_leaves_the_row_of_its_namesake_alone(
    two_subvolumes, watcher, tmp_path
):
    with Watcher() as other:
        other.add_inotify(two_subvolumes / "dA")
        config = Config(hints=())
        steps.pre_dump(StepOptions(other.pid, tmp_path, config=config))
        watcher.add_inotify(two_subvolumes / "dB")
        drop_caches()
        # Its candidates are those of its number: the stored row of dA is one, and is right.
        report = steps.pre_dump(StepOptions(watcher.pid, tmp_path, config=config))
        found = os.fsencode(two_subvolumes / "dB")
        assert [row.path for row in report.watches] == [found]
        assert [(one.kind, one.path) for one in report.changes] == [(ChangeKind.FOUND, found)]


@pytest.mark.parametrize("event", ["pre-dump", "dump"])
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_one_number_in_two_subvolumes_below_an_overlay(
    two_subvolumes, watcher, tmp_path, event, cold
):
    """A directory without a handle for a while, and another one that has its inode number."""
    truth = {
        watcher.add_inotify(two_subvolumes / name).wd: os.fsencode(two_subvolumes / name)
        for name in ("dB", "dA")
    }
    if cold:
        drop_caches()
    options = StepOptions(watcher.pid, tmp_path, config=Config(hints=()))
    if event == "pre-dump":
        report = steps.pre_dump(options)
    else:
        report = steps.dump(options, FreezeOptions())
    assert {row.watch.wd: row.path for row in report.watches} == truth


def test_a_handle_that_is_lost_right_before_the_freeze(
    two_subvolumes, watcher, tmp_path, monkeypatch
):
    truth = {
        watcher.add_inotify(two_subvolumes / name).wd: os.fsencode(two_subvolumes / name)
        for name in ("dB", "dA")
    }
    frozen = stop_tree.frozen

    def drop_and_freeze(*args, **more):
        drop_caches()
        return frozen(*args, **more)

    monkeypatch.setattr(stop_tree, "frozen", drop_and_freeze)
    report = steps.dump(
        StepOptions(watcher.pid, tmp_path, config=Config(hints=())), FreezeOptions()
    )
    assert {row.watch.wd: row.path for row in report.watches} == truth
    assert all(row.watch.identity.handle for row in report.watches)


# It watches a path. Its child watches nothing, and has the file at the path open.
_SUPERVISOR = """
import ctypes, mmap, os, signal, sys
path, held = sys.argv[1:]
libc = ctypes.CDLL(None)
assert libc.inotify_add_watch(libc.inotify_init1(0x80000), os.fsencode(path), 2) == 1
read, write = os.pipe()
if not os.fork():
    if held == "exe":
        os.execv(path, [path, "600"])
    elif held == "cwd":
        os.chdir(path)
    else:
        file = os.open(path, os.O_RDONLY)
        if held == "map":
            mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ)
            os.close(file)
    os.close(write)
    signal.pause()
os.close(write)
os.read(read, 1)  # it is held
print(flush=True)
signal.pause()
"""


@pytest.mark.parametrize("held", ["fd", "cwd", "exe", "map"])
def test_a_deleted_file_that_another_task_of_the_tree_has_open_is_not_searched_for(
    area: MountArea, tmp_path: Path, held: str
) -> None:
    """A binary that runs, say, and was replaced while its supervisor watches the file."""
    top = area.place("overlay-upper").directory
    path = top / "replaced"
    if held == "cwd":
        path.mkdir()
    else:
        shutil.copy("/bin/sleep", path)
    command = [sys.executable, "-I", "-S", "-c", _SUPERVISOR, path, held]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as task:
        try:
            assert task.stdout is not None
            task.stdout.readline()
            if held == "cwd":
                path.rmdir()
            else:
                (top / "new").touch()
                (top / "new").rename(path)
            options = StepOptions(
                task.pid,
                images_dir=new_work_dir(tmp_path),
                scan_paths=(os.fsencode(top),),
                config=NO_HINTS,
            )
            report = steps.pre_dump(options)
        finally:
            os.killpg(task.pid, signal.SIGKILL)
    (row,) = report.watches
    assert row.path is None
    assert "overlay: deleted" in (row.why or "") or "open-files: deleted" in (row.why or "")
    assert report.stats.scanned == 0
