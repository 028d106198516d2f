"""Decides whether an identity belongs to only one inode. Without a known reason it is ambiguous.

fdinfo identifies a watched inode only by device, inode number and handle. A path with the same
identity is proved only if no other live inode can have it too. Each known type of filesystem has a
reason here. Other types have none, and no path on them is proved.

A live watch holds its inode, so the filesystem cannot reuse its number. But some filesystems make a
second inode object with one number, or give one number twice:

- procfs: a name that was dropped gets a new inode with the old number (proc_get_inode() of
  fs/proc/inode.c), and a watch reports no event of the new one. The numbers of such files begin at
  PROC_DYNAMIC_FIRST; those of tasks and of /proc/sys are new ones each time. nsfs and pidfs do the
  same with the files of one namespace or task.
- devpts: a terminal's number is its index, and the kernel gives it again while the old terminal is
  still open.
- btrfs, inode 2: the directory in a snapshot at the place of a subvolume (new_simple_dir() of
  fs/btrfs/inode.c).
- tracefs: all files of an event system have one number (fs/tracefs/event_inode.c). The files of
  simple_fill_super() of fs/libfs.c have the first numbers, and the counter gives these too.
- FUSE, virtiofs: a server may give a number and generation again to a file of another type, and
  the kernel makes a second inode (fuse_iget() of fs/fuse/inode.c). CIFS and 9p (without cache) make
  a second one too.
- overlay: see `irmapdb.kernel.fs.overlay`.
"""

from __future__ import annotations

import struct

from irmapdb.kernel.fs import overlay
from irmapdb.model import is_fuse
from irmapdb.record import Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Mount

__all__ = ["REASONS", "Reason", "may_be_another"]


class Reason(Words):
    """Why no two live inodes of one superblock have the same number and handle."""

    TABLE = "the kernel keeps the live inodes in a table with the number as its key"
    """iget_locked(9), iget5_locked() or iunique() of fs/inode.c; xfs and btrfs have their own."""
    GENERATION = "the handle has a random generation besides the number"
    COUNTED = "one counter of 32 bits gives the numbers, and no name is made anew"
    """get_next_ino() of fs/inode.c: a number comes again after 2^32 inodes of all filesystems."""
    SERVER = "the protocol promises it, and only root can choose the server"
    """RFC 1813 and RFC 8881: equal file handles of one server are one file."""


_DISKS = (
    *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "gfs2", "hfs"),
    *("hfsplus", "iso9660", "jfs", "minix", "msdos", "nilfs2", "ntfs3", "ocfs2", "reiserfs"),
    *("romfs", "squashfs", "udf", "ufs", "vfat", "xfs"),
)
_COUNTED = (
    *("binfmt_misc", "bpf", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "hugetlbfs"),
    *("mqueue", "proc", "pstore", "ramfs", "rootfs", "rpc_pipefs", "securityfs"),
)

REASONS: dict[str, Reason] = {
    **dict.fromkeys(_DISKS, Reason.TABLE),
    **dict.fromkeys(("cgroup", "cgroup2", "resctrl", "sysfs"), Reason.TABLE),
    **dict.fromkeys(("devtmpfs", "tmpfs"), Reason.GENERATION),
    **dict.fromkeys(_COUNTED, Reason.COUNTED),
    **dict.fromkeys(("ceph", "nfs", "nfs4"), Reason.SERVER),
}
"""By type, as mountinfo has it. overlay is not here: it depends on the layers."""

_BTRFS_HANDLES = frozenset({0x4D, 0x4E, 0x4F})
_BTRFS_PLACEHOLDER = struct.pack("=Q", 2)  # BTRFS_EMPTY_SUBVOL_DIR_OBJECTID

_PROC_DYNAMIC_FIRST = 0xF0000000  # fs/proc/generic.c
_DEVPTS_FIRST_TERMINAL = 3  # fs/devpts/inode.c: 1 is the root, 2 is ptmx
_FUSE_ROOT_INO = 1

_FIXED_NUMBERS = {"binfmt_misc": 3, "debugfs": 1, "fusectl": 1, "securityfs": 1}
"""The last of the numbers that the filesystem gives without the counter."""


def may_be_another(root: Root, mount: Mount, wanted: Identity, fd: int) -> bool:
    """Whether `fd`, on `mount` and with the wanted handle, may still be another inode.

    `mount` belongs to `root`.
    """
    fstype = mount.fstype
    if fstype == "overlay":
        return not overlay.is_unique(root, mount, wanted, fd)
    if is_fuse(fstype):
        return wanted.ino != _FUSE_ROOT_INO and mount.kdev not in root.trusted
    return fstype not in REASONS or _is_exception(fstype, wanted)


def _is_exception(fstype: str, wanted: Identity) -> bool:
    handle = wanted.handle
    match fstype:
        case "btrfs":
            return (
                handle is not None
                and handle.type in _BTRFS_HANDLES
                and handle.data.startswith(_BTRFS_PLACEHOLDER)
            )
        case "proc":
            return wanted.ino >= _PROC_DYNAMIC_FIRST
        case "devpts":
            return wanted.ino >= _DEVPTS_FIRST_TERMINAL
        case _:
            return wanted.ino <= _FIXED_NUMBERS.get(fstype, 0)
