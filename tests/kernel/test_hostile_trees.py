"""A tenant's tree that tries to make irmapdb leave it, wait, crash, or name the wrong file."""

import gc
import os
import socket
import stat
import subprocess
import sys

import pytest

from irmapdb.checkpoint import scan_paths, steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from irmapdb.errors import FileError
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proc import fdinfo
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import open_root
from irmapdb.resolve import root_search
from irmapdb.resolve.search import Search
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import open_descriptors, served, watched_identity
from tests.support.names import ODD_NAMES
from tests.support.notify import IN_ATTRIB, IN_DONT_FOLLOW, IN_OPEN
from tests.support.programs import run
from tests.support.watcher import Watcher

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MS_BIND, MS_REC = 0x1000, 0x4000
# A hostile tree must not block irmapdb: far more than any of these tests takes.
PATIENCE_S = 100


@pytest.fixture
def rootfs(area):
    """The tenant's root, and files of the host beside it."""
    (area.path / "outside").mkdir()
    (area.path / "outside" / "secret").touch()
    top = area.ext4("rootfs").mountpoint
    for name in ("etc", "var", "home"):
        (top / name).mkdir()
    return top


@pytest.fixture
def tenant(rootfs):
    with Watcher(unshare={"mount"}, rootfs=rootfs) as task:
        yield task


def files_of(task):
    return [
        fdinfo.read_raw(task.pid, fd, kind).parse()
        for fd, kind in fdinfo.watch_descriptors(task.pid)
    ]


def searched(task, **more):
    """Everything resolved in the tenant's root, by a process that may be given up on."""

    def search():
        gc.collect()  # else the garbage of earlier tests would be collected meanwhile
        before = len(open_descriptors())
        with (
            open_root(task.pid) as root,
            Search(root, lambda _keys, _mntns=0: {}, config=Config(), **more) as found,
        ):
            found.resolve(files_of(task))
            found.prove_again(list(found.outcome.resolved))
        assert len(open_descriptors()) == before
        return found.outcome

    return call_in_child(search, PATIENCE_S)


def test_watched_special_files_are_found(rootfs, tenant):
    """Watched FIFOs, sockets, devices and links are found; they have no peer."""
    (rootfs / "etc" / "file").touch()
    os.mkfifo(rootfs / "etc" / "fifo")
    os.mknod(rootfs / "etc" / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 251))
    os.mknod(rootfs / "etc" / "tty", stat.S_IFCHR | 0o600, os.makedev(5, 0))
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.fspath(rootfs / "etc" / "socket"))
    (rootfs / "etc" / "link").symlink_to("/../../../etc/fifo")
    expected = {}
    for name in ("file", "fifo", "disk", "tty", "socket", "link"):
        watched = tenant.add_inotify(f"/etc/{name}", IN_ATTRIB | IN_OPEN | IN_DONT_FOLLOW)
        expected[watched_identity(tenant, watched)] = b"/etc/" + name.encode()
    tenant.events()
    drop_caches()
    outcome = searched(tenant)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == expected
    assert tenant.events() == []
    server.close()


SWAPPER = """
import ctypes, os, sys
os.chroot(sys.argv[1])
os.chdir("/")
swap = ctypes.CDLL(None).renameat2
print("ready", flush=True)
while True:
    for name in (b"etc/a", b"etc/b", b"etc/c", b"etc/d/e"):
        swap(-100, name, -100, name + b"-other", 2)
"""


def test_directories_that_are_links_by_turns(area, rootfs, tenant):
    """To the root, to an absolute path, upwards: each is a directory and a link by turns."""
    outside = area.path / "outside"
    targets = {"a": "/", "b": outside, "c": "../" * 20 + f"{outside}"[1:], "d/e": "../../etc"}
    expected = {}
    for name, target in targets.items():
        directory = rootfs / "etc" / name
        (directory / "secret").mkdir(parents=True)
        (directory / "secret" / "file").touch()
        directory.with_name(f"{directory.name}-other").symlink_to(target)
        for path in (name, f"{name}/secret", f"{name}/secret/file"):
            watched = tenant.add_inotify(f"/etc/{path}")
            both = {f"/etc/{path}", f"/etc/{path.replace(name, f'{name}-other', 1)}"}
            expected[watched_identity(tenant, watched)] = {os.fsencode(one) for one in both}
    spy = Watcher()
    opening = [spy.add_inotify(path, IN_OPEN) for path in (outside, "/etc", "/")]
    with (
        spy,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SWAPPER, rootfs], stdout=subprocess.PIPE
        ) as swapper,
    ):
        swapper.stdout.readline()
        found = {}
        try:
            for turn in range(12):
                if turn % 3 == 0:
                    drop_caches()
                outcome = searched(tenant)
                assert outcome.resolved.keys() | outcome.unresolved.keys() == expected.keys()
                for identity, answer in outcome.resolved.items():
                    found.setdefault(identity, set()).add(answer.path)
        finally:
            swapper.kill()
        seen = {event.wd for event in spy.events() if getattr(event, "name", b"") == b"secret"}
        assert seen & {opening[0].wd} == set()
    # Each answer is one of the two names that it has by turns, and never a way through a link.
    assert found
    for identity, paths in found.items():
        assert paths <= expected[identity]
    # When the renames have ended, the answer is its only name.
    outcome = searched(tenant)
    assert outcome.unresolved == {}
    with open_root(tenant.pid) as root:
        for identity, answer in outcome.resolved.items():
            assert disproof(root, identity, answer.path) is None
            (other,) = expected[identity] - {answer.path}
            assert disproof(root, identity, other) is not None


def test_a_tree_that_contains_itself(rootfs, tenant):
    (rootfs / "var" / "loop").mkdir()
    (rootfs / "var" / "loop" / "deeper").mkdir()
    (rootfs / "home" / "file").touch()
    for _ in range(3):
        tenant.mount("/", "/var/loop", "none", flags=MS_BIND | MS_REC)
        tenant.mount("/var", "/home", "none", flags=MS_BIND)
    hidden = tenant.add_inotify("/var/loop/etc")
    shown = watched_identity(tenant, hidden)
    drop_caches()
    outcome = searched(tenant)
    assert outcome.unresolved == {}
    with open_root(tenant.pid) as root:
        assert disproof(root, shown, outcome.resolved[shown].path) is None
        assert len(root.mounts.by_mountpoint) <= len(root.mounts.all)


def test_a_tree_deeper_than_a_path_may_be_long(rootfs, tenant):
    """Deeper than a link of /proc can show, and longer than a path may be."""
    here = os.open(rootfs / "var", os.O_PATH)
    name = "d" * 50
    for _ in range(600):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.mknod("bottom", dir_fd=here)
    path = b"/var/" + os.fsencode(name + "/") * 600 + b"bottom"
    shown = watched_identity(tenant, tenant.add_inotify(path))
    os.close(here)
    for _ in range(2):
        outcome = searched(tenant)
        assert outcome.resolved[shown].path == path
        drop_caches()


def test_names_of_any_bytes(rootfs, tenant):
    directory = os.fsencode(rootfs / "home")
    here = os.open(directory, os.O_RDONLY)
    for number in range(2000):
        os.mknod(b"%d" % number, dir_fd=here)
    os.close(here)
    expected = {}
    for name in (
        *ODD_NAMES,
        b"...",
        b"..(deleted)",
        b"\\057etc",
        b" - ",
        b"\x01",
        b"1 2 0:3 rw - x",
    ):
        os.mkdir(directory + b"/" + name)
        os.mknod(directory + b"/" + name + b"/file")
        for path in (b"/home/" + name, b"/home/" + name + b"/file"):
            expected[watched_identity(tenant, tenant.add_inotify(path))] = path
    # Mount points too.
    place = b"/home/" + ODD_NAMES[3]
    tenant.mount("tmpfs", place, "tmpfs")
    tenant.write(place + b"/on it")
    covered = {path for path in expected.values() if path == place or path == place + b"/file"}
    expected = {i: path for i, path in expected.items() if path not in covered}
    expected[watched_identity(tenant, tenant.add_inotify(place + b"/on it"))] = place + b"/on it"
    drop_caches()
    outcome = searched(tenant)
    assert {i: a.path for i, a in outcome.resolved.items() if i in expected} == expected
    # A file that the mount covers has no path now.
    assert len(outcome.unresolved) == len(covered) == 2


RENAMER = """
import os, sys
os.chdir(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    os.rename("m%d" % number, "m%d" % (number + 1))
    number += 1
"""


def test_a_file_that_never_keeps_its_name(rootfs, tenant):
    (rootfs / "var" / "m0").touch()
    (rootfs / "var" / "still").touch()
    still = watched_identity(tenant, tenant.add_inotify("/var/still"))
    moving = watched_identity(tenant, tenant.add_inotify("/var/m0"))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", RENAMER, rootfs / "var"], stdout=subprocess.PIPE
    ) as renamer:
        renamer.stdout.readline()
        try:
            for _ in range(3):
                outcome = searched(tenant)
                assert outcome.resolved[still].path == b"/var/still"
                answer = outcome.resolved.get(moving)
                assert answer is None or answer.path.startswith(b"/var/m")
        finally:
            renamer.kill()
    (last,) = (rootfs / "var").glob("m*")
    assert searched(tenant).resolved[moving].path == b"/var/" + os.fsencode(last.name)


def test_a_server_on_the_way_that_never_answers(area, watcher, monkeypatch):
    """A filesystem of the kernel's own, but below a mount of a server that has stopped."""
    (area.path / "source" / "below").mkdir(parents=True)
    (area.path / "beside").touch()
    place = area.path / "served" / "below"
    with served(area.path / "source", area.path / "served") as server:
        run("mount", "-t", "tmpfs", "below", place)
        (place / "file").touch()
        shown = watched_identity(watcher, watcher.add_inotify(place / "file"))
        beside = watched_identity(watcher, watcher.add_inotify(area.path / "beside"))
        assert searched(watcher).resolved[shown].path == os.fsencode(place / "file")
        with server.silent(), monkeypatch.context() as patch:
            patch.setattr(root_search, "_PATIENCE_S", 0.5)
            outcome = searched(watcher)
        assert outcome.resolved[beside].path == os.fsencode(area.path / "beside")
        assert shown in outcome.unresolved
        run("umount", place)


def test_a_named_place_that_never_answers(area, watcher, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(scan_paths, "_PATIENCE_S", 0.5)
    (area.path / "source" / "below").mkdir(parents=True)
    (area.path / "beside").touch()
    watcher.add_inotify(area.path / "beside")
    place = os.fsencode(area.path / "served" / "below")
    with served(area.path / "source", area.path / "served") as server, server.silent():
        named = StepOptions(watcher.pid, tmp_path, scan_paths=(place,), config=Config(hints=()))
        with pytest.raises(FileError, match="fuse: no answer in time"):
            steps.pre_dump(named)
        configured = Config(hints=(), scan_paths=(place,))
        report = steps.pre_dump(StepOptions(watcher.pid, tmp_path, config=configured))
    assert [row.path for row in report.watches] == [os.fsencode(area.path / "beside")]
    assert "fuse: no answer in time; not scanned" in caplog.text
