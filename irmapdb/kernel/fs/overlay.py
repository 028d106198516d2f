"""Reads overlay handles and layers, and decides whether such a handle belongs to one inode only.

fdinfo's handle of an overlay inode (type 0xf8) holds the handle of the inode in its layer and the
UUID of the layer's filesystem. An overlay inode belongs to one inode of a layer, its key in the
table of live inodes (ovl_get_inode() of fs/overlayfs/inode.c). So the handle belongs to one inode
only

- in the upper layer: there is only one, on a filesystem without a server (ovl_mount_dir());
- if there is one lower layer;
- if its number is unique by construction: all layers are on one filesystem, or the number contains
  the layer (xino). stat(2) then shows a file on the overlay's own device;
- if the wrapped handle opens on exactly one of the possible filesystems of a layer; or if it opens
  only directories, and these have the overlay's own numbers.

It does not for a file with several names in a lower layer, without index. Each name is an inode of
its own there, because the first write separates them, and all have the handle of the lower inode
(ovl_hash_bylower() of inode.c, ovl_dentry_to_fid() of export.c). After copy-up, the name has a file
of its own, with another number and the old handle.

An overlay on an overlay has no such handle: only a number, and the lower overlay may give that
number twice.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from functools import lru_cache

from irmapdb.kernel.fs.overlay_layers import shows
from irmapdb.kernel.fs.own_mounts import LAYER_TYPES, NO_UUID
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import FileHandle, kdev_of
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.fs.own_mounts import OwnMounts
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Mount

__all__ = ["Layers", "Wrapped", "is_unique", "layers_of", "unwrap", "unwrap_origin"]

# struct ovl_fh: padding, then struct ovl_fb: version, magic, len, flags, type, uuid; the handle of
# the file in its layer follows.
_OVERLAY_HANDLE = 0xF8  # OVL_FILEID_V1
_OVERLAY_HEAD = struct.Struct("=3xBBBBB16s")
_OF_UPPER_LAYER = 0x04  # OVL_FH_FLAG_PATH_UPPER

# FILEID_INO32_GEN, and the same with parent: no filesystem with a server uses them.
_NUMBER_AND_GENERATION = frozenset({0x01, 0x02})
_BTRFS_HANDLES = frozenset({0x4D, 0x4E, 0x4F})


class Wrapped(Record):
    """The content of an overlay's handle."""

    upper: bool
    uuid: bytes
    """The UUID of the layer's filesystem; null if it has none, or the overlay has uuid=null."""
    handle: FileHandle


class Layers(Record):
    """The layers in an overlay's mount options."""

    lower: tuple[bytes, ...]
    """The lower layers' directories as given to mount, the topmost first. Data-only layers
    (metacopy) are not in it: no handle comes from them."""
    upper: bytes | None
    parts_links: bool
    """Whether the first write separates the links of a file in a lower layer."""
    has_uuids: bool
    """Whether its handles have the UUIDs of the layers' filesystems (not with uuid=off)."""


def unwrap(handle: FileHandle | None) -> Wrapped | None:
    """The handle within an overlay's handle; None for any other handle."""
    if handle is None or handle.type != _OVERLAY_HANDLE or len(handle.data) < _OVERLAY_HEAD.size:
        return None
    _, _, _, flags, kind, uuid = _OVERLAY_HEAD.unpack_from(handle.data)
    inner = FileHandle(kind, handle.data[_OVERLAY_HEAD.size :])
    return Wrapped(bool(flags & _OF_UPPER_LAYER), uuid, inner)


def unwrap_origin(attribute: bytes) -> Wrapped | None:
    """The same of an `overlay.origin` attribute: struct ovl_fb, without padding in front."""
    padding = bytes(3)
    return unwrap(FileHandle(_OVERLAY_HANDLE, padding + attribute))


def is_unique(root: Root, mount: Mount, wanted: Identity, fd: int) -> bool:
    """Whether `fd`, on an overlay in `root`, is surely the inode of the wanted handle."""
    superblocks = root.superblocks
    wrapped = unwrap(wanted.handle)
    if wrapped is not None and wrapped.upper:
        return True
    layers = layers_of(mount.super_options)
    known = os.fstat(fd)
    directory = stat.S_ISDIR(known.st_mode)
    renumbered = known.st_ino != wanted.ino
    if layers.parts_links and not directory and (renumbered or known.st_nlink > 1):
        return False
    if wrapped is None:
        return not renumbered and _has_own_numbers(superblocks, mount, layers, known, wanted)
    if len(layers.lower) == 1:
        return _nobody_serves(superblocks, wrapped, layers)
    if not directory and _kdev(known) == mount.kdev:
        return not renumbered
    return _is_in_one_layer(root, mount, wrapped, known, wanted)


def _kdev(status: os.stat_result) -> int:
    return kdev_of(os.major(status.st_dev), os.minor(status.st_dev))


def _has_own_numbers(
    superblocks: OwnMounts, mount: Mount, layers: Layers, known: os.stat_result, wanted: Identity
) -> bool:
    # Whether the number alone is an identity: before Linux 6.6 an overlay has no handles.
    unified = _kdev(known) == mount.kdev and not stat.S_ISDIR(known.st_mode)
    if unified and wanted.handle is None:
        return True
    below = _mounts_of(superblocks, layers, with_upper=True)
    if below is None or not all(_counts_once(superblocks, one) for one in below.values()):
        return False
    return unified or len(below) == 1


def _counts_once(superblocks: OwnMounts, mount: Mount) -> bool:
    # Whether a layer there has each number only once. An overlay can have one twice, from several
    # filesystems.
    if mount.fstype != "overlay":
        return mount.fstype in LAYER_TYPES
    below = _mounts_of(superblocks, layers_of(mount.super_options), with_upper=True) or {}
    return len(below) == 1 and all(one.fstype in LAYER_TYPES for one in below.values())


def _nobody_serves(superblocks: OwnMounts, wrapped: Wrapped, layers: Layers) -> bool:
    # FUSE and network filesystems have no UUID, and handles of other types.
    if wrapped.uuid != NO_UUID or wrapped.handle.type in _NUMBER_AND_GENERATION | _BTRFS_HANDLES:
        return True
    below = _mounts_of(superblocks, layers)
    return below is not None and all(one.fstype in LAYER_TYPES for one in below.values())


def _is_in_one_layer(
    root: Root, mount: Mount, wrapped: Wrapped, known: os.stat_result, wanted: Identity
) -> bool:
    superblocks, layers = root.superblocks, layers_of(mount.super_options)
    if wrapped.uuid != NO_UUID and wrapped.handle.type in _BTRFS_HANDLES:
        return True  # no two btrfs that are mounted have one UUID (fs/btrfs/volumes.c)
    found = superblocks.with_uuid(wrapped.uuid if layers.has_uuids else None)
    if found is None:
        # We cannot see every superblock: then the names must lead to one that we can see.
        return _is_on_the_one(superblocks, wrapped, _mounts_of(superblocks, layers))
    if wrapped.uuid == NO_UUID:
        # Any filesystem without a UUID may know a low number: only those of the layers count.
        named = _layers_that_show(root, mount, layers)
        if named is not None:
            found = {kdev: one for kdev, one in found.items() if kdev in named}
        elif wrapped.handle.type not in _NUMBER_AND_GENERATION:
            return False
    if len(found) == 1:
        return True
    try:
        opened = [mode for kdev in found if (mode := _mode_of(superblocks, kdev, wrapped.handle))]
    except OSError:
        return False
    directories = all(map(stat.S_ISDIR, [*opened, known.st_mode]))
    return len(opened) == 1 or (len(opened) > 1 and directories and known.st_ino == wanted.ino)


def _layers_that_show(root: Root, mount: Mount, layers: Layers) -> set[int] | None:
    # The devices of the layers; None if a name may not lead to its layer any more.
    top = next((one for one in root.mounts.of_device(mount.kdev) if one.root == b"/"), None)
    if top is None:
        return None

    def inner(handle: FileHandle) -> FileHandle | None:
        wrapped = unwrap(handle)
        return None if wrapped is None else wrapped.handle

    def is_layer(layer_fd: int) -> bool:
        with Descriptor(root.open(top.mountpoint)) as overlay_fd:
            return shows(overlay_fd, layer_fd, inner)

    found = set()
    for name in layers.lower:
        one = root.superblocks.layer_at(name, mount.mnt_id, is_layer)
        if one is None or one.fstype not in LAYER_TYPES:
            return None
        found.add(one.kdev)
    return found


def _is_on_the_one(
    superblocks: OwnMounts, wrapped: Wrapped, named: dict[int, Mount] | None
) -> bool:
    if named is None or len(named) != 1 or wrapped.uuid == NO_UUID:
        return False
    (kdev,) = named
    try:
        return superblocks.uuid_of(kdev) == wrapped.uuid and bool(
            _mode_of(superblocks, kdev, wrapped.handle)
        )
    except OSError:
        return False


def _mode_of(superblocks: OwnMounts, kdev: int, handle: FileHandle) -> int:
    # 0: it knows no such inode.
    try:
        fd = superblocks.open_handle(kdev, handle)
    except OSError as error:
        if error.errno in {errno.ESTALE, errno.EOPNOTSUPP}:
            return 0
        raise
    with Descriptor(fd):
        return os.fstat(fd).st_mode


def _mounts_of(
    superblocks: OwnMounts, layers: Layers, *, with_upper: bool = False
) -> dict[int, Mount] | None:
    # By device; None if a layer's name does not exist in our own mount namespace.
    found = {}
    names = layers.lower
    if with_upper and layers.upper is not None:
        names = (*names, layers.upper)
    for name in names:
        mount = superblocks.mount_at(name)
        if mount is None:
            return None
        found[mount.kdev] = mount
    return found


_OCTAL = rb"\\([0-7]{3})"
_ESCAPED = rb"(?s)\\(.)"
_LAYER_NAME = rb"(?s)(?:\\.|[^:\\])*\\?"


@lru_cache(maxsize=64)
def layers_of(super_options: bytes) -> Layers:
    """The layers in a mount's options, as mountinfo shows them (`Mount.super_options`).

    ovl_parse_param_lowerdir() and ovl_show_options() of fs/overlayfs/params.c: `lowerdir` is shown
    as given to mount, with a backslash before each colon or backslash of a name, and two colons
    before a data-only layer. Each `lowerdir+` is one name. Separators of options are in octal.
    """
    lower: list[bytes] = []
    upper = index = None
    has_uuids = True
    for option in super_options.split(b","):
        name, _, shown = option.partition(b"=")
        value = shown
        if b"\\" in shown:
            import re  # noqa: PLC0415 the hook needs it seldom

            value = re.sub(_OCTAL, lambda match: bytes([int(match[1], 8) & 0xFF]), shown)
        if name == b"lowerdir":
            lower += _names(value)
        elif name == b"lowerdir+":
            lower.append(value)
        elif name == b"upperdir":
            upper = value
        elif name == b"index":
            index = value == b"on"
        elif name == b"uuid":
            has_uuids = value != b"off"
    has_index = _has_index() if index is None else index
    # No table has the options of the filesystem below a chroot.
    parts_links = not lower or (upper is not None and not has_index)
    return Layers(tuple(lower), upper, parts_links, has_uuids)


def _names(value: bytes) -> list[bytes]:
    if b"\\" not in value:
        return value.partition(b"::")[0].split(b":")
    import re  # noqa: PLC0415

    names, start, name = [], 0, re.compile(_LAYER_NAME)
    while True:
        found = name.match(value, start)
        end = len(value) if found is None else found.end()
        names.append(re.sub(_ESCAPED, rb"\1", value[start:end]))
        if end == len(value) or value.startswith(b"::", end):
            return names
        start = end + 1


def _has_index() -> bool:
    # Shown if it differs from the module's default (ovl_show_options()).
    try:
        with open("/sys/module/overlay/parameters/index", "rb") as parameter:
            return parameter.read(1) == b"Y"
    except OSError:
        return False
