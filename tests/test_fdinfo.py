"""The text of fdinfo: as the kernel wrote it, as it could write it, and damaged."""

import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from irmapdb.kernel.proc import fdinfo
from irmapdb.model import (
    FileHandle,
    Identity,
    Mark,
    MarkKind,
    Watch,
    WatchFile,
    WatchKind,
    kdev_of,
)

DATA = Path(__file__).parent / "data" / "proc"
INOTIFY = (DATA / "fdinfo-inotify.txt").read_bytes()
FANOTIFY = (DATA / "fdinfo-fanotify.txt").read_bytes()
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


# Text that the kernel wrote


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


def test_a_handle_distinguishes_files_with_one_inode_number():
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


# Its possible lines: the printf formats of fs/notify/fdinfo.c

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
    kind=st.sampled_from(list(MarkKind)),
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


@given(raw=st.binary(max_size=200), kind=st.sampled_from(list(WatchKind)))
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
