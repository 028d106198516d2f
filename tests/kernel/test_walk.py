"""One walk of one mount: every entry below it is offered, and no other file is touched."""

import contextlib
import itertools
import os
import socket
import stat
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irmapdb.kernel.fs.walk import walk
from irmapdb.kernel.root import open_beneath
from tests.support.kernel_paths import as_nobody, open_descriptors
from tests.support.names import ODD_NAMES
from tests.support.notify import IN_OPEN


class Every:
    """Every inode number is wanted."""

    def __contains__(self, _ino):
        return True


@contextlib.contextmanager
def opened(top):
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def walked(top, inos=None, **options):
    with opened(top) as fd:
        return list(walk(fd, Every() if inos is None else inos, **options))


def truth(top):
    """Path below `top` and inode number of everything on its filesystem, by os.walk."""
    top = os.fsencode(top)
    device = os.lstat(top).st_dev
    found = {b"": os.lstat(top).st_ino}
    for directory, subdirectories, files in os.walk(top):
        for name in [*subdirectories, *files]:
            path = directory + b"/" + name
            if os.lstat(path).st_dev == device:
                found[path[len(top) + 1 :]] = os.lstat(path).st_ino
        subdirectories[:] = [
            name for name in subdirectories if os.lstat(directory + b"/" + name).st_dev == device
        ]
    return found


def as_dict(hits):
    found = {hit.path: hit.ino for hit in hits}
    assert len(found) == len(hits)  # nothing twice
    return found


names = st.sampled_from([*ODD_NAMES[:8], b"a", b"b"]) | st.binary(min_size=1, max_size=3).map(
    lambda name: name.replace(b"/", b"_").replace(b"\0", b"0")
)
kinds = st.sampled_from(["directory", "directory", "file", "link", "hard link", "fifo", "socket"])


def make(path, kind, target):
    with contextlib.suppress(
        FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError
    ):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "directory":
            os.mkdir(path)
        elif kind == "file":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif kind == "link":
            os.symlink(target, path)
        elif kind == "hard link":
            os.link(target, path, follow_symlinks=False)
        else:
            os.mknod(path, 0o600 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK))


@given(
    steps=st.lists(st.tuples(kinds, st.lists(names, min_size=1, max_size=4)), max_size=40),
    data=st.data(),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_tree_is_walked_whole(tmp_path_factory, steps, data):
    top = os.fsencode(tmp_path_factory.mktemp("tree"))
    made = [top]
    for kind, parts in steps:
        # An entry that looks like `.` or `..` is no name.
        parts = [part + b"_" if part.strip(b".") == b"" else part for part in parts]  # noqa: PLW2901
        path = top + b"/" + b"/".join(parts)
        make(path, kind, data.draw(st.sampled_from(made)))
        made.append(path)
    expected = truth(top)
    assert as_dict(walked(top)) == expected
    every = walked(top, (), every_entry=True)
    assert {hit.ino for hit in every} == {0}
    assert {hit.path for hit in every} == expected.keys()
    # And for some of them alone.
    wanted = data.draw(st.sets(st.sampled_from(sorted(expected.values()))))
    assert as_dict(walked(top, wanted)) == {p: i for p, i in expected.items() if i in wanted}


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "overlay-lower", "overlay-upper"])
def test_a_mount_below_is_another_walk(area, kind):
    top = area.place(kind).directory
    (top / "dir" / "below").mkdir()
    (top / "dir" / "over").touch()
    source = area.tmpfs("source")
    (source / "secret").touch()
    area.bind(source, top / "dir" / "below")
    area.bind(source / "secret", top / "dir" / "over")
    # Not entered; the listing has the covered inodes, which have no path now.
    paths = {hit.path for hit in walked(top)}
    assert {b"", b"file", b"dir", b"dir/file", b"dir/hard"} <= paths
    assert not any(path.startswith(b"dir/below") for path in paths)
    assert {hit.path for hit in walked(source)} == {b"", b"secret"}
    # From a bind mount of a part, that part alone.
    part = area.path / "part"
    part.mkdir()
    area.bind(top / "dir", part)
    assert {hit.path for hit in walked(part)} >= {b"", b"file", b"hard", b"below"}


def test_on_an_overlay_every_entry_is_offered(area):
    """Its listing need not have the inodes' own numbers, so none is looked at."""
    place = area.place("overlay-two-filesystems")
    (place.directory / "dir" / "new").touch()
    expected = truth_by_name(place.directory)
    every = walked(place.directory, (), every_entry=True)
    assert {hit.path for hit in every} == expected
    assert len(every) == len(expected)


def truth_by_name(top):
    return {path.relative_to(top).as_posix().encode() for path in top.rglob("*")} | {b""}


def test_a_large_directory(area):
    top = area.tmpfs("large")
    here = os.open(top, os.O_RDONLY)
    for number in range(100_000):
        os.mknod(b"%d" % number, dir_fd=here)
    wanted = {os.stat("77777", dir_fd=here).st_ino, os.fstat(here).st_ino}
    (top / "small").mkdir()
    (top / "small" / "file").touch()
    counts = []
    hits = walked(top, wanted, on_entries=lambda count: counts.append(count) is None)
    assert {hit.path for hit in hits} == {b"", b"77777"}
    assert sum(counts) == 100_002  # also the entries after the last report
    os.close(here)


# The end


@pytest.fixture
def wide(tmp_path):
    """300 directories with 200 files each."""
    for number in range(300):
        directory = tmp_path / str(number)
        directory.mkdir()
        here = os.open(directory, os.O_RDONLY)
        for name in range(200):
            os.mknod(b"%d" % name, dir_fd=here)
        os.close(here)
    return tmp_path


def test_the_walk_stops_at_the_request_of_its_caller(wide):
    seen = []
    hits = walked(wide, on_entries=lambda count: seen.append(count) or len(seen) < 2)
    assert len(seen) == 2
    assert 0 < len(hits) < 40_000
    # Or when the caller stops reading: no descriptor is left.
    before = open_descriptors()
    with opened(wide) as fd:
        seen.clear()
        walking = walk(fd, Every(), on_entries=lambda count: seen.append(count) is None)
        assert len(list(itertools.islice(walking, 500))) == 500
        walking.close()
        assert 500 <= sum(seen) <= 300 + 3 * 200
    assert open_descriptors() == before


def test_a_found_inode_is_no_longer_looked_for(wide):
    wanted = {(wide / name / "7").stat().st_ino for name in ("1", "2", "3")}
    found = []
    with opened(wide) as fd:
        for hit in walk(fd, wanted):
            wanted.discard(hit.ino)
            found.append(hit.path)
    assert sorted(found) == [b"1/7", b"2/7", b"3/7"]


def test_pruned_directories_are_not_opened(wide, watcher):
    # Down to one: not even looked at, though it is a hit itself.
    opening = watcher.add_inotify(wide / "17", IN_OPEN)
    pruned = {b"%d" % number for number in range(300) if number != 3}
    entries = []
    assert not watcher.hears(
        opening,
        lambda: entries.extend(walked(wide, prune=pruned)),
    )
    assert {hit.path.split(b"/")[0] for hit in entries} == {b"", b"3"}
    assert walked(wide, prune={b""}) == []
    # The walk opens a directory that it may enter, so the monitor would have seen it.
    assert watcher.hears(opening, lambda: walked(wide))


def test_a_closed_directory_is_met_and_not_listed(wide, watcher):
    opening = watcher.add_inotify(wide / "17", IN_OPEN)
    for every_entry in (False, True):
        entries = []
        options = {"closed": {b"17", b"19"}, "every_entry": every_entry}
        assert not watcher.hears(opening, lambda: entries.extend(walked(wide, **options)))  # noqa: B023
        paths = {hit.path for hit in entries}
        assert {b"17", b"19", b"18", b"18/7"} <= paths
        assert not {path for path in paths if path.startswith((b"17/", b"19/"))}
    assert [hit.path for hit in walked(wide, {(wide / "17").stat().st_ino}, closed={b"17"})] == [
        b"17"
    ]


# Files that must not be touched


def test_only_directories_are_opened(tmp_path, watcher):
    """A FIFO's reader, a socket's server or a device's driver would notice an open, or block it."""
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    (tmp_path / "file").touch()
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.fspath(tmp_path / "socket"))
    server.listen()
    os.set_blocking(server.fileno(), False)
    (tmp_path / "link").symlink_to("fifo")
    opening = [
        watcher.add_inotify(tmp_path / name, IN_OPEN)
        for name in ("fifo", "null", "disk", "file", "socket")
    ]
    watcher.events()
    for every_entry in (False, True):
        found = {hit.path for hit in walked(tmp_path, every_entry=every_entry)}
        assert found == {b"", b"fifo", b"null", b"disk", b"file", b"socket", b"link"}
    assert {event.wd for event in watcher.events()} & {one.wd for one in opening} == set()
    with pytest.raises(BlockingIOError):
        server.accept()
    server.close()


def test_reading_a_directory_leaves_no_trace(area):
    top = area.mount("tmpfs", "strict", "tmpfs", "strictatime")
    (top / "dir").mkdir()
    before = (top / "dir").stat().st_atime_ns
    assert len(walked(top)) == 2
    assert (top / "dir").stat().st_atime_ns == before


def test_without_rights_a_closed_directory_is_passed_over(area):
    top = area.tmpfs()
    for name, mode in (("open", 0o755), ("closed", 0o700)):
        (top / name).mkdir()
        (top / name / "file").touch()
        (top / name).chmod(mode)
    with opened(top) as fd, as_nobody():
        # The kernel refuses O_NOATIME if the caller does not own the directory; reading is allowed.
        paths = {hit.path for hit in walk(fd, Every())}
    assert paths == {b"", b"open", b"open/file"}


SWAPPER = """
import ctypes, os, sys
os.chdir(sys.argv[1])
swap = ctypes.CDLL(None).renameat2
print("ready", flush=True)
while True:
    for name in (b"victim", b"inner/victim"):
        swap(-100, name, -100, name + b"-link", 2)
"""


def test_a_directory_that_becomes_a_link_is_not_followed(area, watcher):
    top, outside = area.tmpfs(), area.tmpfs("outside")
    (outside / "secret").mkdir()
    (outside / "secret" / "file").touch()
    opening = [watcher.add_inotify(path, IN_OPEN) for path in (outside, outside / "secret")]
    for base, target in ((top, outside), (top / "inner", f"../../{outside.name}")):
        base.mkdir(exist_ok=True)
        (base / "victim" / "secret").mkdir(parents=True)
        (base / "victim-link").symlink_to(target)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SWAPPER, top], stdout=subprocess.PIPE
    ) as swapper:
        swapper.stdout.readline()
        shapes = set()
        try:
            for _ in range(3000):
                hits = walked(top)
                assert all(not hit.path.endswith(b"/file") for hit in hits)
                shapes.add(frozenset(hit.path for hit in hits))
        finally:
            swapper.kill()
    # It was caught in more than one state, and no file outside was read.
    assert len(shapes) > 1
    events = watcher.events()
    assert {event.wd for event in events} & {one.wd for one in opening} == set()


def test_a_directory_that_became_another_file_is_not_entered(area, watcher):
    """The same without luck: the swap happens between the listing and the opening."""
    top = area.tmpfs()
    for path in ("decoy/sub/inside", "victim/sub/own", "other"):
        (top / path).mkdir(parents=True)
    (top / "file").touch()
    (top / "victim" / "file").touch()
    opening = []
    paths = set()
    with opened(top) as fd:
        for hit in walk(fd, Every()):
            paths.add(hit.path)
            if hit.path == b"victim/file":
                (top / "victim").rename(top / "aside")
                (top / "victim").symlink_to("decoy")
            elif hit.path == b"file":
                (top / "other").rmdir()
                os.mkfifo(top / "other")
                opening.append(watcher.add_inotify(top / "other", IN_OPEN))
    assert {b"victim", b"victim/file"} < paths
    assert paths & {b"victim/sub", b"victim/sub/inside", b"other"} == set()
    assert watcher.events() == []


def test_directories_that_vanish_are_passed_over(area):
    top = area.tmpfs()
    for number in range(50):
        (top / str(number) / "sub").mkdir(parents=True)
    with opened(top) as fd:
        seen = []
        for hit in walk(fd, Every()):
            seen.append(hit.path)
            if len(seen) == 5:
                kept = {path.split(b"/")[0] for path in seen}
                for directory in top.iterdir():
                    if os.fsencode(directory.name) not in kept:
                        (directory / "sub").rmdir()
                        directory.rmdir()
    assert 5 <= len(seen) < 20


def dig(top, levels, name="a"):
    """A directory in a directory in a directory; each has a second one beside it."""
    here = os.open(top, os.O_PATH)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        os.mkdir("b", dir_fd=here)
        below = os.open(name, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.mknod("bottom", dir_fd=here)
    ino = os.stat("bottom", dir_fd=here).st_ino
    os.close(here)
    return ino


def test_a_tree_that_is_deep_on_purpose_costs_little(area):
    top = area.tmpfs()
    levels = 8000
    bottom = dig(top, levels)
    calls, most = [], 0
    before = len(open_descriptors())
    tracemalloc.start()
    with opened(top) as fd:
        for hit in walk(fd, Every(), on_entries=lambda count: calls.append(count) is None):
            if len(hit.path) % 1999 == 1:
                most = max(most, len(open_descriptors()) - before)
            if hit.ino == bottom:
                assert hit.path == b"a/" * levels + b"bottom"
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The paths of all levels would be 64 MB. The caller can stop the walk also between few entries,
    # because opening a directory takes time too.
    assert peak < 4 << 20
    assert sum(calls) == 2 * levels + 1
    assert len(calls) > 20
    assert 1 < most < 80


def test_a_path_has_a_longest_for_a_walk(area):
    top = area.tmpfs()
    name = "directory"
    dig(top, 8000, name)
    paths = [hit.path for hit in walked(top)]
    deepest = max(paths, key=len)
    assert 60_000 < len(deepest) < 70_000
    assert deepest.count(name.encode()) + deepest.endswith(b"b") == deepest.count(b"/") + 1
    before = open_descriptors()
    with opened(top) as fd:
        os.close(open_beneath(fd, deepest, os.O_PATH))  # the found path can be looked up
        walking = walk(fd, Every())
        assert any(len(hit.path) > 50_000 for hit in walking)
        walking.close()  # half-way down, nothing is left open
    assert open_descriptors() == before


class _Everything:
    def __contains__(self, ino):
        return True


def test_a_directory_that_is_moved_on_in_front_of_the_walk_is_listed_once(tmp_path):
    """Else a tenant could make the walk endless with one directory of many entries."""
    places = {f"place{number:02}" for number in range(40)}
    for name in places:
        (tmp_path / name).mkdir()
    heavy = tmp_path / "heavy"
    heavy.mkdir()
    (heavy / "file").touch()
    met = []
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for hit in walk(fd, _Everything()):
            places.discard(os.fsdecode(hit.path))
            if hit.path.endswith(b"file"):
                met.append(hit.path)
                heavy = heavy.rename(tmp_path / max(places) / "heavy") if places else heavy
    finally:
        os.close(fd)
    assert len(met) == 1


@pytest.mark.parametrize("every_entry", [False, True])
def test_directories_that_are_made_in_front_of_the_walk_are_counted(area, every_entry):
    top = area.tmpfs()
    told = []
    with opened(top) as fd:
        options = {"on_directories": lambda number: told.append(number) or number < 3000}
        for hit in walk(fd, Every(), every_entry=every_entry, **options):
            if hit.path.count(b"/") < 4:
                for number in range(10):
                    (top / os.fsdecode(hit.path) / str(number)).mkdir()
    assert told == sorted(told)
    assert 3000 <= told[-1] < 4100  # of 111,111


def test_a_large_directory_can_be_left_in_the_middle(tmp_path):
    for number in range(40_000):
        os.mknod(f"{tmp_path}/f{number}")
    asked = []

    def enough(count):
        asked.append(count)
        return len(asked) < 2

    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        list(walk(fd, (), on_entries=enough))
    finally:
        os.close(fd)
    assert len(asked) == 2
    assert sum(asked) < 40_000


def test_the_time_is_looked_at_before_each_directory(tmp_path):
    """Not once in a thousand of them: where nothing is cached they take seconds."""
    for number in range(50):
        (tmp_path / f"d{number}").mkdir()
    looks = []
    hits = walked(tmp_path, over=lambda: looks.append(1) is None and len(looks) > 5)
    assert len(hits) == 5
    assert len(looks) == 6
