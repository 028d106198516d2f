"""check beside CRIU for watches and marks that the matrix does not have: dumped and restored."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from irmapdb.checkpoint import steps
from irmapdb.criu.check.dump import DumpCheckOptions, check_dump
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from irmapdb.criu.check.verdicts import CriuOutcome, WatchVerdict
from irmapdb.criu.check.version import parse_version
from tests.support.check_outcome import TRIES
from tests.support.criu_task import stage
from tests.support.features import require
from tests.support.filesystems import LoopFilesystem, btrfs_layout, drop_caches
from tests.support.notify import FAN_MODIFY, FAN_ONDIR, FAN_OPEN, IN_OPEN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from irmapdb.criu.check.dump import DumpCheck
    from irmapdb.criu.check.restore import RestoreCheck
    from tests.support.area import MountArea
    from tests.support.check_outcome import Bench
    from tests.support.criu import Criu, CriuRun

_FAN_MARK_ADD = 0x01
_FAN_MARK_IGNORED_MASK = 0x20
_FAN_MARK_IGNORED_SURV_MODIFY = 0x40
_FAN_MARK_IGNORE = 0x400
_FAN_MARK_EVICTABLE = 0x200
_FAN_ACCESS = 0x01


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def _dump(bench: Bench, images: Path) -> DumpCheck:
    """The prediction for the dump that follows, which ends the tasks."""
    said = bench.check(images)
    run = bench.criu.dump(bench.target.pid, images, leave_running=False)
    assert run.ok is not said.fails, run
    return said


def _restore(bench: Bench, images: Path) -> tuple[RestoreCheck, CriuRun]:
    said = check_images(images)
    return said, bench.criu.restore(bench.target, images)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["inode", "mount"])
@pytest.mark.parametrize("how", [_FAN_MARK_IGNORE, _FAN_MARK_IGNORED_MASK], ids=["new", "old"])
def test_an_ignore_mask(
    how: int, what: str, each_bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    """A restore sets only the masks that were set with FAN_MARK_IGNORED_MASK."""
    directory = area.ext4().mountpoint
    (directory / "file").touch()
    path = directory if what == "mount" else directory / "file"
    task, images = each_bench.target, tmp_path / "images"
    images.mkdir()
    fd = task.fanotify()
    task.add_fanotify(path, FAN_OPEN, what, fd=fd)
    flags = _FAN_MARK_ADD | _FAN_MARK_IGNORED_SURV_MODIFY | how
    task.add_fanotify(path, _FAN_ACCESS | FAN_MODIFY, what, fd=fd, flags=flags)
    before = _dump(each_bench, images)
    said, restored = _restore(each_bench, images)
    right = how == _FAN_MARK_IGNORED_MASK
    assert (before.right, said.right, restored.ok) == (right, right, right), restored
    if right:
        assert task.hears_any(fd, (directory / "file").read_bytes)
        return
    assert "ignored-mask" in restored.log
    (one,) = said.watches
    assert one.verdict is RestoreVerdict.NO_RESTORE
    (why,) = (*(one.prediction.why for one in before.watches), *(m.why for m in before.marks))
    assert "FAN_MARK_IGNORE" in why


def test_an_ignore_mask_that_is_gone_loses_the_mark(
    bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    """The flag of the mask stays with the mark, and the restore makes the mark an ignore mask."""
    file = area.ext4().mountpoint / "file"
    file.touch()
    task, images = bench.target, tmp_path / "images"
    images.mkdir()
    fd = task.fanotify()
    task.add_fanotify(file, FAN_OPEN, fd=fd)
    flags = _FAN_MARK_IGNORE | _FAN_MARK_IGNORED_SURV_MODIFY
    task.add_fanotify(file, _FAN_ACCESS, fd=fd, flags=_FAN_MARK_ADD | flags)
    task.add_fanotify(file, _FAN_ACCESS, fd=fd, flags=0x02 | _FAN_MARK_IGNORE)
    before = _dump(bench, images)
    said, restored = _restore(bench, images)
    assert (before.right, said.right, restored.ok) == (False, False, True), restored
    assert not task.hears_any(fd, file.read_bytes)


def test_an_evictable_mark(each_bench: Bench, area: MountArea, tmp_path: Path) -> None:
    file = area.ext4().mountpoint / "file"
    file.touch()
    task, images = each_bench.target, tmp_path / "images"
    images.mkdir()
    mark = task.add_fanotify(file, FAN_OPEN, flags=_FAN_MARK_ADD | _FAN_MARK_EVICTABLE)
    before = _dump(each_bench, images)
    said, restored = _restore(each_bench, images)
    assert (before.right, said.right, restored.ok) == (True, True, True), restored
    assert task.hears_any(mark.fd, file.read_bytes)


@pytest.mark.parametrize("held", ["descriptor", "cwd", "nothing of the tree"])
@pytest.mark.parametrize("kind", ["ext4", "btrfs", "overlay-upper"])
def test_a_removed_directory(
    kind: str, held: str, each_bench: Bench, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    """A restore makes it again for the task that has it open, and the watch stays."""
    place = area.place(kind)
    directory = place.directory / "removed"
    directory.mkdir()
    task, images = each_bench.target, tmp_path / "images"
    images.mkdir()
    watched = task.add_inotify(directory, IN_OPEN)
    if held == "descriptor":
        held = f"fd/{task.open(directory, os.O_RDONLY | os.O_DIRECTORY)}"
    elif held == "cwd":
        task.chdir(directory)
    else:
        stack.callback(os.close, os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    directory.rmdir()
    before = _dump(each_bench, images)
    (prediction,) = (one.prediction for one in before.watches)
    if kind == "overlay-upper" and each_bench.criu.version != "4.3":
        assert prediction.verdict is WatchVerdict.FAILS
        return
    said, restored = _restore(each_bench, images)
    (one,) = said.watches
    if held == "nothing of the tree":
        assert prediction.verdict is WatchVerdict.NO_RESTORE
        assert (one.verdict, restored.ok) == (RestoreVerdict.NO_RESTORE, False), restored
        return
    assert prediction.verdict is WatchVerdict.NO_PATH
    assert f"it was {directory}" in prediction.why
    assert (one.verdict, said.right, restored.ok) == (RestoreVerdict.BROUGHT, True, True), restored
    assert task.hears(watched, lambda: os.listdir(f"/proc/{task.pid}/{held}"))


def test_a_mark_on_a_mount_that_another_covers(
    each_bench: Bench, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    """A restore marks the mount that it finds at the place."""
    below, above = area.ext4("below").mountpoint, area.ext4("above").mountpoint
    for top in (below, above):
        (top / "file").touch()
    fd = os.open(below / "file", os.O_RDONLY)
    stack.callback(os.close, fd)
    task, images = each_bench.target, tmp_path / "images"
    images.mkdir()
    mark = task.add_fanotify(below, FAN_OPEN, "mount")
    assert each_bench.check(images).right
    area.bind(above, below)
    before = _dump(each_bench, images)
    (said,) = before.marks
    assert (said.outcome, before.right) == (CriuOutcome.WRONG_PATH, False)
    assert each_bench.criu.restore(task, images).ok

    def reopen() -> None:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))

    assert not task.hears_any(mark.fd, reopen)
    assert task.hears_any(mark.fd, (below / "file").read_bytes)


@pytest.mark.parametrize("descriptors", [1, 2])
@pytest.mark.parametrize("replaced_by", ["hard link", "symbolic link"])
def test_two_watches_that_lead_to_one_file(
    replaced_by: str, descriptors: int, each_bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    """inotify has one watch of an inode, so a second one on the same descriptor is refused."""
    top = area.ext4().mountpoint
    one, other = top / "one", top / "other"
    task, images = each_bench.target, tmp_path / "images"
    images.mkdir()
    fds = [task.inotify() for _ in range(descriptors)]
    for path, fd in ((one, fds[0]), (other, fds[-1])):
        path.touch()
        task.add_inotify(path, IN_OPEN, fd=fd)
    assert _dump(each_bench, images).right
    other.unlink()
    if replaced_by == "hard link":
        other.hardlink_to(one)
    else:
        other.symlink_to("one")
    said, restored = _restore(each_bench, images)
    refused = descriptors == 1
    verdicts = {path.watch.path: path.verdict for path in said.watches}
    assert (verdicts[os.fsencode(other)] is RestoreVerdict.TWICE) is refused, verdicts
    assert verdicts[os.fsencode(one)] is RestoreVerdict.THERE
    assert restored.ok is not refused, restored


@pytest.mark.parametrize("changed", ["renamed", "copied up", "neither"])
@pytest.mark.parametrize("forced", [False, True])
def test_check_caches_no_name_of_an_overlay(
    changed: str, each_bench: Bench, area: MountArea, *, forced: bool
) -> None:
    """The listing of a directory there can look up its entries, for the numbers of the inodes."""
    place = area.place("overlay-nfs-export")
    file = place.directory / "dir" / "file"
    watched = each_bench.target.add_inotify(file, IN_OPEN)
    if changed == "renamed":
        file.rename(place.directory / "moved")
    elif changed == "copied up":
        with file.open("a") as written:
            written.write("more")
    said = each_bench.compare(watched, prepare=lambda: drop_caches(place.directory), forced=forced)
    expected = CriuOutcome.FAILS if forced else CriuOutcome.NO_PATH
    assert (said.predicted, said.did) == (expected, expected), said


def test_a_root_with_another_device_number(
    each_criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    """As after a reboot: a restore opens the handles in the root that it gets."""
    where = stack.enter_context(stage("ext4", "own", area))
    pipes, images, file = tmp_path / "pipes", tmp_path / "images", where.root / "alone" / "file"
    task = stack.enter_context(where.task(pipes))
    watched = task.add_inotify(where.seen(file), IN_OPEN)
    for _ in range(TRIES):
        drop_caches()
        done = each_criu.dump(task.pid, images, options=where.dump_options(pipes))
        assert done.ok, done
        if each_criu.dumped_watches(images)[0].path is None:
            break  # else another process has looked at the file
    assert each_criu.dumped_watches(images)[0].path is None
    task.signal(9)
    task.wait_dead()
    root = LoopFilesystem("ext4", area.path / "base.image", where.root, "rw")
    root.remount_on_another_device()
    (one,) = check_images(images, where.root).watches
    assert one.verdict is RestoreVerdict.BY_HANDLE
    restored = each_criu.restore(task, images, options=where.restore_options(pipes))
    assert restored.ok, restored
    assert task.hears(watched, file.read_bytes)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_mounted_directory_that_was_removed(
    criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack, *, replaced: bool
) -> None:
    """The host has the mount, too: kubelet makes it for a subPath."""
    where = stack.enter_context(stage("ext4", "own", area))
    source = area.ext4("volume").mountpoint / "source"
    inside = where.root / "inside"
    for directory in (source, inside):
        directory.mkdir()
    area.bind(source, inside)
    task = stack.enter_context(where.task(tmp_path / "pipes"))
    options = DumpCheckOptions(task.pid, tmp_path, version=parse_version(criu.version))
    assert check_dump(options).right
    source.rmdir()
    if replaced:
        source.mkdir()
    (problem,) = check_dump(options).problems
    assert ("was replaced" in problem.why) is replaced, problem
    assert ("was removed" in problem.why) is not replaced, problem


@pytest.mark.parametrize("replaced", [True, False])
def test_the_source_of_a_mount_on_a_filesystem_of_the_tree(
    each_criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack, *, replaced: bool
) -> None:
    """The restore makes the filesystem, and so the source; but not if another one is there."""
    where = stack.enter_context(stage("ext4", "own", area))
    for name in ("top", "bound"):
        (where.root / name).mkdir()
    pipes, images = tmp_path / "pipes", tmp_path / "images"
    images.mkdir()
    task = stack.enter_context(where.task(pipes))
    task.mount("tmpfs", "/top", "tmpfs")
    task.mkdir("/top/source")
    task.mount("/top/source", "/bound", "none", flags=0x1000)
    task.unlink("/top/source")
    if replaced:
        task.mkdir("/top/source")
    options = DumpCheckOptions(task.pid, images, version=parse_version(each_criu.version))
    said = check_dump(options)
    dumped = each_criu.dump(
        task.pid, images, leave_running=False, options=where.dump_options(pipes)
    )
    assert dumped.ok, dumped
    restored = each_criu.restore(task, images, options=where.restore_options(pipes))
    assert (said.right, restored.ok) == (not replaced, not replaced), restored


def test_a_path_from_the_root_of_an_overlay(
    each_criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    """CRIU 4.3 writes it with two slashes."""
    where = stack.enter_context(stage("overlay", "own", area))
    pipes, images = tmp_path / "pipes", tmp_path / "images"
    task = stack.enter_context(where.task(pipes))
    path = where.seen(where.root / "alone" / "file")
    task.add_inotify(path)
    images.mkdir()
    steps.pre_dump(steps.StepOptions(task.pid, images_dir=images))
    options = DumpCheckOptions(task.pid, images, version=parse_version(each_criu.version))
    (said,) = check_dump(options).watches
    dumped = each_criu.dump(task.pid, images, options=where.dump_options(pipes))
    assert dumped.ok, dumped
    (one,) = check_images(images, where.root).watches
    assert one.watch.path == said.prediction.path == path
    (raw,) = each_criu.dumped_watches(images)
    assert (raw.path == "/" + path.decode()) is (each_criu.version == "4.3"), raw


def test_a_directory_outside_of_the_mount_that_opens_its_handle(
    each_bench: Bench, area: MountArea
) -> None:
    """It reads as "/", and no pre-dump changes that: its name was known before."""
    whole = area.tmpfs()
    for name in ("one", "other"):
        (whole / name).mkdir()
        (area.path / name).mkdir()
        area.bind(whole / name, area.path / name)
    hidden = area.path / "hidden"
    hidden.mkdir()
    area.bind(hidden, whole)
    watched = each_bench.target.add_inotify(area.path / "one", IN_OPEN)
    require(os.stat("/").st_ino == watched.st_ino, "a root directory with the inode number 2")
    said = each_bench.compare(watched, cache=each_bench.pre_dump())
    assert said.verdict is WatchVerdict.WRONG_PATH
    assert said.did is CriuOutcome.WRONG_PATH
    assert "pre-dump" not in said.prediction.advice


def test_a_removed_directory_under_fanotify(
    each_bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    directory = area.ext4().mountpoint / "removed"
    directory.mkdir()
    task, images = each_bench.target, tmp_path / "images"
    images.mkdir()
    held = task.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    mark = task.add_fanotify(directory, FAN_OPEN | FAN_ONDIR)
    directory.rmdir()
    (one,) = _dump(each_bench, images).watches
    assert one.prediction.verdict is WatchVerdict.NO_PATH
    said, restored = _restore(each_bench, images)
    assert (said.right, restored.ok) == (True, True), restored
    assert task.hears_any(mark.fd, lambda: os.listdir(f"/proc/{task.pid}/fd/{held}"))


def test_a_watch_on_a_filesystem_that_another_mount_covers(
    each_bench: Bench, area: MountArea
) -> None:
    below, above = area.ext4("below").mountpoint, area.ext4("above").mountpoint
    (below / "file").touch()
    watched = each_bench.target.add_inotify(below / "file", IN_OPEN)
    area.bind(above, below)
    said = each_bench.compare(watched, cache=each_bench.pre_dump())
    assert (said.verdict, said.did) == (WatchVerdict.FAILS, CriuOutcome.FAILS), said
    assert f"another mount covers its filesystem at {below}" in said.prediction.why
    assert "unmount what covers it" in said.prediction.advice


def test_a_directory_in_the_place_of_a_subvolume(each_bench: Bench, area: MountArea) -> None:
    """The snapshot has no inode for it, so no handle opens, and pre-dump proves no path."""
    layout = btrfs_layout(area.btrfs().mountpoint)
    watched = each_bench.target.add_inotify(layout.snapshot / "nested", IN_OPEN)
    said = each_bench.compare(watched, cache=each_bench.pre_dump())
    assert (said.verdict, said.did) == (WatchVerdict.FAILS, CriuOutcome.FAILS), said
    assert "pre-dump" not in said.prediction.advice
