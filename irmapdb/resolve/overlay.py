"""Finds paths on overlays by the handle of the file in its layer.

fdinfo's overlay handle contains the handle of the file in its layer. That handle opens on a mount
of the layer's filesystem in our own mount namespace. It opens also with all caches dropped, because
the watch holds the overlay inode, and the overlay inode holds the inode of the layer. /proc/self/fd
gives the path in the layer, and the path on the overlay is the end of that path. The resolver tries
once for each layer how much to strip from the front, because the names in the mount options may be
relative, links, or names of another mount namespace.

A renamed file has its old path in the lower layer. It is in the upper layer now, or below a
directory in the upper layer. So `irmapdb.resolve.upper_layer` walks that layer and reads the
attributes with the origin.

An overlay on an overlay has no such handles. Needs CAP_DAC_READ_SEARCH.
"""

from __future__ import annotations

import errno
import os
import stat

from irmapdb.kernel import syscalls
from irmapdb.kernel.fs import overlay
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.syscalls import AT_EMPTY_PATH, AT_HANDLE_FID, Descriptor
from irmapdb.model import Identity, Source
from irmapdb.record import Record
from irmapdb.resolve import engine
from irmapdb.resolve.btrfs import BtrfsLookup
from irmapdb.resolve.engine import Candidate, Deleted, Note
from irmapdb.resolve.mount_points import at_mount_points
from irmapdb.resolve.upper_layer import UpperLayer, read_upper_layer
from irmapdb.resolve.xfs import XfsParents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irmapdb.kernel.fs.overlay import Wrapped
    from irmapdb.kernel.root import Root
    from irmapdb.resolve.engine import Answer, Wanted

__all__ = ["OverlayLayers"]

_NO_HANDLE = "its handle is not that of a file in a layer"
_NO_LAYER = "its layer is on no filesystem that is mounted in our own mount namespace"
_COLD = "the layer's filesystem does not give its name"
_ELSEWHERE = "it is not at the path that it has in its layer"
_NO_CAPABILITY = "opening handles needs CAP_DAC_READ_SEARCH"


class _Found(Record):
    """A file of a layer's filesystem, found by its handle."""

    kdev: int
    path: bytes | None
    """Its path in our own root; None if no name is cached."""
    deleted: bool


class OverlayLayers:
    """Finds every wanted inode of an overlay by the handle within its handle."""

    source = Source.OVERLAY

    def __init__(self, root: Root, over: Callable[[], bool] = lambda: False) -> None:
        self._root = root
        self._over = over
        self._prefixes: dict[tuple[int, int], list[bytes]] = {}
        """The prefix that was stripped last, by the devices of the overlay and of the layer."""

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        by_kdev: dict[int, list[Identity]] = {}
        for identity in wanted:
            mounts = self._root.mounts.of_device(identity.kdev)
            if mounts and mounts[0].fstype == "overlay":
                by_kdev.setdefault(identity.kdev, []).append(identity)
        for kdev, identities in by_kdev.items():
            one = _Overlay(self._root, kdev, self._prefixes, self._over)
            yield from one.answers(identities, wanted)


class _Overlay:
    def __init__(
        self,
        root: Root,
        kdev: int,
        prefixes: dict[tuple[int, int], list[bytes]],
        over: Callable[[], bool],
    ) -> None:
        self._root = root
        self._superblocks = root.superblocks
        self._kdev = kdev
        self._prefixes = prefixes
        self._over = over
        self._mounts = root.mounts.of_device(kdev)
        self._candidates: dict[bytes, list[int]] = {}
        self._usual: dict[bytes, int] = {}
        """The filesystem of the last hit, by the UUID in the handle."""

    def answers(self, identities: list[Identity], wanted: Wanted) -> Iterator[Answer]:
        left: dict[Identity, list[bytes]] = {}
        """The inodes that were not found, with their paths in layers."""
        cold: dict[Identity, list[int]] = {}
        for identity in identities:
            if self._over():
                return
            wrapped = overlay.unwrap(identity.handle)
            if wrapped is None:
                yield Note(identity, _NO_HANDLE)
                continue
            yield from self._try_usual(identity, wrapped, wanted)
            if identity not in wanted:
                continue
            found = self._open(wrapped, self._kdevs(wrapped.uuid))
            if isinstance(found, str):
                yield Note(identity, found)
                continue
            if wrapped.upper and all(one.deleted for one in found):
                yield from at_mount_points(self._root, [identity])
                yield Deleted(identity)
                continue
            yield from self._try_all(identity, wrapped.uuid, found, wanted)
            if identity in wanted:
                left[identity] = [one.path for one in found if one.path is not None]
                nameless = [one.kdev for one in found if one.path is None]
                if nameless:
                    cold[identity] = nameless
        yield from self._cold(cold, left, wanted)
        yield from self._renamed({i: paths for i, paths in left.items() if i in wanted}, wanted)

    def _try_usual(
        self, identity: Identity, wrapped: Wrapped, wanted: Wanted
    ) -> Iterator[Candidate]:
        # Usually one layer's filesystem has all inodes: the others are asked only if it has not.
        usual = self._usual.get(wrapped.uuid)
        found = self._open(wrapped, [usual]) if usual is not None else ""
        if not isinstance(found, str):
            yield from self._try_all(identity, wrapped.uuid, found, wanted)

    def _kdevs(self, uuid: bytes) -> list[int]:
        if uuid not in self._candidates:
            self._candidates[uuid] = self._superblocks.candidates(uuid)
        return self._candidates[uuid]

    def _open(self, wrapped: Wrapped, kdevs: list[int]) -> list[_Found] | str:
        # On all filesystems that may be the layer's, or the reason for none.
        why = _NO_LAYER
        found = []
        for kdev in kdevs:
            try:
                fd = self._superblocks.open_handle(kdev, wrapped.handle)
            except OSError as error:
                if error.errno == errno.EPERM:
                    why = _NO_CAPABILITY
                continue
            try:
                found.append(_look(kdev, fd))
            except OSError as error:  # a path beyond PATH_MAX: a link cannot show it
                why = f"the kernel does not give its name: {error.strerror}"
            finally:
                os.close(fd)
        return found or why

    def _try_all(
        self, identity: Identity, uuid: bytes, found: list[_Found], wanted: Wanted
    ) -> Iterator[Candidate]:
        for one in found:
            if one.path is not None and identity in wanted:
                yield from self._try(identity, one.kdev, one.path, wanted)
                if identity not in wanted:
                    self._usual[uuid] = one.kdev

    def _try(
        self, identity: Identity, kdev: int, path: bytes, wanted: Wanted
    ) -> Iterator[Candidate]:
        known = self._prefixes.setdefault((self._kdev, kdev), [])
        for prefix in known:
            if path == prefix or path.startswith(prefix + b"/"):
                for shown in self._shown_at(path[len(prefix) :] or b"/"):
                    yield Candidate(identity, shown)
                    if identity not in wanted:
                        return
        for cut in _cuts(path):
            for shown in self._shown_at(path[cut:] or b"/"):
                if not self._has_handle(shown, identity):
                    continue
                yield Candidate(identity, shown)
                if identity not in wanted:
                    if path[:cut] not in known:
                        known.append(path[:cut])
                    return

    def _shown_at(self, path: bytes) -> Iterator[bytes]:
        # The places in this root that show a path on the overlay.
        for mount in self._mounts:
            below = _below(path, mount.root)
            if below is not None:
                yield (mount.mountpoint.rstrip(b"/") + below) or b"/"

    def _has_handle(self, path: bytes, identity: Identity) -> bool:
        # Check a guess first: a proof would also search for the reason, which takes longer.
        mount = self._root.mounts.of_path(path)
        if mount is None or mount.kdev != identity.kdev:
            return False
        try:
            with Descriptor(self._root.open(path)) as fd:
                handle, _ = syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH | AT_HANDLE_FID)
        except (OSError, ValueError):
            return False
        return handle == identity.handle

    def _cold(
        self, cold: dict[Identity, list[int]], left: dict[Identity, list[bytes]], wanted: Wanted
    ) -> Iterator[Answer]:
        # Before Linux 6.5 the kernel can drop a layer's name: then its filesystem is asked for it.
        if not cold or not self._superblocks.may_open:
            for identity in cold:
                yield Note(identity, _COLD)
            return
        own = self._superblocks.root
        inner: dict[Identity, list[Identity]] = {}
        for identity, kdevs in cold.items():
            wrapped = overlay.unwrap(identity.handle)
            for kdev in kdevs if wrapped is not None else ():
                key = Identity(kdev, 0, wrapped.handle if wrapped is not None else None)
                inner.setdefault(key, []).append(identity)
        resolvers = (BtrfsLookup(own, over=self._over), XfsParents(own, over=self._over))
        outcome = engine.resolve(
            inner, resolvers, lambda one, path: disproof(own, one, path), over=self._over
        )
        for layer, answer in outcome.resolved.items():
            for identity in inner[layer]:
                for path in (answer.path, *answer.other_paths):
                    yield from self._try(identity, layer.kdev, path, wanted)
                    left.setdefault(identity, []).append(path)
        for layer in outcome.unresolved:
            for identity in inner[layer]:
                yield Note(identity, _COLD)

    def _renamed(self, left: dict[Identity, list[bytes]], wanted: Wanted) -> Iterator[Answer]:
        upper = self._upper_layer(left) if left else None
        for identity, paths in left.items():
            if self._over():
                return
            for path in upper.paths_of(identity, paths) if upper is not None else ():
                for shown in self._shown_at(path):
                    if identity in wanted and self._has_handle(shown, identity):
                        yield Candidate(identity, shown)
            if identity in wanted:
                yield Note(identity, _ELSEWHERE)

    def _upper_layer(self, left: dict[Identity, list[bytes]]) -> UpperLayer | None:
        if not self._superblocks.may_open:
            return None
        fd = self._open_upper()
        if fd is None:
            return None
        with Descriptor(fd):
            user = b"userxattr" in self._mounts[0].super_options.split(b",")
            return read_upper_layer(
                fd, left, user_attributes=user, skipped=self._skipped(), over=self._over
            )

    def _skipped(self) -> frozenset[bytes]:
        # On the overlay, whose names are those of its upper layer.
        mount = self._mounts[0]
        if mount.root != b"/" or not self._root.skip_paths:
            return frozenset()
        from irmapdb.resolve.skip_paths import SkipPaths  # noqa: PLC0415 the hook needs it rarely

        below = SkipPaths(self._root.skip_paths).below(mount.mountpoint)
        return frozenset(b"/" + path for path in below)

    def _open_upper(self) -> int | None:
        # The handle of an overlay's root is the upper layer's (ovl_check_encode_origin()).
        for mount in self._mounts:
            try:
                with Descriptor(self._root.open(mount.mountpoint)) as top:
                    handle, _ = syscalls.name_to_handle_at(top, b"", AT_EMPTY_PATH | AT_HANDLE_FID)
            except OSError:
                continue
            wrapped = overlay.unwrap(handle)
            if mount.root != b"/" or wrapped is None or not wrapped.upper:
                continue
            for kdev in self._superblocks.candidates(wrapped.uuid):
                try:
                    return self._superblocks.open_handle(kdev, wrapped.handle)
                except OSError:
                    continue
        return self._open_named_upper()

    def _open_named_upper(self) -> int | None:
        # A mount can show only a part of the overlay.
        name = overlay.layers_of(self._mounts[0].super_options).upper
        if name is None or not name.startswith(b"/"):
            return None
        try:
            return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None


def _look(kdev: int, fd: int) -> _Found:
    status = os.fstat(fd)
    link = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    deleted = status.st_nlink == 0
    if deleted or (link == b"/" and not stat.S_ISDIR(status.st_mode)):
        return _Found(kdev, None, deleted)
    return _Found(kdev, link, deleted=False)


def _cuts(path: bytes) -> Iterator[int]:
    # The possible ends of the stripped prefix: before each slash, and at the end.
    cut = 0
    while cut >= 0:
        yield cut
        cut = path.find(b"/", cut + 1)
    yield len(path)


def _below(path: bytes, top: bytes) -> bytes | None:
    # With a slash in front, or empty for `top` itself; None outside of it.
    if top == b"/":
        return b"" if path == b"/" else path
    if path == top:
        return b""
    return path[len(top) :] if path.startswith(top + b"/") else None
