"""The cache image against images of CRIU, and against all that it must refuse."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.errors import ImageError
from irmapdb.image.cache import decode_cache, encode_cache
from irmapdb.image.cache_bytes import cache_bytes
from irmapdb.image.cache_bytes import cache_entries as plain_entries
from irmapdb.model import CacheEntry

DATA = Path(__file__).parent / "data" / "images"
IMAGES = sorted(DATA.glob("*.irmap-cache"))
ROOT_DISK = 254 << 20

HEADER = bytes.fromhex("40591055 59400057")


def decode(image: bytes, name: str) -> tuple[CacheEntry, ...]:
    """With protobuf, and the same without."""
    plain = plain_entries(image)
    try:
        entries = decode_cache(image, name)
    except ImageError:
        assert plain is None
        raise
    assert plain == entries
    return entries


ODD_NAMES = [
    (1458192, b""),
    (1458193, b"/caf\xe9-latin1"),
    (1458194, b"/caf\xe9-latin1/f"),
    (1458213, b"/" + b"x" * 255),
    (1458214, b"/" + b"x" * 255 + b"/f"),
    (1458197, b"/with space"),
    (1458198, b"/with space/f"),
    (1458205, b"/(deleted)"),
    (1458206, b"/(deleted)/f"),
    (1458195, b"/\xc3\xbcn\xc3\xafcode-\xc3\xbc"),
    (1458196, b"/\xc3\xbcn\xc3\xafcode-\xc3\xbc/f"),
    (1458207, b"/-dash"),
    (1458208, b"/-dash/f"),
    (1458199, b"/new\nline"),
    (1458200, b"/new\nline/f"),
    (1458209, b"/quote\"'"),
    (1458210, b"/quote\"'/f"),
    (1458201, b"/tab\there"),
    (1458202, b"/tab\there/f"),
    (1458203, b"/back\\slash"),
    (1458204, b"/back\\slash/f"),
    (1458211, b"/\xff\xfe"),
    (1458212, b"/\xff\xfe/f"),
]

EXPECTED = {
    "etc-hints": [
        (19, b"/etc"),
        (739, b"/etc/passwd"),
        (613, b"/etc/hosts"),
        (403217, b"/var/log/dpkg.log"),
        (403229, b"/var/spool"),
    ],
    "no-watches": [],
    "odd-names": [(ino, b"/srv/odd" + name) for ino, name in ODD_NAMES],
    "swap-before": [(1458216, b"/srv/swap/zdtm-test"), (1458217, b"/srv/swap/zdtm-test1")],
    "swap-after": [(1458216, b"/srv/swap/zdtm-test1"), (1458217, b"/srv/swap/zdtm-test")],
}

cache_entries = st.builds(
    CacheEntry,
    kdev=st.integers(0, 2**32 - 1),
    ino=st.integers(0, 2**64 - 1),
    path=st.binary(max_size=300),
)


def entry_ends(image: bytes) -> list[int]:
    """Offsets at which the file may end: after the header and after each entry."""
    ends = [8]
    while ends[-1] < len(image):
        (size,) = struct.unpack_from("<I", image, ends[-1])
        ends.append(ends[-1] + 4 + size)
    return ends


def framed(*messages: bytes) -> bytes:
    return HEADER + b"".join(struct.pack("<I", len(m)) + m for m in messages)


def refused(image: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(image, "work/irmap-cache")
    assert str(caught.value).startswith("work/irmap-cache: offset ")
    assert "\n" not in str(caught.value)
    assert caught.value.advice
    return caught.value


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_of_criu_is_read_exactly_and_written_back(path):
    image = path.read_bytes()
    entries = decode(image, path.name)
    assert entries == tuple(CacheEntry(ROOT_DISK, *pair) for pair in EXPECTED[path.stem])
    assert encode_cache(entries) == image


@given(st.lists(cache_entries, max_size=20))
def test_entries_are_read_back_in_their_order_up_to_the_limits(entries):
    assert decode(encode_cache(entries), "x") == tuple(entries)


def test_the_largest_numbers_and_an_empty_path():
    entries = (CacheEntry(2**32 - 1, 2**64 - 1, b""), CacheEntry(0, 0, b"\0\n/\xff"))
    assert decode(encode_cache(entries), "x") == entries


@pytest.mark.parametrize(("kdev", "ino"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**64)])
def test_a_number_that_the_image_cannot_hold_is_refused(kdev, ino):
    with pytest.raises(ImageError, match="entry 1 does not fit"):
        encode_cache([CacheEntry(1, 1, b"/"), CacheEntry(kdev, ino, b"/")])


@pytest.mark.parametrize("name", ["odd-names", "swap-after"])
def test_cut_off_at_every_offset(name):
    image = (DATA / f"{name}.irmap-cache").read_bytes()
    entries = decode(image, "x")
    whole = {end: count for count, end in enumerate(entry_ends(image))}
    for cut in range(len(image)):
        if cut in whole:
            assert decode(image[:cut], "x") == entries[: whole[cut]]
        else:
            refused(image[:cut])


@given(st.data())
def test_a_damaged_image_is_refused_or_read_as_it_is(data):
    image = bytearray((DATA / "swap-before.irmap-cache").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(image)))
        to = data.draw(st.integers(at, min(at + 4, len(image))))
        image[at:to] = data.draw(st.binary(max_size=4))
    try:
        entries = decode(bytes(image), "x")
    except ImageError:
        return
    assert encode_cache(entries) == image


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=3))
def test_any_message_is_refused_or_written_back(messages):
    image = framed(*messages)
    try:
        entries = decode(image, "x")
    except ImageError:
        return
    assert encode_cache(entries) == image


DEV, INO, PATH = b"\x08\x01", b"\x10\x02", b"\x1a\x02/a"
GOOD = framed(DEV + INO + PATH)


@pytest.mark.parametrize(
    ("image", "offset", "what"),
    [
        (b"", 0, "the file is empty"),
        (HEADER[:3], 3, "cut off in the 8-byte header"),
        (HEADER[4:], 0, "CRIU's IRMAP_CACHE image, without a group magic"),
        (bytes.fromhex("19435654 31444248"), 0, "CRIU's INOTIFY_FILE image"),
        (bytes.fromhex("40591055 06330957"), 0, "CRIU's STATS image"),
        (bytes.fromhex("16313158 02000000"), 0, "CRIU's INVENTORY image"),
        (bytes.fromhex("40591055 01020304"), 0, "a CRIU image of unknown kind 0x4030201"),
        (b"SQLite format 3\0" + bytes(84), 0, "an SQLite database"),
        (b'{"magic": "IRMAP_CACHE"}', 0, "JSON"),
        (b"hello, world", 0, "starts with 68 65 6c 6c"),
        (b"x", 0, "starts with 78"),
        (GOOD + b"\x01", len(GOOD), "cut off in the size of an entry, after 1 bytes"),
        (HEADER + bytes(4), 8, "an entry of size 0"),
        (GOOD + b"\xff\xff\xff\xff" + bytes(9), len(GOOD), "an entry of size -1"),
        (HEADER + b"\x09\0\0\0" + DEV + INO + PATH, 8, "an entry of 9 bytes where 8 are left"),
        (framed(b"\xff" * 8), 12, "entry 0: not a protobuf message"),
        (framed(DEV + PATH), 12, "entry 0: required field missing: inode; the file is damaged"),
        (framed(DEV + INO + PATH, PATH), 24, "entry 1: required field missing: dev, inode"),
        (framed(DEV + INO + PATH + b"\x20\x05"), 12, "entry 0: unknown field: 4"),
        (framed(b"\x0a\x01/" + DEV + INO + PATH), 12, "entry 0: unknown field: 1"),
        (
            framed(b"\x08\x80\x80\x80\x80\x80\x20" + INO + PATH),
            12,
            "entry 0: dev is 0x10000000000, outside of 32 bits; the file is damaged",
        ),
        (framed(INO + DEV + PATH), 12, "entry 0: not encoded as CRIU encodes it"),
        (framed(DEV + INO + INO + PATH), 12, "entry 0: not encoded as CRIU encodes it"),
        (framed(b"\x08\x81\x00" + INO + PATH), 12, "entry 0: not encoded as CRIU encodes it"),
    ],
)
def test_each_refusal_names_the_offset(image, offset, what):
    error = refused(image)
    assert f": offset {offset}: " in str(error)
    assert what in str(error)


@given(st.lists(cache_entries, max_size=20))
def test_without_protobuf_the_bytes_are_the_same(entries):
    assert cache_bytes(entries) == encode_cache(entries)


def test_without_protobuf_at_the_edges():
    entries = [CacheEntry(2**32 - 1, 2**64 - 1, b"/" + b"x" * 5000), CacheEntry(127, 128, b"")]
    assert cache_bytes(entries) == encode_cache(entries)
