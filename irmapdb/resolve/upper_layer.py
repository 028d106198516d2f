"""Walks the upper layer of an overlay for renamed files, by their origins and redirects.

A copied-up file has the handle of its original inode in the attribute `overlay.origin`. A renamed
directory has its old path in `overlay.redirect`
(https://docs.kernel.org/filesystems/overlayfs.html; ovl_get_fh() and ovl_get_redirect_xattr() of
fs/overlayfs). The names in the upper layer are those on the overlay.
"""

from __future__ import annotations

import os
from collections import deque

from irmapdb.kernel import syscalls
from irmapdb.kernel.fs import overlay
from irmapdb.kernel.root import open_beneath
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from irmapdb.kernel.fs.overlay import Wrapped
    from irmapdb.model import FileHandle, Identity

__all__ = ["UpperLayer", "read_upper_layer"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


class UpperLayer(Record):
    """The names in the upper layer that differ from the lower layers."""

    by_origin: dict[tuple[bytes, FileHandle], list[bytes]]
    """Paths on the overlay, by the handle of their original inode."""
    redirects: list[tuple[bytes, bytes]]
    """The path of a renamed directory in the lower layers, and its path on the overlay. Directories
    below it are not here, if they were not renamed themselves."""

    def paths_of(self, identity: Identity, layer_paths: Collection[bytes]) -> Iterator[bytes]:
        """The possible paths on the overlay of an inode with one of these paths in a layer."""
        wrapped = overlay.unwrap(identity.handle)
        if wrapped is not None:
            yield from self.by_origin.get(_key(wrapped), ())
        # The longest first: a directory below a renamed one may have been renamed too.
        for old, new in sorted(self.redirects, key=lambda pair: -len(pair[0])):
            for path in layer_paths:
                for start in _starts(path, old):
                    yield new.rstrip(b"/") + path[start + len(old) :]


def read_upper_layer(
    upper_fd: int,
    wanted: Collection[Identity],
    *,
    user_attributes: bool,
    skipped: Collection[bytes] = (),
    over: Callable[[], bool] = lambda: False,
) -> UpperLayer:
    """Walk the directory `upper_fd`, which may be O_PATH, without the directories in `skipped`.

    `user_attributes`: the overlay is mounted with userxattr. `skipped` has paths on the overlay. If
    the time is up, the result has the names found so far.
    """
    space = "user" if user_attributes else "trusted"
    origin, redirect = f"{space}.overlay.origin", f"{space}.overlay.redirect"
    keys = {_key(wrapped) for one in wanted if (wrapped := overlay.unwrap(one.handle)) is not None}
    found = UpperLayer({}, [])
    pending: deque[tuple[bytes, bytes]] = deque([(b"/", b"/")])
    while pending and not over():
        path, below = pending.popleft()
        for name, entry, directory in _entries(upper_fd, path):
            if over():  # one directory may have millions of entries
                break
            here = path.rstrip(b"/") + b"/" + name
            wrapped = overlay.unwrap_origin(_attribute(entry, origin))
            if wrapped is not None and _key(wrapped) in keys:
                found.by_origin.setdefault(_key(wrapped), []).append(here)
            if directory:
                lower = _lower_path(below, name, _attribute(entry, redirect))
                if lower != _lower_path(below, name, b""):
                    found.redirects.append((lower, here))
                if here not in skipped:
                    pending.append((here, lower))
    return found


def _lower_path(below: bytes, name: bytes, redirect: bytes) -> bytes:
    if redirect.startswith(b"/"):
        return redirect
    return below.rstrip(b"/") + b"/" + (redirect or name)


def _entries(upper_fd: int, path: bytes) -> Iterator[tuple[bytes, str, bool]]:
    # Name, where its attributes can be read, and whether it is a directory.
    try:
        with (
            Descriptor(
                open_beneath(upper_fd, path, _DIRECTORY, resolve=syscalls.RESOLVE_PLAIN)
            ) as fd,
            os.scandir(fd) as entries,
        ):
            for entry in entries:
                yield (
                    os.fsencode(entry.name),
                    f"/proc/self/fd/{fd}/{entry.name}",
                    entry.is_dir(follow_symlinks=False),
                )
    except OSError:
        return


def _attribute(path: str, name: str) -> bytes:
    # b"" if it has none.
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return b""


def _key(wrapped: Wrapped) -> tuple[bytes, FileHandle]:
    return wrapped.uuid, wrapped.handle


def _starts(path: bytes, directory: bytes) -> Iterator[int]:
    # The possible begins of the directory's path in a layer's path: the length of the layer's own
    # name is not known.
    start = path.find(directory)
    while start >= 0:
        end = start + len(directory)
        if end == len(path) or path[end : end + 1] == b"/":
            yield start
        start = path.find(directory, start + 1)
