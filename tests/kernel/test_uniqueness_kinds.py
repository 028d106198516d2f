"""Why an identity is unique, type by type: each reason is true; without one there is no path."""

from __future__ import annotations

import contextlib
import os
import pty
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from irmapdb.checkpoint import steps
from irmapdb.config import Config
from irmapdb.kernel.proof import disproof, identify_fd
from irmapdb.kernel.root import Root
from irmapdb.kernel.uniqueness import REASONS, Reason, may_be_another
from irmapdb.model import FileHandle, Identity, Mount, StaleReason
from irmapdb.node import ps
from tests.support.area import MountArea
from tests.support.features import has_filesystem, require_filesystem
from tests.support.filesystems import drop_caches
from tests.support.fuse_server import ReusingServer
from tests.support.kernel_paths import watched_identity
from tests.support.notify import IN_ATTRIB, IN_OPEN
from tests.support.programs import run
from tests.support.stepping import new_work_dir
from tests.support.watcher import Watcher

_MASK = IN_OPEN | IN_ATTRIB
_NAME = f"irmapdb-test-{os.getpid()}"


class _Two(NamedTuple):
    """Two things that lie on one filesystem."""

    one: Path
    other: Path


def _on_disk(kind: str) -> Callable[[MountArea], contextlib.AbstractContextManager[_Two]]:
    @contextlib.contextmanager
    def make(area: MountArea) -> Iterator[_Two]:
        place = area.place(kind)
        yield _Two(place.directory / "file", place.directory / "dir")

    return make


@contextlib.contextmanager
def _ext(area: MountArea, fstype: str) -> Iterator[_Two]:
    image = area.path / f"{fstype}.image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run(f"mkfs.{fstype}", "-q", "-F", image)
    top = area.mount(image, fstype, fstype, "loop")
    (top / "file").touch()
    (top / "dir").mkdir()
    yield _Two(top / "file", top / "dir")


@contextlib.contextmanager
def _made(area: MountArea, fstype: str, *, files: bool = True) -> Iterator[_Two]:
    top = area.mount("none", fstype, fstype)
    one, other = top / f"{_NAME}-1", top / f"{_NAME}-2"
    make = Path.touch if files else Path.mkdir
    with contextlib.ExitStack() as stack:
        for path in (one, other):
            make(path)
            stack.callback(Path.unlink if files else Path.rmdir, path)
        yield _Two(one, other)


@contextlib.contextmanager
def _there(area: MountArea, fstype: str) -> Iterator[_Two]:
    # Files that the kernel makes: the first ones that can be watched.
    top = area.mount("none", fstype, fstype)
    names = sorted(path for path in top.iterdir() if _is_plain(path))
    if len(names) < 2:
        pytest.skip(f"{fstype} is empty here")
    yield _Two(names[0], names[1])


def _is_plain(path: Path) -> bool:
    # The first numbers are not the counter's alone.
    return (path.is_file() or path.is_dir()) and (path.stat().st_ino > 3)


@contextlib.contextmanager
def _sysfs(area: MountArea) -> Iterator[_Two]:
    yield _Two(Path("/sys/kernel/uevent_seqnum"), Path("/sys/kernel"))


@contextlib.contextmanager
def _proc(area: MountArea) -> Iterator[_Two]:
    # A task's own directory has a number of the counter.
    holding = [os.open(path, os.O_PATH) for path in ("/proc/1/status", "/proc/sys/kernel")]
    yield _Two(Path("/proc/1/status"), Path("/proc/sys/kernel"))
    for fd in holding:
        os.close(fd)


@contextlib.contextmanager
def _devtmpfs(area: MountArea) -> Iterator[_Two]:
    one, other = (Path("/dev") / f"{_NAME}-{number}" for number in (1, 2))
    one.touch()
    other.mkdir()
    try:
        yield _Two(one, other)
    finally:
        one.unlink()
        other.rmdir()


@contextlib.contextmanager
def _devpts(area: MountArea) -> Iterator[_Two]:
    top = area.mount("none", "devpts", "devpts")
    yield _Two(top / "ptmx", top)


_MAKE: dict[str, Callable[[MountArea], contextlib.AbstractContextManager[_Two]]] = {
    "btrfs": _on_disk("btrfs"),
    "erofs": _on_disk("erofs"),
    "ext2": lambda area: _ext(area, "ext2"),
    "ext3": lambda area: _ext(area, "ext3"),
    "ext4": _on_disk("ext4"),
    "squashfs": _on_disk("squashfs"),
    "xfs": _on_disk("xfs"),
    "tmpfs": _on_disk("tmpfs"),
    "devtmpfs": _devtmpfs,
    "sysfs": _sysfs,
    "cgroup2": lambda area: _made(area, "cgroup2", files=False),
    "bpf": lambda area: _made(area, "bpf", files=False),
    "debugfs": lambda area: _there(area, "debugfs"),
    "securityfs": lambda area: _there(area, "securityfs"),
    "devpts": _devpts,
    "hugetlbfs": lambda area: _made(area, "hugetlbfs"),
    "mqueue": lambda area: _made(area, "mqueue"),
    "ramfs": lambda area: _made(area, "ramfs"),
    "proc": _proc,
}


@pytest.mark.parametrize("fstype", sorted(_MAKE))
def test_an_identity_is_one_inode(
    fstype: str, area: MountArea, root: Root, watcher: Watcher
) -> None:
    """Each of the two is proved, is not the other, and reports its events; cold as well."""
    require_filesystem(fstype)
    with _MAKE[fstype](area) as two:
        root.renew()
        watched = {path: watcher.add_inotify(path, _MASK, fd=watcher.inotify()) for path in two}
        shown = {path: watched_identity(watcher, one) for path, one in watched.items()}
        for _ in range(2):
            for path, identity in shown.items():
                assert disproof(root, identity, os.fsencode(path)) is None
                assert watcher.hears(watched[path], lambda path=path: _touch(path))
            assert disproof(root, shown[two.one], os.fsencode(two.other)) is not None
            drop_caches(two.other)


def _touch(path: Path) -> None:
    # The kernel reports no open of a terminal.
    if path.is_char_device():
        path.chmod(stat.S_IMODE(path.stat().st_mode))
    else:
        _open(path)


def _open(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))


def test_every_type_has_a_test_or_cannot_be_mounted_here() -> None:
    for fstype in REASONS.keys() - _MAKE.keys():
        if fstype in {"binfmt_misc", "cgroup", "fusectl", "pstore", "rootfs"}:
            continue  # tested below, empty, or with the first numbers alone
        assert not has_filesystem(fstype), fstype


@pytest.mark.parametrize("fstype", sorted(REASONS))
def test_a_large_number_is_unique_for_each_reason(fstype: str, root: Root, tmp_path: Path) -> None:
    mount = _mount(fstype)
    large = Identity(7, 2 if fstype == "devpts" else 1 << 20, FileHandle(1, b"\1" * 8))
    with (tmp_path / "file").open("wb") as file:
        assert not may_be_another(root, mount, large, file.fileno())
    assert isinstance(REASONS[fstype], Reason)


@pytest.mark.parametrize(
    "fstype",
    [
        *("", "tracefs", "nsfs", "pidfs", "cifs", "smb3", "9p", "fuse", "fuse.sshfs", "fuseblk"),
        *("virtiofs", "autofs", "afs", "overlayfs", "shiftfs", "zfs", "new-in-7.0"),
    ],
)
def test_an_unknown_type_is_ambiguous(fstype: str, root: Root, tmp_path: Path) -> None:
    mount = _mount(fstype)
    wanted = Identity(7, 1 << 20, FileHandle(1, b"\1" * 8))
    with (tmp_path / "file").open("wb") as file:
        assert may_be_another(root, mount, wanted, file.fileno())


def _mount(fstype: str) -> Mount:
    return Mount(1, 1, 7, b"/", b"/", b"", fstype, b"", b"")


def test_fusectl_is_not_fuse(area: MountArea, root: Root, watcher: Watcher) -> None:
    source = area.path / "source"
    source.mkdir()
    require_filesystem("fusectl")
    area.fuse(source)
    top = area.mount("none", "fusectl", "fusectl")
    (connection, *_) = top.iterdir()
    watched = watcher.add_inotify(connection / "waiting", IN_OPEN)
    root.renew()
    path = connection / "waiting"
    assert disproof(root, watched_identity(watcher, watched), os.fsencode(path)) is None
    assert watcher.hears(watched, lambda: _open(path))


def test_a_server_that_gives_one_number_to_two_files(
    area: MountArea, root: Root, watcher: Watcher, tmp_path: Path
) -> None:
    require_filesystem("fuse")
    top = area.path / "served"
    with ReusingServer(top) as server:
        inotify = watcher.add_inotify(top / "one", IN_OPEN)
        watcher.add_fanotify(top / "one")
        wanted = watched_identity(watcher, inotify)
        server.reused = True
        other = watcher.add_inotify(top / "two", IN_OPEN, fd=watcher.inotify())
        assert watched_identity(watcher, other) == wanted
        assert not watcher.hears(inotify, lambda: _open(top / "two"))
        watcher.remove(other)
        root.renew()
        assert disproof(root, wanted, os.fsencode(top / "two")) is StaleReason.AMBIGUOUS
        options = steps.StepOptions(watcher.pid, new_work_dir(tmp_path), config=Config(hints=()))
        for report in (steps.pre_dump(options), steps.dump(options, steps.FreezeOptions())):
            assert {row.path for row in report.watches} == {None}
        taken = ps.take(ps.PsOptions(pid=watcher.pid))
        assert {row.path for row in taken.watches} == {None}


def test_a_name_of_proc_that_was_dropped_is_another_file(root: Root, watcher: Watcher) -> None:
    path = Path("/proc/meminfo")
    watched = watcher.add_inotify(path, IN_OPEN)
    before = watched_identity(watcher, watched)
    drop_caches(path)
    _open(path)
    with path.open("rb") as opened:
        assert identify_fd(root, opened.fileno()) == before
    # It is not known whether the name was dropped.
    for name in ("/proc/meminfo", "/proc/self", "/proc/sys", "/proc/uptime"):
        assert disproof(root, before, os.fsencode(name)) is not None


def test_a_terminal_has_the_number_of_the_one_before(root: Root, watcher: Watcher) -> None:
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    watched = watcher.add_inotify(path, _MASK)
    wanted = watched_identity(watcher, watched)
    holding = os.open(path, os.O_PATH)  # keeps its inode alive, and not its number
    os.close(slave)
    os.close(master)
    masters = [pty.openpty()]
    try:
        while os.ttyname(masters[-1][1]) != path and len(masters) < 20:
            masters.append(pty.openpty())
        assert os.ttyname(masters[-1][1]) == path
        assert not watcher.hears(watched, lambda: _touch(Path(path)))
        assert disproof(root, wanted, os.fsencode(path)) is StaleReason.AMBIGUOUS
    finally:
        for pair in masters:
            os.close(pair[0])
            os.close(pair[1])
        os.close(holding)
