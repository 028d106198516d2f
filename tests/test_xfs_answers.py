"""Answers of XFS_IOC_GETPARENTS_BY_HANDLE, made by hand; and answers that are nonsense."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from irmapdb.kernel.fs import xfs
from irmapdb.kernel.fs.xfs import Inode
from irmapdb.model import FileHandle

_INODE = st.builds(Inode, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
_NAME = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)


def _record(inode: Inode, name: bytes, length: int | None = None) -> bytes:
    room = -(-(32 + len(name) + 1) // 8) * 8 if length is None else length
    head = struct.pack("=QHHIQII", 77, 14, 0, inode.generation, inode.ino, room, 0)
    return (head + name).ljust(room, b"\0")


@given(st.lists(st.tuples(_INODE, _NAME), max_size=6), st.integers(0, 200))
def test_parents_come_back(parents: list[tuple[Inode, bytes]], spare: int) -> None:
    raw = b"".join(_record(*parent) for parent in parents[:-1])
    if parents:
        # The last record runs to the end of the buffer.
        inode, name = parents[-1]
        raw += _record(inode, name, length=-(-(33 + len(name)) // 8) * 8 + 8 * spare)
    assert xfs.parse_parents(raw) == parents


@given(st.lists(st.tuples(_INODE, _NAME), min_size=1, max_size=4), st.data())
def test_a_buffer_that_was_cut(parents: list[tuple[Inode, bytes]], data: st.DataObject) -> None:
    raw = b"".join(_record(*parent) for parent in parents)
    found = xfs.parse_parents(raw[: data.draw(st.integers(0, len(raw)))])
    assert found == parents[: len(found)]


@given(st.binary(max_size=400))
@example(bytes(4096))
@example(_record(Inode(1, 2), b"name", length=33) + b"\0")
@example(struct.pack("=QHHIQII", 0, 14, 0, 1, 2, 0xFFFFFFFF, 0) + b"name\0")
def test_a_broken_buffer_gives_no_bytes_from_outside(raw: bytes) -> None:
    for inode, name in xfs.parse_parents(raw):
        assert name
        assert name + b"\0" in raw
        assert struct.pack("=IQ", inode.generation, inode.ino) in raw


def test_the_inode_of_a_handle() -> None:
    small, large = struct.pack("=II", 131, 9), struct.pack("=QI", 1 << 40, 9)
    assert xfs.inode_of(FileHandle(0x01, small)) == Inode(131, 9)
    assert xfs.inode_of(FileHandle(0x02, small + bytes(8))) == Inode(131, 9)
    assert xfs.inode_of(FileHandle(0x81, large)) == Inode(1 << 40, 9)
    assert xfs.inode_of(FileHandle(0x82, large + bytes(12))) == Inode(1 << 40, 9)
    for handle in (FileHandle(0x81, small), FileHandle(0x4D, large), FileHandle(0x01, b"")):
        assert xfs.inode_of(handle) is None


def test_the_number_is_that_of_the_header() -> None:
    assert xfs._GETPARENTS_BY_HANDLE == 0xC040583F
