"""Follows an inode up to the mounts that show it, directory by directory.

For filesystems that know the names of an inode. Nothing is walked: the filesystem gives the name
and directory of the inode, then the name and directory of that directory, and so on up to the root
of a visible mount. The names together are a path below it. Directories are remembered, so a batch
asks for each only once. A path may be longer than PATH_MAX.
"""

from __future__ import annotations

import errno
import os

from irmapdb.kernel import proof
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Generic, Self, TypeVar

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle, Identity, Mount
    from irmapdb.resolve.engine import Wanted
    from irmapdb.resolve.mount_fds import MountFds

    Node = TypeVar("Node", bound=tuple[int, ...])
else:
    Node = "Node"
    Generic = {Node: object}  # the import of typing takes 6 ms, and a paused container waits for it

__all__ = ["REFUSALS", "ReverseLookup", "by_device", "shows"]

REFUSALS = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM})
"""The kernel or filesystem cannot answer, or we may not ask: the same for every inode."""

# Normal paths are far shorter. In a hostile tree or a broken filesystem they can be longer.
_LONGEST_BYTES = 1 << 16


def by_device(root: Root, wanted: Wanted, fstype: str) -> dict[int, list[Identity]]:
    """The wanted inodes on mounted filesystems of this type, by kdev."""
    root.renew()
    kdevs = {mount.kdev for mount in root.mounts.by_mountpoint.values() if mount.fstype == fstype}
    found: dict[int, list[Identity]] = {}
    for identity in wanted:
        if identity.kdev in kdevs:
            found.setdefault(identity.kdev, []).append(identity)
    return found


def shows(root: Root, mount: Mount, path: bytes) -> bool:
    """Whether a lookup of `path` ends on this mount, and not on a mount over it."""
    met = root.mounts.of_path(path)
    return met is not None and met.mnt_id == mount.mnt_id


class _Place(Record):
    """A path at which a mount shows a directory, unless another mount hides it."""

    mount: Mount
    path: bytes
    """Without a slash at its end: b"" for the root."""


class _Places(Record):
    """The places of a directory."""

    found: list[_Place]
    lost: OSError | None
    """The error that ended the way up, for example a removed directory. There may be other links,
    and places below it."""


class ReverseLookup(Generic[Node]):
    """One device of one root. A context manager that keeps a directory of the device open.

    `node_of` gives the inode of a handle. `names`, from a descriptor on the device, gives every
    name of an inode with its directory (OSError as its ioctl).
    """

    def __init__(
        self,
        root: Root,
        mount_fds: MountFds,
        kdev: int,
        node_of: Callable[[FileHandle], Node | None],
        names: Callable[[int, Node], Sequence[tuple[Node, bytes]]],
    ) -> None:
        self._root = root
        self._mount_fds = mount_fds
        self._node_of = node_of
        self._names = names
        self._parents: dict[Node, tuple[Node, bytes] | None] = {}
        self._places: dict[Node, _Places] = {}
        self._fd: int | None = None
        self._refusal: int | None = None
        self.tops: dict[Node, list[Mount]] = {}
        """The inodes that are the roots of the device's visible mounts."""
        for mount in root.mounts.of_device(kdev):
            self._add_top(mount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _add_top(self, mount: Mount) -> None:
        try:
            with Descriptor(self._root.open(mount.mountpoint)) as fd:
                found = proof.identify_fd(self._root, fd)
        except OSError:
            return
        node = self._node_of(found.handle) if found.handle else None
        if node is None or found.kdev != mount.kdev:
            return  # unmounted, or hidden below a new mount
        self.tops.setdefault(node, []).append(mount)
        if self._fd is None:
            try:
                self._fd = self._mount_fds.open(mount.mountpoint)
            except OSError:
                return  # a file bound over another; or not now

    def paths(self, node: Node) -> Iterator[bytes]:
        """Every path of an inode in this root; none if no mount shows it.

        FileNotFoundError: the filesystem has no name for it; NotADirectoryError: there is no
        directory to ask through; else as the ioctl.
        """
        for mount in self.tops.get(node, ()):
            yield mount.mountpoint
        names = self._ask(node)
        if not names and node not in self.tops:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        failure = None
        for directory, name in names:
            if not _is_name(name):
                continue
            places, lost = self._places_of(directory)
            failure = lost or failure
            for mount, above in places:
                path = b"%b/%b" % (above, name)
                if shows(self._root, mount, path):
                    yield path
        if failure is not None:
            raise failure

    def _places_of(self, directory: Node) -> _Places:
        # Kept with those of its parent, because most of a batch is in few directories. Not those of
        # all ancestors: a path can have very many.
        places = self._places.get(directory)
        if places is None:
            places = self._places[directory] = self._look(directory)
        return places

    def _look(self, directory: Node) -> _Places:
        try:
            up = self._parent(directory)
        except OSError:
            up = None
        if up is None or not _is_name(up[1]):
            return self._climb(directory)
        above = self._places.get(up[0])
        if above is None:
            above = self._places[up[0]] = self._climb(up[0])
        return _below(above, self._shown_at(directory), b"/" + up[1])

    def _shown_at(self, directory: Node) -> list[_Place]:
        mounts = self.tops.get(directory, ())
        return [_Place(mount, mount.mountpoint.rstrip(b"/")) for mount in mounts]

    def _climb(self, directory: Node) -> _Places:
        found: list[_Place] = []
        parts: list[bytes] = []
        length = 0
        above: set[Node] = set()
        while directory not in above:
            above.add(directory)
            known = self._places.get(directory)
            if known is not None:
                return _below(known, found, _tail(parts))
            for mount, path in self._shown_at(directory):
                found.append(_Place(mount, path + _tail(parts)))
            try:
                up = self._parent(directory)
            except OSError as error:
                return _Places(found, error)
            if up is None or not _is_name(up[1]):
                break
            directory, name = up
            parts.append(name)
            length += 1 + len(name)
            if length > _LONGEST_BYTES:
                return _Places(found, _too_long())
        return _Places(found, None)

    def _parent(self, directory: Node) -> tuple[Node, bytes] | None:
        if directory in self._parents:
            return self._parents[directory]
        names = self._ask(directory)
        # A directory has one name. If there are two, it was renamed during the answer.
        self._parents[directory] = up = names[0] if names else None
        return up

    def _ask(self, node: Node) -> Sequence[tuple[Node, bytes]]:
        if self._refusal is not None:
            raise OSError(self._refusal, os.strerror(self._refusal))
        if self._fd is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            return self._names(self._fd, node)
        except OSError as error:
            if error.errno in REFUSALS:
                self._refusal = error.errno
            raise


def _tail(parts: list[bytes]) -> bytes:
    return b"".join(b"/" + part for part in reversed(parts))


def _below(above: _Places, nearer: list[_Place], tail: bytes) -> _Places:
    """The places in `nearer`, and `tail` below each place in `above`."""
    room = _LONGEST_BYTES - len(tail)
    found = [_Place(mount, path + tail) for mount, path in above.found if len(path) <= room]
    lost = above.lost if len(found) == len(above.found) else _too_long()
    return _Places(nearer + found, lost)


def _too_long() -> OSError:
    return OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _is_name(name: bytes) -> bool:
    return name not in {b"", b".", b".."} and b"/" not in name and b"\0" not in name
