"""A tree's identities in every root that they can be seen from, and proved again later."""

import contextlib
import errno
import os
from datetime import UTC, datetime

import pytest

from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proc import mountinfo
from irmapdb.kernel.root import open_root
from irmapdb.model import FileHandle, Identity, Mapping, Resolved, Source, StaleReason
from irmapdb.resolve.engine import Candidate, Disproved, Note
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.mount_fds import MountFds
from irmapdb.resolve.open_files import OpenFiles
from irmapdb.resolve.stored import StoredRows
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import open_descriptors, served, watched_identity
from tests.support.programs import run
from tests.support.searching import files_of, mntns_of
from tests.support.watcher import Watcher


def test_each_identity_is_resolved_once_by_the_cheapest(area, watcher, make, stored):
    top = area.tmpfs()
    names = ["stored", "moved", "new"]
    for name in names:
        (top / name).touch()
    shown = {n: watched_identity(watcher, watcher.add_inotify(top / n)) for n in names}
    watcher.add_fanotify(top / "new")  # the same inode by another descriptor
    stored.add(shown["stored"], top / "stored")
    stored.add(shown["moved"], top / "old name")
    stored.add(shown["new"], top / "new", stale=StaleReason.GONE)
    search = make()
    search.resolve(files_of(watcher))
    assert search.outcome.unresolved == {}
    assert search.outcome.resolved == {
        shown["stored"]: Resolved(shown["stored"], os.fsencode(top / "stored"), Source.STORED),
        shown["moved"]: Resolved(shown["moved"], os.fsencode(top / "moved"), Source.HANDLE),
        shown["new"]: Resolved(shown["new"], os.fsencode(top / "new"), Source.HANDLE),
    }
    assert search.outcome.disproved == [
        Disproved(shown["moved"], os.fsencode(top / "old name"), Source.STORED, StaleReason.GONE)
    ]
    assert {row.path for rows in search.rows.values() for row in rows} == {
        os.fsencode(top / name) for name in ("stored", "old name", "new")
    }
    assert (search.scanned, search.resolve_us > 0) == (0, True)
    # A known inode is not looked for again; a new one is.
    stored.asked.clear()
    answers = dict(search.outcome.resolved)
    search.resolve(files_of(watcher))
    assert stored.asked == []
    assert all(search.outcome.resolved[identity] is answers[identity] for identity in answers)
    late = watched_identity(watcher, watcher.add_inotify(top))
    search.resolve(files_of(watcher))
    assert search.outcome.resolved[late].path == os.fsencode(top)
    assert stored.asked == [(late.key, 0)]


def test_a_cold_file_is_scanned_for_where_that_is_allowed(area, watcher, make):
    top = area.ext4().mountpoint
    (top / "dir").mkdir()
    (top / "dir" / "file").touch()
    shown = watched_identity(watcher, watcher.add_inotify(top / "dir" / "file"))
    drop_caches()
    idle = make(scan=False)
    idle.resolve(files_of(watcher))
    if idle.outcome.unresolved:  # else another process has cached it in between
        assert [t.resolver for t in idle.outcome.unresolved[shown].tried] == [
            "handle",
            "open-files",
        ]
    assert idle.scanned == 0
    busy = make(scan_paths=[os.fsencode(top)])
    busy.resolve(files_of(watcher))
    assert busy.outcome.resolved[shown].path == os.fsencode(top / "dir" / "file")


def test_of_several_names_the_open_one_then_the_shortest_is_best(area, watcher, make, stored):
    top = area.tmpfs()
    names = ["a-long-name", "short", "sh", "longest-name-of-all"]
    (top / names[0]).touch()
    for name in names[1:]:
        (top / name).hardlink_to(top / names[0])
    shown = watched_identity(watcher, watcher.add_inotify(top / names[0]))
    stored.add(shown, *(top / name for name in names), top / "gone")
    by_length = [os.fsencode(top / n) for n in sorted(names, key=len)]
    search = make()
    search.resolve(files_of(watcher))
    answer = search.outcome.resolved[shown]
    assert [answer.path, *answer.other_paths] == by_length
    watcher.open(top / "a-long-name")
    search = make()
    search.resolve(files_of(watcher))
    answer = search.outcome.resolved[shown]
    by_length.remove(os.fsencode(top / "a-long-name"))
    assert [answer.path, *answer.other_paths] == [os.fsencode(top / "a-long-name"), *by_length]


def test_the_paths_that_were_proved_in_time_stay(area, watcher, make):
    top = area.tmpfs()
    (top / "file").touch()
    shown = watched_identity(watcher, watcher.add_inotify(top / "file"))
    search = make(over=lambda: True)
    search.resolve(files_of(watcher))
    outcome = search.outcome
    assert set(outcome.resolved) | set(outcome.unresolved) == {shown}
    other = watched_identity(watcher, watcher.add_inotify(top))
    search.resolve(files_of(watcher))
    assert outcome.resolved.keys() | outcome.unresolved.keys() == {shown, other}
    assert outcome.cut == 2


class Clock:
    """The time is up when it has been asked for so many times."""

    def __init__(self, looks):
        self.left = looks
        self.late = 0
        """How often it was asked for afterwards."""

    def __call__(self):
        self.left -= 1
        self.late += self.left < -1
        return self.left < 0


@pytest.mark.parametrize("looks", [0, 1, 3, 10, 30, 60, 100])
def test_the_time_may_be_up_at_any_moment(area, watcher, nested, make, looks):
    """Each inode is resolved, or cut; and no thread continues long after the end."""
    task, place = nested
    overlay = area.place("overlay")
    for number in range(12):
        watcher.add_inotify(_touch(overlay.directory / f"f{number}"))
        task.write(place / f"g{number}")
        task.add_inotify(place / f"g{number}")
    clock = Clock(looks)
    search = make(over=clock, scan_paths=[os.fsencode(overlay.mountpoint)])
    files = files_of(watcher, task)
    search.resolve(files)
    outcome = search.outcome
    watched = {watch.identity for file in files for watch in file.watches}
    assert outcome.resolved.keys() | outcome.unresolved.keys() == watched
    whole = clock.left >= 0
    assert whole or outcome.cut
    assert all(failure.cut for failure in outcome.unresolved.values()) or whole
    assert clock.late < 40
    for identity, answer in outcome.resolved.items():
        root = f"/proc/{task.pid}/root" if answer.mntns else ""
        assert os.stat(root + os.fsdecode(answer.path)).st_ino == identity.ino


def _touch(path):
    path.touch()
    return path


@pytest.mark.parametrize("source", [Handles, OpenFiles])
def test_a_source_that_finds_nothing_stops_in_time(area, watcher, source):
    """It gives no answer that the engine could stop at."""
    top = area.tmpfs()
    identities = []
    for number in range(50):
        (top / f"f{number}").touch()
        watched = watcher.add_inotify(top / f"f{number}")
        identities.append(watched_identity(watcher, watched))
        watcher.open(top / f"f{number}")
    if source is Handles:
        identities = [one._replace(handle=FileHandle(1, bytes(8))) for one in identities]
    else:
        identities = [one._replace(ino=2**63, handle=None) for one in identities]
    clock = Clock(5)
    with open_root(watcher.pid) as root:
        more = (MountFds(root),) if source is Handles else ([watcher.pid],)
        answers = list(source(root, *more, clock)(dict.fromkeys(identities).keys()))
    assert all(isinstance(answer, Note) for answer in answers)
    assert clock.late < 5


# Stored rows


def test_stored_rows_are_loaded_once_and_the_live_ones_tried():
    one, other = (Identity(7, 1, FileHandle(1, data)) for data in (b"one", b"other"))
    now = datetime.now(UTC)

    def row(identity, path, stale_at=None):
        return Mapping(
            identity, path, Source.SCAN, revalidate=True, first_seen_at=now, stale_at=stale_at
        )

    stored = {one.key: [row(one, b"/a"), row(one, b"/old", now), row(other, b"/b")]}
    asked = []

    def load(keys):
        asked.append(set(keys))
        return {key: stored[key] for key in keys if key in stored}

    resolver = StoredRows(load)
    absent = Identity(7, 2, None)
    wanted = dict.fromkeys([one, other, absent]).keys()
    # Both inodes of the key are offered both rows: a path may have passed from one to the other.
    assert list(resolver(wanted)) == [
        Candidate(identity, path) for identity in (one, other) for path in (b"/a", b"/b")
    ]
    assert list(resolver(wanted))
    assert [keys for keys in asked if keys] == [{one.key, absent.key}]
    assert resolver.rows == stored


# Proved again


@pytest.fixture
def linked(area, watcher, make, stored):
    """A resolved inode with three names, all stored."""
    top = area.tmpfs()
    for name in ("a", "bb", "ccc"):
        if name == "a":
            (top / name).touch()
        else:
            (top / name).hardlink_to(top / "a")
    shown = watched_identity(watcher, watcher.add_inotify(top / "a"))
    stored.add(shown, *(top / name for name in ("a", "bb", "ccc")))
    search = make()
    search.resolve(files_of(watcher))
    assert len(search.outcome.resolved[shown].other_paths) == 2
    return top, shown, search


def test_an_answer_that_holds_is_the_same_answer(linked):
    _, shown, search = linked
    answer = search.outcome.resolved[shown]
    search.prove_again([shown])
    assert search.outcome.resolved[shown] is answer
    assert search.outcome.disproved == []


def test_the_names_that_are_left_take_over(linked):
    top, shown, search = linked
    (top / "a").unlink()
    search.prove_again([shown])
    answer = search.outcome.resolved[shown]
    assert (answer.path, answer.other_paths) == (
        os.fsencode(top / "bb"),
        (os.fsencode(top / "ccc"),),
    )
    # The row of the lost name is reported.
    assert search.outcome.disproved == [
        Disproved(shown, os.fsencode(top / "a"), Source.STORED, StaleReason.GONE)
    ]


def test_an_answer_with_no_name_left_is_looked_for_anew(linked):
    top, shown, search = linked
    for name in ("bb", "ccc"):
        (top / name).unlink()
    (top / "a").rename(top / "anew")
    search.prove_again([shown])
    answer = search.outcome.resolved[shown]
    assert (answer.path, answer.other_paths) == (os.fsencode(top / "anew"), ())
    assert answer.source is Source.HANDLE
    assert {one.path for one in search.outcome.disproved} == {
        os.fsencode(top / name) for name in ("a", "bb", "ccc")
    }
    assert search.disprove(shown, os.fsencode(top / "anew")) is None
    assert search.disprove(shown, os.fsencode(top / "a")) is StaleReason.GONE


def test_an_answer_whose_file_was_deleted_is_no_answer(linked, watcher):
    top, shown, search = linked
    watcher.open(top / "a")
    for name in ("a", "bb", "ccc"):
        (top / name).unlink()
    search.prove_again([shown])
    assert search.outcome.resolved == {}
    assert search.outcome.unresolved[shown].deleted


# Nested namespaces


def test_a_file_outside_of_the_main_root_is_looked_for_in_the_root_of_the_watcher(
    area, watcher, nested, make, stored
):
    task, place = nested
    (place.parent / "common").touch()
    own = watched_identity(task, task.add_inotify(place / "own"))
    common = watched_identity(task, task.add_inotify(place.parent / "common"))
    search = make()
    search.resolve(files_of(watcher, task))
    assert search.outcome.resolved[own].path == os.fsencode(place / "own")
    assert search.outcome.resolved[own].mntns == mntns_of(task)
    # A file in both roots is resolved in the main one, the only one in which CRIU looks.
    assert search.outcome.resolved[common].mntns == 0
    assert (own.key, mntns_of(task)) in stored.asked
    assert (common.key, mntns_of(task)) not in stored.asked
    # Rows of that namespace are asked for and found wanting in its root.
    stored.add(own, place / "gone", place / "own", mntns=mntns_of(task))
    again = make()
    again.resolve(files_of(task))
    assert again.outcome.resolved[own].source is Source.STORED
    assert again.outcome.disproved == [
        Disproved(own, os.fsencode(place / "gone"), Source.STORED, StaleReason.GONE, mntns_of(task))
    ]
    # And proved again there.
    task.rename(place / "own", place / "renamed")
    again.prove_again([own])
    answer = again.outcome.resolved[own]
    assert (answer.path, answer.mntns) == (os.fsencode(place / "renamed"), mntns_of(task))
    task.unlink(place / "renamed")
    again.prove_again([own])
    assert own in again.outcome.unresolved


def test_a_watch_in_a_nested_root_is_named_as_that_root_has_it(area, watcher, make):
    rootfs = area.ext4("rootfs").mountpoint
    (rootfs / "etc").mkdir()
    (rootfs / "etc" / "file").touch()
    with Watcher(unshare={"mount", "user"}, rootfs=rootfs) as task:
        shown = watched_identity(task, task.add_inotify("/etc/file"))
        search = make()
        search.resolve(files_of(watcher, task))
        # Its device is mounted in our root too, so that is where it is.
        assert search.outcome.resolved[shown].path == os.fsencode(rootfs / "etc" / "file")
        task.mount("tmpfs", "/etc", "tmpfs")
        task.write("/etc/mine")
        mine = watched_identity(task, task.add_inotify("/etc/mine"))
        search.resolve(files_of(watcher, task))
        answer = search.outcome.resolved[mine]
        assert (answer.path, answer.mntns) == (b"/etc/mine", mntns_of(task))


@pytest.fixture
def jails(area):
    """A task with a mount of its own, in which there is a file beside, and two to chroot into."""
    place = area.path / "place"
    place.mkdir()
    with Watcher(unshare={"mount"}) as task:
        task.mount("tmpfs", place, "tmpfs")
        for jail in ("jail", "cell"):
            task.mkdir(place / jail)
            task.write(place / jail / "in")
        task.write(place / "out")
        yield task, place


@pytest.mark.parametrize("first", ["in", "out"])
def test_a_chroot_in_a_nested_namespace_is_seen_from_its_root(watcher, jails, make, first):
    task, place = jails
    inside, outside = task.fork(), task.fork()
    inside.chroot(place / "jail")
    shown = {
        "in": watched_identity(inside, inside.add_inotify("/in", fd=inside.inotify())),
        "out": watched_identity(outside, outside.add_inotify(place / "out", fd=outside.inotify())),
    }
    search = make()
    search.resolve(files_of(*((inside, outside) if first == "in" else (outside, inside))))
    mntns = mntns_of(task)
    assert {key: answer[1::3] for key, answer in search.outcome.resolved.items()} == {
        shown["in"]: (os.fsencode(place / "jail" / "in"), mntns),
        shown["out"]: (os.fsencode(place / "out"), mntns),
    }
    assert search.outcome.disproved == []


def test_a_chroot_alone_among_the_watchers_is_seen_from_the_namespaces_root(watcher, jails, make):
    task, place = jails
    inside = task.fork()
    inside.chroot(place / "jail")
    shown = watched_identity(inside, inside.add_inotify("/in"))
    search = make()
    search.resolve(files_of(inside))
    answer = search.outcome.resolved[shown]
    assert (answer.path, answer.mntns) == (os.fsencode(place / "jail" / "in"), mntns_of(task))


@pytest.mark.parametrize("call", ["statx", "mount_namespace", "read_mountinfo", "readlink"])
def test_a_namespace_that_cannot_be_opened_leaks_nothing(watcher, jails, make, monkeypatch, call):
    """If any look at it fails, every descriptor that was opened before is closed."""
    task, place = jails
    task.chroot(place / "jail")
    module = {"statx": syscalls, "readlink": os}.get(call, mountinfo)
    works = getattr(module, call)
    calls = 0

    def fail_at(number):
        def look(*arguments):
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return works(*arguments)

        return look

    for number in range(1, 8):
        calls = 0
        search = make()
        before = open_descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(module, call, fail_at(number))
            with contextlib.suppress(OSError, TaskError):
                search._nested._open(task.pid)
        search.__exit__(None, None, None)
        assert len(open_descriptors()) == len(before)


def test_where_all_are_in_chroots_each_is_seen_from_its_own(watcher, jails, make):
    task, place = jails
    other = task.fork()
    task.chroot(place / "jail")
    other.chroot(place / "cell")
    before = open_descriptors()
    shown = [
        watched_identity(one, one.add_inotify("/in", fd=one.inotify())) for one in (task, other)
    ]
    search = make()
    search.resolve(files_of(task, other))
    assert [search.outcome.resolved[one].path for one in shown] == [b"/in", b"/in"]
    assert {search.outcome.resolved[one].mntns for one in shown} == {mntns_of(task)}
    # And each is proved again where it was found.
    other.rename("/in", "/renamed")
    search.prove_again(shown)
    assert [search.outcome.resolved[one].path for one in shown] == [b"/in", b"/renamed"]
    search.__exit__(None, None, None)
    assert len(open_descriptors()) == len(before) + 2  # the main root's


@pytest.mark.parametrize(
    "kind",
    [
        *("ext4", "btrfs", "btrfs-subvolume"),
        # A layer of another worker would be one that irmapdb cannot see.
        pytest.param("overlay-nfs-export", marks=pytest.mark.alone),
    ],
)
def test_a_chroot_whose_mount_no_table_has(area, watcher, make, kind):
    """On btrfs, stat gives another device than fdinfo, and the type chooses the sources."""
    place = area.place(kind)
    (place.directory / "dir" / "hard").unlink()
    with Watcher(unshare={"mount"}, chroot=place.directory / "dir") as task:
        shown = [watched_identity(task, task.add_inotify(name)) for name in ("/", "/file")]
        run("mount", "-t", "tmpfs", "over", place.mountpoint)  # hides it from the main root
        search = make()
        search.resolve(files_of(task))
        run("umount", place.mountpoint)
        found = search.outcome.resolved
        assert [found[one].path for one in shown if one in found] == [b"/", b"/file"]
        assert {found[one].mntns for one in shown} == {mntns_of(task)}


def test_a_file_deleted_in_a_nested_namespace_is_reported_as_deleted(watcher, nested, make):
    task, place = nested
    own = watched_identity(task, task.add_inotify(place / "own"))
    task.open(place / "own")
    task.unlink(place / "own")
    search = make()
    search.resolve(files_of(watcher, task))
    failure = search.outcome.unresolved[own]
    assert (failure.deleted, failure.why) == (True, "handle: deleted")


def test_a_nested_namespace_that_is_gone(watcher, nested, make):
    task, place = nested
    own = watched_identity(task, task.add_inotify(place / "own"))
    files = files_of(task)
    task.kill()
    search = make()
    search.resolve(files)
    assert "is not mounted in this root" in search.outcome.unresolved[own].why


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_silent_server_of_a_nested_namespace_does_not_block(area, watcher, make):
    """A server that only the nested namespace sees, and that may be one of the frozen."""
    source, mountpoint = area.path / "source", area.path / "served"
    source.mkdir()
    (source / "dir").mkdir()
    (source / "file").touch()
    with served(source, mountpoint) as server, Watcher(unshare={"mount"}) as task:
        shown = watched_identity(task, task.add_inotify(mountpoint / "file"))
        # The main root shows one directory of it, so that it can be named there.
        named = area.path / "named"
        named.mkdir()
        run("mount", "--bind", mountpoint / "dir", named)
        run("mount", "-t", "tmpfs", "over", mountpoint)
        search = make(scan_paths=[os.fsencode(named)])
        search.resolve(files_of(watcher, task))
        answer = search.outcome.resolved.get(shown)
        assert answer is not None
        assert (answer.path, answer.mntns) == (os.fsencode(mountpoint / "file"), mntns_of(task))
        with server.silent():
            call_in_child(lambda: search.prove_again([shown]), 60)
        run("umount", mountpoint)
        run("umount", named)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_named_path_trusts_no_server_of_another_namespace(area, watcher, make):
    """A user of a container can mount a server of his at that path, in a namespace of his own."""
    source, named = area.path / "source", area.path / "named"
    for directory in (source, named):
        directory.mkdir()
    (source / "file").touch()
    with served(source, named), Watcher(unshare={"mount"}) as task:
        shown = watched_identity(task, task.add_inotify(named / "file"))
        run("mount", "-t", "tmpfs", "over", named)  # the target of the path in the main root
        search = make(scan_paths=[os.fsencode(named)])
        search.resolve(files_of(watcher, task))
        run("umount", named)
        assert shown not in search.outcome.resolved
