"""Proves a path: asks the kernel now for the identity of the inode at the path.

Every candidate of every source goes through `identify` before it becomes a mapping.
name_to_handle_at(2) with AT_HANDLE_FID gives the same handle that fdinfo prints for a watch
(fs/notify/fdinfo.c, show_mark_fhandle) and the mount id, whose superblock device is fdinfo's sdev:
a complete identity in one call. If the kernel or the filesystem does not support this, a plain
handle is compared, or (device, inode number).
"""

from __future__ import annotations

import errno
import os

from irmapdb.kernel import syscalls
from irmapdb.kernel.syscalls import AT_EMPTY_PATH, AT_HANDLE_FID, Descriptor
from irmapdb.kernel.uniqueness import may_be_another
from irmapdb.model import Identity, StaleReason, is_canonical, kdev_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.root import Root
    from irmapdb.model import Mount

__all__ = [
    "disproof",
    "disproof_of_fd",
    "disproof_of_watch",
    "identify",
    "identify_fd",
    "mount_id",
]

# EINVAL: AT_HANDLE_FID is from Linux 6.5. EOPNOTSUPP: a filesystem that can encode handles but not
# decode them (overlayfs, procfs) refuses only without the flag, others always.
_NO_SUCH_HANDLE = {errno.EINVAL, errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS}


def identify_fd(root: Root, fd: int) -> Identity:
    """The identity of an open descriptor, O_PATH or not. OSError as the calls below it."""
    for flag in (AT_HANDLE_FID, 0):
        try:
            handle, mnt_id = syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH | flag)
        except OSError as error:
            if error.errno not in _NO_SUCH_HANDLE:
                raise
            continue
        mount = root.mount_by_id(mnt_id)
        if mount is None:
            break
        return Identity(mount.kdev, os.fstat(fd).st_ino, handle)
    else:
        handle = None
    known = syscalls.statx(fd)
    mount = root.mount_by_id(mount_id(fd) if known.mnt_id is None else known.mnt_id)
    # The mount is not in the table (a file that was opened in another namespace). The device of
    # stat is right except on btrfs and some overlays, and there it matches nothing.
    return Identity(known.st_kdev if mount is None else mount.kdev, known.ino, handle)


def mount_id(fd: int) -> int:
    """The mount that an open descriptor is on, without asking its filesystem; -1: not known.

    Before Linux 5.8 statx(2) does not tell; fdinfo does since 3.15.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as fdinfo:
        for line in fdinfo:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return -1


def identify(root: Root, path: bytes) -> Identity:
    """The identity of the file at an absolute path now; a link in the last part is not followed.

    OSError: ENOENT, ENOTDIR, ELOOP (a link on the way), EACCES; ValueError: a NUL byte.
    """
    with Descriptor(root.open(path)) as fd:
        return identify_fd(root, fd)


def disproof(
    root: Root,
    wanted: Identity,
    path: bytes,
) -> StaleReason | None:
    """Why `path` is not the inode that is wanted; None if it is.

    A path on another device is refused by its name. It is looked up for the reason only if no
    mount on its way may block.
    """
    if not is_canonical(path):
        return StaleReason.BAD_PATH
    root.renew()
    mount = root.mounts.of_path(path)
    if mount is not None and mount.kdev != wanted.kdev:
        replaced = _is_mounted(root, wanted) and _is_a_file(root, path)
        return StaleReason.REPLACED if replaced else StaleReason.UNMOUNTED
    try:
        with Descriptor(root.open(path)) as fd:
            return disproof_of_fd(root, wanted, fd)
    except OSError as error:
        return _unreadable(error)


def disproof_of_watch(
    root: Root,
    watched: Identity,
    path: bytes,
) -> StaleReason | None:
    """The same for the identity of a watch: a number alone is no proof if there are handles.

    fdinfo shows the handle of each watch that has one. A directory of an overlay with nfs_export
    has none while its dentry is dropped (ovl_dentry_to_fid() of fs/overlayfs/export.c), and its
    number may be another one's too, where the layers are subvolumes of one btrfs. A lookup makes
    the kernel show the handle again.
    """
    reason = disproof(root, watched, path)
    if reason is not None or watched.handle is not None:
        return reason
    try:
        found = identify(root, path)
    except OSError as error:
        return _unreadable(error)
    return None if found.handle is None else StaleReason.REUSED


def disproof_of_fd(root: Root, wanted: Identity, fd: int) -> StaleReason | None:
    """`disproof` of an open descriptor, O_PATH or not. OSError as `identify_fd`."""
    mount = _mount_by_handle(root, wanted, fd)
    if mount is not None:
        return StaleReason.AMBIGUOUS if may_be_another(root, mount, wanted, fd) else None
    found = identify_fd(root, fd)
    if found.matches(wanted):
        by_handle = found.handle is not None and wanted.handle is not None
        # A number alone counts only if it is the superblock's own. overlayfs gives no own numbers
        # to files of layers on several filesystems.
        if not by_handle and _st_kdev(fd) != found.kdev:
            return StaleReason.REUSED
        mount = root.mount_by_id(mount_id(fd))
        if mount is not None and may_be_another(root, mount, wanted, fd):
            return StaleReason.AMBIGUOUS
        return None
    if found.kdev != wanted.kdev and not _is_mounted(root, wanted):
        return StaleReason.UNMOUNTED
    reused = (found.kdev, found.ino) == wanted.key
    return StaleReason.REUSED if reused else StaleReason.REPLACED


def _mount_by_handle(root: Root, wanted: Identity, fd: int) -> Mount | None:
    # Nearly every proof ends here, in one call: on this mount it has the wanted handle.
    # None: not decided yet.
    try:
        handle, mnt_id = syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH | AT_HANDLE_FID)
    except OSError:
        return None
    if handle != wanted.handle:
        return None
    mount = root.mount_by_id(mnt_id)
    return mount if mount is not None and mount.kdev == wanted.kdev else None


def _st_kdev(fd: int) -> int:
    st_dev = os.fstat(fd).st_dev
    return kdev_of(os.major(st_dev), os.minor(st_dev))


def _is_mounted(root: Root, wanted: Identity) -> bool:
    return any(mount.kdev == wanted.kdev for mount in root.mounts.all)


def _is_a_file(root: Root, path: bytes) -> bool:
    # Hidden by a present mount. A path that may not be looked up is not known to be anything.
    if root.blocking_kinds_to(path):
        return False
    try:
        os.close(root.open(path))
    except OSError:
        return False
    return True


def _unreadable(error: OSError) -> StaleReason:
    match error.errno:
        case errno.ELOOP:
            return StaleReason.SYMLINK
        case errno.ENOENT | errno.ENOTDIR | errno.ESTALE:
            return StaleReason.GONE
        case errno.ENAMETOOLONG | errno.EINVAL:
            return StaleReason.BAD_PATH
        case _:
            return StaleReason.UNREACHABLE  # denied, or the look itself failed (EIO, EMFILE)
