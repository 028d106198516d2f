"""A file that is renamed between a candidate and its proof is tried again in the freeze.

`dump` looks while the tasks run, then in the freeze (`at_once`), then once more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from irmapdb.checkpoint import steps
from irmapdb.config import Config
from irmapdb.image import fsnotify
from irmapdb.kernel import proof, syscalls
from irmapdb.model import Source
from irmapdb.resolve import rename_retry, root_search
from irmapdb.resolve import search as search_module
from tests.support.cli import irmapdb
from tests.support.filesystems import drop_caches
from tests.support.freezing import state, until
from tests.support.kernel_paths import watched_identity
from tests.support.programs import run
from tests.support.searching import files_of, mntns_of
from tests.support.stepping import new_work_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from irmapdb.model import Identity, WatchFile
    from irmapdb.resolve.search import Search
    from tests.support.area import MountArea
    from tests.support.searching import Stored
    from tests.support.watcher import Watcher

    Make = Callable[..., Search]

A_LOT = 300


def freeze_and_resolve(search: Search, files: Iterable[WatchFile]) -> None:
    """The calls that `dump` makes just before the freeze, and in it."""
    search.hold_open()
    search.resolve(files, at_once=True)


class Tree:
    """A tree whose files move while `runs` is true."""

    def __init__(self) -> None:
        self.runs = True
        self.move: Callable[[bytes], None] = lambda _path: None

    def before_proof(self, path: bytes) -> None:
        if self.runs:
            self.move(path)


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Moves each path between candidate and proof."""
    found = Tree()
    prove = proof.disproof_of_watch

    def move_and_prove(root: object, identity: Identity, path: bytes, *more: object) -> object:
        found.before_proof(path)
        return prove(root, identity, path, *more)  # type: ignore[arg-type]

    for module in (root_search, search_module):  # the first proof, and each later one
        monkeypatch.setattr(module, "disproof_of_watch", move_and_prove)
    return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The handles that were opened."""
    asked: list[object] = []
    by_handle = syscalls.open_by_handle_at

    def note_and_open(mount_fd: int, handle: object, flags: int) -> int:
        asked.append(handle)
        return by_handle(mount_fd, handle, flags)  # type: ignore[arg-type]

    monkeypatch.setattr(syscalls, "open_by_handle_at", note_and_open)
    return asked


def plant(watcher: Watcher, path: Path) -> Identity:
    """A new file, which is watched."""
    path.touch()
    return watched_identity(watcher, watcher.add_inotify(path))


def swap(path: bytes) -> None:
    """`f` is `f2` now, or the other way round."""
    other = path[:-1] if path.endswith(b"2") else path + b"2"
    if os.path.lexists(path):
        os.rename(path, other)


def name_in(top: Path) -> bytes:
    (name,) = top.iterdir()
    return os.fsencode(name)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "overlay-upper"])
def test_it_is_found_as_soon_as_the_tasks_stand_still(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree, kind: str
) -> None:
    top = area.place(kind).directory / "moving"
    top.mkdir()
    shown = plant(watcher, top / "f")
    search = make(scan_paths=[os.fsencode(top)])
    moving.move = swap
    search.resolve(files_of(watcher))
    failed = search.outcome.unresolved[shown]
    assert "is gone" in failed.why
    moving.runs = False
    scanned = search.scanned
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)
    assert search.outcome.unresolved == {}
    assert search.scanned == scanned


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_before_a_freeze_no_scan_looks_for_a_moving_file(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree, kind: str
) -> None:
    """A second question at rest does. Afterwards a scan is right again."""
    top = area.place(kind).directory / "moving"
    top.mkdir()
    shown = plant(watcher, top / "f")
    still = plant(watcher, top.parent / "still")
    search = make(scan_paths=[os.fsencode(top.parent)])
    moving.move = lambda path: swap(path) if b"/moving/" in path else None
    search.freeze_follows = True
    search.resolve(files_of(watcher))
    assert search.outcome.resolved.keys() == {still}
    assert search.scanned == 0
    search.prove_again([still])
    moving.runs = False
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)
    assert search.scanned == 0
    # A file that is lost later is scanned for: no further freeze follows.
    os.rename(top / os.path.basename(os.fsdecode(name_in(top))), top / "g")
    drop_caches()
    search.prove_again([shown])
    assert search.outcome.resolved[shown].path == name_in(top)


def test_while_the_tasks_run_it_is_asked_for_again_before_a_scan(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree
) -> None:
    """It moves once between answer and proof, as most do."""
    top = area.tmpfs()
    shown = plant(watcher, top / "f")
    search = make(scan_paths=[os.fsencode(top)])

    def move_once(path: bytes) -> None:
        swap(path)
        moving.runs = False

    moving.move = move_once
    search.resolve(files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)
    assert search.outcome.resolved[shown].source is Source.HANDLE
    assert search.scanned == 0


def test_it_is_found_under_a_name_that_no_source_gave_before(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree
) -> None:
    top = area.tmpfs()
    shown = plant(watcher, top / "f")
    moving.move = lambda path: os.rename(path, path + b"-") if os.path.lexists(path) else None
    search = make(scan_paths=[os.fsencode(top)])
    search.resolve(files_of(watcher))
    assert shown in search.outcome.unresolved
    moving.runs = False
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)


def test_a_path_lost_before_the_freeze_is_found_in_it(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree, stored: Stored
) -> None:
    top = area.tmpfs()
    shown = plant(watcher, top / "f")
    stored.add(shown, top / "f")
    search = make()
    search.resolve(files_of(watcher))
    assert search.outcome.resolved[shown].source is Source.STORED
    moving.move = swap
    search.prove_again([shown])
    assert shown in search.outcome.unresolved
    moving.runs = False
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)


def test_a_lost_stored_path_without_another_source_is_proved_again(
    area: MountArea, watcher: Watcher, make: Make, stored: Stored
) -> None:
    """No handle can be opened here, and a stored path alone would not count."""
    top = area.place("overlay-upper").directory / "moving"
    area.mount("tmpfs", "layers", "tmpfs")  # its layers cannot be seen
    top.mkdir()
    shown = plant(watcher, top / "f")
    stored.add(shown, top / "f")
    search = make(scan=False)
    search.resolve(files_of(watcher))
    assert search.outcome.resolved[shown].source is Source.STORED
    (top / "f").rename(top / "f2")
    search.prove_again([shown])
    assert shown in search.outcome.unresolved
    (top / "f2").rename(top / "f")
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)


def test_a_file_that_only_a_scan_finds_is_scanned_for_after_the_freeze(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree
) -> None:
    """No handle can be opened here, and the name is a new one each time."""
    top = area.place("overlay-upper").directory / "moving"
    area.mount("tmpfs", "layers", "tmpfs")  # its layers cannot be seen
    top.mkdir()
    shown = plant(watcher, top / "f")
    search = make(scan_paths=[os.fsencode(top)])
    moving.move = lambda path: os.rename(path, path + b"-") if os.path.lexists(path) else None
    search.resolve(files_of(watcher))
    assert shown in search.outcome.unresolved
    moving.runs = False
    freeze_and_resolve(search, files_of(watcher))
    assert shown not in search.outcome.resolved
    search.resolve(files_of(watcher))
    assert search.outcome.resolved[shown].path == name_in(top)


def test_in_a_nested_namespace(
    watcher: Watcher, nested: tuple[Watcher, Path], make: Make, moving: Tree
) -> None:
    task, place = nested
    shown = watched_identity(task, task.add_inotify(place / "own"))

    def swap_there(path: bytes) -> None:
        names = {os.fsencode(place / name) for name in ("own", "own2")}
        if path in names:
            (other,) = names - {path}
            task.rename(path, other)

    moving.move = swap_there
    search = make(scan=False)  # it would find the name that no source has given yet
    search.resolve(files_of(watcher, task))
    assert shown in search.outcome.unresolved
    moving.runs = False
    freeze_and_resolve(search, files_of(watcher, task))
    answer = search.outcome.resolved[shown]
    assert (answer.path, answer.mntns) == (os.fsencode(place / "own2"), mntns_of(task))
    # And it is proved again where it was found.
    task.rename(place / "own2", place / "own")
    search.prove_again([shown], at_once=True)
    assert search.outcome.resolved[shown].path == os.fsencode(place / "own")


def test_a_file_deleted_during_the_search_is_reported_as_deleted(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree
) -> None:
    top = area.tmpfs()
    shown = plant(watcher, top / "f")
    watcher.open(top / "f")
    moving.move = swap
    search = make(scan=False)
    search.resolve(files_of(watcher))
    assert not search.outcome.unresolved[shown].deleted
    os.unlink(name_in(top))
    moving.runs = False
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.unresolved[shown].why == "handle: deleted"


# Retries cost frozen time: the inodes that are not tried again


def test_a_path_with_a_certain_reason_is_not_retried_in_the_freeze(
    area: MountArea, watcher: Watcher, make: Make, stored: Stored, opened: list[object]
) -> None:
    top = area.ext4().mountpoint
    for name in ("held", "deleted", "cold"):
        (top / name).touch()
    watcher.open(top / "held")
    held, deleted, cold = (
        watched_identity(watcher, watcher.add_inotify(top / name))
        for name in ("held", "deleted", "cold")
    )
    for shown in (held, deleted, cold):
        stored.add(shown, top / "long ago")
    for name in ("held", "deleted"):
        (top / name).unlink()
    drop_caches()
    search = make(scan=False)
    search.resolve(files_of(watcher))
    before = dict(search.outcome.unresolved)
    assert before[held].deleted
    assert {held, cold} <= before.keys()  # the second one ended with its watch, which pinned it
    opened.clear()
    freeze_and_resolve(search, files_of(watcher))
    search.resolve(files_of(watcher))
    assert opened == []
    assert all(search.outcome.unresolved[one] is why for one, why in before.items())


@pytest.fixture
def hidden(area: MountArea, watcher: Watcher) -> Iterator[tuple[Path, list[Identity]]]:
    """Many watched files below a mount that has others of the same names."""
    top = area.tmpfs()
    inside, over = top / "inside", top / "over"
    for directory in (inside, over):
        directory.mkdir()
        for number in range(A_LOT):
            (directory / f"{number}").touch()
    shown = [
        watched_identity(watcher, watcher.add_inotify(inside / f"{number}"))
        for number in range(A_LOT)
    ]
    run("mount", "--bind", over, inside)
    yield top, shown
    run("umount", inside)


def test_files_below_a_mount_cost_a_bounded_time_and_no_second_scan(
    hidden: tuple[Path, list[Identity]], watcher: Watcher, make: Make, opened: list[object]
) -> None:
    top, shown = hidden
    search = make(scan_paths=[os.fsencode(top)])
    search.resolve(files_of(watcher))
    before, scanned = dict(search.outcome.unresolved), search.scanned
    assert before.keys() == set(shown)
    opened.clear()
    freeze_and_resolve(search, files_of(watcher))
    assert 0 < len(opened) < A_LOT
    search.resolve(files_of(watcher))
    assert search.outcome.unresolved == before
    assert search.scanned == scanned


def test_one_that_moves_among_many_that_a_mount_hides(
    hidden: tuple[Path, list[Identity]], watcher: Watcher, make: Make, moving: Tree
) -> None:
    """It is the last one, and not reached in the freeze, but no scan is needed for it."""
    top, _ = hidden
    (top / "moves").mkdir()
    shown = plant(watcher, top / "moves" / "f")
    moving.move = lambda path: swap(path) if b"/moves/" in path else None
    (file,) = files_of(watcher)
    files = [file._replace(watches=tuple(sorted(file.watches, key=lambda watch: watch.wd)))]
    search = make(scan=False)
    search.resolve(files)
    moving.runs = False
    freeze_and_resolve(search, files)
    assert shown in search.outcome.unresolved
    search.resolve(files)
    assert search.outcome.resolved[shown].path == name_in(top / "moves")


def test_below_a_mount_of_another_device_nothing_moves(
    area: MountArea, watcher: Watcher, make: Make, opened: list[object]
) -> None:
    top = area.tmpfs()
    (top / "inside").mkdir()
    (top / "inside" / "file").touch()
    shown = watched_identity(watcher, watcher.add_inotify(top / "inside" / "file"))
    run("mount", "-t", "tmpfs", "over", top / "inside")
    try:
        (top / "inside" / "file").touch()
        search = make(scan=False)
        search.resolve(files_of(watcher))
        assert "is replaced" in search.outcome.unresolved[shown].why
        opened.clear()
        freeze_and_resolve(search, files_of(watcher))
        assert opened == []
    finally:
        run("umount", top / "inside")


@pytest.fixture
def many(
    area: MountArea, watcher: Watcher, make: Make, moving: Tree
) -> tuple[Search, set[Identity]]:
    """A search that has found none of many watched files, because all are renamed all the time."""
    top = area.tmpfs()
    shown = {plant(watcher, top / f"{number}-") for number in range(A_LOT)}
    moving.move = swap
    search = make(scan=False)
    search.resolve(files_of(watcher))
    assert search.outcome.unresolved.keys() == shown
    moving.runs = False
    return search, shown


def test_every_moving_file_is_found(
    many: tuple[Search, set[Identity]], watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, shown = many
    monkeypatch.setattr(rename_retry, "_LOOK_AGAIN_S", 60.0)  # a machine may be slow
    freeze_and_resolve(search, files_of(watcher))
    assert search.outcome.resolved.keys() == shown


def test_when_the_time_is_over_the_rest_waits_until_the_tasks_run(
    many: tuple[Search, set[Identity]], watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, shown = many
    monkeypatch.setattr(rename_retry, "_LOOK_AGAIN_S", 0.0)
    freeze_and_resolve(search, files_of(watcher))
    assert 0 < len(search.outcome.resolved) < len(shown)
    search.resolve(files_of(watcher))
    assert search.outcome.resolved.keys() == shown


# The whole dump

_RENAMES = """
import os, sys
os.chdir(sys.argv[1])
while True:
    os.rename("f", "f2")
    os.rename("f2", "f")
"""

_WATCHES = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
assert libc.inotify_add_watch(libc.inotify_init1(0), os.fsencode(sys.argv[2] + "/f"), 2) == 1
subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1], sys.argv[2]])
print(flush=True)
sys.stdin.read()
"""

_ROUNDS = 25


def test_dump_of_a_tree_that_renames_all_the_time(area: MountArea, tmp_path: Path) -> None:
    """With the tasks left stopped there is one name, and it is in the result."""
    top, work = area.tmpfs(), new_work_dir(tmp_path)
    (top / "f").touch()
    command = [sys.executable, "-I", "-S", "-c", _WATCHES, _RENAMES, top]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as task:
        try:
            assert task.stdout is not None
            task.stdout.readline()
            for _ in range(_ROUNDS):
                done = irmapdb("dump", "-t", str(task.pid), "-D", work, "--leave-stopped")
                assert done.code == 0, done.said
                until(lambda: state(task.pid) == "T", "the tasks are stopped")
                image = (work / "inotify.img").read_bytes()
                (written,) = fsnotify.decode_inotify(image, "inotify.img")
                assert [watch.path for watch in written.watches] == [name_in(top)]
                os.killpg(task.pid, signal.SIGCONT)
        finally:
            os.killpg(task.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "overlay", "overlay-two-filesystems"])
def test_a_file_whose_last_used_name_was_removed_is_found_by_its_other_name(
    area: MountArea, watcher: Watcher, tmp_path: Path, kind: str
) -> None:
    """The kernel gives the name that it knows, although the file has only its other name left."""
    place = area.place(kind)
    file, other = place.directory / "used", place.directory / "other"
    other.write_bytes(b"content")
    os.link(other, file)
    watcher.add_inotify(file)
    options = steps.StepOptions(
        watcher.pid,
        images_dir=new_work_dir(tmp_path),
        scan_paths=(os.fsencode(place.mountpoint),),
        config=Config(hints=()),
    )
    with file.open():
        file.unlink()
        (row,) = steps.dump(options, steps.FreezeOptions()).watches
    assert row.path == os.fsencode(other), row.why
