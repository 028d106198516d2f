"""Finds files that have no name any more but are still a mount point.

A bind-mounted file or directory stays mounted when its last name is removed. An example is the
/etc/hosts of a container after the host has replaced the file. No handle, link or directory leads
to it any more, so this module checks the roots of the mounts.
"""

from __future__ import annotations

from irmapdb.kernel import proof
from irmapdb.resolve.engine import Candidate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle, Identity

__all__ = ["at_mount_points"]


def at_mount_points(root: Root, wanted: Sequence[Identity]) -> Iterator[Candidate]:
    """The mount points whose root is a wanted inode of one device."""
    alike: dict[FileHandle | int | None, list[Identity]] = {}
    for identity in wanted:
        for sign in (identity.handle, identity.ino):
            alike.setdefault(sign, []).append(identity)
    for mount in root.mounts.of_device(wanted[0].kdev) if wanted else ():
        try:
            found = proof.identify(root, mount.mountpoint)
        except OSError:
            continue
        for identity in dict.fromkeys((*alike.get(found.handle, ()), *alike.get(found.ino, ()))):
            if found.matches(identity):
                yield Candidate(identity, mount.mountpoint)
