"""Asks btrfs for the names of an inode, each with the inode of its directory.

An inode is (tree, ino): every subvolume is a tree of its own, with its own inode numbers. Its names
are items of its tree (INODE_REF, INODE_EXTREF); the name of a subvolume, whose root is inode 256 of
its tree, is an item of the tree of trees (ROOT_BACKREF). BTRFS_IOC_TREE_SEARCH_V2 reads them all,
from any descriptor of the filesystem: every hard link, at any depth, in a subvolume that no mount
shows.

The special ioctls give less. BTRFS_IOC_INO_PATHS ends its answer at 4,096 bytes, also with a larger
buffer, and needs a descriptor in the subvolume. But it needs only CAP_DAC_READ_SEARCH, and the
search needs CAP_SYS_ADMIN, so it is here too. BTRFS_IOC_INO_LOOKUP gives one name and 4,080 bytes.

Sources: include/uapi/linux/btrfs.h, btrfs_tree.h; fs/btrfs/ioctl.c, backref.c, export.c of
Linux 6.18.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
from _thread import _local  # threading takes 1 ms to import

from irmapdb.kernel import syscalls
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.model import FileHandle

__all__ = [
    "ROOT_INO",
    "Inode",
    "InodePaths",
    "Item",
    "inode_of",
    "inode_paths",
    "names",
    "parse_inode_paths",
    "parse_names",
    "parse_search",
]

_MAGIC = 0x94

ROOT_INO = 256
"""BTRFS_FIRST_FREE_OBJECTID: the root directory of every subvolume."""
_TREE_OF_TREES = 1
_INODE_REF = 12
_INODE_EXTREF = 13
_ROOT_BACKREF = 144
_LARGEST = (1 << 64) - 1


class Inode(Record):
    """An inode of one btrfs."""

    tree: int
    """The id of the subvolume."""
    ino: int


# FILEID_BTRFS_WITHOUT_PARENT, _WITH_PARENT, _WITH_PARENT_ROOT: struct btrfs_fid, packed, whose
# first fields are objectid, root_objectid and gen. fdinfo shows the first type.
_HANDLE_SIZES = {0x4D: 20, 0x4E: 32, 0x4F: 40}
_HANDLE_HEAD = struct.Struct("=QQI")


def inode_of(handle: FileHandle) -> Inode | None:
    """The inode that a handle of btrfs names; None for any other handle."""
    if _HANDLE_SIZES.get(handle.type) != len(handle.data):
        return None
    ino, tree, _ = _HANDLE_HEAD.unpack_from(handle.data)
    return Inode(tree, ino)


class Item(Record):
    """One item of a tree: its key and its data."""

    ino: int
    type: int
    offset: int
    data: bytes


# struct btrfs_ioctl_search_args_v2: tree id, then the smallest and the largest objectid, offset
# and transaction; the smallest and largest type, the number of items and padding; the size of
# the buffer that follows.
_SEARCH = struct.Struct("=7Q4I4QQ")
_SEARCH_ITEMS_AT = struct.calcsize("=7QII")
_TREE_SEARCH_V2 = syscalls.iowr(_MAGIC, 17, _SEARCH.size)
# struct btrfs_ioctl_search_header: transid, objectid, offset, type, len; the data follow.
_ITEM_HEAD = struct.Struct("=QQQII")
# An item is no larger than a node of the tree, BTRFS_MAX_METADATA_BLOCKSIZE. So if a search
# leaves this much of the buffer unused, it has returned all items.
_LARGEST_ITEM_BYTES = 1 << 16
_SEARCH_BYTES = 2 * _LARGEST_ITEM_BYTES


class _Buffer(_local):
    # Kept, because it is large; one for each thread.
    def __init__(self) -> None:
        self.raw = bytearray(_SEARCH.size + _SEARCH_BYTES)


_buffer = _Buffer()


def parse_search(raw: bytes | bytearray | memoryview, count: int) -> tuple[list[Item], int]:
    """At most `count` items from the buffer of a search, and the bytes that they took.

    An item that is not within the buffer is left out.
    """
    view = memoryview(raw)
    items: list[Item] = []
    position = 0
    while len(items) < count and position + _ITEM_HEAD.size <= len(view):
        _, ino, offset, kind, size = _ITEM_HEAD.unpack_from(view, position)
        start = position + _ITEM_HEAD.size
        if start + size > len(view):
            break
        items.append(Item(ino, kind, offset, bytes(view[start : start + size])))
        position = start + size
    return items, position


def _search(fd: int, tree: int, ino: int, first_type: int, last_type: int) -> Iterator[Item]:
    first_offset = 0
    buffer = _buffer.raw
    while True:
        _SEARCH.pack_into(
            buffer,
            0,
            tree,
            *(ino, ino),
            *(first_offset, _LARGEST),
            *(0, _LARGEST),
            *(first_type, last_type),
            *((1 << 32) - 1, 0),
            *(0, 0, 0, 0),
            _SEARCH_BYTES,
        )
        fcntl.ioctl(fd, _TREE_SEARCH_V2, buffer)
        (count,) = struct.unpack_from("=I", buffer, _SEARCH_ITEMS_AT)
        items, used = parse_search(memoryview(buffer)[_SEARCH.size :], count)
        yield from items
        if not items or used + _ITEM_HEAD.size + _LARGEST_ITEM_BYTES <= _SEARCH_BYTES:
            return
        # Continue from the key after the last one. That key is larger than the first one, so the
        # loop ends even if a tree gives nonsense.
        after = (items[-1].type, items[-1].offset + 1)
        if after <= (first_type, first_offset) or after > (last_type, _LARGEST):
            return
        first_type, first_offset = after


# Numbers on disk are little-endian. struct btrfs_inode_ref: index, name_len; the parent is the
# key's offset. struct btrfs_inode_extref: parent_objectid, index, name_len; the key's offset is
# a hash. struct btrfs_root_ref: dirid, sequence, name_len; the key's offset is the parent's tree.
# The name follows; the first two repeat within one item.
_REF = struct.Struct("<QH")
_EXTREF = struct.Struct("<QQH")
_ROOT_REF = struct.Struct("<QQH")


def parse_names(tree: int, item: Item) -> Iterator[tuple[Inode, bytes]]:
    """The names in one item of `tree`, each with its directory.

    Nothing for an item of another type. A name that is cut short is left out.
    """
    head = {_INODE_REF: _REF, _INODE_EXTREF: _EXTREF, _ROOT_BACKREF: _ROOT_REF}.get(item.type)
    if head is None:
        return
    position = 0
    while position + head.size <= len(item.data):
        first, *_, size = head.unpack_from(item.data, position)
        start = position + head.size
        position = start + size
        if position > len(item.data):
            return
        name = item.data[start:position]
        if item.type == _INODE_REF:
            yield Inode(tree, item.offset), name
        elif item.type == _INODE_EXTREF:
            yield Inode(tree, first), name
        else:
            yield Inode(item.offset, first), name
            return


def names(fd: int, inode: Inode) -> Sequence[tuple[Inode, bytes]]:
    """Every name of an inode with its directory; none for the topmost root.

    `fd` is any descriptor on the filesystem but no O_PATH one. ENOENT: no such subvolume;
    EPERM: needs CAP_SYS_ADMIN.
    """
    if inode.ino == ROOT_INO:
        items = _search(fd, _TREE_OF_TREES, inode.tree, _ROOT_BACKREF, _ROOT_BACKREF)
        return [name for item in items for name in parse_names(_TREE_OF_TREES, item)]
    items = _search(fd, inode.tree, inode.ino, _INODE_REF, _INODE_EXTREF)
    return [name for item in items for name in parse_names(inode.tree, item)]


class InodePaths(Record):
    """The answer of BTRFS_IOC_INO_PATHS."""

    paths: tuple[bytes, ...]
    """Relative to the root of the subvolume; b"" for that root itself."""
    missed: int
    """The number of names for which the buffer had no room."""


# struct btrfs_ioctl_ino_path_args: inum, size, reserved, pointer.
_INO_PATHS_ARGS = struct.Struct("=QQ4QQ")
_INO_PATHS = syscalls.iowr(_MAGIC, 35, _INO_PATHS_ARGS.size)
# struct btrfs_data_container: bytes_left, bytes_missing, elem_cnt, elem_missed; then for each
# path its u64 offset, counted from the first of these.
_PATHS_HEAD = struct.Struct("=4I")
# The kernel takes no more (btrfs_ioctl_ino_to_path()).
_INO_PATHS_BYTES = 4096


def parse_inode_paths(raw: bytes) -> InodePaths:
    """The paths in the buffer of INO_PATHS; one that does not lie within it is left out."""
    if len(raw) < _PATHS_HEAD.size:
        return InodePaths((), 0)
    _, _, count, missed = _PATHS_HEAD.unpack_from(raw)
    body = raw[_PATHS_HEAD.size :]
    paths = []
    for (offset,) in struct.iter_unpack("=Q", body[: min(8 * count, len(body) // 8 * 8)]):
        end = body.find(b"\0", offset) if offset < len(body) else -1
        if end >= 0:
            paths.append(body[offset:end])
    return InodePaths(tuple(paths), missed)


def inode_paths(fd: int, ino: int) -> InodePaths:
    """The paths of an inode in the subvolume that `fd` lies in.

    ENOENT: no such inode; EPERM: needs CAP_DAC_READ_SEARCH.
    """
    if ino == ROOT_INO:
        return InodePaths((b"",), 0)  # the tree says ".."
    buffer = ctypes.create_string_buffer(_INO_PATHS_BYTES)
    address = ctypes.addressof(buffer)
    arguments = _INO_PATHS_ARGS.pack(ino, _INO_PATHS_BYTES, 0, 0, 0, 0, address)
    fcntl.ioctl(fd, _INO_PATHS, arguments)
    return parse_inode_paths(buffer.raw)
