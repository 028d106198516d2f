"""Checks that the names of an overlay's lower layers still lead to the layers.

A name led to the layer when the overlay was mounted. Since then another filesystem may have been
mounted over it, or unmounted. So each directory must have an entry that the overlay shows too, and
the handle of the overlay's entry must contain the handle of the layer's entry.
"""

from __future__ import annotations

import itertools
import os
from collections import deque

from irmapdb.kernel import syscalls
from irmapdb.kernel.root import open_beneath
from irmapdb.kernel.syscalls import AT_EMPTY_PATH, AT_HANDLE_FID, Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irmapdb.model import FileHandle

__all__ = ["shows"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
_MOST_LOOKED_AT = 256


def shows(
    overlay_fd: int, layer_fd: int, unwrap: Callable[[FileHandle], FileHandle | None]
) -> bool:
    """Whether an overlay shows an entry of the directory `layer_fd`. Both may be O_PATH.

    False also if layers above hide all of the first entries. `unwrap` gives the handle within an
    overlay's.
    """
    for path in itertools.islice(_entries(layer_fd), _MOST_LOOKED_AT):
        shown = _handle(overlay_fd, path)
        if shown is not None and unwrap(shown) == _handle(layer_fd, path):
            return True
    return False


def _entries(layer_fd: int) -> Iterator[bytes]:
    # The paths below, level by level.
    pending: deque[bytes] = deque([b"."])
    while pending:
        above = pending.popleft()
        try:
            fd = open_beneath(layer_fd, above, _DIRECTORY, resolve=syscalls.RESOLVE_PLAIN)
        except OSError:
            continue
        with Descriptor(fd), os.scandir(fd) as entries:
            found = [
                (os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries
            ]
        for name, directory in found:
            path = name if above == b"." else above + b"/" + name
            yield path
            if directory:
                pending.append(path)


def _handle(dir_fd: int, path: bytes) -> FileHandle | None:
    try:
        with Descriptor(
            open_beneath(dir_fd, path, os.O_PATH | os.O_NOFOLLOW, resolve=syscalls.RESOLVE_PLAIN)
        ) as fd:
            return syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH | AT_HANDLE_FID)[0]
    except OSError:
        return None
