"""Finds the filesystems of overlay layers among the mounts of our own mount namespace.

A handle inside an overlay's handle is opened through them. Their UUIDs identify them:
FS_IOC_GETFSUUID (Linux 6.9, include/uapi/linux/fs.h) gives the UUID of an open directory, and the
overlay stores it in front of the handle (struct ovl_fb of fs/overlayfs/overlayfs.h).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import procfs
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import kdev_of
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle, Mount

__all__ = ["LAYER_TYPES", "NO_UUID", "OwnMounts"]

NO_UUID = bytes(16)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK

# struct fsuuid2: u8 len, u8 uuid[16]. _IOR(0x15, 0, struct fsuuid2).
_FS_IOC_GETFSUUID = 0x80111500
_FSUUID_BYTES = 17
_WITHOUT_UUID = frozenset({"iso9660", "ramfs", "rootfs", "squashfs", "udf"})
# struct btrfs_ioctl_fs_info_args: u64 max_id, u64 num_devices, u8 fsid[16], … (linux/btrfs.h).
_BTRFS_IOC_FS_INFO = 0x8400941F
_FS_INFO_BYTES = 1024

LAYER_TYPES = frozenset(
    {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs"}
    | {"ntfs3", "ramfs", "rootfs", "squashfs", "tmpfs", "udf", "vfat", "xfs"}
)
"""The types of layer filesystems whose handles can be opened, without those that have a server."""

# Each lists its superblocks, those too that are mounted nowhere any more, by their block device.
_LISTED = ("ext4", "xfs", "erofs", "f2fs")

_MOST_HELD_OPEN = 64


class _Found(Record):
    """One superblock, and its UUID from FS_IOC_GETFSUUID."""

    mount: Mount
    uuid: bytes | None
    """None: this kernel does not give it."""


class OwnMounts:
    """The superblocks of our own mount namespace. Opened at the first use; closed by `close`.

    It opens only directories of mount points in our own namespace, none of a tenant's.
    """

    def __init__(self, open_own_root: Callable[[], Root]) -> None:
        self._open_own_root = open_own_root
        self._root: Root | None = None
        self._generation = -1
        self._found: dict[int, _Found] = {}
        self._open: dict[int, int] = {}
        self._only_kept = False
        self._complete = False
        self._named: dict[tuple[bytes, int], Mount | None] = {}
        self._named_generation = -1

    def close(self) -> None:
        """Close all directories: until then their mounts cannot be unmounted."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root is not None:
            self._root.__exit__()
            self._root = None
        self._generation = -1

    @contextlib.contextmanager
    def only_kept(self) -> Iterator[None]:
        """Inside, no directory is opened: superblocks that were not read before stay unknown."""
        before, self._only_kept = self._only_kept, True
        try:
            yield
        finally:
            self._only_kept = before

    @property
    def root(self) -> Root:
        """Our own root, with the mounts as they are now."""
        if self._root is None:
            self._root = self._open_own_root()
        root = self._root
        root.renew()
        return root

    def with_uuid(self, uuid: bytes | None) -> dict[int, Mount] | None:
        """A mount of each superblock of that UUID by its device; None if that is not known.

        All superblocks if `uuid` is None; those without a UUID if it is NO_UUID. Known means that
        this machine has no other superblock of that UUID, visible or not.
        """
        self._renew()
        if not self._is_complete(no_uuid=uuid in {None, NO_UUID}):
            return None
        return {
            kdev: one.mount
            for kdev, one in self._found.items()
            if uuid is None or one.uuid in {uuid, None}
        }

    def candidates(self, uuid: bytes) -> list[int]:
        """The devices that may have that UUID, as far as they can be seen.

        All of them for NO_UUID, which an overlay with uuid=off has of each.
        """
        self._renew()
        return [kdev for kdev, one in self._found.items() if one.uuid in {uuid, None}] + (
            [kdev for kdev, one in self._found.items() if one.uuid not in {uuid, None}]
            if uuid == NO_UUID
            else []
        )

    @property
    def may_open(self) -> bool:
        """Whether directories may be opened now."""
        return not self._only_kept

    def keep(self) -> None:
        """Open the directories that may be needed while no directory may be opened."""
        self._renew()
        for kdev in self._found:
            with contextlib.suppress(OSError):
                self.descriptor(kdev)

    def uuid_of(self, kdev: int) -> bytes | None:
        """The UUID of one; None if this kernel does not give it, or it is not mounted here."""
        self._renew()
        found = self._found.get(kdev)
        return None if found is None else found.uuid

    def mount_at(self, name: bytes) -> Mount | None:
        """The mount of a directory. Links on the way are followed.

        None if there is none, or if the name is relative, because its start is not known any more.
        """
        return self.layer_at(name, 0, lambda _fd: True)

    def layer_at(self, name: bytes, mnt_id: int, is_layer: Callable[[int], bool]) -> Mount | None:
        """The same for a directory that is a layer of the overlay with this mount id.

        `is_layer` is asked about an O_PATH descriptor of it, once as long as nothing is mounted.
        """
        root = self.root
        if self._named_generation != root.mountinfo.generation:
            self._named.clear()
            self._named_generation = root.mountinfo.generation
        if (name, mnt_id) not in self._named:
            if mnt_id and self._only_kept:
                return None
            self._named[name, mnt_id] = _mount_at(root, name, is_layer)
        return self._named[name, mnt_id]

    def open_handle(self, kdev: int, handle: FileHandle) -> int:
        """An O_PATH descriptor of the file with this handle; the caller closes it.

        ESTALE: it knows no such inode. EPERM: needs CAP_DAC_READ_SEARCH. EAGAIN: it is not open,
        and nothing may be opened now.
        """
        return syscalls.open_by_handle_at(self.descriptor(kdev), handle, os.O_PATH)

    def descriptor(self, kdev: int) -> int:
        """A descriptor of a directory on a superblock, kept open: the caller must not close it."""
        fd = self._open.get(kdev)
        if fd is None:
            if self._only_kept or len(self._open) >= _MOST_HELD_OPEN:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            found = self._found.get(kdev)
            if found is None:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            fd = self._open[kdev] = self.root.open(found.mount.mountpoint, _DIRECTORY)
        return fd

    def _renew(self) -> None:
        root = self.root
        if self._generation == root.mountinfo.generation or self._only_kept:
            return
        self._generation = root.mountinfo.generation
        self._complete = False
        before, self._found = self._found, {}
        mounts = (one for one in root.mounts.by_mountpoint.values() if one.fstype in LAYER_TYPES)
        for mount in sorted(mounts, key=lambda one: len(one.root)):
            if mount.kdev not in self._found:
                known = before.get(mount.kdev)
                found = known if known and known.mount == mount else _look(root, mount)
                if found is not None:
                    self._found[mount.kdev] = found
        for kdev in self._open.keys() - self._found.keys():
            os.close(self._open.pop(kdev))

    def _is_complete(self, *, no_uuid: bool) -> bool:
        # A superblock lives on after `umount -l` while it is a layer of an overlay.
        if not self._complete:
            self._complete = all(kdev in self._found for kdev in _listed_devices())
        return self._complete and (
            not no_uuid or all(kdev in self._found for kdev in _attached_loop_devices())
        )


def _look(root: Root, mount: Mount) -> _Found | None:
    try:
        fd = root.open(mount.mountpoint, _DIRECTORY)
    except OSError:
        return None  # a file that is a mount point
    with Descriptor(fd):
        return _Found(mount, _uuid_of(fd, mount.fstype))


def _mount_at(root: Root, name: bytes, is_layer: Callable[[int], bool]) -> Mount | None:
    if not name.startswith(b"/"):
        return None
    try:
        with Descriptor(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            mnt_id = syscalls.statx(fd).mnt_id if is_layer(fd) else None
    except (OSError, ValueError):
        return None
    return None if mnt_id is None else root.mount_by_id(mnt_id)


def _uuid_of(fd: int, fstype: str) -> bytes | None:
    if fstype == "btrfs":
        return _btrfs_uuid(fd)
    answer = bytearray(_FSUUID_BYTES)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
    except OSError:
        # ENOTTY also where it has one, and does not say how long that is.
        return NO_UUID if fstype in _WITHOUT_UUID else None
    return bytes(answer[1:])


def _btrfs_uuid(fd: int) -> bytes | None:
    answer = bytearray(_FS_INFO_BYTES)
    try:
        fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, answer)
    except OSError:
        return None
    return bytes(answer[16:32])


def _listed_devices() -> Iterator[int]:
    for fstype in _LISTED:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/sys/fs/{fstype}"):
                yield from _device(name)


def _attached_loop_devices() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for name in os.listdir("/sys/block"):
            if os.path.exists(f"/sys/block/{name}/loop/backing_file"):
                yield from _device(name)


def _device(name: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        major, minor = procfs.read_file(f"/sys/class/block/{name}/dev").split(b":")
        yield kdev_of(int(major), int(minor))
