"""Finds the superblock of a directory if no mount table has it."""

from __future__ import annotations

from irmapdb.kernel import syscalls
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.record import Record

__all__ = ["Superblock", "superblock_of"]

_PATIENCE_S = 2.0
_IN_IGNORED = 0x8000  # never queued as an event: only the fdinfo of the watch is read
_SDEV = rb" sdev:([0-9a-f]+)"

# include/uapi/linux/magic.h and fs/ of Linux 6.18: those that are treated in their own way.
_NAMES = {
    0x9123683E: "btrfs",
    0x794C7630: "overlay",
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x01021994: "tmpfs",
    0x65735546: "fuse",
    0x6969: "nfs",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
    0xF2F52010: "f2fs",
    0x858458F6: "ramfs",
    0x9660: "iso9660",
    0x15013346: "udf",
    0x4D44: "vfat",
    0x2011BAB0: "exfat",
    0xFF534D42: "cifs",
    0xFE534D42: "smb3",
    0x01021997: "9p",
    0x00C36400: "ceph",
}


class Superblock(Record):
    """Its device, and its type as in mountinfo; the type is empty if it is unknown here."""

    kdev: int
    fstype: str


def superblock_of(fd: int) -> Superblock | None:
    """The superblock of an open directory, O_PATH or not; None if fdinfo does not show it.

    stat(2) gives another device on btrfs and on some overlays. fdinfo's sdev of a watch is the
    device of the superblock (inotify_fdinfo() of fs/notify/fdinfo.c), so we watch the directory for
    a moment. A child does this, because a FUSE server can block it.
    """
    return ask_in_child(lambda: _look(fd), lambda _why: None, _PATIENCE_S)


def _look(fd: int) -> Superblock | None:
    try:
        kdev = _watched_kdev(fd)
        magic = syscalls.filesystem_magic(fd)
    except OSError:  # we may not read it, or have too many watches
        return None
    return None if kdev is None else Superblock(kdev, _NAMES.get(magic, ""))


def _watched_kdev(fd: int) -> int | None:
    import re  # noqa: PLC0415 the hook needs it seldom

    with Descriptor(syscalls.inotify_init()) as inotify:
        syscalls.inotify_add_watch(inotify, b"/proc/self/fd/%d" % fd, _IN_IGNORED)
        with open(f"/proc/self/fdinfo/{inotify}", "rb") as fdinfo:
            shown = re.search(_SDEV, fdinfo.read())
    return int(shown[1], 16) if shown else None
