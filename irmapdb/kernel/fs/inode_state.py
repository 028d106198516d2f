"""Asks a filesystem for the state of an inode by its handle: named, without a name, or gone.

open_by_handle_at(2) needs no name. It refuses a handle (ESTALE) if the inode is gone or its number
belongs to another inode, because the generation in the handle differs. Needs CAP_DAC_READ_SEARCH.

A filesystem that can only encode handles (overlayfs, procfs, sysfs, devpts, tracefs) gives ESTALE
for every handle, so this means nothing there: do_handle_to_path() of fs/fhandle.c.
"""

from __future__ import annotations

import errno
import os

from irmapdb.kernel import syscalls
from irmapdb.kernel.syscalls import AT_EMPTY_PATH, Descriptor
from irmapdb.model import is_fuse
from irmapdb.record import Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle

__all__ = ["InodeState", "fates", "opens_handles"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


class InodeState(Words):
    """The state of an inode."""

    NAMED = "named"
    """It exists and has a name somewhere."""
    UNLINKED = "unlinked"
    """It has no name, but a process has it open."""
    GONE = "gone"
    """The filesystem does not know it any more."""
    UNKNOWN = "unknown"
    """The filesystem cannot answer, or we may not ask it."""


def opens_handles(fd: int) -> bool:
    """Whether the filesystem of an open descriptor can open handles, and not only encode them.

    Without AT_HANDLE_FID, name_to_handle_at(2) refuses a file that could not be opened again by its
    handle.
    """
    try:
        syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def fates(root: Root, kdev: int, handles: Iterable[FileHandle]) -> dict[FileHandle, InodeState]:
    """The state of inodes of one device, asked through any mount of it in this root."""
    for mount in root.mounts.of_device(kdev):
        try:
            fd = root.open(mount.mountpoint, _DIRECTORY)
        except OSError:
            continue  # a file that is a mount point, or one that we may not open
        with Descriptor(fd):
            if not opens_handles(fd):
                break
            # FUSE gives ESTALE for all inodes that it has forgotten (fuse_get_dentry() of
            # fs/fuse/inode.c).
            forgets = is_fuse(mount.fstype) or mount.fstype == "virtiofs"
            return {handle: _fate(fd, handle, forgets=forgets) for handle in handles}
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
