"""Where one handle is of several inodes, so that not even a proof can tell which is watched.

fdinfo has no more to say than device, inode number and handle. What lies in one of these places
has no path that is known to be right, and a wrong one is worse than none.

- overlay, a file that has several links in a lower layer, without index: each name is an inode of
  its own, for the first write will part them, and all have the handle of the one below
  (ovl_hash_bylower() of fs/overlayfs/inode.c, ovl_dentry_to_fid() of export.c). Once it is
  copied up the name has a file of its own, with another number and the old handle. (A file that
  had one name there and got others on the overlay looks just the same, and has no path either.)
  Where the layers count their inodes apart, on two filesystems without xino or two subvolumes of
  one btrfs, the copy may by chance have the very number of the one below, and nobody can tell.
- overlay, two lower layers without a UUID (squashfs): the handle is that of the file below, and
  the UUID in front of it is to say in which layer (struct ovl_fb of fs/overlayfs/overlayfs.h). A
  directory has a number of its own, and so has a file with xino or on one filesystem.
- btrfs, inode 2: what a snapshot shows in place of a subvolume (new_simple_dir() of
  fs/btrfs/inode.c).
- tracefs: all files of an event system have one number (fs/tracefs/event_inode.c). debugfs and
  securityfs: the root has number 1 (simple_fill_super() of fs/libfs.c), and so may another.
"""

from __future__ import annotations

import re
import stat
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from irmapdb.kernel import syscalls

if TYPE_CHECKING:
    from irmapdb.model import Identity, Mount

__all__ = ["may_be_another"]

# struct ovl_fh: padding, then struct ovl_fb: version, magic, len, flags, type, uuid; the handle of
# the file in its layer follows.
_OVERLAY_HANDLE = 0xF8  # OVL_FILEID_V1
_OVERLAY_HEAD = struct.Struct("=3xBBBBB16s")
_OF_UPPER_LAYER = 0x04  # OVL_FH_FLAG_PATH_UPPER
_NO_UUID = bytes(16)

_BTRFS_HANDLES = frozenset({0x4D, 0x4E, 0x4F})
_BTRFS_PLACEHOLDER = struct.pack("=Q", 2)  # BTRFS_EMPTY_SUBVOL_DIR_OBJECTID

_ROOT_INO = 1


def may_be_another(mount: Mount, wanted: Identity, fd: int) -> bool:
    """Whether `fd`, on `mount` and with the wanted handle, may be another inode all the same."""
    match mount.fstype:
        case "overlay":
            return _is_shared_on_overlay(mount, wanted, fd)
        case "btrfs":
            handle = wanted.handle
            return (
                handle is not None
                and handle.type in _BTRFS_HANDLES
                and handle.data.startswith(_BTRFS_PLACEHOLDER)
            )
        case "tracefs":
            return True
        case "debugfs" | "securityfs":
            return wanted.ino == _ROOT_INO
        case _:
            return False


def _is_shared_on_overlay(mount: Mount, wanted: Identity, fd: int) -> bool:
    handle = wanted.handle
    if handle is None or handle.type != _OVERLAY_HANDLE:
        return False
    if len(handle.data) < _OVERLAY_HEAD.size:
        return False
    _, _, _, flags, _, uuid = _OVERLAY_HEAD.unpack_from(handle.data)
    if flags & _OF_UPPER_LAYER:
        return False
    layers, parts = _layers(mount.super_options)
    known = syscalls.statx(fd)
    directory = stat.S_ISDIR(known.mode)
    if known.ino != wanted.ino and (layers > 1 or (parts and not directory)):
        return True
    if directory:
        return False  # no two have one number
    # With one number space for all layers, the number says what the handle does not.
    if uuid == _NO_UUID and layers > 1 and known.st_kdev != mount.kdev:
        return True
    return parts and known.nlink > 1


@lru_cache(maxsize=64)
def _layers(super_options: bytes) -> tuple[int, bool]:
    """How many lower layers an overlay has, and whether the links of a file part on a write."""
    # A comma of a name stands there in octal; a colon of a name has a backslash before it, in
    # octal too. Behind two colons are layers for data alone, of which nothing is a handle.
    options = [one.partition(b"=") for one in super_options.split(b",")]
    count = 0
    for name, _, value in options:
        if name in {b"lowerdir", b"lowerdir+"}:
            count += len(re.split(rb"(?<!\\134):", value.partition(b"::")[0]))
    writable = any(name == b"upperdir" for name, _, _ in options)
    return count, writable and not _has_index(options)


def _has_index(options: list[tuple[bytes, bytes, bytes]]) -> bool:
    # Shown where it is not the module's own choice (ovl_show_options() of fs/overlayfs/params.c).
    for name, _, value in options:
        if name == b"index":
            return value == b"on"
    try:
        with open("/sys/module/overlay/parameters/index", "rb") as parameter:
            return parameter.read(1) == b"Y"
    except OSError:
        return False
