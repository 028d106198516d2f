"""Each resolver by itself, on real files: what it finds, what it says where it finds nothing."""

import contextlib
import ctypes
import mmap
import os
import re

import pytest

from irmapdb import engine
from irmapdb.config import Config
from irmapdb.kernel.aside import call_aside
from irmapdb.kernel.directory import open_directory_root
from irmapdb.kernel.identity import disproof, identify
from irmapdb.kernel.root import open_root
from irmapdb.model import FileHandle, Source, StaleReason
from irmapdb.resolvers import Handles, OpenFiles, Scan
from irmapdb.resolvers import scan as scan_module
from tests.kernel.truth import as_nobody, open_descriptors, served, watched_identity
from tests.support.filesystems import btrfs_layout, drop_caches, superblock_kdev
from tests.support.names import ODD_NAMES, deep_file
from tests.support.notify import IN_OPEN
from tests.support.programs import run
from tests.support.watcher import Watcher

NO_HINTS = Config(hints=())
NOBODY_HAS_IT = FileHandle(1, b"\xff" * 8)


@pytest.fixture
def root():
    with open_root(os.getpid()) as opened:
        yield opened


def raw(path):
    return os.fsencode(path)


def ask(root, resolver, *identities):
    root.renew()
    before = open_descriptors()
    outcome = engine.resolve(identities, [resolver], lambda i, path: disproof(root, i, path))
    assert open_descriptors() == before
    return outcome


def path_by(root, resolver, identity):
    outcome = ask(root, resolver, identity)
    assert outcome.unresolved == {}
    return outcome.resolved[identity].path


def why_not(root, resolver, identity):
    outcome = ask(root, resolver, identity)
    assert outcome.resolved == {}
    return outcome.unresolved[identity]


@pytest.fixture
def watched(watcher):
    """Watch a path, and tell its identity."""
    return lambda path, **more: watched_identity(watcher, watcher.add_inotify(path, **more))


# Handles


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_handle_opens_what_has_a_name_in_the_cache(area, root, watched, kind):
    place = area.place(kind)
    file, directory = place.directory / "file", place.directory / "dir"
    shown = {path: watched(path) for path in (file, directory, place.directory)}
    holding = os.open(file, os.O_PATH)  # and so its name stays in the cache
    outcome = ask(root, Handles(root), *shown.values())
    assert {i: answer.path for i, answer in outcome.resolved.items()} == {
        identity: raw(path) for path, identity in shown.items()
    }
    os.close(holding)
    assert {answer.source for answer in outcome.resolved.values()} == {Source.HANDLE}


def test_cold_a_directory_has_a_name_and_a_file_has_none(area, root, watched):
    place = area.place("ext4")
    file, directory = (watched(place.directory / name) for name in ("dir/file", "dir"))
    drop_caches()
    outcome = ask(root, Handles(root), file, directory)
    assert outcome.resolved[directory].path == raw(place.directory / "dir")
    assert outcome.unresolved[file].why == "handle: the kernel has no name cached for it"
    assert not outcome.unresolved[file].deleted


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_what_was_deleted_is_said_to_be(area, root, watcher, watched, cold):
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
    assert path_by(root, Handles(root), watched(real)) == raw(real)
    (top / "first").touch()
    (top / "second").hardlink_to(top / "first")
    linked = watched(top / "first")
    holding = os.open(top / "first", os.O_PATH)
    (top / "first").unlink()
    failure = ask(root, Handles(root), linked)
    if failure.resolved:  # the kernel may have told the other name
        assert failure.resolved[linked].path == raw(top / "second")
    else:
        assert not failure.unresolved[linked].deleted
    os.close(holding)


def test_handles_that_lead_nowhere(area, root, watched):
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


def test_a_path_beyond_path_max_is_not_told_by_a_link(area, root, watched):
    top = area.tmpfs()
    path = deep_file(top, length=5000)
    shown = watched(path)
    holding = root.open(path)
    assert "does not tell its name" in why_not(root, Handles(root), shown).why
    os.close(holding)
    # A walk needs nobody to tell it.
    assert path_by(root, Scan(root, NO_HINTS, paths=[raw(top)]), shown) == path


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
        # What the kernel calls it there is a path outside of the mount: it leads nowhere.
        assert why_not(theirs, Handles(theirs), shown["outside"]).deleted is False
    # With only the part mounted, its own name is the answer.
    run("mount", "--bind", area.path, top / "outside")
    assert path_by(root, Handles(root), shown["inside"]) in {raw(top / "inside"), raw(part)}
    run("umount", top / "outside")
    run("umount", part)


def test_a_mount_point_that_is_a_file_opens_no_handles(area, root, watched):
    top = area.path / "only"
    top.mkdir()
    run("mount", "-t", "tmpfs", "only", top)
    (top / "file").touch()
    target = area.path / "target"
    target.touch()
    run("mount", "--bind", top / "file", target)
    run("umount", top)
    shown = watched(target)
    assert why_not(root, Handles(root), shown).why == "handle: cannot be opened"
    assert path_by(root, Scan(root, NO_HINTS), shown) == raw(target)
    run("umount", target)


# Open files


def test_what_a_task_holds_open_has_a_name(area, root, watcher, watched):
    top = area.tmpfs()
    names = [b"plain", *ODD_NAMES]
    paths = [raw(top) + b"/" + name for name in names]
    for path in paths:
        watcher.write(path)
        watcher.open(path)
    (top / "cwd").mkdir()
    watcher.chdir(top / "cwd")
    paths.append(raw(top / "cwd"))
    shown = {watched(path): path for path in paths}
    outcome = ask(root, OpenFiles(root, [watcher.pid]), *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown
    # Who is not asked has nothing open, and who is gone neither.
    for pids in ([], [os.getpid()], [2**22 - 1]):
        assert why_not(root, OpenFiles(root, pids), next(iter(shown))).why.endswith("has it open")


def test_what_is_open_and_deleted_is_deleted(area, root, watcher, watched):
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
def test_what_is_only_mapped_is_seen_too(area, root, watched, kind):
    top = area.place(kind).directory
    names = [top / "first", top / "second"]
    for name in names:
        name.write_bytes(b"x")
    kept, gone = (watched(name) for name in names)
    with mapped(*names):
        open_files = OpenFiles(root, [os.getpid()])
        assert path_by(root, open_files, kept) == raw(names[0])
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
def test_nobody_is_asked_on_a_filesystem_that_nobody_wants(area, root, watcher, watched):
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
            answer = call_aside(lambda: path_by(root, OpenFiles(root, [watcher.pid]), shown), 10)
            scanned = call_aside(lambda: path_by(root, Scan(root, NO_HINTS), shown), 10)
        watcher.chdir("/")
        watcher.close_fd(fd)
    assert answer == scanned == raw(top / "file")


# Scan


class Progress:
    """Where a scan went, in order."""

    def __init__(self):
        self.tops = []
        self.scanned = 0

    def __call__(self, scanned, top):
        assert scanned >= self.scanned
        self.scanned = scanned
        if self.tops[-1:] != [top]:
            self.tops.append(top)


def test_the_users_paths_come_first_then_the_hints_then_mounts(area, root, watched):
    top = area.ext4().mountpoint
    for name in ("user", "config", "hint", "rest"):
        (top / name).mkdir()
    (top / "rest" / "file").touch()
    for name in ("user", "config", "hint"):
        (top / name / "file").hardlink_to(top / "rest" / "file")
    shown = watched(top / "rest" / "file")
    ways = {
        "user": (["user"], ["config"], ["hint"]),
        "config": ([], ["config"], ["hint"]),
        "hint": ([], [], ["hint"]),
    }
    for first, (user, config, hint) in ways.items():
        said = Config(
            scan_paths=tuple(raw(top / name) for name in config),
            hints=tuple(raw(top / name) for name in hint),
        )
        scan = Scan(root, said, paths=[raw(top / name) for name in user])
        assert path_by(root, scan, shown) == raw(top / first / "file")
        assert scan.scanned <= 1
    # Each is walked once, and not again as a part of the mount.
    progress = Progress()
    ghost = shown._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    everything = [raw(top / "user"), raw(top / "user"), raw(top / "user") + b"/"]
    said = Config(hints=(raw(top / "hint"), raw(top / "user")))
    scan = Scan(root, said, paths=everything, progress=progress)
    failure = why_not(root, scan, ghost)
    assert failure.why == f"scan: not found on {top}"
    assert progress.tops == [raw(top / "user"), raw(top / "hint"), raw(top)]
    assert scan.scanned == progress.scanned == sum(1 for _ in top.rglob("*"))


def test_a_path_that_is_a_mount_point_is_walked_once(area, root, watched):
    top = area.ext4().mountpoint
    (top / "dir" / "sub").mkdir(parents=True)
    shown = watched(top / "dir")
    ghost = shown._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    entries = sum(1 for _ in top.rglob("*"))
    for paths in ([top], [top, top / "dir"], [top / "dir", top], [area.path, top]):
        scan = Scan(root, NO_HINTS, paths=[raw(path) for path in paths])
        why_not(root, scan, ghost)
        assert scan.scanned == entries


@pytest.mark.parametrize("spelling", [b"%b", b"%b/", b"/%b", b"%b/.", b"%b//", b"%b/../dir"])
def test_a_path_is_given_back_as_the_kernel_would(area, root, watched, spelling):
    top = area.tmpfs()
    (top / "dir").mkdir()
    (top / "dir" / "file").touch()
    scan = Scan(root, NO_HINTS, paths=[spelling % raw(top / "dir")])
    outcome = ask(root, scan, watched(top / "dir"), watched(top / "dir" / "file"))
    assert outcome.disproved == []  # not only the walk of the mount finds it
    assert {answer.path for answer in outcome.resolved.values()} == {
        raw(top / "dir"),
        raw(top / "dir" / "file"),
    }


def test_a_device_that_nobody_wants_is_not_walked(area, root, watcher, watched):
    wanted, other = area.tmpfs("wanted"), area.tmpfs("other")
    (wanted / "file").touch()
    shown = watched(wanted / "file")
    opening = [watcher.add_inotify(path, IN_OPEN) for path in (other, area.path)]
    scan = Scan(root, NO_HINTS, paths=[raw(other)])
    assert path_by(root, scan, shown) == raw(wanted / "file")
    assert scan.scanned == 1
    assert {event.wd for event in watcher.events()} & {one.wd for one in opening} == set()


def test_the_scan_ends_with_the_last_that_is_wanted(area, root, watched):
    top = area.tmpfs()
    for number in range(200):
        (top / "d" / str(number)).mkdir(parents=True)
        (top / "d" / str(number) / "file").touch()
    (top / "top").touch()
    scan = Scan(root, NO_HINTS, paths=[raw(top)])
    assert path_by(root, scan, watched(top / "top")) == raw(top / "top")
    assert scan.scanned < 10


def test_when_time_is_up_the_scan_ends(area, root, watched):
    top = area.tmpfs()
    for number in range(2000):
        (top / "d" / str(number)).mkdir(parents=True)
    shown = watched(top)
    ghost = shown._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    progress = Progress()
    scan = Scan(
        root, NO_HINTS, paths=[raw(top)], progress=progress, over=lambda: progress.scanned > 100
    )
    why_not(root, scan, ghost)
    assert 100 < scan.scanned < 2001 + 1
    over = Scan(root, NO_HINTS, paths=[raw(top)], over=lambda: True)
    why_not(root, over, shown)
    assert over.scanned == 0


def test_a_scan_path_may_be_a_file_or_nothing(area, root, watched):
    top = area.tmpfs()
    (top / "file").touch()
    (top / "link").symlink_to("file")
    (top / "loop").symlink_to("loop")
    shown = watched(top / "file")
    scan = Scan(root, NO_HINTS, paths=[raw(top / "file")])
    assert path_by(root, scan, shown) == raw(top / "file")
    odd = [raw(top / name) for name in ("link", "loop", "missing", "file/x", "loop/x")]
    assert path_by(root, Scan(root, NO_HINTS, paths=odd), shown) == raw(top / "file")


def test_what_is_mounted_below_a_scan_path_is_walked_too(area, root, watched):
    inner = area.tmpfs("outer/inner")
    (inner / "file").touch()
    progress = Progress()
    scan = Scan(root, NO_HINTS, paths=[raw(area.path / "outer")], progress=progress)
    assert path_by(root, scan, watched(inner / "file")) == raw(inner / "file")
    assert progress.tops in ([], [raw(inner)])


def test_a_fuse_filesystem_is_walked_where_it_is_named(area, root, watched):
    source = area.path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "dir" / "file").touch()
    with served(source, area.path / "served"):
        file = area.path / "served" / "dir" / "file"
        holding = os.open(file, os.O_PATH)  # its server numbers inodes as they are looked up
        shown = watched(file)
        root.renew()
        failure = why_not(root, Scan(root, NO_HINTS), shown)
        assert "is walked only where --irmap-scan-path names it" in failure.why
        hinted = Scan(root, Config(hints=(raw(area.path / "served"),)))
        assert (why_not(root, hinted, shown).why, hinted.scanned) == (failure.why, 0)
        scan = Scan(root, NO_HINTS, paths=[raw(area.path / "served")])
        assert path_by(root, scan, shown) == raw(file)
        os.close(holding)


def test_what_was_named_and_what_was_not_is_told_apart(area, root, watched):
    top = area.ext4().mountpoint
    (top / "named").mkdir()
    ghost = watched(top)._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    skipped = Config(hints=(), skip_filesystems=frozenset({"ext4"}))
    only = "ext4 is walked only where --irmap-scan-path names it"

    def said(*paths):
        return why_not(root, Scan(root, skipped, paths=map(raw, paths)), ghost).why

    assert said() == f"scan: {only}"
    assert said("/tmp") == f"scan: {only}"
    assert said(top / "named") == f"scan: not found on {top}/named; the rest of {only}"
    assert said(top) == f"scan: not found on {top}"


def test_directories_that_may_not_be_read_are_told(area, watched):
    top = area.ext4().mountpoint
    ghost = watched(top)._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    (top / "lost+found").rmdir()

    def said(**options):
        with open_directory_root(raw(top)) as root, as_nobody():
            return why_not(root, Scan(root, NO_HINTS, **options), ghost).why

    assert said() == "scan: not found on /"
    (top / "one").mkdir(mode=0)
    assert said() == "scan: not found on /; /one may not be read"
    (top / "deep").mkdir()
    for number in range(3):
        (top / "deep" / str(number)).mkdir(mode=0o700)
    found = re.fullmatch(r".*; 4 directories may not be read, the first is (.*)", said())
    assert found
    assert os.path.dirname(found[1]) in {"/", "/deep"}
    # Each once, also where it was named, or a path above it.
    for paths in ([b"/deep", b"/deep/1"], [b"/deep/1", b"/deep"]):
        assert "; 4 directories" in said(paths=paths)


@pytest.mark.parametrize("options", ["", "nr_inodes=0"], ids=["counted", "uncounted"])
def test_a_tree_with_more_directories_than_it_should_hold_is_given_up(
    area, root, watched, monkeypatch, options
):
    """Somebody may make directories in front of the walk for ever."""
    monkeypatch.setattr(scan_module, "_SPARE_DIRECTORIES", 0)
    monkeypatch.setattr(scan_module, "_MOST_UNCOUNTED", 1500)
    top = area.mount("tmpfs", "top", "tmpfs", options)
    for number in range(4000):
        (top / str(number)).mkdir()
    ghost = watched(top)._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    why = why_not(root, Scan(root, NO_HINTS, paths=[raw(top)]), ghost).why
    if options:
        assert re.search(r"/top was given up after 1,\d\d\d directories, more than", why)
    else:
        assert why == f"scan: not found on {top}"  # as many as the filesystem says


def test_on_an_overlay_of_two_filesystems_everything_is_found(area, root, watched):
    place = area.place("overlay-two-filesystems")
    (place.directory / "new").mkdir()
    (place.directory / "new" / "file").touch()
    (place.directory / "file").chmod(0o600)  # copied up: listed by the number of the copy
    paths = [path for path in [place.directory, *place.directory.rglob("*")] if path.name != "hard"]
    shown = {watched(path): raw(path) for path in paths}
    outcome = ask(root, Scan(root, NO_HINTS, paths=[raw(place.directory)]), *shown)
    assert outcome.unresolved == {}
    assert {i: a.path for i, a in outcome.resolved.items()}.items() >= {
        (identity, path) for identity, path in shown.items() if not path.endswith(b"dir/file")
    }


def test_of_proc_only_the_tasks_own_directories_are_walked(root, watcher, watched):
    path = f"/proc/{watcher.pid}/status"
    other = watched(f"/proc/{os.getpid()}/status")
    shown = watched(path)
    config = Config(hints=(raw("/proc"),))
    assert path_by(root, Scan(root, config, pids=[watcher.pid]), shown) == raw(path)
    # Another task's is another matter: who is not of the tree is not walked.
    pruned = Scan(root, config, pids=[watcher.pid])
    assert why_not(root, pruned, other).why.startswith(
        "scan: not found on /proc; not looked for in other tasks' directories"
    )


def test_of_a_task_in_proc_everything_is_found_and_of_others_where_they_begin(
    root, watcher, watched
):
    own, other = f"/proc/{watcher.pid}", f"/proc/{os.getpid()}"
    fd = watcher.inotify()
    names = ["", "fd", "fdinfo", f"fdinfo/{fd}", "map_files", "ns", "net", "net/dev", "task"]
    names += [f"task/{watcher.pid}{name}" for name in ("", "/status", "/fd", "/net")]
    paths = [f"{own}/{name}".rstrip("/") for name in names] + [other]
    holding = [os.open(path, os.O_PATH) for path in paths]  # else each look makes a new inode
    shown = {watched(path): raw(path) for path in paths}
    outcome = ask(root, Scan(root, Config(hints=(raw("/proc"),)), pids=[watcher.pid]), *shown)
    for fd in holding:
        os.close(fd)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown
    assert outcome.unresolved == {}


def test_a_directory_of_proc_that_is_named_is_walked_whole(root, watched):
    path = f"/proc/{os.getpid()}/task/{os.getpid()}/fdinfo/0"
    holding = os.open(path, os.O_PATH)
    shown = watched(path)
    scan = Scan(root, NO_HINTS, paths=[raw(f"/proc/{os.getpid()}/task")])
    assert path_by(root, scan, shown) == raw(path)
    os.close(holding)


def test_every_name_is_found(area, root, watched):
    top = area.ext4().mountpoint
    (top / "dir").mkdir()
    paths = [raw(top / "dir") + b"/" + name for name in ODD_NAMES]
    for path in paths:
        os.mknod(path)
    shown = {watched(path): path for path in paths}
    drop_caches()
    outcome = ask(root, Scan(root, NO_HINTS, paths=[raw(top)]), *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown


def test_a_snapshot_has_the_same_inode_numbers(area, root, watched):
    layout = btrfs_layout(area.btrfs().mountpoint)
    shown = {
        watched(path): raw(path)
        for top in (layout.sub, layout.snapshot, layout.top)
        for path in (top / "file", top / "dir", top / "dir" / "file")
    }
    assert len({identity.key for identity in shown}) < len(shown)
    drop_caches()
    scan = Scan(root, NO_HINTS, paths=[raw(layout.top)])
    outcome = ask(root, scan, *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown


def test_one_inode_number_may_be_many_inodes(area, root, watched):
    """A number that is found at a wrong file is looked for further."""
    one, other = area.ext4("one").mountpoint, area.ext4("other").mountpoint
    for layer in (one, other):
        (layer / "lower").mkdir()
        (layer / "lower" / layer.name).write_bytes(b"content")
    overlay = area.mount("overlay", "both", "overlay", f"lowerdir={one}/lower:{other}/lower")
    shown = {watched(overlay / name): raw(overlay / name) for name in ("one", "other")}
    assert len({identity.key for identity in shown}) == 1
    outcome = ask(root, Scan(root, NO_HINTS, paths=[raw(overlay)]), *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown
    assert {one.reason for one in outcome.disproved} <= {StaleReason.REUSED}
    assert superblock_kdev(overlay) in {identity.kdev for identity in shown}
