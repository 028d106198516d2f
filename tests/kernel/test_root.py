"""Lookups that stay in their root, and the mount of a path, beside the kernel's answer."""

import ctypes
import errno
import os
import random
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proof import disproof, identify
from irmapdb.kernel.root import open_beneath, open_root
from irmapdb.model import kdev_of
from tests.support.filesystems import superblock_kdev
from tests.support.kernel_paths import as_nobody, mount_id, open_descriptors
from tests.support.names import ODD_NAMES, deep_file
from tests.support.programs import run
from tests.support.watcher import Watcher

PATH_ONLY = os.O_PATH | os.O_NOFOLLOW
MS_BIND = 0x1000


@pytest.fixture
def top(tmp_path):
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def ino_beneath(top, path, flags=PATH_ONLY):
    fd = open_beneath(top, path, flags)
    try:
        assert not os.get_inheritable(fd)
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def refusal(top, path, flags=PATH_ONLY):
    before = open_descriptors()
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the number is looked at
        open_beneath(top, path, flags)
    assert open_descriptors() == before
    return caught.value.errno


# open_beneath


def test_every_name_is_looked_up_as_it_is(top, tmp_path):
    directory = os.fsencode(tmp_path)
    for name in ODD_NAMES:
        os.mkdir(directory + b"/" + name)
        Path(os.fsdecode(directory + b"/" + name + b"/" + name)).touch()
        for path in (name, b"/" + name, name + b"/" + name, b"//" + name + b"//" + name):
            assert ino_beneath(top, path) == os.lstat(directory + b"/" + path).st_ino
    assert ino_beneath(top, b"") == ino_beneath(top, b"/") == tmp_path.stat().st_ino


def test_no_link_is_followed_and_nothing_outside_is_reached(top, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").touch()
    targets = {"relative": "inside", "absolute": inside, "up": "..", "root": "/", "loop": "loop"}
    for name, target in targets.items():
        (tmp_path / name).symlink_to(target)
        path = os.fsencode(name)
        # As the last part it is itself, where a descriptor of a link is asked for; else nothing.
        assert ino_beneath(top, path) == (tmp_path / name).lstat().st_ino
        assert refusal(top, path, os.O_PATH) == errno.ELOOP
        assert refusal(top, path, os.O_RDONLY) == errno.ELOOP
        for below in (b"/file", b"/etc/passwd", b"/..", b"/."):
            assert refusal(top, path + below) == errno.ELOOP
    # Above the root there is the root.
    assert ino_beneath(top, b"../../..") == tmp_path.stat().st_ino
    assert refusal(top, b"../../../etc/passwd") == errno.ENOENT
    assert ino_beneath(top, b"inside/../../inside/file") == (inside / "file").stat().st_ino
    assert refusal(top, b"inside/file/x") == errno.ENOTDIR


def test_a_magic_link_is_a_link():
    top = os.open("/", os.O_PATH)
    held = os.open("/etc", os.O_PATH)
    for path in (b"/proc/self/root/etc", b"/proc/%d/fd/%d/passwd" % (os.getpid(), held)):
        assert refusal(top, path) == errno.ELOOP
    os.close(held)
    os.close(top)


@pytest.mark.parametrize("length", [3990, 4000, 4095, 4096, 4100, 9000])
def test_a_path_has_no_longest(top, tmp_path, length):
    path = deep_file(tmp_path, length=length).removeprefix(os.fsencode(tmp_path))
    here = os.open(tmp_path, os.O_PATH)
    for name in path.split(b"/")[1:]:
        below = os.open(name, PATH_ONLY, dir_fd=here)
        os.close(here)
        here = below
    assert ino_beneath(top, path) == os.fstat(here).st_ino
    os.close(here)
    assert refusal(top, path + b"/x") == errno.ENOTDIR
    assert refusal(top, path + b"x") == errno.ENOENT
    assert refusal(top, path + b"/../" + b"y" * 300) in {errno.ENOTDIR, errno.ENAMETOOLONG}


def test_a_link_deep_down_is_found_too(top, tmp_path):
    path = deep_file(tmp_path, length=8500).removeprefix(os.fsencode(tmp_path))
    parent, here = path.rpartition(b"/")[0], open_beneath(top, path.rpartition(b"/")[0], os.O_PATH)
    os.symlink("/etc", "link", dir_fd=here)
    os.close(here)
    assert refusal(top, parent + b"/link/passwd") == errno.ELOOP
    # And above the place where the path is cut into pieces.
    name = path[1:201]
    here = open_beneath(top, name * 0 + b"/".join([name] * 9), os.O_PATH)
    os.symlink(name, "link", dir_fd=here)
    os.close(here)
    assert refusal(top, b"/".join([name] * 9 + [b"link"] + [name] * 20)) == errno.ELOOP


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_has_a_longest(top, length):
    assert refusal(top, b"/" + b"n" * length) == errno.ENAMETOOLONG
    assert refusal(top, b"/" + b"n" * length + b"/x") == errno.ENAMETOOLONG


def test_no_path_has_a_nul_byte(top, tmp_path):
    (tmp_path / "a").touch()
    before = open_descriptors()
    for path in (b"a\0", b"a\0/etc", b"\0"):
        with pytest.raises(ValueError, match="null byte"):
            open_beneath(top, path, PATH_ONLY)
    assert open_descriptors() == before


# Mounts


def named(root, path):
    mount = root.mounts.of_path(os.fsencode(path))
    return None if mount is None else mount.mnt_id


def test_mounts_on_one_mount_point(area):
    place = area.path / "place"
    (place / "below").mkdir(parents=True)
    with open_root(os.getpid()) as root:
        outer = named(root, place)
        assert outer == mount_id(place)
        below = area.mount("tmpfs", "place/below", "tmpfs")
        run("mount", "-t", "tmpfs", "first", place)
        first_kdev = superblock_kdev(place)
        run("mount", "-t", "tmpfs", "second", place)
        (place / "below").mkdir()
        root.refresh()
        # A lookup meets the mount on top, and not the one below it or a mount on the hidden place.
        for path in (place, place / "below", place / "x"):
            assert root.mounts.of_path(os.fsencode(path)).source == b"second"
        assert root.mounts.of_device(first_kdev) == []
        assert [m.source for m in root.mounts.all if m.mountpoint == os.fsencode(place)] == [
            b"first",
            b"second",
        ]
        run("umount", place)
        run("umount", place)
        root.refresh()
        assert named(root, below / "x") == mount_id(below) != outer
        assert named(root, place) == outer
        assert root.mounts.of_device(first_kdev) == []
        (visible,) = root.mounts.of_device(superblock_kdev(below))
        assert visible.mountpoint == os.fsencode(below)


@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
def test_a_mount_point_of_any_name(area, name):
    place = os.fsencode(area.path) + b"/" + name
    os.mkdir(place)
    area.mount("tmpfs", os.fsdecode(name), "tmpfs")
    with open_root(os.getpid()) as root:
        mount = root.mounts.of_path(place + b"/file")
        assert (mount.mnt_id, mount.mountpoint, mount.root) == (mount_id(place), place, b"/")
        status = os.stat(place)
        assert mount.kdev == kdev_of(os.major(status.st_dev), os.minor(status.st_dev))


def test_a_bind_mount_shows_a_part_of_its_filesystem(area):
    source = area.tmpfs()
    (source / "sub dir" / "deep").mkdir(parents=True)
    (source / "file").touch()
    kdev = superblock_kdev(source)
    with open_root(os.getpid()) as root:
        target = area.path / "target"
        target.mkdir()
        over = area.path / "over"
        over.touch()
        area.bind(source / "sub dir", target)
        area.bind(source / "file", over)
        root.refresh()
        assert [(m.root, m.mountpoint) for m in root.mounts.of_device(kdev)] == [
            (b"/", os.fsencode(source)),
            (b"/file", os.fsencode(over)),
            (b"/sub dir", os.fsencode(target)),
        ]
        assert named(root, over) == mount_id(over)
        assert named(root, target / "deep") == mount_id(target) != mount_id(source)


def test_the_mounts_that_a_lookup_passes_on_the_way(area):
    outer = area.tmpfs("outer")
    (outer / "sub" / "inner").mkdir(parents=True)
    with open_root(os.getpid()) as root:
        inner = area.tmpfs("outer/sub/inner")
        kdev = superblock_kdev(inner)
        root.refresh()
        base = mount_id(area.path)
        way = {mount.mnt_id for mount in root.mounts.on_way_to(kdev)}
        assert way >= {mount_id(inner), mount_id(outer), base, mount_id("/")}
        beside = area.path / "beside"
        beside.mkdir()
        assert root.mounts.of_path(os.fsencode(beside)).mnt_id == base
        # All ways count, also a new one.
        (area.tmpfs("other") / "bound").mkdir()
        other = area.path / "other"
        area.bind(inner, other / "bound")
        root.renew()
        assert {mount.mnt_id for mount in root.mounts.on_way_to(kdev)} >= {mount_id(other), *way}
        assert root.mounts.on_way_to(2**32 - 1) == []


def test_a_mount_on_the_root_itself_is_never_met(tmp_path):
    (tmp_path / "file").touch()
    with Watcher(unshare={"mount"}) as watcher:
        watcher.mount("tmpfs", tmp_path, "tmpfs")
        watcher.mount("tmpfs", "/", "tmpfs")
        with open_root(watcher.pid) as root:
            for path in ("/", "/etc", tmp_path, "/proc"):
                assert named(root, path) == mount_id(f"/proc/{watcher.pid}/root{path}")


class Layout:
    """Random mounts in a namespace of their own, in a few directories with known names."""

    def __init__(self, watcher, top, seed):
        self.random = random.Random(seed)
        self.watcher = watcher
        self.top = top
        self.mounted = []
        self.directories = ["", "/a", "/a/b", "/a/b/c", "/d e", "/d e/b"]
        for directory in self.directories:
            (top / directory.lstrip("/")).mkdir(exist_ok=True)

    def outside(self, directory):
        return f"/proc/{self.watcher.pid}/root{self.top}{directory}"

    def present(self):
        return [name for name in self.directories if os.path.isdir(self.outside(name))]

    def step(self):
        places = self.present()
        what = self.random.choice(["tmpfs", "tmpfs", "bind", "bind", "unmount"])
        target = self.random.choice(places[1:] or places)
        if what == "tmpfs":
            self.watcher.mount("tmpfs", f"{self.top}{target}", "tmpfs")
            for name in self.directories:
                if name.startswith(target + "/") and self.random.random() < 0.8:
                    os.makedirs(self.outside(name), exist_ok=True)
        elif what == "bind":
            source = self.random.choice(places)
            self.watcher.mount(f"{self.top}{source}", f"{self.top}{target}", "none", flags=MS_BIND)
        elif self.mounted:
            target = self.mounted.pop(self.random.randrange(len(self.mounted)))
            with suppress(OSError):  # hidden by now, or gone together with another
                self.watcher.unmount(f"{self.top}{target}")
            return
        self.mounted.append(target)


@pytest.mark.parametrize("seed", range(4))
def test_any_pile_of_mounts_is_seen_as_the_kernel_sees_it(tmp_path, seed):
    with Watcher(unshare={"mount"}) as watcher, open_root(watcher.pid) as root:
        layout = Layout(watcher, tmp_path, seed)
        for _ in range(25):
            layout.step()
            root.refresh()
            truth = {name: mount_id(layout.outside(name)) for name in layout.present()}
            assert {name: named(root, f"{tmp_path}{name}") for name in truth} == truth
            # A mount is visible exactly if a path leads to it.
            for mount in root.mounts.by_mountpoint.values():
                if mount.mountpoint.startswith(os.fsencode(tmp_path)):
                    path = os.fsencode(f"/proc/{watcher.pid}/root") + mount.mountpoint
                    assert mount_id(path) == mount.mnt_id
                    assert mount in root.mounts.of_device(mount.kdev)


def test_a_mount_is_known_as_soon_as_a_file_on_it_is_met(area):
    with open_root(os.getpid()) as root:
        place = area.tmpfs()
        kdev = superblock_kdev(place)
        assert root.mounts.of_device(kdev) == []
        assert root.mount_by_id(mount_id(place)).kdev == kdev
        assert [mount.mountpoint for mount in root.mounts.of_device(kdev)] == [os.fsencode(place)]
        assert root.mount_by_id(2**31 - 1) is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_take_the_news_from_us(area):
    with open_root(os.getpid()) as root:
        place = os.fsencode(area.tmpfs())

        def look():
            root.renew()
            return place in root.mounts.by_mountpoint

        before = root.mountinfo.generation
        assert call_in_child(look, 10)
        assert place not in root.mounts.by_mountpoint
        root.renew()
        assert place in root.mounts.by_mountpoint
        assert root.mountinfo.generation == before + 1
        root.renew()
        assert root.mountinfo.generation == before + 1


@pytest.mark.alone  # tests beside it would take the number
def test_the_number_of_a_mount_may_be_that_of_another_one_later(area):
    # The kernel gives the lowest free number, so the next mount often gets that of the last.
    place = area.path / "place"
    place.mkdir()
    run("mount", "-t", "tmpfs", "one", place)
    with open_root(os.getpid()) as root, ExitStack() as stack:
        number = mount_id(place)
        one = root.mount_by_id(number).kdev
        keep = area.path / "keep"
        keep.mkdir()
        area.bind(place, keep)  # so that the device number is not free for the next
        run("umount", place)
        for attempt in range(100):
            run("mount", "-t", "tmpfs", "other", place)
            stack.callback(run, "umount", place)
            if mount_id(place) == number:
                break
            if attempt % 2:
                stack.pop_all().close()  # the number is given back a little after the unmount
        other = superblock_kdev(place)
        assert (mount_id(place), other != one) == (number, True)
        assert root.mount_by_id(number).kdev == other


# Roots


def test_a_task_of_our_namespace_is_seen_from_our_root(tmp_path):
    (tmp_path / "etc").mkdir()
    with Watcher(chroot=tmp_path) as watcher, open_root(watcher.pid) as root:
        assert os.fstat(root.fd).st_ino == os.stat("/").st_ino
        assert root.prefix == b""
        assert root.mntns == os.stat("/proc/self/ns/mnt").st_ino
        assert root.strip(os.fsencode(tmp_path)) == os.fsencode(tmp_path)


@pytest.fixture
def rootfs(area):
    """A filesystem for the root of a task: links that lead out of it, and the same names inside."""
    top = area.ext4("rootfs").mountpoint
    for name in ("etc", "mnt", "mnt/inner", "proc"):
        (top / name).mkdir()
    (top / "etc" / "passwd").write_bytes(b"inside")
    (top / "out").symlink_to("/etc")
    (top / "up").symlink_to("../../../../../etc")
    return top


@pytest.mark.parametrize("unshare", [{"mount"}, {"mount", "user"}, {"mount", "pid"}], ids=sorted)
def test_a_task_with_another_root_is_seen_from_that(rootfs, unshare):
    with Watcher(unshare=unshare, rootfs=rootfs) as watcher, open_root(watcher.pid) as root:
        watcher.mount("tmpfs", "/mnt/inner", "tmpfs")
        root.refresh()
        assert root.mntns == os.stat(f"/proc/{watcher.pid}/ns/mnt").st_ino
        assert root.prefix == b""
        assert os.fstat(root.fd).st_ino == (rootfs / ".").stat().st_ino
        fd = root.open(b"/etc/passwd", os.O_RDONLY)
        assert os.read(fd, 10) == b"inside"
        os.close(fd)
        for path in (b"/out/passwd", b"/up/passwd"):
            with pytest.raises(OSError, match="symbolic"):
                root.open(path)
        assert root.mounts.of_path(b"/etc").kdev == superblock_kdev(rootfs)
        assert root.mounts.of_path(b"/mnt/inner/x").fstype == "tmpfs"
        assert superblock_kdev(Path("/")) not in {mount.kdev for mount in root.mounts.all}
        mounts = root.mounts.all
        watcher.kill()
        root.refresh()
        assert root.mounts.all == mounts


def test_a_chroot_in_a_namespace_of_its_own_is_a_root_with_a_mount(rootfs):
    (rootfs / "jail" / "sub").mkdir(parents=True)
    (rootfs / "jail" / "sub" / "file").touch()
    with Watcher(unshare={"mount"}, chroot=rootfs / "jail") as watcher:
        watcher.mount("tmpfs", "/sub", "tmpfs")
        with open_root(watcher.pid) as root:
            kdev = superblock_kdev(rootfs)
            # The task's own table has no line for the mount that its root is a part of.
            assert kdev not in {mount.kdev for mount in root.mounts.all if mount.source}
            assert root.mounts.of_path(b"/x").kdev == kdev
            assert [mount.mountpoint for mount in root.mounts.of_device(kdev)] == [b"/"]
            assert root.mounts.of_path(b"/sub/x").mnt_id == mount_id(
                f"/proc/{watcher.pid}/root/sub"
            )
            assert root.mount_by_id(mount_id(rootfs)) is None
            # The kernel's paths of files there begin in the root of the namespace.
            fd = watcher.open("/sub")
            link = os.fsencode(os.readlink(f"/proc/{watcher.pid}/fd/{fd}"))
            assert link == os.fsencode(rootfs / "jail" / "sub")
            assert root.strip(link) == b"/sub"
            assert root.strip(os.fsencode(rootfs / "jail")) == b"/"
            assert root.strip(os.fsencode(rootfs / "jailer" / "sub")) is None
            assert root.strip(b"/etc") is None


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "btrfs-subvolume", "tmpfs", "fuse"])
def test_the_filesystem_of_a_chroot_is_that_of_mountinfo(area, kind):
    place = area.place(kind)
    jail = place.directory / "dir"
    with Watcher(unshare={"mount"}, chroot=jail) as watcher, open_root(watcher.pid) as root:
        top = root.mounts.of_path(b"/file")
        fstype = "fuse" if kind == "fuse" else kind.partition("-")[0]
        assert (top.kdev, top.fstype) == (superblock_kdev(place.mountpoint), fstype)
        found = identify(root, b"/file")
        assert found.kdev == top.kdev
        root.trust([b"/"])
        assert disproof(root, found, b"/file") is None


def test_a_chroot_without_an_answer_of_fdinfo_has_the_device_of_stat(rootfs, monkeypatch):
    """Only the device of stat(2) is left."""
    (rootfs / "jail").mkdir()
    with Watcher(unshare={"mount"}, chroot=rootfs / "jail") as watcher:
        for error in (OSError(errno.EMFILE, "too many"), OSError(errno.EACCES, "denied")):

            def refuse(*_, error=error):
                raise error

            monkeypatch.setattr(syscalls, "inotify_init", refuse)
            with open_root(watcher.pid) as root:
                assert root.mounts.of_path(b"/x")[2:7:4] == (superblock_kdev(rootfs), "")


def test_a_root_that_cannot_be_opened(watcher, monkeypatch):
    with as_nobody(), pytest.raises(TaskError, match="run as root, or as the owner"):
        open_root(watcher.pid)
    watcher.kill()
    with pytest.raises(TaskError, match=f"no process {watcher.pid}; it has ended"):
        open_root(watcher.pid)


# The calls below


def test_the_structures_have_the_kernels_sizes(tmp_path):
    # sizeof(struct statx) is 256 by its definition in include/uapi/linux/stat.h.
    assert ctypes.sizeof(syscalls._StatxBuffer) == 256
    assert ctypes.sizeof(syscalls._OpenHow) == 24  # OPEN_HOW_SIZE_VER0
    (tmp_path / "file").touch()
    (tmp_path / "hard").hardlink_to(tmp_path / "file")
    fd = os.open(tmp_path / "file", PATH_ONLY)
    found, status = syscalls.statx(fd), os.fstat(fd)
    assert (found.ino, found.mode, found.nlink) == (status.st_ino, status.st_mode, 2)
    assert found.st_kdev == kdev_of(os.major(status.st_dev), os.minor(status.st_dev))
    assert found.mnt_id == mount_id(tmp_path / "file")
    handle, mnt_id = syscalls.name_to_handle_at(fd, b"", syscalls.AT_EMPTY_PATH)
    assert (mnt_id, 0 < len(handle.data) <= 128) == (found.mnt_id, True)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file") as caught:
        syscalls.statx(fd)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Invalid"):
        syscalls.open_by_handle_at(0, handle._replace(data=b"x" * 129), os.O_PATH)


def test_one_open_file_in_two_tasks(watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path)
    own = watcher.inotify()
    child = watcher.fork()
    assert syscalls.compare_files(watcher.pid, watched.fd, child.pid, watched.fd) == 0
    order = syscalls.compare_files(watcher.pid, watched.fd, child.pid, own)
    assert order in {-1, 1}
    assert syscalls.compare_files(child.pid, own, watcher.pid, watched.fd) == -order
    child.close_fd(own)
    with pytest.raises(OSError, match="Bad file"):
        syscalls.compare_files(watcher.pid, own, child.pid, own)
    child.kill()


def test_a_child_reads_the_mounts_again_only_when_they_have_changed(area, tmp_path):
    # The notification of a change belongs to the open file, which a child shares with its parent.
    def seen() -> list[bool]:
        before = root.mountinfo.has_changed()
        again = root.mountinfo.has_changed()
        run("mount", "-t", "tmpfs", "none", tmp_path)
        try:
            return [before, again, root.mountinfo.has_changed(), root.mountinfo.has_changed()]
        finally:
            run("umount", tmp_path)

    with open_root(os.getpid()) as root:
        root.refresh()
        assert call_in_child(seen, 60.0) == [True, False, True, False]
        assert root.mountinfo.has_changed()
        assert not root.mountinfo.has_changed()


def test_a_child_reads_the_mounts_each_time_once_the_task_has_ended():
    with Watcher() as target:
        target.unshare_mounts()
        with open_root(target.pid) as root:
            root.refresh()
            target.kill()
            assert call_in_child(lambda: [root.mountinfo.has_changed() for _ in "ab"], 60.0) == [
                True,
                True,
            ]
