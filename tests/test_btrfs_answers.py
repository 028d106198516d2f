"""Answers of the ioctls of btrfs, made by hand; and answers that are nonsense."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from irmapdb.kernel.fs import btrfs
from irmapdb.kernel.fs.btrfs import Inode, Item
from irmapdb.model import FileHandle

_U64 = st.integers(0, (1 << 64) - 1)
_U32 = st.integers(0, (1 << 32) - 1)
_NAME = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
_REFERENCES = st.lists(st.tuples(_U64, _U64, _NAME), max_size=5)


def _pack(item: Item) -> bytes:
    head = struct.pack("=QQQII", 7, item.ino, item.offset, item.type, len(item.data))
    return head + item.data


@given(st.lists(st.builds(Item, _U64, _U32, _U64, st.binary(max_size=300)), max_size=6), st.data())
def test_items_come_back(items: list[Item], data: st.DataObject) -> None:
    raw = b"".join(map(_pack, items))
    rest = data.draw(st.binary(max_size=40))
    assert btrfs.parse_search(raw + rest, len(items)) == (items, len(raw))
    # Of an answer that is cut off, the whole items are read.
    cut = data.draw(st.integers(0, len(raw)))
    whole, used = btrfs.parse_search(raw[:cut], len(items))
    assert whole == items[: len(whole)]
    assert used == len(b"".join(map(_pack, whole))) <= cut


@given(_U64, _U64, _REFERENCES)
def test_the_names_of_an_inode(tree: int, parent: int, references: list) -> None:
    packed = b"".join(struct.pack("<QH", index, len(name)) + name for _, index, name in references)
    plain = Item(300, 12, parent, packed)
    assert list(btrfs.parse_names(tree, plain)) == [
        (Inode(tree, parent), name) for *_, name in references
    ]
    packed = b"".join(
        struct.pack("<QQH", directory, index, len(name)) + name
        for directory, index, name in references
    )
    extended = Item(300, 13, parent, packed)
    assert list(btrfs.parse_names(tree, extended)) == [
        (Inode(tree, directory), name) for directory, _, name in references
    ]


@given(_U64, _U64, _NAME, st.binary(max_size=5))
def test_the_name_of_a_subvolume(parent: int, directory: int, name: bytes, rest: bytes) -> None:
    data = struct.pack("<QQH", directory, 9, len(name)) + name + rest
    item = Item(300, 144, parent, data)
    assert list(btrfs.parse_names(1, item)) == [(Inode(parent, directory), name)]


@given(st.sampled_from([12, 13, 144, 1, 24]), _U64, st.binary(max_size=600))
def test_a_broken_item_gives_no_bytes_from_outside(kind: int, offset: int, data: bytes) -> None:
    for _, name in btrfs.parse_names(5, Item(300, kind, offset, data)):
        assert name in data
        assert kind in {12, 13, 144}


@given(st.binary(max_size=500), st.integers(0, 50))
def test_a_broken_search_ends(raw: bytes, count: int) -> None:
    items, used = btrfs.parse_search(raw, count)
    assert len(items) <= count
    assert used <= len(raw)


@given(st.lists(_NAME | st.just(b""), max_size=8), _U32)
def test_paths_come_back(paths: list[bytes], missed: int) -> None:
    # The kernel writes offsets from the front and strings from the back.
    offsets, body, position = [], b"", 8 * len(paths) + 24
    for path in paths:
        offsets.append(position + len(body))
        body += path + b"\0"
    raw = struct.pack(f"=4I{len(paths)}Q", 0, 0, len(paths), missed, *offsets) + b"\0" * 24 + body
    assert btrfs.parse_inode_paths(raw) == btrfs.InodePaths(tuple(paths), missed)


@given(st.binary(max_size=200))
@example(b"")
@example(struct.pack("=4I", 0, 0, 0xFFFFFFFF, 0) + struct.pack("=Q", (1 << 64) - 1) * 4)
@example(struct.pack("=4I2Q", 0, 0, 2, 0, 16, 15) + b"unended")
def test_broken_paths_are_within_the_answer(raw: bytes) -> None:
    for path in btrfs.parse_inode_paths(raw).paths:
        assert path + b"\0" in raw


def test_the_inode_of_a_handle() -> None:
    data = struct.pack("=QQI", 300, 257, 9)
    assert btrfs.inode_of(FileHandle(0x4D, data)) == Inode(257, 300)
    assert btrfs.inode_of(FileHandle(0x4E, data + bytes(12))) == Inode(257, 300)
    assert btrfs.inode_of(FileHandle(0x4F, data + bytes(20))) == Inode(257, 300)
    for handle in (FileHandle(0x4D, data[:-1]), FileHandle(0x81, data), FileHandle(0x4D, b"")):
        assert btrfs.inode_of(handle) is None


def test_the_numbers_are_those_of_the_header() -> None:
    # BTRFS_IOC_TREE_SEARCH_V2 and BTRFS_IOC_INO_PATHS, as a C program prints them.
    assert btrfs._TREE_SEARCH_V2 == 0xC0709411
    assert btrfs._INO_PATHS == 0xC0389423
