"""Finds paths by the back references of btrfs."""

from __future__ import annotations

import errno
import itertools
import os

from irmapdb.kernel import proof
from irmapdb.kernel.fs import btrfs
from irmapdb.model import Source
from irmapdb.record import Record
from irmapdb.resolve.mount_fds import MountLookup
from irmapdb.resolve.prefetch import ask_all, asked
from irmapdb.resolve.reverse_lookup import ReverseLookup, by_device, shows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from irmapdb.kernel.root import Root
    from irmapdb.model import Mount
    from irmapdb.resolve.engine import Answer, Wanted
    from irmapdb.resolve.mount_fds import MountFds

__all__ = ["BtrfsLookup"]


class BtrfsLookup(MountLookup):
    """Every path of an inode on btrfs, in any subvolume.

    Needs CAP_SYS_ADMIN. With only CAP_DAC_READ_SEARCH it looks only into mounted subvolumes, and
    finds only as many paths as INO_PATHS has room for.
    """

    source = Source.BTRFS

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        for kdev, identities in by_device(self._root, wanted, "btrfs").items():
            batch, notes = asked(identities, btrfs.inode_of)
            yield from notes
            with ReverseLookup(
                self._root, self._mount_fds, kdev, btrfs.inode_of, btrfs.names
            ) as upward:
                for tree, members in itertools.groupby(batch, key=lambda one: one[0].tree):
                    with _Subvolume(self._root, self._mount_fds, upward, tree) as subvolume:
                        yield from ask_all(self._root, list(members), subvolume.paths, self._over)


class _View(Record):
    """A place where a part of a subvolume can be seen."""

    prefix: bytes
    """The prefix of the visible paths in the subvolume, with a slash at its end; b"" for all."""
    at: bytes
    mount: Mount


class _Subvolume:
    """One subvolume and all places that show it. A context manager that keeps it open."""

    def __init__(
        self, root: Root, mount_fds: MountFds, upward: ReverseLookup[btrfs.Inode], tree: int
    ) -> None:
        self._root = root
        self._mount_fds = mount_fds
        self._upward = upward
        self._views: list[_View] = []
        self._fd: int | None = None
        self._denied = False
        try:
            for path in self._root_paths(tree):
                self._add_view(tree, btrfs.ROOT_INO, path)
            for top, mounts in upward.tops.items():
                if top.tree == tree and top.ino != btrfs.ROOT_INO:
                    for mount in mounts:
                        self._add_view(tree, top.ino, mount.mountpoint)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _root_paths(self, tree: int) -> list[bytes]:
        top = btrfs.Inode(tree, btrfs.ROOT_INO)
        try:
            return list(self._upward.paths(top))
        except OSError as error:
            # Deleted, or we may not ask for its place; a mount may still show it.
            self._denied = isinstance(error, PermissionError)
            return [mount.mountpoint for mount in self._upward.tops.get(top, ())]

    def _add_view(self, tree: int, ino: int, at: bytes) -> None:
        mount = self._root.mounts.of_path(at)
        if mount is None:
            return
        try:
            fd = self._fd if self._fd is not None else self._open(tree, at)
            prefix = b""
            if ino != btrfs.ROOT_INO:
                prefix = b"".join(btrfs.inode_paths(fd, ino).paths[:1]) + b"/"
        except OSError:
            return
        self._views.append(_View(prefix, at, mount))

    def _open(self, tree: int, at: bytes) -> int:
        fd = self._mount_fds.open(at)
        try:
            handle = proof.identify_fd(self._root, fd).handle
        except OSError:
            os.close(fd)
            raise
        inode = btrfs.inode_of(handle) if handle else None
        if inode is None or inode.tree != tree:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), at)
        self._fd = fd
        return fd

    def paths(self, inode: btrfs.Inode) -> Iterator[bytes]:
        """Every path of an inode of this subvolume. OSError as Upward.paths."""
        try:
            answer = self._ask(inode.ino)
        except PermissionError:
            answer = None
        if answer is None or answer.missed:
            try:
                yield from self._upward.paths(inode)
            except PermissionError:
                # An incomplete list is better than none.
                if answer is None:
                    raise
            else:
                return
        elif not answer.paths:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        seen = False
        for path in answer.paths:
            for found in self._seen(path):
                seen = True
                yield found
        if self._denied and not seen:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def _ask(self, ino: int) -> btrfs.InodePaths | None:
        # None: there is no directory of this subvolume to ask through.
        return None if self._fd is None else btrfs.inode_paths(self._fd, ino)

    def _seen(self, path: bytes) -> Iterator[bytes]:
        below = path + b"/"
        for view in self._views:
            if below.startswith(view.prefix):
                rest = below[len(view.prefix) : -1]
                found = b"%b/%b" % (view.at.rstrip(b"/"), rest) if rest else view.at
                if shows(self._root, view.mount, found):
                    yield found
