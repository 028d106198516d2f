"""The proof: the file at a path is the watched inode, by the kernel's numbers; or it is refused."""

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from irmapdb.kernel import proof, syscalls
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proof import disproof, identify, identify_fd
from irmapdb.model import FileHandle, Identity, StaleReason, is_canonical
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.kernel_paths import (
    as_nobody,
    mount_id,
    open_descriptors,
    served,
    watched_identity,
)
from tests.support.kernel_places import KERNEL_PLACES, kernel_place
from tests.support.names import ODD_NAMES, deep_file
from tests.support.notify import IN_ATTRIB, IN_DONT_FOLLOW
from tests.support.programs import run
from tests.support.watcher import Watcher

KINDS = (
    "ext4",
    "tmpfs",
    "overlay-lower",
    "overlay-upper",
    "overlay-two-filesystems",
    "overlay-nfs-export",
    "overlay-xino",
)


def raw(path):
    return os.fsencode(path)


def agree(root, watcher, watched, path):
    """The proof accepts `path` for the watched file; returns the identity in fdinfo."""
    cold = watched_identity(watcher, watched)
    assert disproof(root, cold, raw(path)) is None
    found = identify(root, raw(path))
    shown = watched_identity(watcher, watched)
    assert (found.kdev, found.handle) == (shown.kdev, shown.handle)
    assert found.handle is not None
    # A directory of an overlay with nfs_export has a handle only while its name is cached.
    assert cold in {shown, shown._replace(handle=None)}
    return shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_has_the_identity_of_a_watch_on_it(area, watcher, root, kind):
    place = area.place(kind)
    names = ["", "file", "dir", "dir/file"]
    watched = {name: watcher.add_inotify(place.directory / name) for name in names}
    marked = {name: watcher.add_fanotify(place.directory / name) for name in names}
    shown = {name: agree(root, watcher, watched[name], place.directory / name) for name in names}
    for name, mark in marked.items():
        if watched[name].st_kdev == shown[name].kdev:  # else stat cannot identify the mark
            assert agree(root, watcher, mark, place.directory / name) == shown[name]
    # Each path is refused for the file at any other.
    for name in names:
        for other in names:
            refused = disproof(root, shown[name], raw(place.directory / other))
            assert (refused is None) == (name == other)
    # Two names of one file are two right answers.
    if place.linked.name == "file":
        assert agree(root, watcher, watched["dir/file"], place.directory / "dir" / "hard")
    # A cold name gives the same.
    drop_caches()
    for name in names:
        agree(root, watcher, watched[name], place.directory / name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "overlay-upper"])
def test_a_file_that_is_written_to_is_still_the_same_file(area, watcher, root, kind):
    place = area.place(kind)
    names = ["file", "dir/file", "dir"]
    watched = {name: watcher.add_inotify(place.directory / name, IN_ATTRIB) for name in names}
    before = {name: agree(root, watcher, watched[name], place.directory / name) for name in names}
    for name in names:
        # On an overlay this copies it up to the upper layer, and `dir` with it.
        (place.directory / name).chmod(0o700)
    for name in names:
        after = agree(root, watcher, watched[name], place.directory / name)
        assert after.matches(before[name])
        assert disproof(root, before[name], raw(place.directory / name)) is None
    assert {one.wd for one in watcher.events()} >= {watched["file"].wd}
    drop_caches()
    for name in names:
        agree(root, watcher, watched[name], place.directory / name)


@pytest.mark.alone  # a layer of another worker would be one that irmapdb cannot see
def test_layers_on_two_filesystems_share_inode_numbers_and_are_distinguished(area, watcher, root):
    one, other = area.ext4("one").mountpoint, area.ext4("other").mountpoint
    for layer in (one, other):
        # The same steps on two new filesystems: the same inode numbers.
        (layer / "lower").mkdir()
        (layer / "lower" / layer.name).write_bytes(b"content")
    numbers = {(layer / "lower" / layer.name).stat().st_ino for layer in (one, other)}
    assert len(numbers) == 1
    (one / "upper").mkdir()
    (one / "work").mkdir()
    overlay = area.mount(
        "overlay",
        "both",
        "overlay",
        f"lowerdir={one}/lower:{other}/lower,upperdir={one}/upper,workdir={one}/work",
    )
    shown = [
        agree(root, watcher, watcher.add_inotify(overlay / n), overlay / n)
        for n in ("one", "other")
    ]
    assert shown[0].key == shown[1].key
    assert disproof(root, shown[0], raw(overlay / "other")) is StaleReason.REUSED
    assert disproof(root, shown[1], raw(overlay / "one")) is StaleReason.REUSED
    # Where the kernel shows no handle, no path is better than one of two.
    for path in ("one", "other"):
        bare = shown[0]._replace(handle=None)
        assert disproof(root, bare, raw(overlay / path)) is StaleReason.REUSED


def test_other_filesystems_of_the_machine(watcher, root):
    for path in ("/proc/sys/kernel/hostname", "/sys/kernel", "/dev/null", "/dev/pts", "/"):
        # Some of these can be hidden mounts elsewhere: the kernel decides which one is met.
        agree(root, watcher, watcher.add_inotify(path), path)
    watched = watcher.add_inotify(f"/proc/{watcher.pid}/status")
    agree(root, watcher, watched, f"/proc/{watcher.pid}/status")
    shown = watched_identity(watcher, watched)
    assert disproof(root, shown, b"/proc/self/status") is StaleReason.SYMLINK
    assert disproof(root, shown, raw(f"/proc/{os.getpid()}/status")) is StaleReason.REPLACED


@pytest.mark.parametrize("kind", KERNEL_PLACES)
def test_files_that_the_kernel_makes(area, watcher, root, kind):
    with kernel_place(kind, area, watcher.pid) as place:
        root.refresh()
        # A terminal has the number of the one before it that had its name.
        for path in (place.directory,) if kind == "devpts" else (place.file, place.directory):
            agree(root, watcher, watcher.add_inotify(os.fsencode(path)), path)


def test_a_watched_link_is_itself(area, watcher, root):
    top = area.tmpfs()
    (top / "file").touch()
    (top / "link").symlink_to("file")
    watched = watcher.add_inotify(top / "link", IN_ATTRIB | IN_DONT_FOLLOW)
    shown = agree(root, watcher, watched, top / "link")
    assert disproof(root, shown, raw(top / "file")) is StaleReason.REPLACED


def test_every_name_and_every_depth(area, watcher, root):
    top = area.ext4().mountpoint
    paths = [raw(top) + b"/" + name for name in ODD_NAMES]
    for path in paths:
        Path(os.fsdecode(path)).touch()
    (top / "deep").mkdir()
    paths.append(deep_file(top / "deep", length=9000))
    for path in paths:
        shown = agree(root, watcher, watcher.add_inotify(path), path)
        assert disproof(root, shown, path + b"/x") is StaleReason.GONE
        assert disproof(root, shown, path[:-1]) is StaleReason.GONE


# Refusals


@pytest.fixture
def file(area, watcher, root):
    """A watched file on an ext4 of its own, and its identity."""
    top = area.ext4().mountpoint
    (top / "dir").mkdir()
    path = top / "dir" / "file"
    path.touch()
    return path, agree(root, watcher, watcher.add_inotify(path), path)


def test_gone(root, file):
    path, shown = file
    path.rename(path.with_name("other"))
    assert disproof(root, shown, raw(path)) is StaleReason.GONE
    assert disproof(root, shown, raw(path.with_name("other"))) is None
    path.parent.rename(path.parent.with_name("other"))
    assert disproof(root, shown, raw(path)) is StaleReason.GONE
    path.parent.touch()  # a file where a directory was
    assert disproof(root, shown, raw(path)) is StaleReason.GONE


def test_replaced(root, file):
    path, shown = file
    path.with_name("new").touch()
    path.with_name("new").rename(path)
    assert disproof(root, shown, raw(path)) is StaleReason.REPLACED
    assert disproof(root, shown, raw(path.parent)) is StaleReason.REPLACED
    assert disproof(root, shown, b"/") is StaleReason.REPLACED


def test_reused(area, watcher, root):
    top = area.ext4().mountpoint
    path = top / "file"
    path.touch()
    watched = watcher.add_inotify(path)
    shown = agree(root, watcher, watched, path)
    # ext4 gives the lowest free inode number to the next file of a directory.
    path.unlink()
    path.touch()
    assert path.stat().st_ino == shown.ino
    assert disproof(root, shown, raw(path)) is StaleReason.REUSED
    assert disproof(root, shown._replace(handle=None), raw(path)) is None  # why handles matter


def test_symlink(root, file):
    path, shown = file
    aside = path.parent.with_name("aside")
    path.parent.rename(aside)
    for target in (aside, aside.name, f"../{aside.parent.name}/{aside.name}", path.parent):
        path.parent.unlink(missing_ok=True)
        path.parent.symlink_to(target)
        assert disproof(root, shown, raw(path)) is StaleReason.SYMLINK
    path.parent.unlink()
    aside.rename(path.parent)
    path.rename(path.with_name("real"))
    path.symlink_to("real")
    # The link itself is another inode.
    assert disproof(root, shown, raw(path)) is StaleReason.REPLACED


def test_unmounted_and_mounted_elsewhere(area, root, file):
    path, shown = file
    filesystem, elsewhere = path.parent.parent, area.path / "elsewhere"
    elsewhere.mkdir()
    run("mount", run("findmnt", "-n", "-o", "SOURCE", filesystem).decode().strip(), elsewhere)
    assert disproof(root, shown, raw(elsewhere / "dir" / "file")) is None
    run("mount", "-t", "tmpfs", "over", path.parent)
    path.touch()
    assert disproof(root, shown, raw(path)) is StaleReason.REPLACED
    run("umount", path.parent)
    assert disproof(root, shown, raw(path)) is None
    run("umount", elsewhere)
    assert disproof(root, shown, raw(elsewhere / "dir" / "file")) is StaleReason.UNMOUNTED
    (elsewhere / "dir").mkdir()
    (elsewhere / "dir" / "file").touch()
    assert disproof(root, shown, raw(elsewhere / "dir" / "file")) is StaleReason.REPLACED
    run("umount", filesystem)
    for gone in (path, elsewhere / "dir" / "file"):
        assert disproof(root, shown, raw(gone)) is StaleReason.UNMOUNTED
    run("mount", "-o", "loop", area.path / "ext4.image", filesystem)


def test_the_reason_is_found_without_a_lookup_that_may_block(area, root, file):
    path, shown = file
    filesystem, elsewhere = path.parent.parent, area.path / "elsewhere"
    elsewhere.mkdir()
    run("mount", "--bind", filesystem, elsewhere)
    source = area.path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "dir" / "file").touch()
    with served(source, area.path / "served") as server:
        there = raw(area.path / "served" / "dir" / "file")
        with server.silent():
            asked = call_in_child(lambda: disproof(root, shown, there), 10)
        assert asked is StaleReason.UNMOUNTED
        root.is_local = lambda _fstype: True
        assert disproof(root, shown, there) is StaleReason.REPLACED


def test_another_device_with_the_same_files(area, root, file):
    """A copy of the image: the same paths, inode numbers and generations, another filesystem."""
    path, shown = file
    filesystem = path.parent.parent
    image = area.path / "copy.image"
    run("fsfreeze", "--freeze", filesystem)
    shutil.copyfile(area.path / "ext4.image", image)
    run("fsfreeze", "--unfreeze", filesystem)
    device = run("losetup", "--find", "--show", image).decode().strip()
    number = mount_id(filesystem)
    old = run("findmnt", "-n", "-o", "SOURCE", filesystem).decode().strip()
    keep = area.mount(old, "keep", "ext4")  # the device stays in use, its number with it
    for attempt in range(100):
        run("umount", filesystem)
        run("mount", device, filesystem)
        if mount_id(filesystem) == number or attempt > 50:
            break
    run("losetup", "--detach", device)
    assert superblock_kdev(filesystem) != shown.kdev
    assert identify(root, raw(path)).handle == shown.handle
    assert disproof(root, shown, raw(path)) is StaleReason.REPLACED
    assert disproof(root, shown, raw(keep / "dir" / "file")) is None


def test_unreachable(root, file):
    path, shown = file
    path.parent.chmod(0o700)
    for directory in [path.parent.parent, *path.parent.parent.parents]:
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o711)
    with as_nobody():
        assert disproof(root, shown, raw(path)) is StaleReason.UNREACHABLE
        assert disproof(root, shown, raw(path.parent.parent / "none")) is StaleReason.GONE
    path.parent.chmod(0o711)
    path.chmod(0)
    with as_nobody():  # the proof does not read the file
        assert disproof(root, shown, raw(path)) is None


@contextmanager
def no_descriptor_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = {int(name) for name in open_descriptors()}
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(numbers) + 1, hard))
    filler = [os.open("/", os.O_PATH) for _ in range(max(numbers) + 1 - len(numbers))]
    try:
        with pytest.raises(OSError, match="Too many"):
            os.open("/", os.O_PATH)
        yield
    finally:
        for fd in filler:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_look_that_fails_on_our_side_is_not_taken_for_an_absence(root, file):
    path, shown = file
    with no_descriptor_left():
        reason = disproof(root, shown, raw(path))
    assert reason is StaleReason.UNREACHABLE
    assert disproof(root, shown, raw(path)) is None


def test_a_path_that_the_kernel_would_not_give_is_no_path(root, file):
    path, shown = file
    top = path.parent.parent
    for wrong in (
        b"",
        raw(path)[1:],
        raw(path) + b"\0",
        raw(path) + b"\0/etc",
        raw(path) + b"/",
        b"/" + raw(path),
        raw(path.parent) + b"//file",
        raw(path.parent) + b"/./file",
        raw(path.parent) + b"/../dir/file",
        raw(top) + b"/../" + raw(top.name) + b"/dir/file",
        raw(path) + b"/.",
        raw(path.parent) + b"/" + b"x" * 256,
        raw(path.parent) + b"/" + b"x" * 5000,
    ):
        assert disproof(root, shown, wrong) is StaleReason.BAD_PATH
    for name in ("...", ".hidden", "..twice", "trailing.", " "):
        path.rename(path.with_name(name))
        assert disproof(root, shown, raw(path.with_name(name))) is None
        path.with_name(name).rename(path)


def test_the_root_has_two_names(watcher, root):
    shown = watched_identity(watcher, watcher.add_inotify("/"))
    for name in (b"/", b"/."):
        assert disproof(root, shown, name) is None
        assert is_canonical(name)
    for name in (b"//", b"/..", b"/./", b"."):
        assert disproof(root, shown, name) is StaleReason.BAD_PATH
        assert not is_canonical(name)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_mount_of_another_device_is_not_entered(area, root, file):
    """A lookup on it could wait for ever: not even a path that hides where it leads does it."""
    path, shown = file
    (area.path / "source" / "dir").mkdir(parents=True)
    mountpoint = area.path / "served"
    with served(area.path / "source", mountpoint) as server, server.silent():
        top, name = raw(mountpoint.parent), raw(mountpoint.name)
        ways = (
            top + b"/" + name + b"/dir/file",
            top + b"//" + name + b"/dir/file",
            top + b"/./" + name + b"/dir/file",
            raw(path.parent) + b"/../../" + name + b"/dir/file",
            b"/" + top + b"/" + name + b"/dir/file",
        )
        refused = call_in_child(lambda: [disproof(root, shown, way) for way in ways], 10)
        assert refused == [StaleReason.UNMOUNTED] + [StaleReason.BAD_PATH] * 4
        with pytest.raises(TimeoutError):  # the server would be waited for
            call_in_child(lambda: os.stat(mountpoint / "dir" / "file"), 0.2)


# Kernels with less


@pytest.fixture
def without(monkeypatch):
    """Have a call refuse as an older kernel does."""

    def without(flag, error):
        real = syscalls.name_to_handle_at

        def refuse(dir_fd, path, flags):
            if flags & flag:
                raise OSError(error, os.strerror(error))
            return real(dir_fd, path, flags)

        monkeypatch.setattr(proof.syscalls, "name_to_handle_at", refuse)

    return without


def test_before_linux_6_5_the_plain_handle_is_the_same(area, root, without):
    for kind in ("ext4", "tmpfs"):
        path = raw(area.place(kind).directory / "dir" / "file")
        new = identify(root, path)
        with pytest.MonkeyPatch.context() as patch:
            real = syscalls.name_to_handle_at
            patch.setattr(
                syscalls,
                "name_to_handle_at",
                lambda fd, name, flags, real=real: real(
                    fd, name, flags | 1 << 30 if flags & syscalls.AT_HANDLE_FID else flags
                ),
            )
            assert identify(root, path) == new


def test_where_no_handle_can_be_had_the_inode_number_decides(area, root, without):
    place = area.place("overlay-lower")
    path = raw(place.directory / "dir" / "file")
    full = identify(root, path)
    without(0x1000, 95)  # EOPNOTSUPP to both forms: an overlay before Linux 6.6
    found = identify(root, path)
    assert found == Identity(full.kdev, full.ino, None)
    assert disproof(root, full._replace(handle=None), path) is None
    other = raw(place.directory / "file")
    assert disproof(root, full._replace(handle=None), other) is StaleReason.REPLACED


def test_a_descriptor_is_enough(area, root):
    place = area.place("tmpfs")
    path = place.directory / "dir" / "file"
    known = identify(root, raw(path))
    with path.open("rb") as opened:
        path.unlink()
        (place.directory / "dir" / "hard").unlink()
        assert identify_fd(root, opened.fileno()) == known
    with pytest.raises(FileNotFoundError):
        identify(root, raw(path))
    with pytest.raises(ValueError, match="null"):
        identify(root, b"/a\0b")
    assert isinstance(known.handle, FileHandle)


def test_a_file_of_another_namespace_matches_nothing_here(area, root):
    """Its mount is not in our table; an overlay there may have the numbers of one here."""
    top = area.tmpfs("jail")
    with Watcher(unshare={"mount"}) as watcher:
        watcher.mount("tmpfs", top, "tmpfs")
        watcher.write(top / "file")
        watched = watcher.add_inotify(top / "file")
        shown = watched_identity(watcher, watched)
        fd = os.open(f"/proc/{watcher.pid}/root{top}/file", os.O_PATH)
        assert identify_fd(root, fd).matches(shown)
        os.close(fd)
        (top / "file").touch()
        assert disproof(root, shown, raw(top / "file")) is StaleReason.UNMOUNTED
