"""The fsnotify images: against dumps of the real CRIU, and against the real crit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb._pb.fsnotify_pb2 import FileEntry
from irmapdb.errors import ImageError
from irmapdb.image.framing import frames
from irmapdb.image.fsnotify import (
    FsnotifyFile,
    FsnotifyWatch,
    MountMark,
    decode_fanotify,
    decode_files_img,
    decode_inotify,
    encode_fanotify,
    encode_inotify,
)
from irmapdb.image.magic import FANOTIFY_FILE, FILES, INOTIFY_FILE
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
from tests.support.features import require_program
from tests.support.programs import run

DATA = Path(__file__).parent / "data" / "images"
FILES_IMG = (DATA / "files.img").read_bytes()
DISK = kdev_of(254, 0)
SHM = kdev_of(0, 27)

NAMES = {  # inode number: name of the watched file when CRIU dumped it
    0x3DC002: b"/srv/irmap",
    0x3DC003: b"/srv/irmap/plain",
    0x3DC004: b"/srv/irmap/caf\xe9",
    0x3DC005: b"/srv/irmap/\xc3\xbc",
}


def path_of(identity):
    return NAMES.get(identity.ino)


def no_path(_identity):
    return None


def shm_mount(mnt_id):
    if mnt_id != 30:
        return None
    return Mount(30, 1, SHM, b"/", b"/dev/shm", b"rw", "tmpfs", b"tmpfs", b"rw")


def identity(ino, handle):
    return Identity(DISK, ino, FileHandle(1, bytes.fromhex(handle)))


PLAIN = identity(0x3DC003, "03c03d008a8a75e0")
CAFE = identity(0x3DC004, "04c03d003d6c7c3e")

WATCHED = FsnotifyFile(
    id=3,
    kind=WatchKind.INOTIFY,
    flags=os.O_NONBLOCK,
    faflags=0,
    evflags=0,
    watches=tuple(
        FsnotifyWatch(wd, identity(ino, handle), mask, 0, 0, NAMES.get(ino), None)
        for wd, ino, handle, mask in [
            (5, 0x3DC002, "02c03d00864dc56a", 0x100),
            (4, 0x3DC006, "06c03d004e7adc92", 0x102),
            (3, 0x3DC005, "05c03d0030c3c896", 0x102),
            (2, 0x3DC004, "04c03d003d6c7c3e", 0x102),
            (1, 0x3DC003, "03c03d008a8a75e0", 0x102),
        ]
    ),
    mount_marks=(),
)
UNUSED = FsnotifyFile(4, WatchKind.INOTIFY, 0, 0, 0, (), ())
MARKED = FsnotifyFile(
    id=5,
    kind=WatchKind.FANOTIFY,
    flags=os.O_NONBLOCK | os.O_RDWR,
    faflags=3,
    evflags=0o100000,
    watches=(
        FsnotifyWatch(-1, CAFE, 0, 1, 0x40, NAMES[0x3DC004], None),
        FsnotifyWatch(-1, PLAIN, 0x22, 0, 0, NAMES[0x3DC003], None),
    ),
    mount_marks=(MountMark(30, SHM, 2, 0, 0, b"/dev/shm"),),
)


def captured(name):
    """The descriptor as the kernel showed it when CRIU dumped it; parsed here and not by us."""
    text = (DATA / name).read_text()
    flags = int(re.search(r"flags:\t(\d+)", text)[1], 8)
    lines = [dict(re.findall(r"([\w-]+):([0-9a-f]+)", line)) for line in text.splitlines()[4:]]
    numbers = [
        {key: int(value, 16) for key, value in line.items() if key != "f_handle"} for line in lines
    ]
    kind = WatchKind.INOTIFY if "inotify wd" in text else WatchKind.FANOTIFY
    group = numbers.pop(0) if kind is WatchKind.FANOTIFY else {}
    lines = lines[-len(numbers) :]
    return WatchFile(
        pid=7,
        fd=3,
        kind=kind,
        flags=flags,
        faflags=group.get("flags", 0),
        evflags=group.get("event-flags", 0),
        watches=tuple(
            Watch(
                pid=7,
                fd=3,
                kind=kind,
                wd=n.get("wd", -1),
                identity=Identity(
                    n["sdev"],
                    n["ino"],
                    FileHandle(n["fhandle-type"], bytes.fromhex(line["f_handle"])),
                ),
                mask=n["mask"],
                ignored_mask=n["ignored_mask"],
                mflags=n.get("mflags", 0),
            )
            for n, line in zip(numbers, lines, strict=True)
            if "ino" in n
        ),
        marks=tuple(
            Mark(7, 3, MarkKind.MOUNT, n["mnt_id"], n["mask"], n["ignored_mask"], n["mflags"])
            for n in numbers
            if "mnt_id" in n
        ),
    )


INOTIFY = captured("files.inotify-fdinfo")
FANOTIFY = captured("files.fanotify-fdinfo")


def criu_message(file_id):
    """The inotify or fanotify part of CRIU's entry for that file."""
    for _offset, message in frames(FILES_IMG, "files.img", FILES):
        entry = FileEntry.FromString(message)
        if entry.id == file_id:
            return entry.ify if entry.HasField("ify") else entry.ffy
    raise KeyError(file_id)


def test_criu_s_own_dump_is_read():
    assert decode_files_img(FILES_IMG, "files.img") == (WATCHED, UNUSED, MARKED)


def test_the_image_is_that_of_criu_for_the_same_descriptors():
    for image, magic, criu_id in [
        (encode_inotify([INOTIFY], path_of), INOTIFY_FILE, WATCHED.id),
        (encode_fanotify([FANOTIFY], path_of, shm_mount), FANOTIFY_FILE, MARKED.id),
    ]:
        [(_offset, ours)] = frames(image, "x", magic)
        theirs = criu_message(criu_id)
        theirs.id = 1
        assert ours == theirs.SerializeToString()


def crit_entries(image, magic):
    decoded = json.loads(run("crit", "decode", stdin=image))
    assert decoded["magic"] == magic
    return decoded["entries"]


def test_crit_reads_our_images():
    require_program("crit", package="criu")
    both = [INOTIFY, FANOTIFY, INOTIFY]
    words = [int.from_bytes(bytes.fromhex("05c03d0030c3c896"), "little"), *[0] * 15]
    fown = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}

    entries = crit_entries(encode_inotify(both, path_of), "INOTIFY_FILE")
    assert [(e["id"], e["flags"], e["fown"]) for e in entries] == [
        (1, os.O_NONBLOCK, fown),
        (2, os.O_NONBLOCK, fown),
    ]
    assert [wd["wd"] for wd in entries[0]["wd"]] == [5, 4, 3, 2, 1]
    assert entries[0]["wd"][2] == {
        "id": 0,
        "i_ino": 0x3DC005,
        "mask": 0x102,
        "ignored_mask": 0,
        "s_dev": DISK,
        "wd": 3,
        "f_handle": {"bytes": 8, "type": 1, "handle": words, "path": "/srv/irmap/\xfc"},
    }
    assert "path" not in entries[0]["wd"][1]["f_handle"]

    [entry] = crit_entries(encode_fanotify(both, path_of, shm_mount), "FANOTIFY_FILE")
    assert [mark["type"] for mark in entry["mark"]] == ["MOUNT", "INODE", "INODE"]
    assert entry["mark"][0]["me"] == {"mnt_id": 30, "path": "/dev/shm"}
    assert entry["mark"][0]["s_dev"] == SHM
    assert entry["mark"][2]["ie"]["f_handle"]["path"] == "/srv/irmap/plain"
    assert (entry["faflags"], entry["evflags"]) == (3, 0o100000)


def test_no_descriptors_make_an_image_without_entries():
    require_program("crit", package="criu")
    assert crit_entries(encode_inotify([FANOTIFY], path_of), "INOTIFY_FILE") == []
    assert crit_entries(encode_fanotify([INOTIFY], path_of), "FANOTIFY_FILE") == []


u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
handles = st.builds(FileHandle, type=st.integers(1, 0xFE), data=st.binary(max_size=128))
identities = st.builds(Identity, kdev=u32, ino=u64, handle=st.none() | handles)


@st.composite
def watch_files(draw, kind):
    fanotify = kind is WatchKind.FANOTIFY
    flag = u32 if fanotify else st.just(0)
    watches = st.builds(
        Watch,
        pid=st.just(7),
        fd=st.just(3),
        kind=st.just(kind),
        wd=st.just(-1) if fanotify else u32,
        identity=identities,
        mask=u32,
        ignored_mask=u32,
        mflags=flag,
    )
    marks = st.builds(
        Mark,
        pid=st.just(7),
        fd=st.just(3),
        kind=st.sampled_from(list(MarkKind)),
        target=u32,
        mask=u32,
        ignored_mask=u32,
        mflags=flag,
    )
    return WatchFile(
        pid=7,
        fd=3,
        kind=kind,
        flags=draw(u32),
        faflags=draw(flag),
        evflags=draw(flag),
        watches=tuple(draw(st.lists(watches, max_size=4))),
        marks=tuple(draw(st.lists(marks, max_size=2))) if fanotify else (),
    )


@pytest.mark.parametrize("kind", WatchKind)
@given(data=st.data())
def test_all_but_filesystem_marks_is_read_back(kind, data):
    files = data.draw(st.lists(watch_files(kind), max_size=3))
    paths = data.draw(
        st.fixed_dictionaries(
            {watch.identity: st.none() | st.binary() for file in files for watch in file.watches}
        )
    )
    if kind is WatchKind.INOTIFY:
        read = decode_inotify(encode_inotify(files, paths.get), "x")
    else:
        read = decode_fanotify(encode_fanotify(files, paths.get), "x")
    assert read == tuple(
        FsnotifyFile(
            id=number,
            kind=kind,
            flags=file.flags & ~os.O_CLOEXEC,
            faflags=file.faflags,
            evflags=file.evflags,
            watches=tuple(
                FsnotifyWatch(
                    w.wd, w.identity, w.mask, w.ignored_mask, w.mflags, paths[w.identity], None
                )
                for w in file.watches
            ),
            mount_marks=tuple(
                MountMark(m.target, 0, m.mask, m.ignored_mask, m.mflags, None)
                for m in file.marks
                if m.kind is MarkKind.MOUNT
            ),
        )
        for number, file in enumerate(files, 1)
    )


def test_a_handle_that_no_image_can_hold_is_refused():
    long = Identity(DISK, 2, FileHandle(1, bytes(129)))
    file = INOTIFY._replace(watches=(INOTIFY.watches[0]._replace(identity=long),))
    with pytest.raises(ImageError, match="pid 7 fd 3: the handle of fe00000:2 has 129 bytes"):
        encode_inotify([file], no_path)


def test_the_mount_of_a_path_is_kept():
    # CRIU writes mnt_id where the tree has a mount namespace of its own.
    message = criu_message(WATCHED.id)
    message.wd[0].f_handle.mnt_id = 77
    entry = FileEntry(type=8, id=3, ify=message).SerializeToString()
    image = FILES_IMG[:8] + len(entry).to_bytes(4, "little") + entry
    [file] = decode_files_img(image, "x")
    assert [watch.mnt_id for watch in file.watches] == [77, None, None, None, None]


DECODERS = [
    (decode_files_img, FILES, FILES_IMG),
    (decode_inotify, INOTIFY_FILE, encode_inotify([INOTIFY], path_of)),
    (decode_fanotify, FANOTIFY_FILE, encode_fanotify([FANOTIFY], path_of, shm_mount)),
]
EACH_DECODER = pytest.mark.parametrize(
    ("decode", "magic", "image"), DECODERS, ids=["files", "inotify", "fanotify"]
)


@EACH_DECODER
def test_cut_off_at_every_offset(decode, magic, image):
    whole = decode(image, "x")
    ends = {8} | {at + len(message) for at, message in frames(image, "x", magic)}
    for cut in range(len(image)):
        if cut in ends:
            read = decode(image[:cut], "x")
            assert read == whole[: len(read)]
        else:
            with pytest.raises(ImageError, match=r"^name\.img: offset \d+: "):
                decode(image[:cut], "name.img")


@EACH_DECODER
@given(data=st.data())
def test_a_damaged_image_is_refused_or_read(decode, magic, image, data):
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, len(damaged)))
        to = data.draw(st.integers(at, min(at + 4, len(damaged))))
        damaged[at:to] = data.draw(st.binary(max_size=4))
    try:
        files = decode(bytes(damaged), "x")
    except ImageError:
        return
    assert len(files) <= len(list(frames(bytes(damaged), "x", magic)))


def image_of(message):
    return FILES_IMG[:8] + len(message).to_bytes(4, "little") + message


def test_the_error_names_the_fault_of_an_entry():
    with pytest.raises(
        ImageError, match="offset 0: not CRIU's INOTIFY_FILE image but CRIU's FILES"
    ):
        decode_inotify(FILES_IMG, "x")

    incomplete = FileEntry(type=8, id=3, ify=criu_message(3))
    incomplete.ify.wd[4].f_handle.ClearField("type")
    with pytest.raises(ImageError, match="offset 12: entry 0: a required field of FileEntry"):
        decode_files_img(image_of(incomplete.SerializePartialToString()), "x")

    short = FileEntry(type=8, id=3, ify=criu_message(3))
    short.ify.wd[4].f_handle.n_bytes = 129
    with pytest.raises(ImageError, match="entry 0: a handle of 129 bytes in 16 words"):
        decode_files_img(image_of(short.SerializeToString()), "x")

    odd = FileEntry(type=12, id=5, ffy=criu_message(5))
    odd.ffy.mark[0].type = 9
    with pytest.raises(ImageError, match="entry 0: a mark of type 9"):
        decode_files_img(image_of(odd.SerializeToString()), "x")

    with pytest.raises(ImageError, match="entry 0: not a protobuf message"):
        decode_files_img(image_of(b"\xff\xff"), "x")
