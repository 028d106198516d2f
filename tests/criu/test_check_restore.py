"""The prediction of a restore, before the dump and from its images, beside the restore."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import pytest

from irmapdb.criu.check.dump import DumpCheckOptions, check_dump
from irmapdb.criu.check.restore import RestoreVerdict, WatchRestore, check_images
from irmapdb.criu.check.verdicts import WatchVerdict
from irmapdb.criu.check.version import parse_version
from irmapdb.errors import FileError
from tests.support.check_outcome import TRIES
from tests.support.features import require_program
from tests.support.filesystems import drop_caches
from tests.support.notify import IN_ATTRIB, IN_OPEN
from tests.support.programs import SYSTEM_PATH
from tests.support.runc import Container, fill_rootfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from irmapdb.criu.check.dump import DumpCheck
    from tests.support.area import MountArea
    from tests.support.check_outcome import Bench
    from tests.support.criu import Criu
    from tests.support.watcher import Task

_IN_DONT_FOLLOW = 0x02000000


def _check(pid: int, criu: Criu, work: Path) -> DumpCheck:
    return check_dump(DumpCheckOptions(pid, work, version=parse_version(criu.version)))


def _by_name(images: Path, root: Path = Path("/")) -> dict[str, WatchRestore]:
    """By the last part of the path; `-` for the one without."""
    watches = check_images(images, root).watches
    return {os.path.basename(os.fsdecode(one.watch.path or b"-")): one for one in watches}


# --- without a path -------------------------------------------------------------------------------


def test_no_path_in_the_namespace_of_criu(
    each_bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    """Nothing but a path leads to a file there: the images have no mounts."""
    file = area.ext4().mountpoint / "file"
    file.touch()
    each_bench.target.add_inotify(file)
    images, criu = tmp_path / "images", each_bench.criu
    for _ in range(TRIES):
        drop_caches()
        (said,) = each_bench.check(tmp_path).watches
        done = criu.dump(each_bench.target.pid, images)
        assert done.ok, done
        if criu.dumped_watches(images)[0].path is None:
            break
    assert said.prediction.verdict is WatchVerdict.NO_RESTORE
    assert "mount namespace" in said.prediction.why
    assert _by_name(images)["-"].verdict is RestoreVerdict.NO_RESTORE
    assert check_images(images).notes == ()

    drop_caches()
    assert criu.dump(each_bench.target.pid, images, leave_running=False).ok
    (dumped,) = criu.dumped_watches(images)
    assert dumped.path is None, "another process has opened the file"
    done = criu.restore(each_bench.target, images)
    assert not done.ok
    assert "Unable to open" in done.log
    with pytest.raises(ChildProcessError):  # the task that CRIU had begun is no zombie of ours
        os.waitid(os.P_PID, each_bench.target.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


class Rig(NamedTuple):
    """A container, and the places in it and outside."""

    container: Container
    criu: Criu
    root: Path
    data: Path
    images: Path

    def restore_fails(self) -> str:
        """The errors of the restore; empty where it does not fail."""
        done = self.container.restore(self.images, self.images / "work")
        if done.ok:
            return ""
        log = self.images / "work" / "restore.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return "\n".join(line for line in text.splitlines() if "Error" in line) or done.log

    def checkpoint(self) -> None:
        done = self.container.checkpoint(self.images, self.images / "work")
        assert done.ok, (self.images / "work" / "dump.log").read_text(errors="replace")[-2000:]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def _rig(
    criu: Criu,
    area: MountArea,
    tmp_path: Path,
    stack: ExitStack,
    more: Mapping[Path, str] = MappingProxyType({}),
) -> Rig:
    require_program("runc")
    root = area.ext4("root", size_mib=64).mountpoint
    fill_rootfs(root)
    (root / "etc").mkdir()
    (root / "etc" / "own").touch()
    data = area.ext4("data").mountpoint
    for name in ("file", "hosts"):
        (data / name).write_text(name)
    (data / "link").symlink_to("file")
    binds = {data: "/data", data / "hosts": "/etc/hosts", **more}
    path = os.pathsep.join((str(criu.program.parent), SYSTEM_PATH))
    made = Container(tmp_path / "runc", root, binds, path, tmpfs=["/tmp"])
    return Rig(stack.enter_context(made), criu, root, data, tmp_path / "images")


def test_no_path_in_a_container(
    each_criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    """A restore opens the handle, of a file and of a symbolic link."""
    rig = _rig(each_criu, area, tmp_path, stack)
    mask = IN_OPEN | IN_ATTRIB
    file = rig.container.add_inotify("/data/file", mask)
    link = rig.container.add_inotify("/data/link", mask | _IN_DONT_FOLLOW)
    drop_caches()
    said = {
        one.watch.wd: one.prediction
        for one in _check(rig.container.pid, rig.criu, tmp_path).watches
    }
    rig.checkpoint()
    assert [one.path for one in rig.criu.dumped_watches(rig.images)] == [None, None]
    assert {one.verdict for one in said.values()} == {WatchVerdict.NO_PATH}
    assert "symbolic link" in said[link.wd].why
    report = check_images(rig.images, rig.root)
    assert [one.verdict for one in report.watches] == [RestoreVerdict.BY_HANDLE] * 2
    assert report.right
    assert not rig.restore_fails()
    assert rig.container.hears(file, (rig.data / "file").read_bytes)
    assert rig.container.hears(link, lambda: os.utime(rig.data / "link", follow_symlinks=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "xfs",
        "btrfs",
        "btrfs-subvol-mount",
        "erofs",
        "fuse",
        "overlay-nfs-export",
        "overlay-two-filesystems",
    ],
)
def test_a_watch_without_a_path_on_other_filesystems(
    kind: str, each_criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    """A restore agrees with the verdict: it opens the handle (no-path), or fails (no-restore)."""
    place = area.place(kind)
    rig = _rig(each_criu, area, tmp_path, stack, {place.mountpoint: "/place"})
    file = place.directory / "dir" / "file"
    watched = rig.container.add_inotify(
        "/place" / file.relative_to(place.mountpoint), IN_OPEN | IN_ATTRIB
    )
    drop_caches()
    (said,) = _check(rig.container.pid, rig.criu, tmp_path).watches
    verdict = said.prediction.verdict
    walked = kind == "overlay-two-filesystems"
    if walked and each_criu.version != "4.3":
        assert verdict is WatchVerdict.FAILS
        return
    rig.checkpoint()
    assert [one.path for one in rig.criu.dumped_watches(rig.images)] == [None]
    lost = walked or kind == "fuse"
    assert verdict is (WatchVerdict.NO_RESTORE if lost else WatchVerdict.NO_PATH)
    (one,) = check_images(rig.images, rig.root).watches
    assert one.right != lost
    assert bool(rig.restore_fails()) == lost
    if not lost:
        assert rig.container.hears(watched, file.read_bytes)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_replaced_below_its_mount(
    criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack, *, replaced: bool
) -> None:
    """As Kubernetes' subPath files and /etc/hosts are."""
    rig = _rig(criu, area, tmp_path, stack)
    rig.container.add_inotify("/etc/own")
    before = _check(rig.container.pid, criu, tmp_path)
    assert before.right
    (rig.data / "hosts").unlink()
    if replaced:
        (rig.data / "hosts").write_text("new")
    after = _check(rig.container.pid, criu, tmp_path)
    (problem,) = after.problems
    assert not after.right
    assert not after.fails
    assert "/etc/hosts" in problem.why
    rig.checkpoint()
    report = check_images(rig.images, rig.root)
    assert not report.right
    assert "the mount /etc/hosts" in report.problems[0].why
    errors = rig.restore_fails()
    assert ("replaced" in problem.why) == replaced
    assert ("re-create" in errors) == replaced, "with nothing there, runc itself fails"
    assert errors


# --- files that the images contain ----------------------------------------------------------------


def test_where_each_path_comes_from(
    criu: Criu, area: MountArea, tmp_path: Path, stack: ExitStack
) -> None:
    rig = _rig(criu, area, tmp_path, stack)
    rig.container.write("/tmp/inside")
    (rig.root / "etc" / "new").touch()
    (rig.root / "etc" / "gone").touch()
    paths = ("/tmp/inside", "/tmp", "/data/file", "/etc/hosts", "/etc/own", "/etc/new", "/etc/gone")
    for path in paths:
        rig.container.add_inotify(path)
    rig.checkpoint()
    bare = tmp_path / "bare"
    (bare / "etc").mkdir(parents=True)
    for name in ("own", "gone"):
        (bare / "etc" / name).touch()

    def verdicts() -> dict[str, tuple[RestoreVerdict, str]]:
        return {name: (one.verdict, one.origin) for name, one in _by_name(rig.images, bare).items()}

    brought, missing, replaced = (
        RestoreVerdict.BROUGHT,
        RestoreVerdict.MISSING,
        RestoreVerdict.REPLACED,
    )
    (tmpfs,) = rig.images.glob("tmpfs-dev-*.tar.gz.img")
    # CRIU finds /etc/hosts by the other mount of its filesystem.
    expected = {
        "inside": (brought, tmpfs.name),
        "tmp": (brought, tmpfs.name),
        "file": (brought, "the mount /data"),
        "hosts": (brought, "the mount /data"),
        "own": (replaced, "the root"),
        "new": (missing, ""),
        "gone": (replaced, "the root"),
    }
    assert verdicts() == expected
    # The images do not name the root of the container.
    assert check_images(rig.images, bare).notes == ()
    (note,) = check_images(rig.images).notes
    assert "name it with --root" in note
    (rig.images / "deleted.files").write_text(json.dumps(["/etc/gone"]))
    with tarfile.open(rig.images / "rootfs-diff.tar", "w") as tar:
        tar.add(rig.root / "etc" / "new", "etc/new")
    expected |= {"new": (brought, "rootfs-diff.tar"), "gone": (missing, "")}
    assert verdicts() == expected
    # The same beside the images, as an engine's checkpoint has it.
    for name in ("deleted.files", "rootfs-diff.tar"):
        (rig.images / name).rename(tmp_path / name)
    assert verdicts() == expected
    with tarfile.open(tmpfs, "w:gz") as tar:
        tar.add(rig.root / "etc" / "new", "./other")
    assert verdicts()["inside"] == (missing, "")
    assert verdicts()["tmp"] == (brought, tmpfs.name)
    with tarfile.open(tmpfs, "w:gz") as tar:
        tar.add("/bin/sh", "./other")
    tmpfs.write_bytes(tmpfs.read_bytes()[:-20_000])
    assert verdicts()["inside"] == (brought, tmpfs.name), "the source is not known"


def test_images_of_a_dump_that_failed(bench: Bench, area: MountArea, tmp_path: Path) -> None:
    bench.target.add_inotify(area.place("overlay-lower").directory / "file")
    images = tmp_path / "images"
    assert not bench.criu.dump(bench.target.pid, images).ok
    assert (images / "files.img").exists()
    with pytest.raises(FileError, match=r"no inventory\.img"):
        check_images(images, Path("/"))


# --- watches that no restore sets again -----------------------------------------------------------


@pytest.mark.parametrize("leads_to", ["file", "nowhere"])
def test_a_symbolic_link_with_its_path(
    leads_to: str, bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    place = area.place("overlay-upper")
    link = place.directory / "link"
    link.symlink_to(leads_to)
    watched = bench.target.add_inotify(link, IN_ATTRIB | IN_OPEN | _IN_DONT_FOLLOW)
    cache = bench.pre_dump()
    images = bench.new(cache)
    (said,) = bench.check(images).watches
    assert (said.prediction.verdict, said.prediction.path) == (
        WatchVerdict.SYMLINK,
        os.fsencode(link),
    )
    assert bench.criu.dump(bench.target.pid, images, leave_running=False).ok
    report = check_images(images, Path("/"))
    assert not report.right
    (one,) = report.watches
    expected = RestoreVerdict.LINKED if leads_to == "file" else RestoreVerdict.MISSING
    assert one.verdict is expected
    restored = bench.criu.restore(bench.target, images)
    assert restored.ok == (leads_to == "file"), restored
    if restored.ok:
        assert bench.target.hears(watched, (place.directory / "file").read_bytes)
        assert not bench.target.hears(watched, lambda: os.utime(link, follow_symlinks=False))


def test_a_deleted_file_is_named_before_and_in_the_images(
    bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    file = area.place("ext4").directory / "dir" / "file"
    (file.parent / "hard").unlink()
    child = bench.target.fork()
    bench.target.add_inotify(file)
    held = child.open(file)
    file.unlink()
    (said,) = bench.check(tmp_path).watches
    assert said.prediction.verdict is WatchVerdict.NO_RESTORE
    assert f"it was {file}; task {child.pid} holds it as fd {held}" in said.prediction.why
    images = tmp_path / "images"
    assert bench.criu.dump(bench.target.pid, images).ok
    (one,) = check_images(images, Path("/")).watches
    assert (one.verdict, one.right) == (RestoreVerdict.DELETED, False)


# --- a file that is mounted by itself -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_file_mounted_beside_a_directory(kind: str, each_bench: Bench, area: MountArea) -> None:
    whole = area.ext4().mountpoint if kind == "ext4" else area.tmpfs()
    (whole / "volume").mkdir()
    (whole / "hosts").touch()
    volume, hosts, empty = (area.path / name for name in ("volume", "hosts", "empty"))
    volume.mkdir()
    empty.mkdir()
    hosts.touch()
    area.bind(whole / "volume", volume)
    area.bind(whole / "hosts", hosts)
    area.bind(empty, whole)  # as a container does not have it
    watched = each_bench.target.add_inotify(hosts, IN_OPEN)
    cache = each_bench.pre_dump()
    verdicts = {}
    for forced in (False, True):
        for helped in (False, True):
            said = each_bench.compare(watched, cache=cache if helped else None, forced=forced)
            assert said.predicted is said.did, said
            assert (
                said.verdict is WatchVerdict.CACHE or f"mounted at {hosts}" in said.prediction.why
            )
            verdicts[forced, helped] = said.verdict
    if kind == "tmpfs":
        assert set(verdicts.values()) == {WatchVerdict.FAILS}
    else:
        assert list(verdicts.values()) == [
            WatchVerdict.NO_RESTORE,
            WatchVerdict.NO_RESTORE,
            WatchVerdict.OPTIONS,
            WatchVerdict.CACHE,
        ]


# --- the output -----------------------------------------------------------------------------------


def _print_check(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "irmapdb", "check", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def _watch(task: Task, directory: Path, count: int) -> None:
    directory.mkdir()
    for number in range(count):
        (directory / f"file-{number}").touch()
    task.add_many([directory / f"file-{number}" for number in range(count)])


def test_many_watches_have_one_scan_path_and_few_rows(
    bench: Bench, area: MountArea, tmp_path: Path
) -> None:
    place = area.place("overlay-upper")
    for name in ("one", "other"):
        _watch(bench.target, place.directory / name, 60)
    call = ("-t", str(bench.target.pid), "-D", tmp_path, "--criu-version", "4.1")
    said = _print_check(*call)
    rows = [line for line in said.splitlines() if " options " in line and "file-" in line]
    assert len(rows) == 20
    assert "(100 more are not listed; --all-rows lists all)" in said
    assert said.count("--irmap-scan-path") == 1
    assert f"--irmap-scan-path {place.directory}\n" in said
    assert len(json.loads(_print_check(*call, "--json"))["watches"]) == 120
    with_path = bench.criu.dump(bench.target.pid, tmp_path / "images", scan_paths=[place.directory])
    assert with_path.ok, with_path


def test_the_first_and_the_last_line(bench: Bench, tmp_path: Path) -> None:
    bench.target.add_inotify("/etc")
    call = ("-t", str(bench.target.pid), "-D", tmp_path)
    known = _print_check(*call, "--criu-version", "4.2").splitlines()
    assert "sockets, terminals" in known[-1]
    assert "will be right" not in known[-1]
    unknown = _print_check(*call, "--criu-version", "3.17").splitlines()
    assert unknown[0].startswith("note: CRIU 3.17 may behave differently")
