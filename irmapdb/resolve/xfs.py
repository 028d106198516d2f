"""Finds paths by the parent pointers of xfs."""

from __future__ import annotations

from irmapdb.kernel.fs import xfs
from irmapdb.model import Source
from irmapdb.resolve.mount_fds import MountLookup
from irmapdb.resolve.prefetch import ask_all, asked
from irmapdb.resolve.reverse_lookup import ReverseLookup, by_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.resolve.engine import Answer, Wanted

__all__ = ["XfsParents"]


class XfsParents(MountLookup):
    """Every path of an inode on an xfs with parent pointers. Needs CAP_SYS_ADMIN."""

    source = Source.XFS

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        for kdev, identities in by_device(self._root, wanted, "xfs").items():
            batch, notes = asked(identities, xfs.inode_of)
            yield from notes
            with ReverseLookup(
                self._root, self._mount_fds, kdev, xfs.inode_of, xfs.parents
            ) as upward:
                yield from ask_all(self._root, batch, upward.paths, self._over)
