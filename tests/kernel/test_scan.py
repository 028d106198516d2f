"""The scan by itself: the places that it walks, their order, and the reasons for the rest."""

import os
import re

import pytest

from irmapdb.config import Config
from irmapdb.kernel.directory import open_directory_root
from irmapdb.model import StaleReason
from irmapdb.resolve import scan as scan_module
from irmapdb.resolve.scan import Scan
from tests.support.filesystems import btrfs_layout, drop_caches, superblock_kdev
from tests.support.kernel_paths import as_nobody, served
from tests.support.names import ODD_NAMES
from tests.support.notify import IN_OPEN
from tests.support.resolver_call import NOBODY_HAS_IT, ask, path_by, why_not

NO_HINTS = Config(hints=())


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
            scan_paths=tuple(os.fsencode(top / name) for name in config),
            hints=tuple(os.fsencode(top / name) for name in hint),
        )
        scan = Scan(root, said, paths=[os.fsencode(top / name) for name in user])
        assert path_by(root, scan, shown) == os.fsencode(top / first / "file")
        assert scan.scanned <= 1
    # Each is walked once, and not again as a part of the mount.
    progress = Progress()
    ghost = shown._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    user, hint = (os.fsencode(top / name) for name in ("user", "hint"))
    everything = [user, user, user + b"/"]
    said = Config(hints=(hint, user))
    scan = Scan(root, said, paths=everything, progress=progress)
    failure = why_not(root, scan, ghost)
    assert failure.why == f"scan: not found on {top}"
    assert progress.tops == [user, hint, os.fsencode(top)]
    assert scan.scanned == progress.scanned == sum(1 for _ in top.rglob("*"))


def test_a_path_that_is_a_mount_point_is_walked_once(area, root, watched):
    top = area.ext4().mountpoint
    (top / "dir" / "sub").mkdir(parents=True)
    shown = watched(top / "dir")
    ghost = shown._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    entries = sum(1 for _ in top.rglob("*"))
    for paths in ([top], [top, top / "dir"], [top / "dir", top], [area.path, top]):
        scan = Scan(root, NO_HINTS, paths=[os.fsencode(path) for path in paths])
        why_not(root, scan, ghost)
        assert scan.scanned == entries


@pytest.mark.parametrize("spelling", [b"%b", b"%b/", b"/%b", b"%b/.", b"%b//", b"%b/../dir"])
def test_a_path_is_given_back_as_the_kernel_would(area, root, watched, spelling):
    top = area.tmpfs()
    (top / "dir").mkdir()
    (top / "dir" / "file").touch()
    scan = Scan(root, NO_HINTS, paths=[spelling % os.fsencode(top / "dir")])
    outcome = ask(root, scan, watched(top / "dir"), watched(top / "dir" / "file"))
    assert outcome.disproved == []  # not only the walk of the mount finds it
    assert {answer.path for answer in outcome.resolved.values()} == {
        os.fsencode(top / "dir"),
        os.fsencode(top / "dir" / "file"),
    }


def test_a_device_without_a_wanted_inode_is_not_walked(area, root, watcher, watched):
    wanted, other = area.tmpfs("wanted"), area.tmpfs("other")
    (wanted / "file").touch()
    shown = watched(wanted / "file")
    opening = [watcher.add_inotify(path, IN_OPEN) for path in (other, area.path)]
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(other)])
    assert path_by(root, scan, shown) == os.fsencode(wanted / "file")
    assert scan.scanned == 1
    assert {event.wd for event in watcher.events()} & {one.wd for one in opening} == set()


def test_the_scan_ends_with_the_last_that_is_wanted(area, root, watched):
    top = area.tmpfs()
    for number in range(200):
        (top / "d" / str(number)).mkdir(parents=True)
        (top / "d" / str(number) / "file").touch()
    (top / "top").touch()
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(top)])
    assert path_by(root, scan, watched(top / "top")) == os.fsencode(top / "top")
    assert scan.scanned < 10


def test_when_time_is_up_the_scan_ends(area, root, watched):
    top = area.tmpfs()
    for number in range(2000):
        (top / "d" / str(number)).mkdir(parents=True)
    shown = watched(top)
    ghost = shown._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    progress = Progress()
    scan = Scan(
        root,
        NO_HINTS,
        paths=[os.fsencode(top)],
        progress=progress,
        over=lambda: progress.scanned > 100,
    )
    why_not(root, scan, ghost)
    assert 100 < scan.scanned < 2001 + 1
    over = Scan(root, NO_HINTS, paths=[os.fsencode(top)], over=lambda: True)
    why_not(root, over, shown)
    assert over.scanned == 0


def test_a_scan_path_may_be_a_file_or_nothing(area, root, watched):
    top = area.tmpfs()
    (top / "file").touch()
    (top / "link").symlink_to("file")
    (top / "loop").symlink_to("loop")
    shown = watched(top / "file")
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(top / "file")])
    assert path_by(root, scan, shown) == os.fsencode(top / "file")
    odd = [os.fsencode(top / name) for name in ("link", "loop", "missing", "file/x", "loop/x")]
    assert path_by(root, Scan(root, NO_HINTS, paths=odd), shown) == os.fsencode(top / "file")


def test_a_mount_below_a_scan_path_is_walked_too(area, root, watched):
    inner = area.tmpfs("outer/inner")
    (inner / "file").touch()
    progress = Progress()
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(area.path / "outer")], progress=progress)
    assert path_by(root, scan, watched(inner / "file")) == os.fsencode(inner / "file")
    assert progress.tops in ([], [os.fsencode(inner)])


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
        assert "is walked only where a scan path names it" in failure.why
        hinted = Scan(root, Config(hints=(os.fsencode(area.path / "served"),)))
        assert (why_not(root, hinted, shown).why, hinted.scanned) == (failure.why, 0)
        scan = Scan(root, NO_HINTS, paths=[os.fsencode(area.path / "served")])
        root.trust([os.fsencode(area.path / "served")])
        assert path_by(root, scan, shown) == os.fsencode(file)
        os.close(holding)


def test_the_reason_names_the_walked_part_of_a_skipped_filesystem(area, root, watched):
    top = area.ext4().mountpoint
    (top / "named").mkdir()
    ghost = watched(top)._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    skipped = Config(hints=(), skip_filesystems=frozenset({"ext4"}))
    only = "ext4 is walked only where a scan path names it"

    def said(*paths):
        return why_not(root, Scan(root, skipped, paths=map(os.fsencode, paths)), ghost).why

    assert said() == f"scan: {only}"
    assert said("/tmp") == f"scan: {only}"
    assert said(top / "named") == f"scan: not found on {top}/named; the rest of {only}"
    assert said(top) == f"scan: not found on {top}"


def test_directories_that_may_not_be_read_are_in_the_reason(area, watched):
    top = area.ext4().mountpoint
    ghost = watched(top)._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    (top / "lost+found").rmdir()

    def said(**options):
        with open_directory_root(os.fsencode(top)) as root, as_nobody():
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
    """A task can make directories in front of the walk for ever."""
    monkeypatch.setattr(scan_module, "_SPARE_DIRECTORIES", 0)
    monkeypatch.setattr(scan_module, "_MOST_UNCOUNTED", 1500)
    top = area.mount("tmpfs", "top", "tmpfs", options)
    for number in range(4000):
        (top / str(number)).mkdir()
    ghost = watched(top)._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    why = why_not(root, Scan(root, NO_HINTS, paths=[os.fsencode(top)]), ghost).why
    if options:
        assert re.search(r"/top was given up after 1,\d\d\d directories, more than", why)
    else:
        assert why == f"scan: not found on {top}"  # as many as the filesystem says


def test_on_an_overlay_of_two_filesystems_everything_is_found(area, root, watched):
    place = area.place("overlay-two-filesystems")
    (place.directory / "new").mkdir()
    (place.directory / "new" / "file").touch()
    (place.directory / "file").chmod(0o600)  # copied up: listed by the number of the copy
    parted = {place.linked, place.directory / "dir" / "hard"}
    paths = {place.directory, *place.directory.rglob("*")} - parted
    shown = {watched(path): os.fsencode(path) for path in paths}
    outcome = ask(root, Scan(root, NO_HINTS, paths=[os.fsencode(place.directory)]), *shown)
    assert outcome.unresolved == {}
    assert {i: a.path for i, a in outcome.resolved.items()} == shown


@pytest.mark.parametrize("kind", ["overlay-lower", "overlay-upper", "overlay-xino"])
def test_an_overlay_whose_listing_has_the_numbers_is_walked_once(area, root, watched, kind):
    """A second walk, which is far slower, could find no more."""
    top = area.place(kind).directory
    for number in range(300):
        (top / f"new{number}").touch()
    ghost = watched(top / "new1")._replace(ino=1 << 30, handle=NOBODY_HAS_IT)
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(top)])
    why_not(root, scan, ghost)
    entries = sum(1 for _ in top.rglob("*"))
    assert entries <= scan.scanned < 1.5 * entries


@pytest.mark.parametrize("kind", ["overlay-lower", "overlay-xino"])
def test_a_file_that_was_copied_up_is_found_by_one_walk(area, root, watched, kind):
    top = area.place(kind).directory
    path = next(one for one in sorted(top.iterdir()) if one.is_file() and one.stat().st_nlink == 1)
    shown = watched(path)
    path.chmod(0o600)
    again = watched(path)
    drop_caches()
    outcome = ask(root, Scan(root, NO_HINTS, paths=[os.fsencode(top)]), shown, again)
    assert {answer.path for answer in outcome.resolved.values()} == {os.fsencode(path)}
    assert outcome.unresolved == {}


def test_of_proc_only_the_tasks_own_directories_are_walked(root, watcher, watched):
    path = f"/proc/{watcher.pid}/status"
    other = watched(f"/proc/{os.getpid()}/status")
    shown = watched(path)
    config = Config(hints=(b"/proc",))
    assert path_by(root, Scan(root, config, pids=[watcher.pid]), shown) == os.fsencode(path)
    # A task outside of the tree is not walked.
    pruned = Scan(root, config, pids=[watcher.pid])
    assert why_not(root, pruned, other).why.startswith(
        "scan: not found on /proc; not looked for in other tasks' directories"
    )


def test_of_proc_all_files_of_the_tree_are_found_and_the_directories_of_others(
    root, watcher, watched
):
    own, other = f"/proc/{watcher.pid}", f"/proc/{os.getpid()}"
    fd = watcher.inotify()
    names = ["", "fd", "fdinfo", f"fdinfo/{fd}", "map_files", "ns", "task"]
    names += [f"task/{watcher.pid}{name}" for name in ("", "/status", "/fd")]
    paths = [f"{own}/{name}".rstrip("/") for name in names] + [other]
    holding = [os.open(path, os.O_PATH) for path in paths]  # else each look makes a new inode
    shown = {watched(path): os.fsencode(path) for path in paths}
    outcome = ask(root, Scan(root, Config(hints=(b"/proc",)), pids=[watcher.pid]), *shown)
    for fd in holding:
        os.close(fd)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown
    assert outcome.unresolved == {}


def test_a_named_directory_of_proc_is_walked_to_its_end(root, watched):
    path = f"/proc/{os.getpid()}/task/{os.getpid()}/fdinfo/0"
    holding = os.open(path, os.O_PATH)
    shown = watched(path)
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(f"/proc/{os.getpid()}/task")])
    assert path_by(root, scan, shown) == os.fsencode(path)
    os.close(holding)


def test_every_name_is_found(area, root, watched):
    top = area.ext4().mountpoint
    (top / "dir").mkdir()
    paths = [os.fsencode(top / "dir") + b"/" + name for name in ODD_NAMES]
    for path in paths:
        os.mknod(path)
    shown = {watched(path): path for path in paths}
    drop_caches()
    outcome = ask(root, Scan(root, NO_HINTS, paths=[os.fsencode(top)]), *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown


def test_a_snapshot_has_the_same_inode_numbers(area, root, watched):
    layout = btrfs_layout(area.btrfs().mountpoint)
    shown = {
        watched(path): os.fsencode(path)
        for top in (layout.sub, layout.snapshot, layout.top)
        for path in (top / "file", top / "dir", top / "dir" / "file")
    }
    assert len({identity.key for identity in shown}) < len(shown)
    drop_caches()
    scan = Scan(root, NO_HINTS, paths=[os.fsencode(layout.top)])
    outcome = ask(root, scan, *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown


@pytest.mark.alone  # a layer of another worker would be one that irmapdb cannot see
def test_one_inode_number_may_be_many_inodes(area, root, watched):
    """A number that is found at a wrong file is looked for further."""
    one, other = area.ext4("one").mountpoint, area.ext4("other").mountpoint
    for layer in (one, other):
        (layer / "lower").mkdir()
        (layer / "lower" / layer.name).write_bytes(b"content")
    overlay = area.mount("overlay", "both", "overlay", f"lowerdir={one}/lower:{other}/lower")
    shown = {watched(overlay / name): os.fsencode(overlay / name) for name in ("one", "other")}
    assert len({identity.key for identity in shown}) == 1
    outcome = ask(root, Scan(root, NO_HINTS, paths=[os.fsencode(overlay)]), *shown)
    assert {i: answer.path for i, answer in outcome.resolved.items()} == shown
    assert {one.reason for one in outcome.disproved} <= {StaleReason.REUSED}
    assert superblock_kdev(overlay) in {identity.kdev for identity in shown}
