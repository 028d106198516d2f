"""`check --all` on thirty containers of ten kinds, beside CRIU's dump of each of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from irmapdb.commands.layout import text_width
from irmapdb.criu.check.verdicts import WatchVerdict
from irmapdb.node import check_all
from irmapdb.node.check_all import NodeCheckOptions
from irmapdb.node.services import find_services
from tests.support import criu_versions
from tests.support.cli import irmapdb
from tests.support.features import require_program
from tests.support.hook import installed_for_runc
from tests.support.notify import IN_ATTRIB, IN_DONT_FOLLOW
from tests.support.packages import RigError
from tests.support.programs import SYSTEM_PATH
from tests.support.runc import Container, fill_rootfs_with_app
from tests.support.terminal import at_terminal
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irmapdb.criu.check.dump import DumpCheck, DumpCheckOptions
    from tests.support.area import MountArea
    from tests.support.criu import Criu

_WITH_PATH = {WatchVerdict.PATH, WatchVerdict.CACHE, WatchVerdict.WALK, WatchVerdict.WRONG_PATH}
_WITHOUT_PATH = {WatchVerdict.NO_PATH, WatchVerdict.NO_RESTORE}


class Made(NamedTuple):
    """A container of one kind."""

    kind: str
    container: Container
    rootfs: Path
    data: Path

    @property
    def id(self) -> str:
        return self.container.id

    def warm(self) -> None:
        """Have the kernel cache the names on the volume, which another test may drop."""
        for path in self.data.iterdir():
            path.lstat()


def _nothing(_made: Made) -> None:
    pass


def _on_overlay(made: Made) -> None:
    made.container.add_inotify("/srv/app/settings")


def _deleted_on_overlay(made: Made) -> None:
    made.container.write("/srv/app/gone")
    made.container.open("/srv/app/gone")
    made.container.add_inotify("/srv/app/gone")
    made.container.unlink("/srv/app/gone")


def _overlay_directories(made: Made) -> None:
    for path in ("/", "/srv", "/srv/app"):
        made.container.add_inotify(path)


def _on_volume(made: Made) -> None:
    made.container.add_inotify("/data/file")
    made.container.add_inotify("/data")


def _on_volume_and_overlay(made: Made) -> None:
    _on_volume(made)
    _on_overlay(made)


def _on_tmpfs(made: Made) -> None:
    made.container.write("/scratch/file")
    made.container.add_inotify("/scratch/file")
    made.container.add_inotify("/scratch")


def _in_proc(made: Made) -> None:
    made.container.add_inotify("/proc/sys/kernel/hostname")


def _symlink(made: Made) -> None:
    made.container.add_inotify("/data/link", IN_ATTRIB | IN_DONT_FOLLOW)


def _by_a_child(made: Made) -> None:
    child = made.container.fork()
    for number in range(50):
        child.write(f"/data/{number}")
        child.add_inotify(f"/data/{number}")


_KINDS = {
    one.__name__[1:]: one
    for one in (
        _nothing,
        _on_overlay,
        _deleted_on_overlay,
        _overlay_directories,
        _on_volume,
        _on_volume_and_overlay,
        _on_tmpfs,
        _in_proc,
        _symlink,
        _by_a_child,
    )
}


@pytest.fixture
def make(area: MountArea, rig: Path, tmp_path: Path) -> Iterator[Callable[[str], Made]]:
    """Starts one more container of a kind."""
    require_program("runc")
    base = area.ext4("layers", size_mib=64).mountpoint
    fill_rootfs_with_app(base / "lower")
    volumes = area.ext4("volumes", size_mib=64).mountpoint
    numbers = iter(range(1000))
    with contextlib.ExitStack() as stack:

        def start(kind: str, criu_dir: Path = rig) -> Made:
            number = next(numbers)
            upper, data = base / f"upper-{number}", volumes / f"volume-{number}"
            upper.mkdir()
            data.mkdir()
            (data / "file").write_text("bound")
            (data / "link").symlink_to("file")
            rootfs = area.overlay(f"root-{number}", lower=base / "lower", upper_base=upper)
            container = Container(
                tmp_path / f"runc-{number}",
                rootfs.mountpoint,
                {data: "/data"},
                os.pathsep.join((str(criu_dir), SYSTEM_PATH)),
                tmpfs=("/scratch",),
            )
            stack.enter_context(container)
            made = Made(kind, container, rootfs.mountpoint, data)
            _KINDS[kind](made)
            return made

        yield start


def _check_all(rig: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, dict]:
    """The rows by the ids of the containers."""
    monkeypatch.setenv("PATH", f"{rig}{os.pathsep}{os.environ['PATH']}")
    done = irmapdb("check", "--all", "--json", *options)
    assert done.code in {0, 3}, done.err
    document = json.loads(done.out)
    assert document["right"] is all(one["right"] for one in document["containers"])
    return {one["id"]: one for one in document["containers"]}


def _assert_equal(made: Made, row: dict, criu: Criu, place: Path) -> None:
    made.warm()
    done = made.container.checkpoint(place / "images", place / "work")
    log = place / "work" / "dump.log"
    said = log.read_text(errors="replace")[-2000:] if log.exists() else done.log
    assert row["fails"] is not done.ok, (made.kind, row, said)
    if not done.ok:
        # A file stopped the dump, and no socket or terminal of the test.
        assert "Dump files (pid" in said or "Can't dump that handle" in said, (made.kind, said)
        return
    dumped = Counter(watch.path is not None for watch in criu.dumped_watches(place / "images"))
    counts = row["verdicts"]
    with_path = sum(counts.get(one, 0) for one in _WITH_PATH)
    without = sum(counts.get(one, 0) for one in _WITHOUT_PATH)
    symlinks = counts.get(WatchVerdict.SYMLINK, 0)
    assert dumped.total() == with_path + without + symlinks, (made.kind, row)
    assert with_path <= dumped[True] <= with_path + symlinks, (made.kind, row)
    assert row["right"] is (dumped[False] == 0 and symlinks == 0)


def _criu_of(version: str, criu: Criu) -> Path:
    # The one that must be there, where no suite has that version any more.
    try:
        return criu_versions.criu_of(version)
    except RigError:
        return criu.program


def test_thirty_containers_of_ten_kinds(
    make: Callable[..., Made],
    criu: Criu,
    rig: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten for each version of CRIU."""
    every: list[Made] = []
    predicted: dict[str, dict] = {}
    for version in criu_versions.KNOWN:
        program = _criu_of(version, criu)
        ten = [make(kind, program.parent) for kind in _KINDS]
        before = [_state(made) for made in ten]
        rows = _check_all(program.parent, monkeypatch, "--no-hook")
        assert [_state(made) for made in ten] == before  # no task is stopped, no file is written
        predicted |= {made.id: rows[made.id] for made in ten}
        every += ten
    assert len(predicted) == 30
    rows = _check_all(rig, monkeypatch, "--no-hook")
    table = irmapdb("check", "--all", "--no-hook").out.splitlines()
    shown = [row for line in table if (row := rows.get(line.split(" ")[0]))]
    assert [row["right"] for row in shown] == sorted(row["right"] for row in shown)
    for made in every:
        (line,) = (line for line in table if line.startswith(made.id))
        assert ("dump fails" in line) is rows[made.id]["fails"]
    for number, made in enumerate(every):
        row = predicted[made.id]
        assert row["pid"] == made.container.pid
        _assert_equal(made, row, criu, tmp_path / f"dump-{number}")


def _state(made: Made) -> tuple[str, list[str], list[str]]:
    places = (made.rootfs, made.data, made.rootfs / "srv" / "app")
    names = [sorted(os.listdir(place)) for place in places]
    return made.container.state(), [name for one in names for name in one], os.listdir(".")


def test_with_the_hook(
    make: Callable[[str], Made],
    criu: Criu,
    rig: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = ("on_overlay", "overlay_directories", "deleted_on_overlay", "on_tmpfs", "by_a_child")
    every = [make(kind) for kind in kinds]
    without = _check_all(rig, monkeypatch, "--no-hook")
    rows = _check_all(rig, monkeypatch, "--hook")
    fail = {kind for kind, made in zip(kinds, every, strict=True) if rows[made.id]["fails"]}
    assert fail == {"deleted_on_overlay"}
    assert sum(without[made.id]["fails"] for made in every) == 3
    assert rows[every[1].id]["verdicts"] == {"cache": 3}
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "PATH": os.environ["PATH"]}
    _, shown = at_terminal("check", "--all", environment=environment, cwd=tmp_path)
    assert max(map(text_width, shown.decode().splitlines())) <= 80
    assert all(made.id in shown.decode() for made in every)
    with installed_for_runc(tmp_path):
        installed = _check_all(rig, monkeypatch)
        assert [installed[made.id] for made in every] == [rows[made.id] for made in every]
        for number, made in enumerate(every):
            _assert_equal(made, rows[made.id], criu, tmp_path / f"dump-{number}")


def test_a_container_that_ends_meanwhile_is_left_out(
    make: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = make("on_volume"), make("on_tmpfs")
    check_dump = check_all.check_dump

    def slowly(options: DumpCheckOptions) -> DumpCheck:
        if options.pid == gone.container.pid:
            os.kill(options.pid, signal.SIGKILL)
            gone.container.wait_dead()
        return check_dump(options)

    monkeypatch.setattr(check_all, "check_dump", slowly)
    report = check_all.check_all(NodeCheckOptions())
    assert report.ended >= 1
    ids = {one.info.id for one in report.containers}
    assert gone.id not in ids
    assert stays.id in ids


def test_a_container_that_takes_too_long_harms_no_other(
    make: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, broken, fast = make("on_volume"), make("on_volume"), make("on_tmpfs")
    check_dump = check_all.check_dump

    def hangs(options: DumpCheckOptions) -> DumpCheck:
        if options.pid == slow.container.pid:
            signal.pause()
        if options.pid == broken.container.pid:
            os._exit(1)
        return check_dump(options)

    monkeypatch.setattr(check_all, "check_dump", hangs)
    report = check_all.check_all(NodeCheckOptions(patience_s=5))
    rows = {one.info.id: one for one in report.containers}
    for made, why in ((slow, "not checked within 5 s"), (broken, "without a result")):
        row = rows[made.id]
        assert row.worst is not None
        assert row.worst.verdict == WatchVerdict.UNKNOWN
        assert why in row.worst.why
        assert str(made.container.pid) in row.worst.advice
        assert not row.right
    assert rows[fast.id].right
    assert not report.right


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup as systemd makes one for a service."""
    tops = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids"))
    (top,) = [one for one in tops if (one / "cgroup.procs").exists()][:1]
    made = top / f"irmapdb-{os.getpid()}.service"
    made.mkdir()
    yield made
    made.rmdir()


def test_the_services_of_the_host(cgroup: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Watcher(children=1) as watcher:
        (cgroup / "cgroup.procs").write_text(f"{watcher.pid}\n")
        (cgroup / "cgroup.procs").write_text(f"{watcher.children[0].pid}\n")
        assert cgroup.name not in {one.info.id for one in find_services(())}
        watcher.children[0].add_inotify(tmp_path / "file")
        report = check_all.check_all(NodeCheckOptions(services=True))
        (found,) = (one for one in report.services if one.info.name == cgroup.name)
        assert (found.pid, found.watches) == (watcher.pid, 1)
        assert found.info == (cgroup.name, cgroup.name, None, None, "systemd", f"/{cgroup.name}")
        assert found.verdicts == {"path": 1}
        assert check_all.check_all(NodeCheckOptions()).services == ()
        assert find_services({watcher.pid, watcher.children[0].pid}) == find_services(
            {watcher.children[0].pid}
        )


def test_a_node_without_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_all, "find_containers", lambda *_: ())
    done = irmapdb("check", "--all")
    # A note before may name a CRIU that does not work here.
    assert (done.code, done.out.splitlines()[-1:], done.err) == (0, ["no container runs here"], "")
    done = irmapdb("check", "--all", "--json")
    assert json.loads(done.out)["containers"] == []
    assert done.code == 0
