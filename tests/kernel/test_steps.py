"""pre-dump and dump on real processes: every path beside the truth that the process kept."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from irmapdb import steps
from irmapdb.config import Config
from irmapdb.errors import (
    DatabaseError,
    FileError,
    FreezeError,
    ImageError,
    IrmapError,
    TaskError,
    UsageError,
)
from irmapdb.image import cache, fsnotify
from irmapdb.model import Change, ChangeKind, Event, MarkKind, StaleReason, WatchKind, kdev_of
from irmapdb.steps import FreezeOptions, Options, Report
from irmapdb.store.database import Store
from tests.kernel.freezing import state, until
from tests.support.area import PLACES, MountArea
from tests.support.cli import irmapdb
from tests.support.features import require, require_program
from tests.support.filesystems import Overlay, drop_caches, tmpfs
from tests.support.notify import InotifyEvent
from tests.support.programs import run
from tests.support.watcher import Watcher

CHECKOUT = Path(__file__).parents[2]

# Nothing but what a test names is walked: the machine's own trees are none of its business.
_NO_HINTS = Config(hints=())


def _options(watcher: Watcher, work: Path, *scan: Path) -> Options:
    paths = tuple(os.fsencode(path) for path in scan)
    return Options(watcher.pid, images_dir=work, scan_paths=paths, config=_NO_HINTS)


def _work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


def _answers(report: Report) -> dict[tuple[WatchKind, int, int], bytes | None]:
    return {
        (row.watch.kind, row.watch.wd, row.watch.identity.ino): row.path for row in report.watches
    }


def _truth(watcher: Watcher) -> dict[tuple[WatchKind, int, int], bytes]:
    return {
        (WatchKind(one.kind), one.wd if one.kind == "inotify" else -1, one.st_ino): one.path
        for one in watcher.watched
        if one.what == "inode"
    }


def _events_of(watcher: Watcher, written: Path) -> list[InotifyEvent]:
    watcher.events()
    written.write_text("heard")
    return [event for event in watcher.events() if isinstance(event, InotifyEvent)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    for number in range(4):
        directory = top / f"d{number}" / "deep"
        directory.mkdir(parents=True)
        for name in ("a", "b"):
            (directory / name).write_text(name)
    return top


def _watch_all(watcher: Watcher, tree: Path) -> None:
    for path in sorted(tree.rglob("*")):
        watcher.add_inotify(path)
    for path in sorted(tree.glob("d*/deep/a")):
        watcher.add_fanotify(path)
    watcher.add_fanotify(tree, what="mount")


def test_pre_dump_finds_every_path(watcher: Watcher, tree: Path, tmp_path: Path) -> None:
    _watch_all(watcher, tree)
    work = _work(tmp_path)

    report = steps.pre_dump(_options(watcher, work))

    assert _answers(report) == _truth(watcher)
    assert [(row.mark.kind, row.comm) for row in report.marks] == [
        (MarkKind.MOUNT, report.watches[0].comm)
    ]
    assert watcher.state() in "SR"
    entries = cache.decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    assert {entry.path for entry in entries} == set(_truth(watcher).values())
    assert os.stat(work / "irmap-cache").st_mode & 0o777 == 0o600
    assert os.stat(work / "irmap.db").st_mode & 0o777 == 0o600


def test_a_second_pre_dump_asks_the_database_first(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    _watch_all(watcher, tree)
    work = _work(tmp_path)
    steps.pre_dump(_options(watcher, work))

    report = steps.pre_dump(_options(watcher, work))

    assert report.stats.sources == {"stored": report.stats.hits}
    assert report.loaded == 0, "its own image was read again"
    assert report.changes == ()


def test_dump_writes_images_that_tell_the_same(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    _watch_all(watcher, tree)
    work, images = _work(tmp_path), tmp_path / "images"
    images.mkdir()

    report = steps.dump(
        Options(watcher.pid, images_dir=images, work_dir=work, config=_NO_HINTS), FreezeOptions()
    )

    truth = _truth(watcher)
    assert _answers(report) == truth
    assert report.stats.frozen_us > 0
    (inotify,) = fsnotify.decode_inotify((images / "inotify.img").read_bytes(), "inotify.img")
    assert {(watch.wd, watch.path) for watch in inotify.watches} == {
        (wd, path) for (kind, wd, _), path in truth.items() if kind is WatchKind.INOTIFY
    }
    (fanotify,) = fsnotify.decode_fanotify((images / "fanotify.img").read_bytes(), "fanotify.img")
    assert {watch.path for watch in fanotify.watches} == {
        path for (kind, _, _), path in truth.items() if kind is WatchKind.FANOTIFY
    }
    assert watcher.state() in "SR"
    heard = next(one for one in watcher.watched if one.path.endswith(b"d3/deep/a"))
    assert heard.wd in {event.wd for event in _events_of(watcher, tree / "d3/deep/a")}


def test_what_moves_between_prepare_and_freeze_is_found_where_it_is(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _watch_all(watcher, tree)
    work = _work(tmp_path)
    stop_tasks = steps.freeze.frozen

    def rename_then_stop(*args: object, **kwargs: object) -> object:
        # The last moment at which a path can go wrong unseen: all is proved, nobody is stopped.
        (tree / "d1").rename(tree / "moved")
        (tree / "d2/deep/a").rename(tree / "d2/deep/c")
        return stop_tasks(*args, **kwargs)

    monkeypatch.setattr(steps.freeze, "frozen", rename_then_stop)
    report = steps.dump(_options(watcher, work, tree), FreezeOptions())

    def now(path: bytes) -> bytes:
        top = os.fsencode(tree)
        moved = path.replace(top + b"/d1", top + b"/moved")
        return moved.replace(b"/d2/deep/a", b"/d2/deep/c")

    assert _answers(report) == {key: now(path) for key, path in _truth(watcher).items()}


def test_a_watch_added_after_prepare_is_dumped_too(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _watch_all(watcher, tree)
    stop_tasks = steps.freeze.frozen

    def watch_then_stop(*args: object, **kwargs: object) -> object:
        (tree / "late").write_text("late")
        watcher.add_inotify(tree / "late")
        return stop_tasks(*args, **kwargs)

    monkeypatch.setattr(steps.freeze, "frozen", watch_then_stop)
    report = steps.dump(_options(watcher, _work(tmp_path), tree), FreezeOptions())

    assert _answers(report) == _truth(watcher)
    assert os.fsencode(tree / "late") in {row.path for row in report.watches}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_what_the_time_in_the_freeze_went_into(
    area: MountArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    top = area.ext4().mountpoint
    for name in ("moves", "stays", "late"):
        (top / name).touch()
    # In a namespace of its own nobody mounts anything meanwhile, which would be a cause too.
    watcher = stack.enter_context(Watcher(unshare={"mount"}))
    watcher.add_inotify(top / "moves")
    watcher.add_inotify(top / "stays")
    work = _work(tmp_path)
    quiet = steps.dump(_options(watcher, work), FreezeOptions()).stats
    assert (quiet.tasks_frozen, quiet.reparsed, quiet.reproved, quiet.reproved_why) == (1, 0, 0, "")
    stop_tasks = steps.freeze.frozen

    def change_then_stop(*args: object, **kwargs: object) -> object:
        (top / "moves").rename(top / "moved")
        watcher.add_inotify(top / "late")
        return stop_tasks(*args, **kwargs)

    monkeypatch.setattr(steps.freeze, "frozen", change_then_stop)
    busy = steps.dump(_options(watcher, work), FreezeOptions()).stats
    assert (busy.tasks_frozen, busy.reparsed) == (1, 1)
    assert (busy.reproved, busy.reproved_why) == (1, "renamed 1")
    for stats in (quiet, busy):
        parts = (stats.reread_us, stats.confirm_us, stats.frozen_resolve_us)
        assert stats.reread_us > 0
        assert sum(parts) <= stats.frozen_us
    assert busy.frozen_resolve_us > 0
    monkeypatch.undo()
    before = steps.pre_dump(_options(watcher, work)).stats
    assert (before.tasks_frozen, before.reread_us, before.frozen_resolve_us) == (0, 0, 0)
    with Store.open_readonly(work / "irmap.db") as store:
        assert [run.stats for run in store.runs()] == [quiet, busy, before]


def test_leave_stopped(watcher: Watcher, tree: Path, tmp_path: Path) -> None:
    _watch_all(watcher, tree)
    steps.dump(_options(watcher, _work(tmp_path)), FreezeOptions(leave_stopped=True))
    until(lambda: watcher.state() == "T", "the task is stopped")
    watcher.signal(signal.SIGCONT)


def test_leave_stopped_lets_go_of_them_where_nothing_could_be_written(
    area: MountArea, watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    _watch_all(watcher, tree)
    with tmpfs(area.path / "full", size_mib=1) as images:
        options = replace(_options(watcher, _work(tmp_path)), images_dir=images, work_dir=tmp_path)
        (images / "filling").write_bytes(bytes(os.statvfs(images).f_bavail * mmap.PAGESIZE))
        with pytest.raises(FileError, match="No space left"):
            steps.dump(options, FreezeOptions(leave_stopped=True))
    assert watcher.state() in "SR"


@pytest.mark.parametrize("moment", ["linkat", "renameat"])
def test_leave_stopped_lets_go_of_them_when_it_is_killed(
    watcher: Watcher, tree: Path, tmp_path: Path, moment: str
) -> None:
    require_program("strace")
    _watch_all(watcher, tree)
    work = _work(tmp_path)
    done = subprocess.run(
        [
            *("strace", "-o", os.devnull, "-e", f"inject={moment}:signal=KILL"),
            *(sys.executable, "cli.py", "dump", "--leave-stopped"),
            *("-t", str(watcher.pid), "-D", work),
        ],
        cwd=CHECKOUT,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL
    until(lambda: watcher.state() in "SR", "the task runs")


def test_leave_stopped_never_lets_them_run_in_between(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _watch_all(watcher, tree)
    write = steps.handover.cache_entries
    seen = []

    def look_and_write(*args: object) -> object:
        seen.append(watcher.state())
        return write(*args)

    monkeypatch.setattr(steps.handover, "cache_entries", look_and_write)
    steps.dump(_options(watcher, _work(tmp_path)), FreezeOptions(leave_stopped=True))
    assert seen == ["t"]
    until(lambda: watcher.state() == "T", "the task is stopped")
    watcher.signal(signal.SIGCONT)


def test_the_scenario_of_criu_test_inotify_irmap(watcher: Watcher, tmp_path: Path) -> None:
    one, two, spare = (tmp_path / name for name in ("zdtm-test", "zdtm-test1", "spare"))
    one.write_text("1")
    two.write_text("2")
    first, second = watcher.add_inotify(one), watcher.add_inotify(two)
    work = _work(tmp_path)
    options = _options(watcher, work)
    here = {first.wd: os.fsencode(one), second.wd: os.fsencode(two)}
    there = {first.wd: os.fsencode(two), second.wd: os.fsencode(one)}

    def swap() -> None:
        one.rename(spare)
        two.rename(one)
        spare.rename(two)

    def paths(report: Report) -> dict[int, bytes | None]:
        return {row.watch.wd: row.path for row in report.watches}

    assert paths(steps.pre_dump(options)) == here
    swap()
    assert paths(steps.pre_dump(options)) == there
    swap()
    assert paths(steps.dump(options, FreezeOptions())) == here

    with Store.open_readonly(work / "irmap.db") as store:
        story = [(row.run_id, row.change) for row in store.changes()]
        live = {(row.identity.ino, row.path) for row in store.all_mappings() if not row.stale}
    assert [(run, change.kind) for run, change in story] == [
        (1, ChangeKind.FOUND),
        (1, ChangeKind.FOUND),
        (2, ChangeKind.MOVED),
        (2, ChangeKind.MOVED),
        (3, ChangeKind.MOVED),
        (3, ChangeKind.MOVED),
    ]
    moves = {(change.old_path, change.path, change.reason) for _, change in story[2:]}
    assert moves == {
        (os.fsencode(one), os.fsencode(two), StaleReason.REPLACED),
        (os.fsencode(two), os.fsencode(one), StaleReason.REPLACED),
    }
    assert live == {(first.st_ino, os.fsencode(one)), (second.st_ino, os.fsencode(two))}


def test_an_image_that_is_newer_is_taken_in(watcher: Watcher, tree: Path, tmp_path: Path) -> None:
    watched = watcher.add_inotify(tree / "d0/deep/a")
    work = _work(tmp_path)
    wrong = cache.CacheEntry(watched.st_kdev, watched.st_ino, os.fsencode(tree / "d0/deep/b"))
    right = wrong._replace(path=watched.path)
    (work / "irmap-cache").write_bytes(cache.encode_cache([right, wrong]))

    report = steps.pre_dump(_options(watcher, work))

    assert report.loaded == 2
    assert [row.path for row in report.watches] == [watched.path]
    assert (
        Change(
            ChangeKind.STALE,
            report.changes[0].identity,
            os.fsencode(tree / "d0/deep/b"),
            reason=StaleReason.REPLACED,
        )
        in report.changes
    )


def test_the_cache_of_the_previous_images_serves(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watched = watcher.add_inotify(tree / "d0/deep/a")
    images, previous = tmp_path / "2", tmp_path / "1"
    images.mkdir()
    previous.mkdir()
    entry = cache.CacheEntry(watched.st_kdev, watched.st_ino, watched.path)
    (previous / "irmap-cache").write_bytes(cache.encode_cache([entry]))

    report = steps.pre_dump(
        Options(watcher.pid, images_dir=images, prev_images_dir=Path("../1"), config=_NO_HINTS)
    )

    assert (report.loaded, report.stats.sources) == (1, {"stored": 1})


def test_the_cache_behind_the_link_that_criu_makes_serves(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watched = watcher.add_inotify(tree / "d0/deep/a")
    entry = cache.CacheEntry(watched.st_kdev, watched.st_ino, watched.path)
    for number in ("1", "2", "3"):
        (tmp_path / number).mkdir()
    (tmp_path / "1" / "irmap-cache").write_bytes(cache.encode_cache([entry]))
    for number in ("2", "3"):
        (tmp_path / number / "parent").symlink_to("../1")
    options = Options(watcher.pid, images_dir=tmp_path / "2", config=_NO_HINTS)

    report = steps.pre_dump(options)
    assert (report.loaded, report.stats.sources) == (1, {"stored": 1})

    # What is named comes in its place, and the work dir's own before both.
    other = replace(options, images_dir=tmp_path / "3", prev_images_dir=tmp_path / "3")
    assert steps.pre_dump(other).loaded == 0
    (tmp_path / "1" / "irmap-cache").write_bytes(b"")
    assert steps.pre_dump(options).loaded == 0


def test_a_link_to_images_that_are_gone_is_nothing(watcher: Watcher, tmp_path: Path) -> None:
    work = _work(tmp_path)
    (work / "parent").symlink_to("../gone")
    assert steps.pre_dump(_options(watcher, work)).loaded == 0


@pytest.mark.parametrize("name", ["gone", "file"])
def test_previous_images_that_are_not_there(watcher: Watcher, tmp_path: Path, name: str) -> None:
    work = _work(tmp_path)
    (tmp_path / "file").touch()
    options = replace(_options(watcher, work), prev_images_dir=Path("..", name))
    with pytest.raises(FileError, match=f"{name}: .* directory; .* --prev-images-dir"):
        steps.pre_dump(options)
    assert list(work.iterdir()) == []


def test_descriptors_that_children_inherit_are_one(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watcher.add_inotify(tree / "d0")
    child = watcher.fork()
    child.add_inotify(tree / "d1")  # the same instance: the parent sees it too

    report = steps.dump(_options(watcher, _work(tmp_path)), FreezeOptions())

    assert sorted(row.path or b"" for row in report.watches) == [
        os.fsencode(tree / "d0"),
        os.fsencode(tree / "d1"),
    ]


def test_a_process_whose_first_thread_has_ended(tree: Path, tmp_path: Path) -> None:
    program = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
libc.inotify_add_watch(libc.inotify_init1(0), os.fsencode(sys.argv[1]), 2)
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
libc.syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""
    command = [sys.executable, "-c", program, tree]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            until(lambda: state(process.pid) == "Z", "its first thread has ended")
            options = Options(process.pid, images_dir=_work(tmp_path), config=_NO_HINTS)
            for report in (steps.pre_dump(options), steps.dump(options, FreezeOptions())):
                assert [(row.watch.pid, row.path) for row in report.watches] == [
                    (process.pid, os.fsencode(tree))
                ]
        finally:
            process.kill()


def test_watches_of_a_deleted_file_are_told_as_deleted(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    path = tree / "d0/deep/a"
    watcher.add_inotify(path)
    watcher.open(path)
    path.unlink()

    report = steps.pre_dump(_options(watcher, _work(tmp_path)))

    assert [(row.path, row.why) for row in report.watches] == [(None, "handle: deleted")]


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


def test_what_another_mount_namespace_has_is_told_as_its_own(
    area: MountArea, tmp_path: Path
) -> None:
    place, common, work = area.path / "private", tmp_path / "common", _work(tmp_path)
    place.mkdir()
    common.touch()
    command = [sys.executable, "-c", _NESTED, place, common]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as root:
        try:
            assert root.stdout is not None
            pid, st_dev = map(int, root.stdout.readline().split())
            mntns = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            options = Options(root.pid, images_dir=work, config=_NO_HINTS)
            report = steps.dump(options, FreezeOptions())
            said = irmapdb("dump", "-t", str(root.pid), "-D", work)
            as_json = json.loads(irmapdb("pre-dump", "-t", str(root.pid), "-D", work, "--json").out)
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


@pytest.mark.parametrize("kind", PLACES)
def test_filesystems(area: MountArea, watcher: Watcher, tmp_path: Path, kind: str) -> None:
    place = area.place(kind)
    for path in (place.directory, place.directory / "file", place.mountpoint):
        watcher.add_inotify(path)
        watcher.add_fanotify(path)

    scan = (place.mountpoint,) if kind == "fuse" else ()
    report = steps.dump(_options(watcher, _work(tmp_path), *scan), FreezeOptions())

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


def test_a_filesystem_that_comes_back_as_another_device(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    filesystem = area.ext4()
    path = filesystem.mountpoint / "file"
    path.touch()
    work = _work(tmp_path)
    before = watcher.add_inotify(path)
    steps.pre_dump(_options(watcher, work))
    watcher.remove(before)
    filesystem.remount_on_another_device()
    after = watcher.add_inotify(path)

    report = steps.pre_dump(_options(watcher, work, filesystem.mountpoint))

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
            options = replace(_options(watcher, work), database=database)
            return [change.kind for change in steps.pre_dump(options).changes]

        assert step(one) == [ChangeKind.FOUND]
        assert step(other) == [ChangeKind.FOUND]
        assert step(one) == []
        # What is mounted nowhere any more is stale, whoever looks.
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


def test_what_a_nested_namespace_has_unmounted_is_stale(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    directories = [area.path / name for name in ("kept", "place")]
    for directory in directories:
        directory.mkdir()
    kept, gone = (os.fsencode(directory / "own") for directory in directories)
    work = _work(tmp_path)
    command = [sys.executable, "-c", _UNMOUNTING, *directories]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as root:
        assert root.stdin is not None
        assert root.stdout is not None
        mntns = int(root.stdout.readline())
        options = Options(root.pid, images_dir=work, config=_NO_HINTS)

        def step(options: Options) -> set[tuple[bytes | None, StaleReason | None, int]]:
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
        database = replace(_options(watcher, tmp_path / "other"), database=work / "irmap.db")
        database.images_dir.mkdir()
        assert step(database) == set()
        assert step(options) == {(gone, StaleReason.UNMOUNTED, mntns)}
        assert step(options) == set()
        # And where nobody watches in it any more, its own rows stay as they are.
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
    # What is hidden has its own name on the layer alone.
    for path in ("opaque", "opaque/file", "opaque/hidden"):
        watcher.add_inotify(base / "lower" / path)
    if cold:
        drop_caches()

    work = _work(tmp_path)
    for step in (steps.pre_dump, lambda options: steps.dump(options, FreezeOptions())):
        report = step(_options(watcher, work, top, base))
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
    work = _work(tmp_path)
    options = _options(watcher, work, place.mountpoint)
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
    work = _work(tmp_path)
    steps.pre_dump(_options(watcher, work))
    path.unlink()
    path.touch()
    after = watcher.add_inotify(path)
    assert after.st_ino == before.st_ino, "ext4 takes the number that became free last"

    report = steps.dump(_options(watcher, work), FreezeOptions())

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
    # the change tells of that.
    with Store.open_readonly(work / "irmap.db") as store:
        (mapping,) = store.all_mappings()
    assert (mapping.identity, mapping.stale) == (found, False)


# Bad input: a clear error, and nothing changed.


def test_a_missing_task_changes_nothing(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    work = _work(tmp_path)
    with pytest.raises(TaskError, match=str(gone.pid)):
        steps.pre_dump(Options(gone.pid, images_dir=work))
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("scan", "message"), [(b"relative", "not absolute"), (b"/nowhere/at/all", "No such file")]
)
def test_a_bad_scan_path(watcher: Watcher, tmp_path: Path, scan: bytes, message: str) -> None:
    work = _work(tmp_path)
    with pytest.raises(FileError, match=message):
        steps.pre_dump(Options(watcher.pid, images_dir=work, scan_paths=(scan,)))
    assert list(work.iterdir()) == []


def test_a_scan_path_that_is_a_symbolic_link_is_refused(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tree)
    work = _work(tmp_path)
    for spelled in (b"/link", b"/link/"):
        path = os.fsencode(tmp_path) + spelled
        with pytest.raises(FileError, match=r"link/?: is a symbolic link.*; name its target"):
            steps.pre_dump(Options(watcher.pid, images_dir=work, scan_paths=(path,)))
    assert list(work.iterdir()) == []


def test_a_scan_path_of_the_configuration_that_is_no_use_is_told(
    watcher: Watcher, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(tree)
    watched = watcher.add_inotify(tree / "d0")
    paths = (b"/nowhere/at/all", os.fsencode(tmp_path / "link"), b"relative", os.fsencode(tree))
    config = replace(_NO_HINTS, scan_paths=paths)
    report = steps.pre_dump(Options(watcher.pid, images_dir=_work(tmp_path), config=config))
    assert [row.path for row in report.watches] == [watched.path]
    missing = "No such file or directory in the root of the tasks"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"[scan] paths: /nowhere/at/all: {missing}; not scanned",
        f"[scan] paths: {tmp_path}/link: is a symbolic link, which is not followed; not scanned",
        "[scan] paths: relative: not absolute; not scanned",
    ]


def test_a_work_dir_that_is_not_there(watcher: Watcher, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such directory"):
        steps.pre_dump(Options(watcher.pid, images_dir=tmp_path / "none"))


def test_a_cut_image_is_refused_and_left(watcher: Watcher, tmp_path: Path) -> None:
    work = _work(tmp_path)
    (work / "irmap-cache").write_bytes(b"\x40\x59\x10\x55")
    with pytest.raises(ImageError, match="irmap-cache"):
        steps.pre_dump(_options(watcher, work))
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
    work, previous = _work(tmp_path), tmp_path / "previous"
    previous.mkdir()
    directory = {"work": work, "previous": previous}[where]
    (directory / "irmap-cache").write_bytes(data)
    options = replace(_options(watcher, work), prev_images_dir=previous)
    for step in (steps.pre_dump, lambda options: steps.dump(options, FreezeOptions())):
        with pytest.raises(ImageError, match="irmap-cache"):
            step(options)
        assert [*work.iterdir(), *previous.iterdir()] == [directory / "irmap-cache"]


@pytest.mark.parametrize("step", ["pre-dump", "dump"])
def test_a_kernel_thread_is_told_as_one(tmp_path: Path, step: str) -> None:
    work = _work(tmp_path)
    kthreadd = Path("/proc/2/comm")
    require(kthreadd.exists() and kthreadd.read_text() == "kthreadd\n", "kernel threads in /proc")
    said = irmapdb(step, "-t", "2", "-D", work)
    assert said.code == 1
    assert said.err.startswith("irmapdb: task 2 (kthreadd) is a kernel thread; ")
    assert list(work.iterdir()) == []


def test_whom_nobody_can_freeze_is_refused_before_anything_is_done(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher.add_inotify(tree)
    work = _work(tmp_path)
    monkeypatch.setattr(steps, "read_survey", None)
    wrong = [
        (os.getpid(), None, UsageError, "is this process, or has started it"),
        (os.getppid(), None, UsageError, "is this process, or has started it"),
        (watcher.pid, tmp_path, UsageError, "has neither cgroup.freeze nor freezer.state"),
        (watcher.pid, tmp_path / "none", UsageError, "is not a directory"),
    ]
    for pid, cgroup, error, message in wrong:
        options = replace(_options(watcher, work), pid=pid)
        with pytest.raises(error, match=message):
            steps.dump(options, FreezeOptions(cgroup=cgroup))
        assert list(work.iterdir()) == []


@pytest.mark.parametrize("name", ["irmap-cache", "inotify.img", "fanotify.img"])
@pytest.mark.parametrize("what", ["symlink", "directory"])
def test_what_cannot_be_replaced_is_told_before_anything_is_done(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    work = _work(tmp_path)
    if what == "symlink":
        (work / name).symlink_to(tmp_path)
    else:
        (work / name).mkdir()
    monkeypatch.setattr(steps.freeze, "frozen", None)
    with pytest.raises(FileError, match=f"cannot replace .*/{name}: it is a"):
        steps.dump(_options(watcher, work), FreezeOptions(leave_stopped=True))
    assert [path.name for path in work.iterdir()] == [name]


def test_a_full_disk_leaves_the_images_of_the_dump_before(
    area: MountArea, watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watcher.add_inotify(tree)
    watcher.add_fanotify(tree)
    with tmpfs(area.path / "images", size_mib=1) as images:
        options = replace(_options(watcher, images), database=tmp_path / "irmap.db")
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
def test_a_database_that_is_full_leaves_everything_as_it_was(
    area: MountArea, watcher: Watcher, tmp_path: Path, database: str
) -> None:
    images, new = _work(tmp_path), database == "new"
    many = [tmp_path / f"a-file-with-a-rather-long-name-{number}" for number in range(3000)]
    for path in many:
        path.touch()
    with tmpfs(area.path / "small", size_mib=1) as place:
        options = replace(_options(watcher, images), database=place / "irmap.db")
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
    work, victim = _work(tmp_path), tmp_path / "victim"
    victim.write_bytes(cache.encode_cache([]))
    (work / name).symlink_to(victim)
    with pytest.raises(IrmapError, match=name):
        steps.pre_dump(_options(watcher, work))
    assert victim.read_bytes() == cache.encode_cache([])


def test_a_task_that_is_traced_is_told_and_nothing_is_written(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    require_program("strace")
    watcher.add_inotify(tree)
    work = _work(tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    steps.pre_dump(_options(watcher, work))
    command = ["strace", "-o", os.devnull, "-p", str(watcher.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        tracer.stderr.readline()  # "attached"
        with pytest.raises(FreezeError, match="strace"):
            steps.dump(_options(watcher, work), FreezeOptions())
        with pytest.raises(FreezeError, match="strace"):
            steps.dump(_options(watcher, fresh), FreezeOptions())
        tracer.kill()
    assert not list(fresh.iterdir())
    assert not (work / "inotify.img").exists()
    with Store.open_readonly(work / "irmap.db") as store:
        _, run = store.runs()
    assert (run.event, run.outcome.startswith("failed: ")) == (Event.DUMP, True)


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
        steps.pre_dump(Options(other.pid, tmp_path, config=config))
        watcher.add_inotify(two_subvolumes / "dB")
        drop_caches()
        # Its candidates are those of its number: the stored row of dA is one, and is right.
        report = steps.pre_dump(Options(watcher.pid, tmp_path, config=config))
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
    options = Options(watcher.pid, tmp_path, config=Config(hints=()))
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
    frozen = steps.freeze.frozen

    def drop_and_freeze(*args, **more):
        drop_caches()
        return frozen(*args, **more)

    monkeypatch.setattr(steps.freeze, "frozen", drop_and_freeze)
    report = steps.dump(Options(watcher.pid, tmp_path, config=Config(hints=())), FreezeOptions())
    assert {row.watch.wd: row.path for row in report.watches} == truth
    assert all(row.watch.identity.handle for row in report.watches)
