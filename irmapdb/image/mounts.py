"""Decodes the mounts and the deleted files of a tree in CRIU's images.

`mountpoints-N.img` has the mounts of one mount namespace; there is none if the tree was in CRIU's
own. `ghost-file-N.img` has one deleted file that a task had open, and its content behind.
"""

from __future__ import annotations

import stat
import sys

from google.protobuf.message import DecodeError

from irmapdb._pb.restore_pb2 import GhostFileEntry, MntEntry
from irmapdb.errors import ImageError
from irmapdb.image.framing import frames, image_error
from irmapdb.image.magic import GHOST_FILE, MOUNTS
from irmapdb.model import InodeKey
from irmapdb.record import Record

__all__ = ["DumpedGhost", "DumpedMount", "decode_ghost", "decode_mounts"]


class DumpedMount(Record):
    """One mount, as an image has it."""

    mnt_id: int
    kdev: int
    root: bytes
    """The mounted directory of its filesystem."""
    mountpoint: bytes
    """Absolute in the namespace."""
    is_lost: bool = False
    """Whether it comes from outside of the tree, and its source there was removed or replaced."""


def decode_mounts(
    data: bytes, name: str, *, most_mounts: int = sys.maxsize
) -> tuple[DumpedMount, ...]:
    """The mounts of one namespace; `name` stands for the file in errors.

    Raises ImageError for an image that is damaged or another one, or with more than `most_mounts`.
    """
    found = []
    for index, (offset, message) in enumerate(frames(data, name, MOUNTS)):
        if index == most_mounts:
            text = f"{name}: more mounts than irmapdb reads of an archive"
            raise ImageError(text, advice="unpack it and name the directory")
        try:
            entry = MntEntry.FromString(message)
        except DecodeError:
            raise image_error(name, offset, f"entry {index}: not a protobuf message") from None
        if not entry.IsInitialized():
            raise image_error(name, offset, f"entry {index}: a required field is missing")
        # Older CRIU writes "./data".
        mountpoint = b"/" + entry.mountpoint.removeprefix(b".").strip(b"/")
        is_lost = entry.deleted and entry.HasField("ext_key")
        found.append(DumpedMount(entry.mnt_id, entry.root_dev, entry.root, mountpoint, is_lost))
    return tuple(found)


class DumpedGhost(Record):
    """A deleted file or directory that an image has."""

    key: InodeKey
    is_directory: bool


def decode_ghost(data: bytes, name: str) -> DumpedGhost | None:
    """The deleted file of the image; None if the image does not have it. ImageError as above.

    `data` may end anywhere after the first entry: the content follows, and is not needed.
    """
    for offset, message in frames(data, name, GHOST_FILE):
        try:
            entry = GhostFileEntry.FromString(message)
        except DecodeError:
            raise image_error(name, offset, "entry 0: not a protobuf message") from None
        if entry.HasField("dev") and entry.HasField("ino"):
            return DumpedGhost(InodeKey(entry.dev, entry.ino), stat.S_ISDIR(entry.mode))
        return None
    return None
