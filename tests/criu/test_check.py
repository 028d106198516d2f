"""check beside real CRIU: the dump has the predicted outcome.

Nothing is dropped from the caches between the two: a check that made a name known to the kernel
which CRIU would not have found would be caught here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from irmapdb.checkpoint import steps
from irmapdb.criu.check.dump import DumpCheck, DumpCheckOptions, check_dump
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from irmapdb.criu.check.verdicts import CriuOutcome, WatchVerdict
from irmapdb.criu.check.version import CriuVersion, criu_version
from irmapdb.errors import ImageError
from irmapdb.image.framing import join_frames
from irmapdb.image.magic import MOUNTS
from tests.support.check_outcome import TRIES, Bench
from tests.support.criu import Criu, write_cache
from tests.support.features import require
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.freezing import states, until
from tests.support.notify import IN_OPEN
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from tests.support.area import MountArea


@pytest.mark.parametrize(
    ("kind", "forced", "verdict"),
    [
        ("ext4", False, WatchVerdict.NO_RESTORE),
        ("ext4", True, WatchVerdict.FAILS),
        ("tmpfs", False, WatchVerdict.FAILS),
        ("overlay-upper", False, WatchVerdict.FAILS),
    ],
)
def test_deleted_file(
    kind: str, verdict: WatchVerdict, bench: Bench, area: MountArea, *, forced: bool
) -> None:
    file = area.place(kind).directory / "file"
    watched = bench.target.add_inotify(file, IN_OPEN)
    bench.target.open(file)
    file.unlink()
    said, predicted, did, _, run, _ = bench.compare(watched, forced=forced)
    assert (said, predicted) == (verdict, did), run


def test_deleted_file_comes_back_without_its_watch(
    bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    # Why a watch on a deleted file is never called right.
    file = area.place("ext4").directory / "file"
    bench.target.add_inotify(file, IN_OPEN)
    held = bench.target.open(file)
    file.unlink()
    images = tmp_path / "images"
    assert bench.criu.dump(bench.target.pid, images, leave_running=False).ok
    assert bench.criu.restore(bench.target, images).ok
    bench.target.events()
    os.close(os.open(f"/proc/{bench.target.pid}/fd/{held}", os.O_RDONLY))
    assert bench.target.events() == []


def test_wrong_path_by_an_overlay_of_two_filesystems(each_bench: Bench, area: MountArea) -> None:
    """A directory there gets a number of the overlay's own, which a file may have as well."""
    lower = area.ext4("lower").mountpoint / "tree"
    lower.mkdir()
    file = lower / "file"
    file.touch()
    for number in range(40):
        (lower / f"dir-{number}").mkdir()
    overlay = area.overlay(lower=lower, upper_base=area.ext4("upper").mountpoint).mountpoint
    watched = each_bench.target.add_inotify(overlay / "file", IN_OPEN)
    twins = [path for path in overlay.iterdir() if path.lstat().st_ino == watched.st_ino]
    assert len(twins) == 2, "the directories' numbers run past the file's"

    verdict, said, did, path, run, _ = each_bench.compare(watched, scan_paths=[overlay])
    assert (verdict, said) == (WatchVerdict.WRONG_PATH, did), run
    assert did is CriuOutcome.WRONG_PATH
    assert path != os.fsencode(overlay / "file")


def test_wrong_path_below_a_mount_that_hides_the_file(bench: Bench, area: MountArea) -> None:
    hidden = area.ext4("hidden").mountpoint
    over = area.ext4("over").mountpoint
    (hidden / "sub").mkdir()
    (hidden / "sub" / "file").touch()
    (over / "sub").mkdir()
    (over / "file").touch()
    watched = bench.target.add_inotify(hidden / "sub" / "file", IN_OPEN)
    held = os.open(hidden / "sub" / "file", os.O_PATH)  # its name stays known
    try:
        assert (over / "file").stat().st_ino == watched.st_ino
        area.bind(over, hidden / "sub")
        verdict, said, did, _, run, _ = bench.compare(watched)
    finally:
        os.close(held)
    assert (verdict, said, did) == (WatchVerdict.WRONG_PATH, said, CriuOutcome.WRONG_PATH), run


def test_a_name_that_may_be_another_file_is_not_called_right(bench: Bench, area: MountArea) -> None:
    place = area.place("overlay-lower")
    watched = bench.target.add_inotify(place.linked, IN_OPEN)
    for scan_path in (place.linked, place.directory / "dir" / "hard"):
        verdict, said, did, _, run, _ = bench.compare(watched, scan_paths=[scan_path])
        # CRIU records the path. No test can show whether it is the path of the file.
        assert (verdict, said) == (WatchVerdict.UNKNOWN, CriuOutcome.PATH), run
        assert did in {CriuOutcome.PATH, CriuOutcome.WRONG_PATH}, run


@pytest.mark.parametrize("named", ["file", "directory"])
def test_scan_path_makes_the_difference(named: str, bench: Bench, area: MountArea) -> None:
    place = area.place("overlay-lower")
    watched = bench.target.add_inotify(place.directory / "dir" / "file", IN_OPEN)
    start = place.directory / "dir" / "file" if named == "file" else place.mountpoint
    without = bench.compare(watched)
    assert without[:3] == (WatchVerdict.OPTIONS, CriuOutcome.FAILS, CriuOutcome.FAILS), without
    with_path = bench.compare(watched, scan_paths=[start])
    assert with_path[:3] == (WatchVerdict.PATH, CriuOutcome.PATH, CriuOutcome.PATH), with_path


def test_a_scan_path_that_is_not_there_is_noted(bench: Bench, area: MountArea) -> None:
    place = area.place("ext4")
    file = place.directory / "dir" / "file"
    watched = bench.target.add_inotify(file, IN_OPEN)
    report = bench.check(bench.directory, scan_paths=[file, place.mountpoint, Path("/")])
    assert (report.right, report.notes) == (True, ())
    gone = place.mountpoint / "gone" / "deeper"
    report = bench.check(bench.directory, scan_paths=[gone])
    assert report.right, "CRIU goes on as well"
    (note,) = report.notes
    assert note.startswith(f"--irmap-scan-path {gone}: No such file or directory in the root")
    # To see that it is there gives CRIU no name that it would not have had.
    same = bench.compare(watched, prepare=drop_caches, scan_paths=[file])
    assert same[:3] == (WatchVerdict.NO_RESTORE, CriuOutcome.NO_PATH, CriuOutcome.NO_PATH), same


def test_entry_of_another_file_is_refused(bench: Bench, area: MountArea, tmp_path: Path) -> None:
    place = area.place("overlay-lower")
    watched = bench.target.add_inotify(place.directory / "dir" / "file", IN_OPEN)
    kdev = superblock_kdev(place.mountpoint)
    right = os.fsencode(place.directory / "dir" / "file")
    link = place.directory / "link"
    link.symlink_to("dir")

    def with_entries(*paths: bytes) -> tuple[WatchVerdict, CriuOutcome, CriuOutcome]:
        entries = [(kdev, watched.st_ino, path) for path in paths]
        image = write_cache(tmp_path / "work", entries).read_bytes()
        verdict, said, did, _, run, _ = bench.compare(watched, cache=image)
        assert said is did, (paths, run)
        return verdict, said, did

    assert with_entries(os.fsencode(place.directory / "file"))[0] is WatchVerdict.OPTIONS
    assert with_entries(right[1:])[0] is WatchVerdict.OPTIONS, "without its slash"
    assert with_entries(b"/")[0] is WatchVerdict.OPTIONS
    assert with_entries(right, os.fsencode(place.directory / "gone"))[0] is WatchVerdict.CACHE
    assert with_entries(os.fsencode(link / "file"))[0] is WatchVerdict.CACHE, "by way of a link"


def test_cache_of_the_parent_images(bench: Bench, area: MountArea) -> None:
    place = area.place("overlay-lower")
    bench.target.add_inotify(place.directory / "dir")
    parent = bench.new(bench.pre_dump())
    images = bench.new(None)
    (images / "parent").symlink_to(parent)
    assert bench.check(images).right
    assert bench.criu.dump(bench.target.pid, images).ok


def test_the_last_of_several_mounts_is_tried_first(bench: Bench, area: MountArea) -> None:
    place = area.place("ext4")
    for name in ("one", "two"):
        (area.path / name).mkdir()
        area.bind(place.mountpoint, area.path / name)
    watched = bench.target.add_inotify(place.directory / "dir", IN_OPEN)
    verdict, said, did, path, run, _ = bench.compare(watched)
    assert (verdict, said) == (WatchVerdict.PATH, did)
    (dumped,) = bench.criu.dumped_watches(run.images)
    assert dumped.path is not None
    assert os.fsencode(dumped.path) == path == os.fsencode(area.path / "two" / "dir")


@pytest.mark.slow
def test_in_a_root_of_its_own(criu: Criu, area: MountArea, tmp_path: Path) -> None:
    """As a container has it: an overlay for its root, in a mount namespace of its own."""
    upper = area.ext4("layers").mountpoint
    top = area.overlay(lower=Path("/"), upper_base=upper, options="xino=on").mountpoint
    require((top / sys.executable[1:]).exists(), "Python on the root filesystem")
    # The process goes on under the name of its pipes that it had outside.
    outside = top / top.relative_to("/")
    outside.parent.mkdir(parents=True, exist_ok=True)
    if outside.exists():
        outside.rmdir()
    outside.symlink_to("/")
    with Watcher(pipes=top / "pipes", unshare={"mount"}, rootfs=top) as target:
        for fd in (0, 1, 2):
            target.close_fd(fd)  # its last ties to the mounts outside
        target.exec()
        bench = Bench(criu, target, tmp_path)

        def same(*scan_paths: Path, cache: bytes | None = None) -> DumpCheck:
            work = bench.new(cache)
            said = bench.check(work, scan_paths=scan_paths)
            run = criu.dump(target.pid, work, scan_paths=scan_paths)
            assert said.fails == (not run.ok), run
            if run.ok:
                paths = {one.watch.wd: one.prediction.path for one in said.watches}
                dumped = criu.dumped_watches(work)
                assert paths == {one.wd: os.fsencode(one.path or "") for one in dumped}
            return said

        for path in ("/", "/etc", "/etc/passwd"):
            target.add_inotify(path)
        assert {one.prediction.verdict for one in same().watches} == {WatchVerdict.PATH}, (
            "by the hints"
        )
        target.add_inotify("/usr/bin")
        assert same().fails
        assert not same(Path("/usr/bin")).fails
        helped = same(cache=bench.pre_dump())
        assert {one.prediction.verdict for one in helped.watches} == {WatchVerdict.CACHE}


def test_a_path_that_is_not_found_in_time_is_unknown(
    bench: Bench, area: MountArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load of the machine can change the advice, never the predicted outcome."""
    place = area.place("overlay-lower")
    watched = bench.target.add_inotify(place.directory / "dir" / "file", IN_OPEN)
    monkeypatch.setattr("irmapdb.criu.check.looks.advice_search._SEARCH_S", -1.0)
    late = bench.compare(watched)
    assert late[:3] == (WatchVerdict.UNKNOWN, CriuOutcome.FAILS, CriuOutcome.FAILS), late
    monkeypatch.setattr("irmapdb.criu.check.looks.advice_search._SEARCH_S", 60.0)
    found = bench.compare(watched)
    assert found[:3] == (WatchVerdict.OPTIONS, CriuOutcome.FAILS, CriuOutcome.FAILS), found


def test_a_chroot_in_another_namespace_is_refused(area: MountArea, tmp_path: Path) -> None:
    directory = area.place("tmpfs").directory
    with Watcher(unshare={"mount"}, chroot=directory) as target:
        target.add_inotify("/file")
        report = check_dump(DumpCheckOptions(target.pid, tmp_path, version=CriuVersion(4, 1)))
    assert report.fails
    assert [one.prediction.verdict for one in report.watches] == [WatchVerdict.FAILS]
    assert os.fsencode(directory) in os.fsencode(report.problems[0].why)


def test_walk_of_an_overlay_is_counted(bench: Bench, area: MountArea) -> None:
    place = area.place("overlay-lower")
    bench.target.add_inotify(place.directory / "dir" / "file")
    bench.target.add_inotify(place.directory / "dir")
    options = DumpCheckOptions(bench.target.pid, bench.directory, version=CriuVersion(4, 3))
    report = check_dump(options)
    entries = sum(1 for _ in place.mountpoint.rglob("*"))
    assert [one.prediction.verdict for one in report.watches] == [WatchVerdict.WALK] * 2
    assert [one.prediction.entries for one in report.watches] == [entries] * 2
    assert report.right
    assert report.walk_us == sum(one.prediction.walk_us for one in report.watches) > 0
    assert re.search(r", in about \S+ (µs|ms)$", report.watches[0].prediction.why)


def test_command(bench: Bench, area: MountArea) -> None:
    def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "irmapdb", "check", *map(str, arguments), "--json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout)

    place = area.place("overlay-lower")
    bench.target.add_inotify(place.directory / "file")
    work = bench.new(None)
    call = ("-t", str(bench.target.pid), "-D", work, "--criu-version", "4.1")
    code, said = run(*call)
    assert (code, said["fails"], said["watches"][0]["verdict"]) == (3, True, "options")
    (work / "irmap-cache").write_bytes(bench.pre_dump())
    code, said = run(*call)
    assert (code, said["right"], said["watches"][0]["verdict"]) == (0, True, "cache")
    assert said["notes"] == []
    for version in ("4.0", "4.4", "99.1"):
        code, said = run(*call[:-1], version)
        assert (code, said["right"]) == (0, True)
        (note,) = said["notes"]
        assert note.startswith(f"CRIU {version} may behave differently")
    assert bench.criu.dump(bench.target.pid, work).ok
    assert run("--images", work)[0] == 0
    (place.directory / "file").unlink()
    code, said = run("--images", work, "--root", "/")
    assert (code, said["watches"][0]["verdict"]) == (3, "missing")


def test_marks_and_damage(bench: Bench, area: MountArea) -> None:
    place = area.place("ext4")
    bench.target.add_fanotify(place.directory, what="mount")
    work = bench.directory
    mount_alone = bench.check(work)
    assert mount_alone.right
    assert bench.criu.dump(bench.target.pid, work).ok

    bench.target.add_fanotify(place.directory, what="filesystem")
    both = bench.check(work)
    assert not both.right
    assert not both.fails
    done = bench.criu.dump(bench.target.pid, work)
    assert done.ok
    marks = [file["ffy"]["mark"] for file in bench.criu.show(work / "files.img") if "ffy" in file]
    assert [mark["type"] for mark in marks[0]] == ["MOUNT"], "and the other one is gone"

    (work / "irmap-cache").write_bytes(b"")
    damaged = bench.check(work)
    assert damaged.fails
    assert not bench.criu.dump(bench.target.pid, work).ok
    # The suggested options help, and fewer options do not.
    assert "remove or rename it" in damaged.problems[0].advice
    with pytest.raises(ImageError, match="is empty"):
        steps.pre_dump(steps.StepOptions(bench.target.pid, images_dir=work))
    (work / "irmap-cache").rename(work / "irmap-cache.old")
    steps.pre_dump(steps.StepOptions(bench.target.pid, images_dir=work))
    assert not bench.check(work).fails
    assert bench.criu.dump(bench.target.pid, work).ok


def test_version_is_asked(
    criu: Criu, target: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(criu.program.parent), prepend=os.pathsep)
    assert criu_version()[:2] == (4, 1)
    report = check_dump(DumpCheckOptions(target.pid, images_dir=tmp_path))
    assert report.call.version.source == "criu --version"
    assert report.right, "nothing is watched"


def test_the_restore_of_a_file_that_stayed_went_or_changed_its_type(
    bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    top = area.path / "tree"
    top.mkdir()
    for name in ("stays", "goes", "turns"):
        (top / name).touch()
        bench.target.add_inotify(top / name)
    filesystem = area.ext4()
    cold = filesystem.mountpoint / "cold"
    cold.touch()
    bench.target.add_inotify(cold)
    images = tmp_path / "images"
    for _ in range(TRIES):
        drop_caches()
        for path in top.iterdir():
            path.stat()
        assert bench.criu.dump(bench.target.pid, images).ok
        if sum(watch.path is None for watch in bench.criu.dumped_watches(images)) == 1:
            break  # else another process dropped caches as well

    def verdicts(root: Path = Path("/")) -> dict[str, RestoreVerdict]:
        watches = check_images(images, root).watches
        paths = {one.watch.path or b"-": one.verdict for one in watches}
        return {Path(os.fsdecode(path)).name: verdict for path, verdict in paths.items()}

    there = RestoreVerdict.THERE
    assert verdicts()["-"] is RestoreVerdict.NO_RESTORE
    # A tree with a mount namespace of its own has such an image.
    (images / "mountpoints-1.img").write_bytes(join_frames(MOUNTS, []))
    assert verdicts() == {
        "stays": there,
        "goes": there,
        "turns": there,
        "-": RestoreVerdict.BY_HANDLE,
    }
    # The last mount that CRIU could have opened the handle through goes with the device's number.
    filesystem.remount_on_another_device()
    (top / "goes").unlink()
    (top / "turns").rename(top / "kept")  # so that the watched file is still known
    (top / "turns").mkdir()
    assert verdicts() == {
        "stays": there,
        "goes": RestoreVerdict.MISSING,
        "turns": RestoreVerdict.OTHER_TYPE,
        "-": RestoreVerdict.NO_FILESYSTEM,
    }
    top.rename(area.path / "moved")
    top.symlink_to("moved")
    assert verdicts()["stays"] is RestoreVerdict.LINKED

    other = tmp_path / "other"
    other.mkdir()
    (other / tmp_path.parts[1]).symlink_to(f"/{tmp_path.parts[1]}")
    assert verdicts(other)["stays"] is RestoreVerdict.MISSING, "its link does not lead out"


_HEADLESS = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
libc.inotify_add_watch(libc.inotify_init1(0), b"/etc", 2)
threading.Thread(target=time.sleep, args=(1000,)).start()
libc.syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""


def test_a_task_whose_first_thread_has_ended(criu: Criu, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HEADLESS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as task:
        try:
            until(lambda: "Z" in states([task.pid]), "its first thread has ended")
            options = DumpCheckOptions(task.pid, images_dir=tmp_path, version=CriuVersion(4, 1))
            checked = check_dump(options)
            assert not criu.dump(task.pid, tmp_path).ok
        finally:
            task.kill()
    assert checked.fails
    assert [watch.watch.pid for watch in checked.watches] == [task.pid]
    assert "has ended" in checked.problems[0].why
