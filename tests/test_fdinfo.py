"""/proc's text, as the kernel wrote it, as it could write it, and as it must not confuse us."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from irmapdb.kernel.proc import fdinfo, mountinfo, open_files, procfs, tasks
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import (
    FileHandle,
    Identity,
    Mark,
    MarkKind,
    Mount,
    Watch,
    WatchFile,
    WatchKind,
    kdev_of,
)
from tests.support.names import ODD_NAMES, deep_file
from tests.support.notify import IN_ATTRIB, IN_MODIFY

DATA = Path(__file__).parent / "data" / "proc"
INOTIFY = (DATA / "fdinfo-inotify.txt").read_bytes()
FANOTIFY = (DATA / "fdinfo-fanotify.txt").read_bytes()
MOUNTINFO = (DATA / "mountinfo.txt").read_bytes()
TRUTH = json.loads((DATA / "fdinfo-truth.json").read_text())

PID, FD = 17, 5


def fields(line):
    """One line of fdinfo by another way than the parser's: words that are NAME:HEX."""
    words = [word.split(b":") for word in line.split()[1:]]
    return {name.decode(): value.decode() for name, value in words}


def number(values, name):
    return int(values[name], 16)


def handle_of(values):
    data = bytes.fromhex(values["f_handle"])
    assert len(data) == number(values, "fhandle-bytes")
    return FileHandle(number(values, "fhandle-type"), data)


def lines(text, start):
    return [fields(line) for line in text.splitlines() if line.startswith(start)]


# What the kernel wrote


def test_the_thirty_inotify_watches_are_read_exactly():
    file = fdinfo.parse_fdinfo(INOTIFY, PID, FD, WatchKind.INOTIFY)
    expected = tuple(
        Watch(
            pid=PID,
            fd=FD,
            kind=WatchKind.INOTIFY,
            wd=number(line, "wd"),
            identity=Identity(number(line, "sdev"), number(line, "ino"), handle_of(line)),
            mask=number(line, "mask"),
            ignored_mask=number(line, "ignored_mask"),
            mflags=0,
        )
        for line in lines(INOTIFY, b"inotify wd")
    )
    assert len(expected) == len(TRUTH) == 30
    assert file == WatchFile(PID, FD, WatchKind.INOTIFY, 0, 0, 0, expected, ())
    # Read by a person from the file: a size of two hex digits, a device above one byte.
    by_wd = {watch.wd: watch for watch in file.watches}
    assert by_wd[0x18].identity == Identity(
        0x2C,
        0x40081,
        FileHandle(
            0xF8,
            bytes.fromhex(
                "00000000fb210081ec0de572224a4480a63b0cfac4495c4581000400000000007ccd6b29"
            ),
        ),
    )
    assert by_wd[0x1D].identity.kdev == kdev_of(254, 0)
    assert by_wd[0x1D].mask == 0x102


def test_the_fanotify_marks_are_of_three_kinds():
    file = fdinfo.parse_fdinfo(FANOTIFY, PID, FD, WatchKind.FANOTIFY)
    assert (file.flags, file.faflags, file.evflags) == (0o2, 0, 0x8000)
    assert [(watch.wd, watch.mask, watch.ignored_mask, watch.mflags) for watch in file.watches] == [
        (-1, 0x22, 0, 0)
    ] * 30
    assert file.marks == (
        Mark(PID, FD, MarkKind.FILESYSTEM, kdev_of(7, 1), 0x2, 0, 0),
        Mark(PID, FD, MarkKind.MOUNT, 0x2A, 0x2, 0, 0),
    )
    # Both descriptors watch the same inodes, so both must show the same identities.
    inotify = fdinfo.parse_fdinfo(INOTIFY, PID, FD, WatchKind.INOTIFY)
    assert {watch.identity for watch in file.watches} == {
        watch.identity for watch in inotify.watches
    }


def test_a_handle_tells_apart_what_the_inode_number_does_not():
    watches = fdinfo.parse_fdinfo(INOTIFY, PID, FD, WatchKind.INOTIFY).watches
    assert len({watch.identity for watch in watches}) == 30
    assert len({(watch.identity.kdev, watch.identity.handle) for watch in watches}) == 30
    by_key = {}
    for watch in watches:
        by_key.setdefault(watch.identity.key, []).append(watch.wd)
    # Two btrfs subvolumes have the same inode numbers under one device.
    assert sorted(sorted(wds) for wds in by_key.values() if len(wds) > 1) == [
        [0x7, 0x13],
        [0x8, 0x14],
        [0x9, 0x15],
    ]
    one, other = (w.identity for w in watches if w.wd in {0x8, 0x14})
    assert one.key == other.key
    assert not one.matches(other)


def test_the_mounts_are_read_exactly_and_explain_every_device():
    mounts = mountinfo.parse_mountinfo(MOUNTINFO)
    assert len(mounts) == MOUNTINFO.count(b"\n") == 12
    assert mounts[8] == Mount(
        mnt_id=45,
        parent_id=27,
        kdev=39,
        root=b"/",
        mountpoint=b"/mnt/btrfs",
        options=b"rw,relatime",
        fstype="btrfs",
        source=b"/dev/loop2",
        super_options=b"rw,discard=async,space_cache=v2,subvolid=5,subvol=/",
    )
    watches = fdinfo.parse_fdinfo(INOTIFY, PID, FD, WatchKind.INOTIFY).watches
    of_wd = {one["wd"]: one for one in TRUTH}
    # The watch's device is that of the mount that its path is on; what stat says is not always.
    odd = set()
    for watch in watches:
        path = os.fsencode(of_wd[watch.wd]["path"])
        if of_wd[watch.wd]["st_kdev"] != watch.identity.kdev:
            odd.add(path)
        if path == b"/dev/pts":
            continue  # the file leaves out the second of two mounts there
        below = [m for m in mounts if (path + b"/").startswith(m.mountpoint.rstrip(b"/") + b"/")]
        assert max(below, key=lambda mount: len(mount.mountpoint)).kdev == watch.identity.kdev
    assert {path.split(b"/")[2] for path in odd} == {b"btrfs", b"overlay2fs"}


# What it could write: the printf formats of fs/notify/fdinfo.c and fs/proc_namespace.c

u32 = st.integers(0, 2**32 - 1)
ino64 = st.integers(0, 2**64 - 1)
kdevs = st.builds(kdev_of, st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
handles = st.none() | st.builds(
    FileHandle, st.integers(1, 255), st.binary(min_size=1, max_size=128)
)
identities = st.builds(Identity, kdevs, ino64, handles)
inotify_watches = st.builds(
    Watch,
    pid=st.just(PID),
    fd=st.just(FD),
    kind=st.just(WatchKind.INOTIFY),
    wd=st.integers(1, 2**31 - 1),
    identity=identities,
    mask=u32,
    ignored_mask=st.just(0),
    mflags=st.just(0),
)
fanotify_watches = st.builds(
    Watch,
    pid=st.just(PID),
    fd=st.just(FD),
    kind=st.just(WatchKind.FANOTIFY),
    wd=st.just(-1),
    identity=identities,
    mask=u32,
    ignored_mask=u32,
    mflags=u32,
)
marks = st.builds(
    Mark,
    pid=st.just(PID),
    fd=st.just(FD),
    kind=st.sampled_from(MarkKind),
    target=u32,
    mask=u32,
    ignored_mask=u32,
    mflags=u32,
)


def handle_text(handle):
    if handle is None:
        return ""
    size = len(handle.data)
    return f"fhandle-bytes:{size:x} fhandle-type:{handle.type:x} f_handle:{handle.data.hex()}"


def watch_line(watch):
    key = f"ino:{watch.identity.ino:x} sdev:{watch.identity.kdev:x}"
    masks = f"mask:{watch.mask:x} ignored_mask:{watch.ignored_mask:x} "
    if watch.kind is WatchKind.INOTIFY:
        head = f"inotify wd:{watch.wd:x} {key} "
    else:
        head = f"fanotify {key} mflags:{watch.mflags:x} "
    return head + masks + handle_text(watch.identity.handle)


def mark_line(mark):
    masks = f"mflags:{mark.mflags:x} mask:{mark.mask:x} ignored_mask:{mark.ignored_mask:x}"
    if mark.kind is MarkKind.NAMESPACE:
        return f"fanotify mnt_ns:{mark.target} {masks}"
    name = "mnt_id" if mark.kind is MarkKind.MOUNT else "sdev"
    return f"fanotify {name}:{mark.target:x} {masks}"


def head(flags):
    return [f"pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t17\nino:\t1038"]


def text(parts):
    return "".join(f"{part}\n" for part in parts).encode()


@given(watches=st.lists(inotify_watches, max_size=6), flags=st.integers(0, 0o7777777))
def test_any_inotify_text_is_read_back(watches, flags):
    raw = text(head(flags) + [watch_line(watch) for watch in watches])
    expected = WatchFile(PID, FD, WatchKind.INOTIFY, flags, 0, 0, tuple(watches), ())
    assert fdinfo.parse_fdinfo(raw, PID, FD, WatchKind.INOTIFY) == expected


@given(found=st.lists(fanotify_watches | marks, max_size=6), group=st.tuples(u32, u32))
def test_any_fanotify_text_is_read_back(found, group):
    raw = text(
        [
            *head(2),
            f"fanotify flags:{group[0]:x} event-flags:{group[1]:x}",
            *(watch_line(one) if isinstance(one, Watch) else mark_line(one) for one in found),
        ]
    )
    assert fdinfo.parse_fdinfo(raw, PID, FD, WatchKind.FANOTIFY) == WatchFile(
        PID,
        FD,
        WatchKind.FANOTIFY,
        2,
        *group,
        tuple(one for one in found if isinstance(one, Watch)),
        tuple(one for one in found if isinstance(one, Mark)),
    )


@given(watches=st.lists(inotify_watches, min_size=1, max_size=3), data=st.data())
def test_text_that_is_cut_off_gives_no_wrong_identity(watches, data):
    raw = text(head(0) + [watch_line(watch) for watch in watches])
    cut = data.draw(st.integers(0, len(raw)))
    found = fdinfo.parse_fdinfo(raw[:cut], PID, FD, WatchKind.INOTIFY).watches
    assert list(found[:-1]) == watches[: max(len(found) - 1, 0)]
    for watch, truth in zip(found, watches, strict=False):
        assert watch.identity.key == truth.identity.key
        assert watch.identity.handle in {truth.identity.handle, None}


@given(raw=st.binary(max_size=200), kind=st.sampled_from(WatchKind))
@example(raw=b"inotify wd:1 ino:2 sdev:3 mask:4 ignored_mask:0 f_handle:00", kind=WatchKind.INOTIFY)
@example(
    raw=b"inotify wd:1 ino:2 sdev:3 mask:4 ignored_mask:0 fhandle-bytes:2 fhandle-type:1"
    b" f_handle:000",
    kind=WatchKind.INOTIFY,
)
def test_other_text_is_passed_over(raw, kind):
    file = fdinfo.parse_fdinfo(raw, PID, FD, kind)
    assert all(watch.identity.handle is None for watch in file.watches)
    assert file.marks == ()


def test_a_mark_on_a_mount_namespace_is_listed():
    # fs/notify/fdinfo.c since Linux 6.14; its number is decimal.
    raw = b"fanotify flags:1000 event-flags:0\nfanotify mnt_ns:4026531841 mflags:0 mask:1000000"
    file = fdinfo.parse_fdinfo(raw + b" ignored_mask:0\n", PID, FD, WatchKind.FANOTIFY)
    mark = Mark(PID, FD, MarkKind.NAMESPACE, 4026531841, 0x1000000, 0, 0)
    assert (file.faflags, file.watches, file.marks) == (0x1000, (), (mark,))


def test_a_filesystem_whose_server_names_it_badly_stays_on_its_line():
    raw = rb"29 1 0:26 / /m rw - fuse.\377\012\033[2J none rw" + b"\n"
    assert mountinfo.parse_mountinfo(raw)[0].fstype == r"fuse.\xff\n\x1b[2J"


names = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)
paths = st.lists(names, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
words = st.text("abcdefghij.,=-_0123456789", min_size=1, max_size=12)
mounts = st.builds(
    Mount,
    mnt_id=st.integers(0, 2**31 - 1),
    parent_id=st.integers(0, 2**31 - 1),
    kdev=kdevs,
    root=paths,
    mountpoint=paths,
    options=words.map(lambda word: b"rw," + word.encode()),
    fstype=words,
    source=names | st.just(b""),
    super_options=names,
)
optional_fields = st.lists(
    st.sampled_from(["shared:12", "master:3", "propagate_from:2", "unbindable", "-new:1"])
)


def escaped(field, more=frozenset()):
    """mangle_path() of fs/seq_file.c, and whatever other bytes a kernel may choose to write so."""
    return b"".join(
        b"\\%03o" % byte if byte in b" \t\n\\#" or byte in more else bytes([byte]) for byte in field
    )


@given(
    found=st.lists(st.tuples(mounts, optional_fields), max_size=4),
    more=st.sampled_from([frozenset(), frozenset(b"\\a\xff"), frozenset(range(256))]),
    cut=st.integers(0, 40),
)
def test_any_mount_table_is_read_back(found, more, cut):
    raw = b"".join(
        b"%d %d %d:%d %b %b %b%b - %b %b %b\n"
        % (
            mount.mnt_id,
            mount.parent_id,
            mount.kdev >> 20,
            mount.kdev & 0xFFFFF,
            escaped(mount.root, more),
            escaped(mount.mountpoint, more),
            mount.options,
            b"".join(b" " + field.encode() for field in fields),
            mount.fstype.encode(),
            escaped(mount.source, more),
            escaped(mount.super_options, more),
        )
        for mount, fields in found
    )
    # The last field is told as it stands, for its names may have commas.
    expected = tuple(
        mount._replace(super_options=escaped(mount.super_options, more)) for mount, _ in found
    )
    assert mountinfo.parse_mountinfo(raw) == expected
    # A table that is cut off loses its end and nothing else.
    shorter = mountinfo.parse_mountinfo(raw[: len(raw) - cut])
    assert shorter[:-1] == expected[: max(len(shorter) - 1, 0)]


@given(raw=st.binary(max_size=200) | st.text("0123456789:- /\\\n", max_size=80).map(str.encode))
@example(raw=b"1 2 3 / / rw - ext4 /dev/vda rw")
@example(raw=b"1 2 3:x / / rw - ext4 /dev/vda rw")
@example(raw=b"1 2 3:4 / / rw - ext4")
def test_no_mount_table_stops_the_parser(raw):
    assert len(mountinfo.parse_mountinfo(raw)) <= raw.count(b"\n") + 1


# Real processes


def test_the_watches_of_a_real_process(watcher, tmp_path):
    paths = [
        os.fsencode(tmp_path / "plain"),
        *(os.fsencode(tmp_path) + b"/" + n for n in ODD_NAMES),
    ]
    for path in paths:
        Path(os.fsdecode(path)).touch()
    watched = [watcher.add_inotify(path, IN_MODIFY | IN_ATTRIB) for path in paths]
    assert fdinfo.watch_descriptors(watcher.pid) == [(watched[0].fd, WatchKind.INOTIFY)]
    raw = fdinfo.read_raw(watcher.pid, watched[0].fd, WatchKind.INOTIFY)
    assert raw.raw == Path(f"/proc/{watcher.pid}/fdinfo/{watched[0].fd}").read_bytes()
    file = raw.parse()
    assert (file.pid, file.fd, file.flags) == (watcher.pid, watched[0].fd, os.O_NONBLOCK)
    # In the kernel's order, the newest first.
    assert [(w.wd, w.identity.ino, w.mask) for w in file.watches] == [
        (w.wd, w.st_ino, IN_MODIFY | IN_ATTRIB) for w in reversed(watched)
    ]


def test_a_file_that_is_deeper_than_a_link_can_tell_hides_no_watch(watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path)
    deep = deep_file(tmp_path, length=4200)
    here = os.open(tmp_path, os.O_PATH)
    for part in Path(os.fsdecode(deep)).relative_to(tmp_path).parts[:-1]:
        below = os.open(part, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    watcher.chdir(f"/proc/{os.getpid()}/fd/{here}")
    os.close(here)
    fd = watcher.open("file")
    with pytest.raises(OSError, match="too long"):
        os.readlink(f"/proc/{watcher.pid}/fd/{fd}")
    assert fdinfo.watch_descriptors(watcher.pid) == [(watched.fd, WatchKind.INOTIFY)]
    assert all(len(file.path) < 4096 for file in open_files.open_files(watcher.pid))


HEADLESS = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
inotify = libc.inotify_init1(0)
libc.inotify_add_watch(inotify, os.fsencode(os.getcwd()), 2)
if os.fork() == 0:
    time.sleep(1000)
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
libc.syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""


@pytest.fixture
def headless(tmp_path):
    """A process whose first thread has ended while another lives on, and that watches tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HEADLESS], stdout=subprocess.PIPE, cwd=tmp_path, process_group=0
    ) as process:
        try:
            assert process.stdout.readline() == b"\n"
            while tasks.read_task(process.pid).state != "Z":
                time.sleep(0.001)
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_watches_of_a_process_whose_first_thread_has_ended(headless, tmp_path):
    assert os.listdir(f"/proc/{headless}/fd") == []
    (descriptor,) = fdinfo.watch_descriptors(headless)
    (watch,) = fdinfo.read_raw(headless, *descriptor).parse().watches
    assert (watch.pid, watch.identity.ino) == (headless, tmp_path.stat().st_ino)
    assert os.fsencode(tmp_path) in {file.path for file in open_files.open_files(headless)}
    assert mountinfo.mount_namespace(headless) == mountinfo.mount_namespace("self")
    assert headless in {task.pid for task in tasks.all_tasks()}
    # Its child has inherited the descriptor: it is one.
    survey = read_survey(tasks.task_tree(headless))
    assert ([raw.pid for raw in survey.files], len(survey.copies)) == ([headless], 1)
    with open_root(headless) as root:
        assert identify(root, os.fsencode(tmp_path)).matches(watch.identity)


def test_what_vanishes_is_left_out(watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path)
    spare = watcher.inotify()
    assert [fd for fd, _ in fdinfo.watch_descriptors(watcher.pid)] == [watched.fd, spare]
    watcher.close_fd(spare)
    assert fdinfo.read_raw(watcher.pid, spare, WatchKind.INOTIFY) is None
    watcher.kill()
    assert fdinfo.read_raw(watcher.pid, watched.fd, WatchKind.INOTIFY) is None
    assert tasks.namespace_pids(watcher.pid) == ()
    assert list(open_files.open_files(watcher.pid)) == []
    with pytest.raises(OSError, match="No such"):
        fdinfo.watch_descriptors(watcher.pid)
    with pytest.raises(OSError, match="No such"):
        mountinfo.read_mountinfo(watcher.pid)
    with pytest.raises(OSError, match="No such"):
        mountinfo.mount_namespace(watcher.pid)


def test_open_files_have_the_bytes_of_their_names(watcher, tmp_path):
    directory = os.fsencode(tmp_path)
    for name in ODD_NAMES:
        watcher.write(directory + b"/" + name)
    links = {watcher.open(directory + b"/" + name): name for name in ODD_NAMES}
    watcher.chdir(tmp_path)
    watcher.unlink(directory + b"/" + ODD_NAMES[0])
    found = {file.link: file.path for file in open_files.open_files(watcher.pid)}
    base = f"/proc/{watcher.pid}"
    for fd, name in links.items():
        deleted = b" (deleted)" if name == ODD_NAMES[0] else b""
        assert found[f"{base}/fd/{fd}"] == directory + b"/" + name + deleted
    assert found[f"{base}/cwd"] == directory
    assert found[f"{base}/exe"] == os.fsencode(os.readlink(f"{base}/exe"))
    # Its socket to us, and an inotify instance, have no path.
    watcher.add_inotify(tmp_path)
    assert all(file.path.startswith(b"/") for file in open_files.open_files(watcher.pid))


def test_mapped_files_are_told_once_each_and_not_without_end(watcher, monkeypatch):
    files = list(open_files.mapped_files(watcher.pid))
    paths = [file.path for file in files]
    assert os.fsencode(os.readlink(f"/proc/{watcher.pid}/exe")) in paths
    assert len(set(paths)) == len(paths) < len(os.listdir(f"/proc/{watcher.pid}/map_files"))
    assert all(file.link.startswith(f"/proc/{watcher.pid}/map_files/") for file in files)
    monkeypatch.setattr(open_files, "_MOST_MAPS", 1)
    assert len(list(open_files.mapped_files(watcher.pid))) == 1
    watcher.kill()
    assert list(open_files.mapped_files(watcher.pid)) == []


def test_a_file_of_proc_is_read_whole(tmp_path):
    large = tmp_path / "large"
    large.write_bytes(os.urandom((1 << 20) + 17))
    assert procfs.read_file(os.fspath(large)) == large.read_bytes()
    (tmp_path / "empty").touch()
    assert procfs.read_file(os.fspath(tmp_path / "empty")) == b""
    status = procfs.read_file("/proc/self/status")
    nspid = re.search(rb"NSpid:\s*([\d\s]+?)\n", status)[1]
    assert tasks.namespace_pids(os.getpid()) == tuple(map(int, nspid.split()))
    assert mountinfo.mount_namespace("self") == Path("/proc/self/ns/mnt").stat().st_ino
