"""Encodes and decodes the inotify and fanotify descriptors of CRIU's images.

`encode_*` write images of their own, INOTIFY_FILE and FANOTIFY_FILE, as CRIU wrote them before
it put all open files into one image; crit still reads them. `decode_files_img` reads that one
image, `files.img`, of CRIU's own dumps.

How CRIU fills the messages, from criu/proc_parse.c, criu/fsnotify.c and criu/files.c:

- A handle is always 16 words, its bytes in memory order and zeros behind them.
- `flags` are fdinfo's without O_CLOEXEC, which belongs to the descriptor and not to the file.
- A watch's and a mark's own `id` is 0.
- A mount mark has the mount's device and, outside of a mount namespace, its mount point.
- There is no message for a filesystem mark: CRIU cannot dump one.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from irmapdb._pb.fsnotify_pb2 import (
    FanotifyFileEntry,
    FanotifyInodeMarkEntry,
    FanotifyMarkEntry,
    FanotifyMountMarkEntry,
    FhEntry,
    FileEntry,
    FownEntry,
    InotifyFileEntry,
    InotifyWdEntry,
)
from irmapdb.errors import ImageError
from irmapdb.image.framing import frames, image_error, join_frames
from irmapdb.image.magic import FANOTIFY_FILE, FILES, INOTIFY_FILE, Magic
from irmapdb.model import FileHandle, Identity, MarkKind, WatchKind
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from irmapdb.model import Mark, Mount, Watch, WatchFile

__all__ = [
    "FsnotifyFile",
    "FsnotifyWatch",
    "MountMark",
    "decode_fanotify",
    "decode_files_img",
    "decode_inotify",
    "encode_fanotify",
    "encode_inotify",
]

_HANDLE = struct.Struct("<16Q")  # MAX_HANDLE_SZ of include/linux/exportfs.h is 128 bytes
_INODE_MARK = 1  # enum mark_type
_MOUNT_MARK = 2


class FsnotifyWatch(Record):
    """One inotify watch or fanotify inode mark, as an image has it."""

    wd: int
    """inotify's watch descriptor; -1 for a fanotify mark."""
    identity: Identity
    mask: int
    ignored_mask: int
    mflags: int
    """fanotify's mark flags; 0 for inotify."""
    path: bytes | None
    """The path that a restore will open; None: it opens the handle, only on the same filesystem."""
    mnt_id: int | None
    """The mount in whose namespace `path` starts; None: the root task's."""


class MountMark(Record):
    """One fanotify mark on a whole mount, as an image has it."""

    mnt_id: int
    kdev: int
    mask: int
    ignored_mask: int
    mflags: int
    path: bytes | None
    """The mount point; None in a mount namespace, where only the mount id is stored."""


class FsnotifyFile(Record):
    """One open inotify or fanotify descriptor, as an image has it."""

    id: int
    """The number by which CRIU's other images refer to the file."""
    kind: WatchKind
    flags: int
    """open flags, without O_CLOEXEC."""
    faflags: int
    """fanotify_init(2) flags; 0 for inotify."""
    evflags: int
    """fanotify event file flags; 0 for inotify."""
    watches: tuple[FsnotifyWatch, ...]
    mount_marks: tuple[MountMark, ...]


# --- writing ------------------------------------------------------------------------------------


def _fown() -> FownEntry:
    # fdinfo does not show the receiver of SIGIO.
    return FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)


def _fhandle(watch: Watch, path: bytes | None) -> FhEntry:
    # A watch without a handle (overlayfs before Linux 6.6), which CRIU itself cannot read from
    # fdinfo, becomes an empty handle of type 0. The kernel gives out no such thing.
    kind, data = watch.identity.handle or (0, b"")
    if len(data) > _HANDLE.size:
        raise ImageError(
            f"pid {watch.pid} fd {watch.fd}: the handle of {watch.identity.key} has "
            f"{len(data)} bytes, an image holds {_HANDLE.size}"
        )
    words = _HANDLE.unpack(data.ljust(_HANDLE.size, b"\0"))
    return FhEntry(n_bytes=len(data), type=kind, handle=words, path=path)


def _wd_entry(watch: Watch, path: bytes | None) -> InotifyWdEntry:
    return InotifyWdEntry(
        id=0,
        i_ino=watch.identity.ino,
        mask=watch.mask,
        ignored_mask=watch.ignored_mask,
        s_dev=watch.identity.kdev,
        wd=watch.wd,
        f_handle=_fhandle(watch, path),
    )


def _inode_mark(watch: Watch, path: bytes | None) -> FanotifyMarkEntry:
    return FanotifyMarkEntry(
        id=0,
        type=_INODE_MARK,
        mflags=watch.mflags,
        mask=watch.mask,
        ignored_mask=watch.ignored_mask,
        s_dev=watch.identity.kdev,
        ie=FanotifyInodeMarkEntry(i_ino=watch.identity.ino, f_handle=_fhandle(watch, path)),
    )


def _mount_mark(mark: Mark, mount: Mount | None) -> FanotifyMarkEntry:
    return FanotifyMarkEntry(
        id=0,
        type=_MOUNT_MARK,
        mflags=mark.mflags,
        mask=mark.mask,
        ignored_mask=mark.ignored_mask,
        s_dev=mount.kdev if mount else 0,
        me=FanotifyMountMarkEntry(mnt_id=mark.target, path=mount.mountpoint if mount else None),
    )


def encode_inotify(
    files: Iterable[WatchFile], path_of: Callable[[Identity], bytes | None]
) -> bytes:
    """The INOTIFY_FILE image of the inotify descriptors among `files`, with ids from 1 on.

    `path_of` gives the path of an identity, or None if it is not known. Then the watch has only its
    handle.
    """

    def messages() -> Iterator[bytes]:
        wanted = (file for file in files if file.kind is WatchKind.INOTIFY)
        for number, file in enumerate(wanted, 1):
            yield InotifyFileEntry(
                id=number,
                flags=file.flags & ~os.O_CLOEXEC,
                fown=_fown(),
                wd=[_wd_entry(watch, path_of(watch.identity)) for watch in file.watches],
            ).SerializeToString()

    return join_frames(INOTIFY_FILE, messages())


def encode_fanotify(
    files: Iterable[WatchFile],
    path_of: Callable[[Identity], bytes | None],
    mount_of: Callable[[int], Mount | None] = lambda _mnt_id: None,
) -> bytes:
    """The FANOTIFY_FILE image of the fanotify descriptors among `files`, with ids from 1 on.

    `path_of` as for `encode_inotify`; `mount_of` gives the mount of a mount id, or None, which
    makes the mark's device 0. Mount marks come first. Filesystem marks are left out: no image of
    CRIU's can hold them.
    """

    def messages() -> Iterator[bytes]:
        wanted = (file for file in files if file.kind is WatchKind.FANOTIFY)
        for number, file in enumerate(wanted, 1):
            marks = [
                _mount_mark(mark, mount_of(mark.target))
                for mark in file.marks
                if mark.kind is MarkKind.MOUNT
            ]
            marks += [_inode_mark(watch, path_of(watch.identity)) for watch in file.watches]
            yield FanotifyFileEntry(
                id=number,
                flags=file.flags & ~os.O_CLOEXEC,
                fown=_fown(),
                faflags=file.faflags,
                evflags=file.evflags,
                mark=marks,
            ).SerializeToString()

    return join_frames(FANOTIFY_FILE, messages())


# --- reading ------------------------------------------------------------------------------------

_Entry = TypeVar("_Entry", bound=Message)


class _BadEntryError(Exception):
    """An error in one entry; it becomes an ImageError with the place."""


def _identity(kdev: int, ino: int, handle: FhEntry) -> Identity:
    if not handle.n_bytes and not handle.type:
        return Identity(kdev, ino, None)
    words = handle.handle
    if handle.n_bytes > 8 * len(words):
        raise _BadEntryError(f"a handle of {handle.n_bytes} bytes in {len(words)} words")
    data = struct.pack(f"<{len(words)}Q", *words)[: handle.n_bytes]
    return Identity(kdev, ino, FileHandle(handle.type, data))


def _path(handle: FhEntry | FanotifyMountMarkEntry) -> bytes | None:
    if not handle.HasField("path"):
        return None
    # CRIU 4.3 writes "//etc" for a file that it has found in a walk from an overlay's root.
    return b"/" + handle.path.lstrip(b"/") if handle.path.startswith(b"//") else handle.path


def _mnt_id(handle: FhEntry) -> int | None:
    return handle.mnt_id if handle.HasField("mnt_id") else None


def _read_wd(wd: InotifyWdEntry) -> FsnotifyWatch:
    return FsnotifyWatch(
        wd=wd.wd,
        identity=_identity(wd.s_dev, wd.i_ino, wd.f_handle),
        mask=wd.mask,
        ignored_mask=wd.ignored_mask,
        mflags=0,
        path=_path(wd.f_handle),
        mnt_id=_mnt_id(wd.f_handle),
    )


def _read_mark(mark: FanotifyMarkEntry) -> FsnotifyWatch | MountMark:
    if mark.type == _INODE_MARK and mark.HasField("ie"):
        handle = mark.ie.f_handle
        return FsnotifyWatch(
            wd=-1,
            identity=_identity(mark.s_dev, mark.ie.i_ino, handle),
            mask=mark.mask,
            ignored_mask=mark.ignored_mask,
            mflags=mark.mflags,
            path=_path(handle),
            mnt_id=_mnt_id(handle),
        )
    if mark.type == _MOUNT_MARK and mark.HasField("me"):
        return MountMark(
            mnt_id=mark.me.mnt_id,
            kdev=mark.s_dev,
            mask=mark.mask,
            ignored_mask=mark.ignored_mask,
            mflags=mark.mflags,
            path=_path(mark.me),
        )
    raise _BadEntryError(f"a mark of type {mark.type} without the data of this type")


def _read_inotify(entry: InotifyFileEntry) -> FsnotifyFile:
    return FsnotifyFile(
        id=entry.id,
        kind=WatchKind.INOTIFY,
        flags=entry.flags,
        faflags=0,
        evflags=0,
        watches=tuple(map(_read_wd, entry.wd)),
        mount_marks=(),
    )


def _read_fanotify(entry: FanotifyFileEntry) -> FsnotifyFile:
    marks = [_read_mark(mark) for mark in entry.mark]
    return FsnotifyFile(
        id=entry.id,
        kind=WatchKind.FANOTIFY,
        flags=entry.flags,
        faflags=entry.faflags,
        evflags=entry.evflags,
        watches=tuple(mark for mark in marks if isinstance(mark, FsnotifyWatch)),
        mount_marks=tuple(mark for mark in marks if isinstance(mark, MountMark)),
    )


def _read_file(entry: FileEntry) -> FsnotifyFile | None:
    if entry.HasField("ify"):
        return _read_inotify(entry.ify)
    if entry.HasField("ffy"):
        return _read_fanotify(entry.ffy)
    return None


def _complete(entry: _Entry) -> _Entry:
    if not entry.IsInitialized():
        raise _BadEntryError(f"a required field of {entry.DESCRIPTOR.name} is missing")
    return entry


def _left_after(entry: Message, most_watches: int, name: str) -> int:
    if isinstance(entry, FileEntry):
        most_watches -= len(entry.ify.wd) + len(entry.ffy.mark)
    if most_watches < 0:
        message = f"{name}: more watches than irmapdb reads of an archive"
        raise ImageError(message, advice="unpack it and name the directory")
    return most_watches


def _decode(
    data: bytes,
    name: str,
    magic: Magic,
    message_type: type[_Entry],
    read: Callable[[_Entry], FsnotifyFile | None],
    most_watches: int = sys.maxsize,
) -> tuple[FsnotifyFile, ...]:
    found = []
    for index, (offset, message) in enumerate(frames(data, name, magic)):
        try:
            entry = message_type.FromString(message)
            most_watches = _left_after(entry, most_watches, name)
            file = read(_complete(entry))
        except DecodeError:
            raise image_error(name, offset, f"entry {index}: not a protobuf message") from None
        except _BadEntryError as error:
            raise image_error(name, offset, f"entry {index}: {error}") from None
        if file is not None:
            found.append(file)
    return tuple(found)


def decode_inotify(data: bytes, name: str) -> tuple[FsnotifyFile, ...]:
    """The descriptors of an INOTIFY_FILE image; `name` stands for the file in errors.

    Raises ImageError for an image that is damaged or another one. Fields of a newer CRIU are
    ignored, because the data is never written back.
    """
    return _decode(data, name, INOTIFY_FILE, InotifyFileEntry, _read_inotify)


def decode_fanotify(data: bytes, name: str) -> tuple[FsnotifyFile, ...]:
    """The descriptors of a FANOTIFY_FILE image; as `decode_inotify`."""
    return _decode(data, name, FANOTIFY_FILE, FanotifyFileEntry, _read_fanotify)


def decode_files_img(
    data: bytes, name: str, *, most_watches: int = sys.maxsize
) -> tuple[FsnotifyFile, ...]:
    """The inotify and fanotify descriptors among the open files of CRIU's files.img.

    Files of other kinds are passed over; otherwise as `decode_inotify`. An image with more watches
    than `most_watches` is refused, before they take memory.
    """
    return _decode(data, name, FILES, FileEntry, _read_file, most_watches)
