"""Asks a filesystem for the state of an inode by its handle: named, without a name, or gone.

open_by_handle_at(2) needs no name, and refuses a handle whose inode is gone or whose number was
given to another one (ESTALE): the generation in the handle tells. Needs CAP_DAC_READ_SEARCH.

A filesystem that can only encode handles (overlayfs, procfs, sysfs, devpts, tracefs) says ESTALE
of each one, and so nothing by it: do_handle_to_path() of fs/fhandle.c.
"""

from __future__ import annotations

import enum
import errno
import os

from irmapdb.kernel import syscalls
from irmapdb.kernel.syscalls import AT_EMPTY_PATH
from irmapdb.model import is_fuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle

__all__ = ["InodeState", "fates", "opens_handles"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


class InodeState(enum.Enum):
    """What became of an inode."""

    NAMED = "named"
    """It is there and has a name, wherever that is."""
    UNLINKED = "unlinked"
    """It has no name left; somebody holds it open."""
    GONE = "gone"
    """The filesystem does not know it any more."""
    UNKNOWN = "unknown"
    """The filesystem cannot be asked, or not by us."""


def opens_handles(fd: int) -> bool:
    """Whether the filesystem of an open descriptor can open handles, and not only encode them.

    Without AT_HANDLE_FID name_to_handle_at(2) refuses what could not be opened again.
    """
    try:
        syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def fates(root: Root, kdev: int, handles: Iterable[FileHandle]) -> dict[FileHandle, InodeState]:
    """What became of inodes of one device, asked through any mount of it in this root."""
    for mount in root.mounts_of(kdev):
        try:
            fd = root.open(mount.mountpoint, _DIRECTORY)
        except OSError:
            continue  # a file that is a mount point, or one that we may not open
        try:
            if not opens_handles(fd):
                break
            # FUSE says ESTALE of whatever it has forgotten (fuse_get_dentry() of fs/fuse/inode.c).
            forgets = is_fuse(mount.fstype) or mount.fstype == "virtiofs"
            return {handle: _fate(fd, handle, forgets=forgets) for handle in handles}
        finally:
            os.close(fd)
    return dict.fromkeys(handles, InodeState.UNKNOWN)


def _fate(mount_fd: int, handle: FileHandle, *, forgets: bool) -> InodeState:
    try:
        fd = syscalls.open_by_handle_at(mount_fd, handle, os.O_PATH)
    except OSError as error:
        gone = error.errno == errno.ESTALE and not forgets
        return InodeState.GONE if gone else InodeState.UNKNOWN
    try:
        return InodeState.NAMED if os.fstat(fd).st_nlink else InodeState.UNLINKED
    except OSError:
        return InodeState.UNKNOWN
    finally:
        os.close(fd)
