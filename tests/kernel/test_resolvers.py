"""Handles and open files by themselves: the paths that they find, and the reasons for none."""

import contextlib
import ctypes
import mmap
import os

import pytest

from irmapdb.config import Config
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import FileHandle, Source
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.open_files import OpenFiles
from irmapdb.resolve.scan import Scan
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import as_nobody, served, watched_identity
from tests.support.names import ODD_NAMES, deep_file
from tests.support.programs import run
from tests.support.resolver_call import ask, path_by, why_not
from tests.support.watcher import Watcher

NO_HINTS = Config(hints=())


# Handles


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_handle_gives_a_path_if_the_name_is_cached(area, root, watched, kind):
    place = area.place(kind)
    file, directory = place.directory / "file", place.directory / "dir"
    shown = {path: watched(path) for path in (file, directory, place.directory)}
    holding = os.open(file, os.O_PATH)  # and so its name stays in the cache
    outcome = ask(root, Handles(root), *shown.values())
    assert {i: answer.path for i, answer in outcome.resolved.items()} == {
        identity: os.fsencode(path) for path, identity in shown.items()
    }
    os.close(holding)
    assert {answer.source for answer in outcome.resolved.values()} == {Source.HANDLE}


def test_cold_a_directory_has_a_name_and_a_file_has_none(area, root, watched):
    place = area.place("ext4")
    file, directory = (watched(place.directory / name) for name in ("dir/file", "dir"))
    drop_caches()
    outcome = ask(root, Handles(root), file, directory)
    assert outcome.resolved[directory].path == os.fsencode(place.directory / "dir")
    assert outcome.unresolved[file].why == "handle: the kernel has no name cached for it"
    assert not outcome.unresolved[file].deleted


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_deleted_file_is_reported_as_deleted(area, root, watcher, watched, cold):
    place = area.place("ext4")
    file, directory = place.directory / "file", place.directory / "empty"
    directory.mkdir()
    watcher.open(file)
    watcher.open(directory)
    shown = [watched(file), watched(directory)]
    file.unlink()
    directory.rmdir()
    if cold:
        drop_caches()
    outcome = ask(root, Handles(root), *shown)
    assert outcome.resolved == {}
    assert [outcome.unresolved[identity].deleted for identity in shown] == [True, True]


def test_a_name_is_not_the_word_about_it(area, root, watched):
    """` (deleted)` may be part of a name; and of two names one may be deleted, the other not."""
    top = area.tmpfs()
    real = top / "gone (deleted)"
    real.touch()
    assert path_by(root, Handles(root), watched(real)) == os.fsencode(real)
    (top / "first").touch()
    (top / "second").hardlink_to(top / "first")
    linked = watched(top / "first")
    holding = os.open(top / "first", os.O_PATH)
    (top / "first").unlink()
    failure = ask(root, Handles(root), linked)
    if failure.resolved:  # the kernel may have given the other name
        assert failure.resolved[linked].path == os.fsencode(top / "second")
    else:
        assert not failure.unresolved[linked].deleted
    os.close(holding)


def test_handles_without_a_file(area, root, watched):
    place = area.place("ext4")
    shown = watched(place.directory / "file")
    wrong = shown._replace(
        handle=FileHandle(shown.handle.type, shown.handle.data[:4] + b"\xfe" * 4)
    )
    bare = shown._replace(handle=None)
    broken = shown._replace(handle=FileHandle(0x4D, b"no handle of ext4"))
    absent = shown._replace(kdev=0x123)
    endless = shown._replace(handle=FileHandle(1, b"x" * 300))
    said = {
        wrong: "the filesystem does not know this handle",
        bare: "the kernel shows no handle for it",
        broken: "the filesystem does not know this handle",
        absent: "0:291 is not mounted in this root",
        endless: "open_by_handle_at: Invalid argument",
    }
    outcome = ask(root, Handles(root), *said)
    assert {i: one.tried[0].note for i, one in outcome.unresolved.items()} == said
    encodes_only = watched("/proc/version")
    why = "handle: this filesystem cannot open handles"
    assert why_not(root, Handles(root), encodes_only).why == why
    own = identify(root, b"/etc/hosts")
    with as_nobody():
        assert "CAP_DAC_READ_SEARCH" in why_not(root, Handles(root), own).why


def test_a_link_of_proc_does_not_give_a_path_beyond_path_max(area, root, watched):
    top = area.tmpfs()
    path = deep_file(top, length=5000)
    shown = watched(path)
    holding = root.open(path)
    assert "does not give its name" in why_not(root, Handles(root), shown).why
    os.close(holding)
    # A walk finds it without a hint.
    assert path_by(root, Scan(root, NO_HINTS, paths=[os.fsencode(top)]), shown) == path


def test_a_mount_shows_only_its_part(area, root, watched):
    top = area.ext4().mountpoint
    for name in ("inside", "outside"):
        (top / name).mkdir()
        (top / name / "file").touch()
    part = area.path / "part"
    part.mkdir()
    run("mount", "--bind", top / "inside", part)
    shown = {name: watched(top / name) for name in ("inside", "outside")}
    with Watcher(unshare={"mount"}, rootfs=part) as other, open_root(other.pid) as theirs:
        assert path_by(theirs, Handles(theirs), shown["inside"]) in {b"/", b"/."}
        # The kernel's name for it there is a path outside of the mount: it leads nowhere.
        assert why_not(theirs, Handles(theirs), shown["outside"]).deleted is False
    # With only the part mounted, its own name is the answer.
    run("mount", "--bind", area.path, top / "outside")
    assert path_by(root, Handles(root), shown["inside"]) in {
        os.fsencode(top / "inside"),
        os.fsencode(part),
    }
    run("umount", top / "outside")
    run("umount", part)


def test_a_mount_point_that_is_a_file_opens_no_handles_but_its_own(area, root, watched):
    top = area.path / "only"
    top.mkdir()
    run("mount", "-t", "tmpfs", "only", top)
    (top / "file").touch()
    (top / "other").touch()
    target = area.path / "target"
    target.touch()
    run("mount", "--bind", top / "file", target)
    other = watched(top / "other")
    run("umount", "--lazy", top)
    shown = watched(target)
    assert why_not(root, Handles(root), other).why == "handle: cannot be opened"
    for resolver in (Handles(root), Scan(root, NO_HINTS)):
        assert path_by(root, resolver, shown) == os.fsencode(target)
    run("umount", target)


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_deleted_file_can_still_be_a_mount_point(area, root, watcher, watched, bound, cold):
    """As the /etc/hosts of a container has when the host has replaced the file."""
    gone = bound.top / "gone"
    gone.touch()
    mounted = {watched(path): os.fsencode(path) for path in (bound.file, bound.directory)}
    deleted = watched(gone)
    watcher.open(gone)
    watcher.open(bound.file)
    watcher.chdir(bound.directory)
    bound.remove()
    gone.unlink()
    if cold:
        drop_caches()
    for resolver in (Handles(root), OpenFiles(root, [watcher.pid])):
        outcome = ask(root, resolver, deleted, *mounted)
        assert {i: answer.path for i, answer in outcome.resolved.items()} == mounted
        assert outcome.unresolved[deleted].deleted
        assert outcome.disproved == []
    watcher.chdir("/")


# Open files


def test_an_open_file_has_a_name(area, root, watcher, watched):
    top = area.tmpfs()
    names = [b"plain", *ODD_NAMES]
    paths = [os.fsencode(top) + b"/" + name for name in names]
    for path in paths:
        watcher.write(path)
        watcher.open(path)
    (top / "cwd").mkdir()
    watcher.chdir(top / "cwd")
    paths.append(os.fsencode(top / "cwd"))
    shown = {watched(path): path for path in paths}
    outcome = ask(root, OpenFiles(root, [watcher.pid]), *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown
    # A task that is not asked, or has ended, has no file open.
    for pids in ([], [os.getpid()], [2**22 - 1]):
        assert why_not(root, OpenFiles(root, pids), next(iter(shown))).why.endswith("has it open")


def test_an_open_file_that_was_deleted_is_deleted(area, root, watcher, watched):
    top = area.tmpfs()
    (top / "file").touch()
    watcher.open(top / "file")
    shown = watched(top / "file")
    (top / "file").unlink()
    (top / "file").touch()
    assert why_not(root, OpenFiles(root, [watcher.pid]), shown).deleted


@contextlib.contextmanager
def mapped(*paths):
    """This process has files in its memory that it has not open: one page of each."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size, addresses = mmap.PAGESIZE, []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        os.close(fd)
        assert address not in {None, ctypes.c_void_p(-1).value}, os.strerror(ctypes.get_errno())
        addresses.append(address)
    try:
        yield
    finally:
        for address in addresses:
            libc.munmap(ctypes.c_void_p(address), size)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "overlay-lower", "overlay-upper"])
def test_a_mapped_file_is_found_too(area, root, watched, kind):
    top = area.place(kind).directory
    names = [top / "first", top / "second"]
    for name in names:
        name.write_bytes(b"x")
    kept, gone = (watched(name) for name in names)
    with mapped(*names):
        open_files = OpenFiles(root, [os.getpid()])
        assert path_by(root, open_files, kept) == os.fsencode(names[0])
        names[1].unlink()
        names[1].write_bytes(b"another of the same name")
        assert why_not(root, open_files, gone).deleted
    assert not why_not(root, open_files, gone).deleted


def test_of_one_name_several_deleted_files_may_be_mapped(area, root, watched):
    path = area.tmpfs() / "file"
    with contextlib.ExitStack() as stack:
        shown = []
        for _ in range(3):
            path.write_bytes(b"x")
            shown.append(watched(path))
            stack.enter_context(mapped(path))
            path.unlink()
        outcome = ask(root, OpenFiles(root, [os.getpid()]), *shown)
    assert [outcome.unresolved[identity].deleted for identity in shown] == [True] * 3


def test_open_files_of_a_chroot_are_seen_from_it(area):
    jail = area.ext4().mountpoint / "jail"
    (jail / "etc").mkdir(parents=True)
    (jail / "etc" / "file").touch()
    with Watcher(unshare={"mount"}, chroot=jail) as other, open_root(other.pid) as theirs:
        other.open("/etc/file")
        shown = watched_identity(other, other.add_inotify("/etc/file"))
        for resolver in (OpenFiles(theirs, [other.pid]), Scan(theirs, NO_HINTS)):
            assert path_by(theirs, resolver, shown) == b"/etc/file"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_server_of_a_filesystem_without_a_wanted_inode_is_not_asked(area, root, watcher, watched):
    (area.path / "source").mkdir()
    (area.path / "source" / "file").touch()
    top = area.tmpfs()
    (top / "file").touch()
    shown = watched(top / "file")
    with served(area.path / "source", area.path / "served") as server:
        watcher.chdir(area.path / "served")
        fd = watcher.open(area.path / "served" / "file")
        watcher.open(top / "file")
        root.renew()
        with server.silent():
            answer = call_in_child(lambda: path_by(root, OpenFiles(root, [watcher.pid]), shown), 10)
            scanned = call_in_child(lambda: path_by(root, Scan(root, NO_HINTS), shown), 10)
        watcher.chdir("/")
        watcher.close_fd(fd)
    assert answer == scanned == os.fsencode(top / "file")
