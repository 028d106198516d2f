"""The text of mountinfo: as the kernel wrote it, as it could write it, and damaged."""

import json
import os
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from irmapdb.kernel.proc import fdinfo, mountinfo
from irmapdb.model import Mount, WatchKind, kdev_of

DATA = Path(__file__).parent / "data" / "proc"
MOUNTINFO = (DATA / "mountinfo.txt").read_bytes()
INOTIFY = (DATA / "fdinfo-inotify.txt").read_bytes()
TRUTH = json.loads((DATA / "fdinfo-truth.json").read_text())


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
    watches = fdinfo.parse_fdinfo(INOTIFY, 17, 5, WatchKind.INOTIFY).watches
    of_wd = {one["wd"]: one for one in TRUTH}
    # The watch's device is that of the mount of its path; the device of stat(2) can differ.
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


def test_a_filesystem_whose_server_names_it_badly_stays_on_its_line():
    raw = rb"29 1 0:26 / /m rw - fuse.\377\012\033[2J none rw" + b"\n"
    assert mountinfo.parse_mountinfo(raw)[0].fstype == r"fuse.\xff\n\x1b[2J"


kdevs = st.builds(kdev_of, st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
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
    """mangle_path() of fs/seq_file.c, and other bytes that a kernel may write in octal."""
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
    # The last field is given unchanged, because its names may have commas.
    expected = tuple(
        mount._replace(super_options=escaped(mount.super_options, more)) for mount, _ in found
    )
    assert mountinfo.parse_mountinfo(raw) == expected
    # A table that is cut off loses only its end.
    shorter = mountinfo.parse_mountinfo(raw[: len(raw) - cut])
    assert shorter[:-1] == expected[: max(len(shorter) - 1, 0)]


@given(raw=st.binary(max_size=200) | st.text("0123456789:- /\\\n", max_size=80).map(str.encode))
@example(raw=b"1 2 3 / / rw - ext4 /dev/vda rw")
@example(raw=b"1 2 3:x / / rw - ext4 /dev/vda rw")
@example(raw=b"1 2 3:4 / / rw - ext4")
def test_no_mount_table_stops_the_parser(raw):
    assert len(mountinfo.parse_mountinfo(raw)) <= raw.count(b"\n") + 1
