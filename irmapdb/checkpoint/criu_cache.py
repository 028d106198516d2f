"""Chooses the entries of irmap-cache: those that CRIU will find and accept.

CRIU's criu/irmap.c keeps the entries in 32 buckets by (device + inode number), puts each in front
of those that it loaded before, and accepts the first entry of an inode whose path has the same
numbers by `fstatat(root, path + 1, AT_SYMLINK_NOFOLLOW)`. It compares no handle, so

- CRIU never accepts a path whose `st_dev` is not the watch's device: every path on btrfs, and files
  of an overlay with layers on several filesystems;
- if two watched inodes have one (device, inode number), CRIU would use the entry of one for the
  other: no entry is better than a wrong path;
- on an overlay another inode may have the same number, so a watch without a handle gets no entry
  there; CRIU cannot read such a watch in fdinfo anyway;
- `/` is looked up as the empty path and not found; `/.` is.

Paths that are left out here stay in the database.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter

from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import CacheEntry, kdev_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, InodeKey
    from irmapdb.resolve.engine import Resolution

__all__ = ["cache_entries", "has_the_numbers", "is_unopenable", "spell_root"]

# Filesystems whose getattr gives another device or number than that of the superblock and the
# inode: btrfs_getattr() and ovl_getattr() of the kernel's fs/.
_OWN_NUMBERS = frozenset({"btrfs", "overlay"})

# No handle can be opened there (no fh_to_dentry in their export_operations), so CRIU asks its cache
# for every watch. Elsewhere it asks only for watches whose name the kernel has not cached.
_UNOPENABLE = frozenset(
    {
        *("binfmt_misc", "bpf", "debugfs", "devpts", "fusectl", "hugetlbfs", "mqueue", "overlay"),
        *("proc", "pstore", "ramfs", "securityfs", "sysfs", "tracefs"),
    }
)

_PATH_MAX = 4096
_ROOT, _ROOT_FOR_CRIU = b"/", b"/."


def spell_root(outcome: Resolution) -> None:
    """Give the root directory the second name by which CRIU finds it."""
    for identity, answer in outcome.resolved.items():
        names = (answer.path, *answer.other_paths)
        if _ROOT in names and _ROOT_FOR_CRIU not in names:
            others = (*answer.other_paths, _ROOT_FOR_CRIU)
            outcome.resolved[identity] = answer._replace(other_paths=others)


def cache_entries(
    outcome: Resolution,
    watched: Iterable[Identity],
    root: Root,
) -> list[CacheEntry]:
    """The entries that CRIU may look up: every name of a watched inode that CRIU will accept.

    `watched` has an identity for each watch. CRIU begins at the end. So the further names come
    first, because they are needed only if the best name is gone. The best names follow, and at the
    end those that are asked for most. If reading the numbers of a path may block, there is no
    entry.
    """
    counts = Counter(watched)
    ambiguous = _ambiguous(counts)
    fstypes = {mount.kdev: mount.fstype for mount in root.mounts.all}
    further: list[CacheEntry] = []
    best: dict[tuple[bool, int], list[CacheEntry]] = {}
    for identity, count in counts.items():
        answer = outcome.resolved.get(identity)
        key = identity.key
        if answer is None or answer.mntns or key in ambiguous:
            continue
        names = [path for path in (answer.path, *answer.other_paths) if _can_be_looked_up(path)]
        fstype = fstypes.get(identity.kdev)
        if fstype == "overlay" and identity.handle is None:
            continue
        if fstype is None or fstype in _OWN_NUMBERS:
            blocks = root.may_block(identity.kdev)
            names = [path for path in names if not blocks and has_the_numbers(root, identity, path)]
        if names:
            first, *rest = names
            best.setdefault((fstype in _UNOPENABLE, count), []).append(CacheEntry(*key, first))
            further += (CacheEntry(*key, path) for path in reversed(rest))
    return [*further, *itertools.chain.from_iterable(best[rank] for rank in sorted(best))]


def is_unopenable(root: Root, identity: Identity) -> bool:
    """Whether CRIU cannot open a handle there, so that a dump fails without an entry.

    It uses only the type of the filesystem: an overlay with `nfs_export=on` counts as unopenable.
    """
    return any(mount.fstype in _UNOPENABLE for mount in root.mounts.of_device(identity.kdev))


def _ambiguous(identities: Iterable[Identity]) -> set[InodeKey]:
    # Identities that differ only in the handle.
    counts = Counter(identity.key for identity in identities)
    return {key for key, count in counts.items() if count > 1}


def _can_be_looked_up(path: bytes) -> bool:
    return path != _ROOT and len(path) <= _PATH_MAX  # CRIU takes the slash off; a NUL is added


def has_the_numbers(root: Root, identity: Identity, path: bytes) -> bool:
    """Whether the path has the device and inode number of the watch, which CRIU compares."""
    try:
        fd = root.open(path)
    except OSError:
        return False  # gone since its proof
    with Descriptor(fd):
        status = os.fstat(fd)
    kdev = kdev_of(os.major(status.st_dev), os.minor(status.st_dev))
    return (kdev, status.st_ino) == identity.key
