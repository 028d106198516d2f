"""Whether the watches of a dump can be set again: the question before `criu restore`.

CRIU opens a watch's recorded path in the root of the restored tree, and watches what that is; a
watch without a path is found by its handle, through a mount of the device that it had. One that
cannot be opened ends the restore (get_mark_path() and open_handle() of criu/fsnotify.c).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from irmapdb import files
from irmapdb.check.scene import Mountpoints, View, criu_mounts
from irmapdb.errors import FileError
from irmapdb.image import fsnotify
from irmapdb.image.fsnotify import MountMark
from irmapdb.kernel import syscalls
from irmapdb.kernel.identity import identify_fd
from irmapdb.kernel.root import open_root
from irmapdb.model import printable

if TYPE_CHECKING:
    from pathlib import Path

    from irmapdb.image.fsnotify import FsnotifyFile, FsnotifyWatch
    from irmapdb.model import Identity

__all__ = ["RestoreCheck", "RestoreVerdict", "WatchRestore", "check_images"]

_IMAGE = "files.img"
_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class RestoreVerdict(enum.StrEnum):
    """What a restore will make of one watch."""

    THERE = "there"
    """The path is there."""
    LINKED = "linked"
    """The path is there, by way of a symbolic link: the watch is set where it leads."""
    OTHER_TYPE = "other-type"
    """A directory was watched and the path is none, or the other way round."""
    MISSING = "missing"
    """Nothing is at the path: the restore fails."""
    BY_HANDLE = "by-handle"
    """No path was recorded, and the handle opens: this is the filesystem."""
    NO_FILESYSTEM = "no-filesystem"
    """No path was recorded, and the handle does not open here: the restore fails."""

    @property
    def right(self) -> bool:
        """Whether the watch comes back, as far as can be told from here."""
        return self in {RestoreVerdict.THERE, RestoreVerdict.LINKED, RestoreVerdict.BY_HANDLE}


class WatchRestore(NamedTuple):
    """One watch or mount mark of the images, and what a restore will make of it."""

    file: FsnotifyFile
    watch: FsnotifyWatch | MountMark
    verdict: RestoreVerdict
    why: str
    advice: str


@dataclass(frozen=True, slots=True)
class RestoreCheck:
    """The whole answer."""

    image: Path
    root: Path
    watches: tuple[WatchRestore, ...]

    @property
    def right(self) -> bool:
        """Whether every watch comes back."""
        return all(one.verdict.right for one in self.watches)


def check_images(images: Path, root: Path) -> RestoreCheck:
    """Look for every recorded path under `root`, and here for the filesystems of the rest.

    Nothing outside of `root` is opened, wherever its links lead. FileError where there are no
    images or no root, ImageError where files.img is damaged.
    """
    image = images / _IMAGE
    data = files.read_whole(image, limit_bytes=files.LIMIT_BYTES)
    found = fsnotify.decode_files_img(data, printable(image))
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"--root {printable(root)}: {error.strerror}"
        raise FileError(message, advice="name the root directory of the restored tree") from error
    ghosts = any(images.glob("ghost-file-*.img"))
    try:
        with _Eyes(root_fd, ghosts=ghosts) as eyes:
            watches = []
            for file in found:
                every: list[FsnotifyWatch | MountMark] = [*file.watches, *file.mount_marks]
                watches += [WatchRestore(file, watch, *eyes.look(watch)) for watch in every]
    finally:
        os.close(root_fd)
    return RestoreCheck(image, root, tuple(watches))


class _Seen(NamedTuple):
    verdict: RestoreVerdict
    why: str
    advice: str = ""


class _Eyes:
    """Looks into the root to be restored, and at the filesystems of this machine."""

    def __init__(self, root_fd: int, *, ghosts: bool) -> None:
        self._root_fd = root_fd
        self._ghosts = ghosts
        self._here = open_root(os.getpid())
        self._mountpoints = Mountpoints(View(self._here, one) for one in criu_mounts(self._here))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mountpoints.close()
        self._here.__exit__()

    def look(self, watch: FsnotifyWatch | MountMark) -> _Seen:
        """What will become of one watch."""
        if isinstance(watch, MountMark):
            if watch.path is None:
                return _Seen(RestoreVerdict.THERE, "it comes back with its mount")
            return self._at(watch.path, None)
        if watch.path is None:
            return self._without_path(watch.identity)
        return self._at(watch.path, watch.identity)

    def _without_path(self, identity: Identity) -> _Seen:
        fd = self._by_handle(identity)
        if fd is not None:
            os.close(fd)
            return _Seen(RestoreVerdict.BY_HANDLE, "its filesystem is here, and knows the handle")
        why = "no filesystem here knows the handle"
        if self._ghosts:
            why += ", unless it is of a deleted file that the images bring along without the watch"
        advice = "restore it where its filesystem is, or dump with paths (irmapdb check -t PID)"
        return _Seen(RestoreVerdict.NO_FILESYSTEM, why, advice)

    def _at(self, path: bytes, identity: Identity | None) -> _Seen:
        name = path[1:] or b"."
        verdict, why = RestoreVerdict.THERE, "it is there"
        try:
            try:
                fd = self._open(name, _IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                fd = self._open(name, _IN_ROOT)
                verdict, why = RestoreVerdict.LINKED, "it is there, by way of a symbolic link"
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            advice = "bring the file into the root first: the restore ends where it is missing"
            return _Seen(RestoreVerdict.MISSING, f"{reason} in the root", advice)
        try:
            return self._compared(fd, identity) or _Seen(verdict, why)
        finally:
            os.close(fd)

    def _open(self, name: bytes, resolve: int) -> int:
        return syscalls.openat2(self._root_fd, name, os.O_PATH, resolve)

    def _compared(self, fd: int, identity: Identity | None) -> _Seen | None:
        # Only where the filesystem of the dump is here can be told what was watched.
        watched = None if identity is None else self._by_handle(identity)
        if watched is None:
            return None
        try:
            was_directory, is_directory = _is_directory(watched), _is_directory(fd)
            if was_directory != is_directory:
                kinds = "a directory", "no directory"
                was, now = kinds if was_directory else reversed(kinds)
                why = f"{was} was watched, and {now} is there"
                advice = "put back what was there, or expect other events"
                return _Seen(RestoreVerdict.OTHER_TYPE, why, advice)
            if identify_fd(self._here, watched).matches(identify_fd(self._here, fd)):
                return None
            return _Seen(RestoreVerdict.THERE, "it is there, but is not the file of the dump")
        except OSError:
            return None
        finally:
            os.close(watched)

    def _by_handle(self, identity: Identity) -> int | None:
        if identity.handle is None:
            return None
        for _, mount_fd in self._mountpoints.of(identity.kdev):
            with contextlib.suppress(OSError):
                return syscalls.open_by_handle_at(mount_fd, identity.handle, os.O_PATH)
        return None


def _is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)
