"""The steps refuse bad input with a clear error, and change no file."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.errors import (
    DatabaseError,
    FileError,
    FreezeError,
    ImageError,
    IrmapError,
    TaskError,
    UsageError,
)
from irmapdb.image import cache
from irmapdb.kernel.own_freezer import stop_tree
from irmapdb.model import Event
from irmapdb.store.database import Store
from tests.support.area import MountArea
from tests.support.cli import irmapdb
from tests.support.features import require, require_program
from tests.support.filesystems import tmpfs
from tests.support.stepping import NO_HINTS, new_work_dir, options_for
from tests.support.watcher import Watcher


def test_a_missing_task_changes_nothing(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    work = new_work_dir(tmp_path)
    with pytest.raises(TaskError, match=str(gone.pid)):
        steps.pre_dump(StepOptions(gone.pid, images_dir=work))
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("scan", "message"), [(b"relative", "not absolute"), (b"/nowhere/at/all", "No such file")]
)
def test_a_bad_scan_path(watcher: Watcher, tmp_path: Path, scan: bytes, message: str) -> None:
    work = new_work_dir(tmp_path)
    with pytest.raises(FileError, match=message):
        steps.pre_dump(StepOptions(watcher.pid, images_dir=work, scan_paths=(scan,)))
    assert list(work.iterdir()) == []


def test_a_scan_path_that_is_a_symbolic_link_is_refused(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tree)
    work = new_work_dir(tmp_path)
    for spelled in (b"/link", b"/link/"):
        path = os.fsencode(tmp_path) + spelled
        with pytest.raises(FileError, match=r"link/?: is a symbolic link.*; name its target"):
            steps.pre_dump(StepOptions(watcher.pid, images_dir=work, scan_paths=(path,)))
    assert list(work.iterdir()) == []


def test_a_useless_scan_path_of_the_configuration_is_reported(
    watcher: Watcher, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(tree)
    watched = watcher.add_inotify(tree / "d0")
    paths = (b"/nowhere/at/all", os.fsencode(tmp_path / "link"), b"relative", os.fsencode(tree))
    config = NO_HINTS._replace(scan_paths=paths)
    report = steps.pre_dump(
        StepOptions(watcher.pid, images_dir=new_work_dir(tmp_path), config=config)
    )
    assert [row.path for row in report.watches] == [watched.path]
    missing = "No such file or directory in the root of the tasks"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"[scan] paths: /nowhere/at/all: {missing}; not scanned",
        f"[scan] paths: {tmp_path}/link: is a symbolic link, which is not followed; not scanned",
        "[scan] paths: relative: not absolute; not scanned",
    ]


def test_a_work_dir_that_is_not_there(watcher: Watcher, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such directory"):
        steps.pre_dump(StepOptions(watcher.pid, images_dir=tmp_path / "none"))


def test_a_cut_image_is_refused_and_left(watcher: Watcher, tmp_path: Path) -> None:
    work = new_work_dir(tmp_path)
    (work / "irmap-cache").write_bytes(b"\x40\x59\x10\x55")
    with pytest.raises(ImageError, match="irmap-cache"):
        steps.pre_dump(options_for(watcher, work))
    assert (work / "irmap-cache").read_bytes() == b"\x40\x59\x10\x55"


_NO_IMAGES = {
    "empty": b"",
    "cut": cache.encode_cache([])[:4],
    "cut-in-an-entry": cache.encode_cache([cache.CacheEntry(1, 2, b"/x")])[:-1],
    "another": b"\x40\x59\x10\x55" + bytes(4),
    "text": b"/etc/passwd\n",
}


@pytest.mark.parametrize("where", ["work", "previous"])
@pytest.mark.parametrize("data", _NO_IMAGES.values(), ids=_NO_IMAGES)
def test_a_bad_image_leaves_no_database(
    watcher: Watcher, tmp_path: Path, data: bytes, where: str
) -> None:
    work, previous = new_work_dir(tmp_path), tmp_path / "previous"
    previous.mkdir()
    directory = {"work": work, "previous": previous}[where]
    (directory / "irmap-cache").write_bytes(data)
    options = options_for(watcher, work)._replace(prev_images_dir=previous)
    for step in (steps.pre_dump, lambda options: steps.dump(options, FreezeOptions())):
        with pytest.raises(ImageError, match="irmap-cache"):
            step(options)
        assert [*work.iterdir(), *previous.iterdir()] == [directory / "irmap-cache"]


@pytest.mark.parametrize("step", ["pre-dump", "dump"])
def test_a_kernel_thread_is_named_as_one(tmp_path: Path, step: str) -> None:
    work = new_work_dir(tmp_path)
    kthreadd = Path("/proc/2/comm")
    require(kthreadd.exists() and kthreadd.read_text() == "kthreadd\n", "kernel threads in /proc")
    said = irmapdb(step, "-t", "2", "-D", work)
    assert said.code == 1
    assert said.err.startswith("irmapdb: task 2 (kthreadd) is a kernel thread; ")
    assert list(work.iterdir()) == []


def test_a_task_or_cgroup_that_cannot_be_frozen_is_refused_first(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher.add_inotify(tree)
    work = new_work_dir(tmp_path)
    monkeypatch.setattr(steps, "read_survey", None)
    wrong = [
        (os.getpid(), None, UsageError, "is this process, or has started it"),
        (os.getppid(), None, UsageError, "is this process, or has started it"),
        (watcher.pid, tmp_path, UsageError, "has neither cgroup.freeze nor freezer.state"),
        (watcher.pid, tmp_path / "none", UsageError, "is not a directory"),
    ]
    for pid, cgroup, error, message in wrong:
        options = options_for(watcher, work)._replace(pid=pid)
        with pytest.raises(error, match=message):
            steps.dump(options, FreezeOptions(cgroup=cgroup))
        assert list(work.iterdir()) == []


@pytest.mark.parametrize("name", ["irmap-cache", "inotify.img", "fanotify.img"])
@pytest.mark.parametrize("what", ["symlink", "directory"])
def test_a_target_that_cannot_be_replaced_is_refused_first(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    work = new_work_dir(tmp_path)
    if what == "symlink":
        (work / name).symlink_to(tmp_path)
    else:
        (work / name).mkdir()
    monkeypatch.setattr(stop_tree, "frozen", None)
    with pytest.raises(FileError, match=f"cannot replace .*/{name}: it is a"):
        steps.dump(options_for(watcher, work), FreezeOptions(leave_stopped=True))
    assert [path.name for path in work.iterdir()] == [name]


def test_a_full_disk_leaves_the_images_of_the_dump_before(
    area: MountArea, watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watcher.add_inotify(tree)
    watcher.add_fanotify(tree)
    with tmpfs(area.path / "images", size_mib=1) as images:
        options = options_for(watcher, images)._replace(database=tmp_path / "irmap.db")
        steps.dump(options, FreezeOptions())
        before = {path.name: path.read_bytes() for path in images.iterdir()}
        assert len(before) == 3
        # Room for some of the three, not for all.
        spare = os.statvfs(images).f_bavail - 2
        (images / "filling").write_bytes(bytes(spare * mmap.PAGESIZE))
        for path in tree.iterdir():
            watcher.add_inotify(path)
        for failing in (FreezeOptions(), FreezeOptions(leave_stopped=True)):
            with pytest.raises(FileError, match=r"cannot write .*/irmap-cache: No space left"):
                steps.dump(options, failing)
            now = {path.name: path.read_bytes() for path in images.iterdir()}
            assert now.pop("filling")
            assert now == before


@pytest.mark.parametrize("database", ["new", "old"])
def test_a_full_database_leaves_every_file_as_it_was(
    area: MountArea, watcher: Watcher, tmp_path: Path, database: str
) -> None:
    images, new = new_work_dir(tmp_path), database == "new"
    many = [tmp_path / f"a-file-with-a-rather-long-name-{number}" for number in range(3000)]
    for path in many:
        path.touch()
    with tmpfs(area.path / "small", size_mib=1) as place:
        options = options_for(watcher, images)._replace(database=place / "irmap.db")
        if not new:
            watcher.add_inotify(tmp_path)
            steps.dump(options, FreezeOptions())
        before = {path.name: path.read_bytes() for path in images.iterdir()}
        watcher.add_many(many)
        with pytest.raises(DatabaseError, match="disk is full"):
            steps.dump(options, FreezeOptions(leave_stopped=True))
        assert {path.name: path.read_bytes() for path in images.iterdir()} == before
        assert len(before) == (0 if new else 3)
        if new:
            assert not list(place.iterdir())
        else:
            with Store.open_readonly(place / "irmap.db") as store:
                assert len(list(store.runs())) == 1
    assert watcher.state() in "SR"


@pytest.mark.parametrize("name", ["irmap-cache", "irmap.db"])
def test_a_symlink_in_the_work_dir_is_refused(watcher: Watcher, tmp_path: Path, name: str) -> None:
    work, victim = new_work_dir(tmp_path), tmp_path / "victim"
    victim.write_bytes(cache.encode_cache([]))
    (work / name).symlink_to(victim)
    with pytest.raises(IrmapError, match=name):
        steps.pre_dump(options_for(watcher, work))
    assert victim.read_bytes() == cache.encode_cache([])


def test_a_traced_task_is_named_and_nothing_is_written(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    require_program("strace")
    watcher.add_inotify(tree)
    work = new_work_dir(tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    steps.pre_dump(options_for(watcher, work))
    command = ["strace", "-o", os.devnull, "-p", str(watcher.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        tracer.stderr.readline()  # "attached"
        with pytest.raises(FreezeError, match="strace"):
            steps.dump(options_for(watcher, work), FreezeOptions())
        with pytest.raises(FreezeError, match="strace"):
            steps.dump(options_for(watcher, fresh), FreezeOptions())
        tracer.kill()
    assert not list(fresh.iterdir())
    assert not (work / "inotify.img").exists()
    with Store.open_readonly(work / "irmap.db") as store:
        _, run = store.runs()
    assert (run.event, run.outcome.startswith("failed: ")) == (Event.DUMP, True)
