"""What has no name left but a mount point.

A file or directory that is bound somewhere stays there when its last name is removed: with the
/etc/hosts of a container, say, whose file the host has replaced. No handle, link or directory
leads to it any more; to look at the roots of the mounts does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irmapdb.engine import Candidate
from irmapdb.kernel import identity as kernel_identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle, Identity

__all__ = ["at_mount_points"]


def at_mount_points(root: Root, kdev: int, wanted: Iterable[Identity]) -> Iterator[Candidate]:
    """The mount points of a device that are what is wanted of it themselves."""
    by_sign: dict[FileHandle | int | None, list[Identity]] = {}
    for identity in wanted:
        if identity.kdev == kdev:
            for sign in (identity.handle, identity.ino):
                by_sign.setdefault(sign, []).append(identity)
    for mount in root.mounts_of(kdev) if by_sign else ():
        try:
            found = kernel_identity.identify(root, mount.mountpoint)
        except OSError:
            continue
        alike = (*by_sign.get(found.handle, ()), *by_sign.get(found.ino, ()))
        for identity in dict.fromkeys(alike):
            if found.matches(identity):
                yield Candidate(identity, mount.mountpoint)
