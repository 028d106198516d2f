"""pre-dump and dump on real processes: every path beside the list of the process itself."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.checkpoint.transaction import StepReport
from irmapdb.errors import FileError, FreezeError
from irmapdb.image import cache, fsnotify
from irmapdb.kernel.own_freezer import stop_tree
from irmapdb.model import Change, ChangeKind, MarkKind, StaleReason, WatchKind
from irmapdb.store.database import Store
from tests.support.area import MountArea
from tests.support.features import require_program
from tests.support.filesystems import tmpfs
from tests.support.freezing import state, until
from tests.support.stepping import (
    NO_HINTS,
    answers_of,
    events_of,
    new_work_dir,
    options_for,
    truth_of,
    watch_all,
)
from tests.support.watcher import Watcher

CHECKOUT = Path(__file__).parents[2]


def test_pre_dump_finds_every_path(watcher: Watcher, tree: Path, tmp_path: Path) -> None:
    watch_all(watcher, tree)
    work = new_work_dir(tmp_path)

    report = steps.pre_dump(options_for(watcher, work))

    assert answers_of(report) == truth_of(watcher)
    assert [(row.mark.kind, row.comm) for row in report.marks] == [
        (MarkKind.MOUNT, report.watches[0].comm)
    ]
    assert watcher.state() in "SR"
    entries = cache.decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    assert {entry.path for entry in entries} == set(truth_of(watcher).values())
    assert os.stat(work / "irmap-cache").st_mode & 0o777 == 0o600
    assert os.stat(work / "irmap.db").st_mode & 0o777 == 0o600


def test_a_second_pre_dump_asks_the_database_first(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watch_all(watcher, tree)
    work = new_work_dir(tmp_path)
    steps.pre_dump(options_for(watcher, work))

    report = steps.pre_dump(options_for(watcher, work))

    assert report.stats.sources == {"stored": report.stats.hits}
    assert report.loaded == 0, "its own image was read again"
    assert report.changes == ()


def test_dump_writes_images_with_the_same_watches(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watch_all(watcher, tree)
    work, images = new_work_dir(tmp_path), tmp_path / "images"
    images.mkdir()

    report = steps.dump(
        StepOptions(watcher.pid, images_dir=images, work_dir=work, config=NO_HINTS), FreezeOptions()
    )

    truth = truth_of(watcher)
    assert answers_of(report) == truth
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
    assert heard.wd in {event.wd for event in events_of(watcher, tree / "d3/deep/a")}


def test_a_file_that_moves_between_prepare_and_freeze_has_its_new_path(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_all(watcher, tree)
    work = new_work_dir(tmp_path)
    stop_tasks = stop_tree.frozen

    def rename_then_stop(*args: object, **kwargs: object) -> object:
        # The last moment at which a path can go wrong unseen: all is proved, no task is stopped.
        (tree / "d1").rename(tree / "moved")
        (tree / "d2/deep/a").rename(tree / "d2/deep/c")
        return stop_tasks(*args, **kwargs)

    monkeypatch.setattr(stop_tree, "frozen", rename_then_stop)
    report = steps.dump(options_for(watcher, work, tree), FreezeOptions())

    def now(path: bytes) -> bytes:
        top = os.fsencode(tree)
        moved = path.replace(top + b"/d1", top + b"/moved")
        return moved.replace(b"/d2/deep/a", b"/d2/deep/c")

    assert answers_of(report) == {key: now(path) for key, path in truth_of(watcher).items()}


def test_a_watch_added_after_prepare_is_dumped_too(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_all(watcher, tree)
    stop_tasks = stop_tree.frozen

    def watch_then_stop(*args: object, **kwargs: object) -> object:
        (tree / "late").write_text("late")
        watcher.add_inotify(tree / "late")
        return stop_tasks(*args, **kwargs)

    monkeypatch.setattr(stop_tree, "frozen", watch_then_stop)
    report = steps.dump(options_for(watcher, new_work_dir(tmp_path), tree), FreezeOptions())

    assert answers_of(report) == truth_of(watcher)
    assert os.fsencode(tree / "late") in {row.path for row in report.watches}


def test_the_parts_of_the_time_in_the_freeze(
    area: MountArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    top = area.ext4().mountpoint
    for name in ("moves", "stays", "late"):
        (top / name).touch()
    # In its own namespace no other process mounts anything, which would be a cause too.
    watcher = stack.enter_context(Watcher(unshare={"mount"}))
    watcher.add_inotify(top / "moves")
    watcher.add_inotify(top / "stays")
    work = new_work_dir(tmp_path)
    quiet = steps.dump(options_for(watcher, work), FreezeOptions()).stats
    assert (quiet.tasks_frozen, quiet.reparsed, quiet.reproved, quiet.reproved_why) == (1, 0, 0, "")
    stop_tasks = stop_tree.frozen

    def change_then_stop(*args: object, **kwargs: object) -> object:
        (top / "moves").rename(top / "moved")
        watcher.add_inotify(top / "late")
        return stop_tasks(*args, **kwargs)

    monkeypatch.setattr(stop_tree, "frozen", change_then_stop)
    busy = steps.dump(options_for(watcher, work), FreezeOptions()).stats
    assert (busy.tasks_frozen, busy.reparsed) == (1, 1)
    assert (busy.reproved, busy.reproved_why) == (1, "renamed 1")
    for stats in (quiet, busy):
        parts = (stats.reread_us, stats.confirm_us, stats.frozen_resolve_us)
        assert stats.reread_us > 0
        assert sum(parts) <= stats.frozen_us
    assert busy.frozen_resolve_us > 0
    monkeypatch.undo()
    before = steps.pre_dump(options_for(watcher, work)).stats
    assert (before.tasks_frozen, before.reread_us, before.frozen_resolve_us) == (0, 0, 0)
    with Store.open_readonly(work / "irmap.db") as store:
        assert [run.stats for run in store.runs()] == [quiet, busy, before]


def test_leave_stopped(watcher: Watcher, tree: Path, tmp_path: Path) -> None:
    watch_all(watcher, tree)
    steps.dump(options_for(watcher, new_work_dir(tmp_path)), FreezeOptions(leave_stopped=True))
    until(lambda: watcher.state() == "T", "the task is stopped")
    watcher.signal(signal.SIGCONT)


def test_leave_stopped_lets_the_tasks_run_if_no_file_could_be_written(
    area: MountArea, watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watch_all(watcher, tree)
    with tmpfs(area.path / "full", size_mib=1) as images:
        options = options_for(watcher, new_work_dir(tmp_path))
        options = options._replace(images_dir=images, work_dir=tmp_path)
        (images / "filling").write_bytes(bytes(os.statvfs(images).f_bavail * mmap.PAGESIZE))
        with pytest.raises(FileError, match="No space left"):
            steps.dump(options, FreezeOptions(leave_stopped=True))
    assert watcher.state() in "SR"


@pytest.mark.parametrize("moment", ["linkat", "renameat"])
def test_leave_stopped_lets_the_tasks_run_if_it_is_killed(
    watcher: Watcher, tree: Path, tmp_path: Path, moment: str
) -> None:
    require_program("strace")
    watch_all(watcher, tree)
    work = new_work_dir(tmp_path)
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
    watch_all(watcher, tree)
    write = steps.criu_cache.cache_entries
    seen = []

    def look_and_write(*args: object) -> object:
        seen.append(watcher.state())
        return write(*args)

    monkeypatch.setattr(steps.criu_cache, "cache_entries", look_and_write)
    steps.dump(options_for(watcher, new_work_dir(tmp_path)), FreezeOptions(leave_stopped=True))
    assert seen == ["t"]
    until(lambda: watcher.state() == "T", "the task is stopped")
    watcher.signal(signal.SIGCONT)


def test_leave_stopped_writes_nothing_if_the_tasks_ran_meanwhile(
    watcher: Watcher, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_all(watcher, tree)
    work = new_work_dir(tmp_path)
    steps.dump(options_for(watcher, work), FreezeOptions())
    before = {path.name: path.read_bytes() for path in work.glob("*.img")}
    monkeypatch.setattr(stop_tree, "frozen", partial(stop_tree.frozen, hold_s=0.2))
    write = steps.criu_cache.cache_entries

    def let_go_and_write(*args: object) -> object:
        until(lambda: watcher.state() in "SR", "the task runs")
        return write(*args)

    monkeypatch.setattr(steps.criu_cache, "cache_entries", let_go_and_write)
    watcher.add_inotify(tree)
    with pytest.raises(FreezeError, match="run again after"):
        steps.dump(options_for(watcher, work), FreezeOptions(leave_stopped=True))

    assert {path.name: path.read_bytes() for path in work.glob("*.img")} == before
    with Store.open_readonly(work / "irmap.db") as store:
        *_, run = store.runs()
    assert run.outcome.startswith("failed: ")


def test_the_scenario_of_criu_test_inotify_irmap(watcher: Watcher, tmp_path: Path) -> None:
    one, two, spare = (tmp_path / name for name in ("zdtm-test", "zdtm-test1", "spare"))
    one.write_text("1")
    two.write_text("2")
    first, second = watcher.add_inotify(one), watcher.add_inotify(two)
    work = new_work_dir(tmp_path)
    options = options_for(watcher, work)
    here = {first.wd: os.fsencode(one), second.wd: os.fsencode(two)}
    there = {first.wd: os.fsencode(two), second.wd: os.fsencode(one)}

    def swap() -> None:
        one.rename(spare)
        two.rename(one)
        spare.rename(two)

    def paths(report: StepReport) -> dict[int, bytes | None]:
        return {row.watch.wd: row.path for row in report.watches}

    assert paths(steps.pre_dump(options)) == here
    swap()
    assert paths(steps.pre_dump(options)) == there
    swap()
    assert paths(steps.dump(options, FreezeOptions())) == here

    with Store.open_readonly(work / "irmap.db") as store:
        change_set = [(row.run_id, row.change) for row in store.changes()]
        live = {(row.identity.ino, row.path) for row in store.all_mappings() if not row.stale}
    assert [(run, change.kind) for run, change in change_set] == [
        (1, ChangeKind.FOUND),
        (1, ChangeKind.FOUND),
        (2, ChangeKind.MOVED),
        (2, ChangeKind.MOVED),
        (3, ChangeKind.MOVED),
        (3, ChangeKind.MOVED),
    ]
    moves = {(change.old_path, change.path, change.reason) for _, change in change_set[2:]}
    assert moves == {
        (os.fsencode(one), os.fsencode(two), StaleReason.REPLACED),
        (os.fsencode(two), os.fsencode(one), StaleReason.REPLACED),
    }
    assert live == {(first.st_ino, os.fsencode(one)), (second.st_ino, os.fsencode(two))}


def test_an_image_that_is_newer_is_taken_in(watcher: Watcher, tree: Path, tmp_path: Path) -> None:
    watched = watcher.add_inotify(tree / "d0/deep/a")
    work = new_work_dir(tmp_path)
    wrong = cache.CacheEntry(watched.st_kdev, watched.st_ino, os.fsencode(tree / "d0/deep/b"))
    right = wrong._replace(path=watched.path)
    (work / "irmap-cache").write_bytes(cache.encode_cache([right, wrong]))

    report = steps.pre_dump(options_for(watcher, work))

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
        StepOptions(watcher.pid, images_dir=images, prev_images_dir=Path("../1"), config=NO_HINTS)
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
    options = StepOptions(watcher.pid, images_dir=tmp_path / "2", config=NO_HINTS)

    report = steps.pre_dump(options)
    assert (report.loaded, report.stats.sources) == (1, {"stored": 1})

    # The named directory precedes the link, and the work dir precedes both.
    other = options._replace(images_dir=tmp_path / "3", prev_images_dir=tmp_path / "3")
    assert steps.pre_dump(other).loaded == 0
    (tmp_path / "1" / "irmap-cache").write_bytes(b"")
    assert steps.pre_dump(options).loaded == 0


def test_a_link_to_images_that_are_gone_is_nothing(watcher: Watcher, tmp_path: Path) -> None:
    work = new_work_dir(tmp_path)
    (work / "parent").symlink_to("../gone")
    assert steps.pre_dump(options_for(watcher, work)).loaded == 0


@pytest.mark.parametrize("name", ["gone", "file"])
def test_previous_images_that_are_not_there(watcher: Watcher, tmp_path: Path, name: str) -> None:
    work = new_work_dir(tmp_path)
    (tmp_path / "file").touch()
    options = options_for(watcher, work)._replace(prev_images_dir=Path("..", name))
    with pytest.raises(FileError, match=f"{name}: .* directory; ") as raised:
        steps.pre_dump(options)
    assert raised.value.remedy == "previous images dir"
    assert list(work.iterdir()) == []


def test_descriptors_that_children_inherit_are_one(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    watcher.add_inotify(tree / "d0")
    child = watcher.fork()
    child.add_inotify(tree / "d1")  # the same instance: the parent sees it too

    report = steps.dump(options_for(watcher, new_work_dir(tmp_path)), FreezeOptions())

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
            options = StepOptions(process.pid, images_dir=new_work_dir(tmp_path), config=NO_HINTS)
            for report in (steps.pre_dump(options), steps.dump(options, FreezeOptions())):
                assert [(row.watch.pid, row.path) for row in report.watches] == [
                    (process.pid, os.fsencode(tree))
                ]
        finally:
            process.kill()


def test_watches_of_a_deleted_file_are_reported_as_deleted(
    watcher: Watcher, tree: Path, tmp_path: Path
) -> None:
    path, directory = tree / "d0/deep/a", tree / "d0/gone (deleted)"
    directory.mkdir()
    child = watcher.fork()
    for one in (path, directory):
        watcher.add_inotify(one)
    fd = child.open(path)
    path.unlink()
    watcher.chdir(directory)
    directory.rmdir()

    report = steps.pre_dump(options_for(watcher, new_work_dir(tmp_path)))

    assert {row.path for row in report.watches} == {None}
    assert {row.why for row in report.watches} == {
        f"handle: deleted: it was {path}; task {child.pid} holds it as fd {fd}",
        f"handle: deleted: it was {directory}; task {watcher.pid} holds it as cwd",
    }
