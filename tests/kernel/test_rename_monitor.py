"""Renames since the proof: the monitor of names, and the answers that it makes suspect."""

import ctypes
import os
import random
import sys
from pathlib import Path

import pytest

from irmapdb.checkpoint.confirm import Confirmation
from irmapdb.config import Config
from irmapdb.kernel.proof import disproof, identify
from irmapdb.kernel.rename_monitor import RenameMonitor
from irmapdb.model import Resolved, Source
from irmapdb.resolve.engine import Resolution
from tests.support.filesystems import superblock_kdev, unmount_below
from tests.support.kernel_paths import as_nobody
from tests.support.names import ODD_NAMES
from tests.support.programs import run
from tests.support.watcher import Watcher

RENAME_EXCHANGE = 2
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one, other):
    done = _libc.renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )
    assert done == 0, os.strerror(ctypes.get_errno())


def watch(monitor, directory):
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        return monitor.watch(superblock_kdev(directory), fd)
    finally:
        os.close(fd)


@pytest.fixture
def monitor():
    with RenameMonitor() as made:
        yield made


# The monitor


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_every_way_to_lose_a_name_is_reported(area, monitor, kind):
    place = area.place(kind)
    top = place.directory
    for name in ("a", "b", "c", "over"):
        (top / name).touch()
    (top / "empty").mkdir()
    assert watch(monitor, place.mountpoint)
    assert monitor.kdevs == {superblock_kdev(place.mountpoint)}
    assert monitor.names() == frozenset()
    (top / "a").rename(top / "a2")
    (top / "dir").rename(top / "dir2")
    assert monitor.names() == {b"a", b"a2", b"dir", b"dir2"}
    (top / "b").rename(top / "over")
    assert monitor.names() == {b"b", b"over"}
    exchange(top / "c", top / "dir2")
    assert monitor.names() == {b"c", b"dir2"}
    (top / "over").unlink()
    (top / "empty").rmdir()
    (top / "c" / "hard").unlink()
    assert monitor.names() == {b"over", b"empty", b"hard"}
    # No name is lost if a file is made, written, linked or opened.
    (top / "new").mkdir()
    (top / "new" / "file").write_bytes(b"x")
    (top / "new" / "file").read_bytes()
    (top / "link").hardlink_to(top / "new" / "file")
    (top / "symlink").symlink_to("new")
    (top / "new").chmod(0o700)
    assert monitor.names() == frozenset()
    assert not monitor.blind


def test_every_name_comes_through(area, monitor):
    top = os.fsencode(area.tmpfs())
    for name in ODD_NAMES:
        os.mknod(top + b"/" + name)
    watch(monitor, os.fsdecode(top))
    for name in ODD_NAMES:
        os.unlink(top + b"/" + name)
    assert monitor.names() == set(ODD_NAMES)


def test_several_filesystems_and_every_mount_of_each(area, monitor):
    one, other, unseen = area.tmpfs("one"), area.tmpfs("other"), area.tmpfs("unseen")
    bound = area.path / "bound"
    bound.mkdir()
    (one / "sub").mkdir()
    area.bind(one / "sub", bound)
    for name in ("one/sub/x", "other/y", "unseen/z"):
        (area.path / name).touch()
    assert watch(monitor, one)
    assert watch(monitor, other)
    (bound / "x").rename(bound / "x2")
    (other / "y").unlink()
    (unseen / "z").unlink()
    assert monitor.names() == {b"x", b"x2", b"y"}
    # Also a rename in another mount namespace.
    with Watcher(unshare={"mount"}) as elsewhere:
        elsewhere.rename(one / "sub" / "x2", one / "sub" / "x3")
        assert monitor.names() == {b"x2", b"x3"}


def test_a_filesystem_that_reports_no_renames_is_not_monitored(area, monitor):
    overlay = area.place("overlay-lower").mountpoint
    assert not watch(monitor, overlay)
    proc = os.open("/proc/self", os.O_PATH)
    assert not monitor.watch(0, proc)
    os.close(proc)
    assert monitor.kdevs == set()
    with as_nobody(), RenameMonitor() as powerless:
        assert not watch_quietly(powerless, "/")
        assert powerless.names() == frozenset()
    closed = RenameMonitor()
    assert closed.names() == frozenset()
    assert not watch_quietly(closed, "/")


def watch_quietly(monitor, directory):
    fd = os.open(directory, os.O_PATH)
    try:
        return monitor.watch(1, fd)
    finally:
        os.close(fd)


def test_an_overflow_of_the_queue_is_noticed(area, monitor):
    top = area.tmpfs()
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    watch(monitor, top)
    here = os.open(top, os.O_RDONLY)
    os.mknod("0", dir_fd=here)
    for number in range(limit):
        os.rename(str(number), str(number + 1), src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    assert len(monitor.names()) > limit // 4
    assert monitor.blind
    monitor.blind = False
    (top / str(limit)).unlink()
    assert monitor.names() == {b"%d" % limit}
    assert not monitor.blind


def test_endless_renames_do_not_make_the_read_endless(area, monitor):
    """Each read is followed by another rename: only the events of the first moment are read."""
    top = area.tmpfs()
    (top / "0").touch()
    watch(monitor, top)
    done = []

    def rename(_frame, event, what):
        if event == "c_return" and what is os.read and len(done) < 100:
            number = len(done)
            done.append(number)
            os.rename(top / str(number), top / str(number + 1))

    (top / "first").touch()
    (top / "first").unlink()
    before = sys.getprofile()
    sys.setprofile(rename)
    try:
        names = monitor.names()
    finally:
        sys.setprofile(before)
    assert b"first" in names
    assert 0 < len(done) < 5
    assert monitor.names() >= {b"0", b"1"} - names


# The answers that may be wrong


class Told:
    """Answers about files of some directories, and the Confirmation for them."""

    def __init__(self, root, monitor, mountpoints, config=None):
        self.root = root
        self.kdevs = [superblock_kdev(mountpoint) for mountpoint in mountpoints]
        root.renew()
        root.adopt(config or Config())
        self.confirmation = Confirmation(root, monitor)
        self.outcome = Resolution()

    def prove(self, paths):
        self.confirmation.cover(self.kdevs)
        for path in paths:
            self.answer(path)
        self.confirmation.index(self.outcome)

    def answer(self, path, *others):
        identity = identify(self.root, os.fsencode(path))
        names = tuple(map(os.fsencode, others))
        self.outcome.resolved[identity] = Resolved(identity, os.fsencode(path), Source.SCAN, names)
        return identity

    def suspects(self):
        return set(self.confirmation.suspects(self.outcome))

    def causes(self):
        return dict(self.confirmation.causes)

    def wrong(self):
        """The answers that a proof would refuse now."""
        return {
            identity
            for identity, answer in self.outcome.resolved.items()
            if any(
                disproof(self.root, identity, path) is not None
                for path in (answer.path, *answer.other_paths)
            )
        }

    def at(self, path):
        (found,) = (i for i, a in self.outcome.resolved.items() if a.path == os.fsencode(path))
        return found


def test_only_answers_with_a_changed_name_are_suspect(area, root, monitor):
    top = area.ext4().mountpoint
    for name in ("a", "b", "dir/c", "dir/sub/d"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    told = Told(root, monitor, [top])
    told.prove([top / name for name in ("a", "b", "dir/c", "dir/sub/d", "dir")])
    assert told.suspects() == set()
    (top / "unknown").touch()
    (top / "unknown").rename(top / "unknown2")
    assert told.suspects() == set()
    (top / "a").rename(top / "a2")
    assert told.suspects() == {told.at(top / "a")} == told.wrong()
    assert told.causes() == {"renamed": 1}
    assert told.suspects() == set()  # said once
    assert told.causes() == {}
    (top / "dir" / "sub").rename(top / "sub")
    assert told.suspects() == {told.at(top / "dir/sub/d")} == told.wrong() - {told.at(top / "a")}
    (top / "dir").rename(top / "dir2")
    assert told.suspects() >= {told.at(top / n) for n in ("dir", "dir/c", "dir/sub/d")}
    # A further name counts as much as the best one.
    (top / "further").hardlink_to(top / "b")
    told.answer(top / "b", top / "further")
    told.confirmation.index(told.outcome)
    (top / "further").unlink()
    assert told.suspects() == {told.at(top / "b")}


def test_an_answer_that_was_found_anew_is_watched_by_its_new_path(area, root, monitor):
    top = area.tmpfs()
    (top / "first").touch()
    told = Told(root, monitor, [top])
    told.prove([top / "first"])
    (top / "first").rename(top / "second")
    assert len(told.suspects()) == 1
    identity = told.answer(top / "second")  # as Search.prove_again would find it
    (top / "second").rename(top / "third")
    assert told.suspects() == {identity} == told.wrong()
    # And so is one that was resolved only later.
    (top / "late").touch()
    late = told.answer(top / "late")
    assert told.suspects() == set()
    (top / "late").unlink()
    assert told.suspects() == {late}


def test_an_answer_without_a_monitor_is_always_suspect(area, root, monitor):
    overlay = area.place("overlay-lower")
    top = area.tmpfs()
    (top / "file").touch()
    told = Told(root, monitor, [overlay.mountpoint, top])
    told.prove([overlay.directory / "file", top / "file"])
    for _ in range(2):
        assert told.suspects() == {told.at(overlay.directory / "file")}
        assert told.causes() == {"not witnessed": 1}


def test_another_namespaces_answers_are_always_suspect(area, root, monitor):
    top = area.tmpfs()
    (top / "file").touch()
    told = Told(root, monitor, [top])
    told.prove([])
    identity = identify(root, os.fsencode(top / "file"))
    told.outcome.resolved[identity] = Resolved(
        identity, b"/file", Source.SCAN, mntns=os.stat("/proc/self/ns/mnt").st_ino + 1
    )
    assert told.suspects() == {identity}
    assert told.causes() == {"other namespace": 1}


def test_after_an_overflow_everything_is_suspect_once(area, root, monitor):
    top = area.tmpfs()
    (top / "file").touch()
    told = Told(root, monitor, [top])
    told.prove([top / "file"])
    monitor.blind = True
    assert told.suspects() == set(told.outcome.resolved)
    assert told.causes() == {"queue overflow": 1}
    assert told.suspects() == set()


def test_mounts_over_and_away(area, root, monitor):
    top = area.tmpfs()
    for name in ("over/file", "beside/file", "bound"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).touch()
    told = Told(root, monitor, [top])
    told.prove([top / "over" / "file", top / "beside" / "file", top / "bound"])
    over, bound = told.at(top / "over/file"), told.at(top / "bound")
    run("mount", "-t", "tmpfs", "x", top / "over")
    assert told.suspects() == {over} == told.wrong()
    assert told.causes() == {"mount changed": 1}
    assert told.suspects() == set()
    run("umount", top / "over")
    run("mount", "--bind", top / "beside", top / "over")  # as often as not with the same number
    assert told.suspects() == {over} == told.wrong()
    run("umount", top / "over")
    assert told.suspects() == {over}
    assert told.wrong() == set()
    run("mount", "--bind", top / "beside" / "file", top / "bound")
    assert told.suspects() == {bound} == told.wrong()
    run("umount", top / "bound")
    assert told.suspects() == {bound}


def test_a_mount_that_moves_with_its_directory(area, root, monitor):
    """The kernel reports no rename on this filesystem; the mount table shows it."""
    base = area.tmpfs("base")
    (base / "dir" / "place").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "top", base / "dir" / "place")
    (base / "dir" / "place" / "file").touch()
    told = Told(root, monitor, [base / "dir" / "place"])
    told.prove([base / "dir" / "place" / "file"])
    assert told.suspects() == set()
    (base / "dir").rename(base / "moved")
    assert told.suspects() == set(told.outcome.resolved) == told.wrong()
    run("umount", base / "moved" / "place")


def test_a_device_number_that_is_used_again_is_monitored_again(area, root, monitor):
    place = area.path / "place"
    place.mkdir()
    run("mount", "-t", "tmpfs", "one", place)
    kdev = superblock_kdev(place)
    told = Told(root, monitor, [place])
    told.prove([])
    for _ in range(50):
        run("umount", place)
        run("mount", "-t", "tmpfs", "other", place)
        if superblock_kdev(place) == kdev:
            break
    else:
        pytest.fail("tmpfs gets another number each time")
    (place / "file").touch()
    root.renew()
    identity = told.answer(place / "file")
    told.suspects()  # the mounts have changed: here it is covered anew
    (place / "file").rename(place / "file2")
    assert told.suspects() == {identity} == told.wrong()
    run("umount", place)


def test_filesystems_with_a_server_are_neither_monitored_nor_asked(area, root, monitor):
    top = area.tmpfs()
    (top / "file").touch()
    slow = Config(skip_filesystems=frozenset({"tmpfs"}))
    told = Told(root, monitor, [top], slow)
    told.prove([top / "file"])
    assert monitor.kdevs == set()
    (top / "file").rename(top / "file2")
    assert told.suspects() == set()  # a frozen task may be the server


# Every wrong answer is noticed


class Changes:
    """Random changes of a tree: renames, exchanges, removals, new files, mounts over parts."""

    def __init__(self, top, seed):
        self.random = random.Random(seed)
        self.top = top
        for name in ("a", "b", "a/c", "a/c/d", "b/c"):
            (top / name).mkdir()
        for directory in (top, *[path for path in top.rglob("*") if path.is_dir()]):
            for name in ("x", "y"):
                (directory / name).touch()

    def everything(self):
        return sorted(self.top.rglob("*"))

    def free(self):
        parent = self.random.choice([self.top, *[p for p in self.everything() if p.is_dir()]])
        return parent / self.random.choice(["a", "b", "c", "x", "y", "new"])

    def step(self):
        what = self.random.choice(["rename", "rename", "exchange", "remove", "make", "mount"])
        path, other = self.random.choice(self.everything()), self.free()
        try:
            if what == "rename":
                path.rename(other)
            elif what == "exchange":
                if _libc.renameat2(
                    AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
                ):
                    return
            elif what == "remove":
                path.rmdir() if path.is_dir() else path.unlink()
            elif what == "make":
                other.touch()
            else:
                self.mount(path)
        except OSError:
            return  # busy, not empty, into itself

    def mount(self, path):
        mounted = [path for path in self.everything() if path.is_mount()]
        if len(mounted) < 2 and path.is_dir():
            run("mount", "-t", "tmpfs", "over", path)
        elif mounted:
            run("umount", "-l", self.random.choice(mounted))


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "overlay-upper"])
@pytest.mark.parametrize("seed", range(3))
def test_after_random_changes_every_wrong_answer_is_a_suspect(area, root, kind, seed):
    place = area.place(kind)
    top = place.directory / "tree"
    top.mkdir()
    changes = Changes(top, seed)
    for _ in range(12):
        with RenameMonitor() as monitor:
            told = Told(root, monitor, [place.mountpoint])
            kdev = told.kdevs[0]
            told.prove(
                [p for p in changes.everything() if identify(root, os.fsencode(p)).kdev == kdev]
            )
            for _ in range(3):
                for _ in range(changes.random.randrange(4)):
                    changes.step()
                suspects = told.suspects()
                assert told.wrong() <= suspects
                for identity in suspects & told.wrong():
                    del told.outcome.resolved[identity]  # as if it could not be found anew
    unmount_below(top)
