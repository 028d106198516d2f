"""Predicts for each watch of a dump whether `criu restore` can set it again.

CRIU opens a watch's recorded path in the root of the restored tree, and watches the file there. It
opens a watch without a path by its handle, through a mount of its device, if the images have
mounts. If it cannot open one watch, the restore fails (get_mark_path() and open_handle() of
criu/fsnotify.c). Files that the restore itself provides (`irmapdb.archive.origins`) need not exist
in the root.

An engine makes the root from the image of the container, with `rootfs-diff.tar` and
`deleted.files`. So without a root to look into, a path that is on no mount and in neither of the
two is a path of the image.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from pathlib import Path

from irmapdb.archive.dumped import read_dumped
from irmapdb.criu.check.criu_view import CriuMount, Mountpoints, criu_mounts
from irmapdb.errors import FileError
from irmapdb.image.fsnotify import FsnotifyWatch, MountMark
from irmapdb.kernel import syscalls
from irmapdb.kernel.proof import identify_fd
from irmapdb.kernel.root import open_root
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import FAN_MARK_IGNORE, WatchKind, is_canonical, printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import Self

    from irmapdb.archive.container import DumpedContainer
    from irmapdb.archive.dumped import DumpedWatch
    from irmapdb.archive.origins import Origin, OriginKind, Origins
    from irmapdb.image.fsnotify import FsnotifyFile
    from irmapdb.model import Identity

__all__ = ["RestoreCheck", "RestoreProblem", "RestoreVerdict", "WatchRestore", "check_images"]

_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class RestoreVerdict(enum.StrEnum):
    """The prediction for one watch in a restore."""

    THERE = "there"
    """The path exists."""
    REPLACED = "replaced"
    """The path exists, but is not the file of the dump."""
    LINKED = "linked"
    """The path leads through a symbolic link: the watch is set on the target."""
    OTHER_TYPE = "other-type"
    """The watch was on a directory and the path is none, or the other way round."""
    MISSING = "missing"
    """The path does not exist: the restore fails."""
    BY_HANDLE = "by-handle"
    """No path was recorded, and the handle opens on a filesystem of this machine."""
    BROUGHT = "brought"
    """The root lacks the path, but a mount, an archive or a ghost image provides it."""
    IMAGE = "image"
    """The image of the container has the path: the checkpoint does not change or remove it."""
    NO_RESTORE = "no-restore"
    """No path was recorded, and the images have no mounts for opening the handle; or the mark has a
    mask that CRIU cannot set."""
    TWICE = "twice"
    """Another watch of the same descriptor leads to the same file: the restore fails."""
    DELETED = "deleted"
    """The images have the deleted file. CRIU removes it again, and the watch ends."""
    NO_FILESYSTEM = "no-filesystem"
    """No path was recorded, and the handle does not open here: the restore fails."""

    @property
    def right(self) -> bool:
        """Whether a restore sets the watch again, as far as the images and this machine show."""
        return self in _RIGHT


_RIGHT = {
    RestoreVerdict.THERE,
    RestoreVerdict.REPLACED,
    RestoreVerdict.LINKED,
    RestoreVerdict.BY_HANDLE,
    RestoreVerdict.BROUGHT,
    RestoreVerdict.IMAGE,
}


class WatchRestore(Record):
    """One watch or mount mark of the images, and the prediction for it."""

    file: FsnotifyFile
    watch: FsnotifyWatch | MountMark
    verdict: RestoreVerdict
    why: str
    origin: str
    """The source of the path: `the root`, `the mount /data`, an archive. Empty: none."""
    advice: str
    kind: OriginKind | None = None
    """The kind of `origin`; None if there is none, or no path."""
    source: bytes | None = None
    """The watched file on the host, if it is on a bind mount."""
    mount_source: bytes | None = None
    """The source of that mount."""

    @property
    def right(self) -> bool:
        """Whether it comes back on the watched file, as far as images and machine show that."""
        return self.verdict.right and not self.advice


class RestoreProblem(Record):
    """A problem of the whole restore: the source of a mount is missing or was replaced."""

    why: str
    advice: str


class RestoreCheck(Record):
    """The whole answer."""

    image: Path
    """The `files.img` of a directory, or the archive."""
    root: Path | None
    """None: the root was not looked at."""
    watches: tuple[WatchRestore, ...]
    container: DumpedContainer
    problems: tuple[RestoreProblem, ...] = ()
    notes: tuple[str, ...] = ()
    """Further remarks. They do not change the predictions."""

    @property
    def right(self) -> bool:
        """Whether a restore sets every watch again."""
        return not self.problems and all(one.right for one in self.watches)


def check_images(images: Path, root: Path | None = None) -> RestoreCheck:
    """Check every recorded path under `root`, and the handles of the other watches here.

    `images` is an images dir or an archive. Without a root, the paths of an engine's checkpoint are
    those of the image of the container; of other images they are looked up under `/`. Apart from
    the sources of bind mounts, it opens nothing outside of `root`, also if links lead there.
    FileError if the images or the root are missing, or if the dump has failed; ImageError if an
    image or archive is damaged.
    """
    dumped = read_dumped(images)
    notes: tuple[str, ...] = ()
    if root is None and not dumped.container.is_of_engine:
        root = Path("/")
        notes = (_ROOT_IS_ASSUMED,) if dumped.origins.has_mounts else ()
    with contextlib.ExitStack() as stack:
        root_fd = None if root is None else stack.enter_context(_opened(root))
        eyes = stack.enter_context(_Eyes(root_fd, dumped.origins))
        seen = _with_repeated([(one, eyes.look(one)) for one in dumped.watches])
        watches = tuple(_answer(one, look) for one, look in seen)
        named = {one.mount_source for one in watches if not one.right}
        problems = (*_lost_mounts(dumped.origins), *eyes.lacking_sources(named))
    return RestoreCheck(dumped.files_img, root, watches, dumped.container, problems, notes)


def _lost_mounts(origins: Origins) -> Iterator[RestoreProblem]:
    # CRIU makes the source again, and fails if the name exists; a runtime fails if it does not.
    for mountpoint in origins.lost_mounts:
        why = (
            f"the source of the mount {printable(mountpoint)} was removed or replaced before the "
            "dump, and the restore fails on it"
        )
        yield RestoreProblem(why, "restart the container, and make a new checkpoint")


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[int]:
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"{printable(root)}: {error.strerror}"
        advice = "name the root directory of the restored tree"
        raise FileError(message, advice=advice, about="root") from error
    with Descriptor(fd):
        yield fd


def _answer(one: DumpedWatch, seen: _Seen) -> WatchRestore:
    sources = (None, None) if one.origin is None else (one.origin.source, one.origin.mount_source)
    answer = (seen.verdict, seen.why, seen.origin, seen.advice)
    return WatchRestore(one.file, one.watch, *answer, one.kind, *sources)


class _Seen(Record):
    verdict: RestoreVerdict
    why: str
    origin: str = ""
    advice: str = ""
    inode: tuple[int, int] | None = None
    """st_dev and st_ino of the file that the restore will watch, if it is known."""


def _with_repeated(
    watches: Sequence[tuple[DumpedWatch, _Seen]],
) -> Iterator[tuple[DumpedWatch, _Seen]]:
    """The same, with another verdict for a second inotify watch of one descriptor on one file.

    inotify_add_watch(2) changes the first watch then, and CRIU does not get the number that it
    needs (restore_one_inotify() of criu/fsnotify.c).
    """
    first: dict[object, int] = {}
    numbered = [
        (one, seen, one.watch.wd if isinstance(one.watch, FsnotifyWatch) else -1)
        for one, seen in watches
    ]
    for one, seen, wd in numbered:
        place = one.file.id, seen.inode
        first[place] = min(wd, first.get(place, wd))
    for one, seen, wd in numbered:
        is_known = one.file.kind is WatchKind.INOTIFY and seen.inode is not None
        if is_known and wd != first[one.file.id, seen.inode]:
            yield one, _Seen(RestoreVerdict.TWICE, _SAME_FILE, seen.origin, _PUT_BACK)
        else:
            yield one, seen


class _Eyes:
    """Checks paths in the root of the restore, and handles on the filesystems of this machine."""

    def __init__(self, root_fd: int | None, origins: Origins) -> None:
        self._root_fd = root_fd
        self._origins = origins
        self._here = open_root(os.getpid())
        self._mountpoints = Mountpoints(
            CriuMount(self._here, one) for one in criu_mounts(self._here)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mountpoints.close()
        self._here.__exit__()

    def look(self, one: DumpedWatch) -> _Seen:
        """The prediction for one watch."""
        watch = one.watch
        if watch.mflags & FAN_MARK_IGNORE:
            return _Seen(RestoreVerdict.NO_RESTORE, _IGNORES, "", _DUMP_AGAIN)
        if isinstance(watch, MountMark):
            if watch.path is None:
                return _Seen(RestoreVerdict.THERE, "it comes back with its mount")
            return self._at(one, None)
        ghost = self._origins.ghosts.get(watch.identity.key)
        if ghost is not None and ghost.is_directory:
            why = "it was removed: the restore makes the directory again, with its watch"
            return _Seen(RestoreVerdict.BROUGHT, why, "ghost-file")
        if ghost is not None:
            why = "its file was deleted: the restore makes and removes it again, and the watch goes"
            return _Seen(RestoreVerdict.DELETED, why, "ghost-file", _SET_AGAIN)
        if watch.path is None:
            return self._without_path(watch.identity)
        return self._at(one, watch.identity)

    def _without_path(self, identity: Identity) -> _Seen:
        if not self._origins.has_mounts:
            why = "no path was recorded, and the images have no mounts to open the handle through"
            advice = "dump with paths (`irmapdb check -t PID` tells how)"
            return _Seen(RestoreVerdict.NO_RESTORE, why, advice=advice)
        fd = self._by_handle_at_restore(identity)
        if fd is not None:
            with Descriptor(fd):
                inode = _inode(fd)
            why = "its filesystem is here, and knows the handle"
            return _Seen(RestoreVerdict.BY_HANDLE, why, "the handle", "", inode)
        why = "no filesystem here knows the handle"
        advice = "restore it where its filesystem is, or dump with paths (`irmapdb check -t PID`)"
        return _Seen(RestoreVerdict.NO_FILESYSTEM, why, advice=advice)

    def lacking_sources(self, named: Collection[bytes | None]) -> Iterator[RestoreProblem]:
        """The bind mounts, apart from those named, whose sources are not on this machine."""
        for origin in self._origins.binds:
            if origin.source not in named:
                seen = self._on_host(origin)
                if seen.verdict is RestoreVerdict.MISSING:
                    yield RestoreProblem(seen.why, seen.advice)

    def _at(self, one: DumpedWatch, identity: Identity | None) -> _Seen:
        path, origin = one.watch.path or b"", one.origin
        if origin is not None and origin.source is not None:
            return self._on_host(origin)
        if origin is not None and origin.has_it is not None:
            return _told(origin)
        if origin is None and self._origins.removes(path):
            why = "deleted.files has it: the engine removes it from the root"
            return _Seen(RestoreVerdict.MISSING, why, "", _BRING)
        if self._root_fd is None and one.lacks:
            return _Seen(RestoreVerdict.MISSING, one.lacks, "", _WITH_CHANGES)
        if self._root_fd is None and one.is_replaced:
            return _Seen(RestoreVerdict.REPLACED, _NOT_THE_NEW_ONE, "the image")
        if self._root_fd is None:
            return _untold(origin) if origin is not None else _Seen(*_OF_IMAGE)
        return self._in_root(self._root_fd, path[1:] or b".", origin, identity)

    def _in_root(
        self, root_fd: int, name: bytes, origin: Origin | None, identity: Identity | None
    ) -> _Seen:
        verdict, why, advice = RestoreVerdict.THERE, "it is there", ""
        try:
            try:
                fd = _open(root_fd, name, _IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                fd = _open(root_fd, name, _IN_ROOT)
                verdict, why = RestoreVerdict.LINKED, "it is there, through a symbolic link"
                advice = _SET_AGAIN if _is_link(root_fd, name) else ""
        except (OSError, ValueError) as error:
            origin = origin or self._origins.of_parent(b"/" + name)
            if origin is not None:
                return _untold(origin)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return _Seen(RestoreVerdict.MISSING, f"{reason} in the root", "", _BRING)
        with Descriptor(fd):
            seen = _Seen(verdict, _WATCHES_TARGET if advice else why, _ROOT, advice)
            seen = (None if advice else self._compared(fd, identity)) or seen
            return seen._replace(inode=_inode(fd))

    def _on_host(self, origin: Origin) -> _Seen:
        """Whether this machine has the source of a bind mount, and the file below it."""
        source, top = origin.source or b"", origin.mount_source or b""
        if not is_canonical(source) or self._here.blocking_kinds_to(source):
            return _untold(origin)  # a lookup could wait for a server
        for path, advice in ((top, _MAKE_SOURCE), (source, _BRING_SOURCE)):
            try:
                with Descriptor(self._here.open(path, os.O_PATH | os.O_NOFOLLOW)) as fd:
                    is_link = path != top and stat.S_ISLNK(os.fstat(fd).st_mode)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                    return _untold(origin)  # a link, or a directory that we may not enter
                why = f"{origin.what} needs {printable(path)}: {error.strerror} on this machine"
                return _Seen(RestoreVerdict.MISSING, why, "", advice)
        if is_link:
            return _told(origin._replace(is_link=True))
        return _Seen(RestoreVerdict.BROUGHT, f"{printable(source)} has it here", origin.what)

    def _compared(self, fd: int, identity: Identity | None) -> _Seen | None:
        # The watched file is known only if the filesystem of the dump is on this machine.
        watched = None if identity is None else self._by_handle(identity)
        if watched is None:
            return None
        try:
            was_directory, is_directory = _is_directory(watched), _is_directory(fd)
            if was_directory != is_directory:
                kinds = "a directory", "no directory"
                was, now = kinds if was_directory else reversed(kinds)
                why = f"{was} was watched, and {now} is there"
                advice = "put the old file back, or expect other events"
                return _Seen(RestoreVerdict.OTHER_TYPE, why, _ROOT, advice)
            if identify_fd(self._here, watched).matches(identify_fd(self._here, fd)):
                return None
            why = "it is there, but not the file of the dump: it was replaced"
            return _Seen(RestoreVerdict.REPLACED, why, _ROOT)
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

    def _by_handle_at_restore(self, identity: Identity) -> int | None:
        # The restore has this root in place of the old one, also if its device is another.
        if self._root_fd is None or identity.kdev != self._origins.root_kdev:
            return self._by_handle(identity)
        if identity.handle is None:
            return None
        with (
            contextlib.suppress(OSError),
            Descriptor(_open(self._root_fd, b".", _IN_ROOT, os.O_RDONLY)) as mount_fd,
        ):
            return syscalls.open_by_handle_at(mount_fd, identity.handle, os.O_PATH)
        return None


def _open(root_fd: int, name: bytes, resolve: int, flags: int = os.O_PATH) -> int:
    return syscalls.openat2(root_fd, name, flags, resolve)


def _is_link(root_fd: int, name: bytes) -> bool:
    try:
        fd = _open(root_fd, name, _IN_ROOT, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False
    with Descriptor(fd):
        return stat.S_ISLNK(os.fstat(fd).st_mode)


def _told(origin: Origin) -> _Seen:
    if origin.is_link:
        return _Seen(RestoreVerdict.LINKED, _WATCHES_TARGET, origin.what, _SET_AGAIN)
    if origin.has_it:
        return _Seen(RestoreVerdict.BROUGHT, f"{origin.what} has it", origin.what)
    why = f"{origin.what}, which has the content of its mount, lacks it"
    return _Seen(RestoreVerdict.MISSING, why, "", _BRING)


def _untold(origin: Origin) -> _Seen:
    if origin.is_unread:
        why = f"{origin.what} was not read to its end: {origin.why_not_told}"
        return _Seen(RestoreVerdict.BROUGHT, why, origin.what, _LOOK)
    why = f"it lies on {origin.what}, which the restore provides; {origin.why_not_told}"
    return _Seen(RestoreVerdict.BROUGHT, why, origin.what)


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


_ROOT = "the root"
_ROOT_IS_ASSUMED = (
    "the tasks had a mount namespace of their own, and their paths were looked up below /; if they "
    "had another root, as a container has, name it with --root"
)
_SAME_FILE = "another watch of the descriptor leads to the same file, and the restore fails"
_PUT_BACK = "put the watched file back at its path: a link leads elsewhere, or it was replaced"
_IGNORES = "its ignore mask was set with FAN_MARK_IGNORE: the restore fails, or loses the mark"
_DUMP_AGAIN = "let the task set the mask with FAN_MARK_IGNORED_MASK, and dump again"
_LOOK = "look into it with tar; if it is damaged, the restore fails: have the checkpoint made again"
_WATCHES_TARGET = "the path is a symbolic link, and the restore watches its target"
_BRING = "bring the file into the root first: the restore ends where it is missing"
_WITH_CHANGES = (
    "make the checkpoint with the changes of the root (podman: no --ignore-rootfs; ctr: --rw); if "
    "the image may have a file there too, name its root with --root"
)
_NOT_THE_NEW_ONE = (
    "the image has it, but not the file of the dump: the container replaced it, and the checkpoint "
    "lacks the new one (a socket would be missing)"
)
_MAKE_SOURCE = "make it on the target host first: the engine mounts it into the container"
_BRING_SOURCE = "bring it to the target host first: the restore ends where it is missing"
_OF_IMAGE = (
    RestoreVerdict.IMAGE,
    "the image of the container has it: the checkpoint neither changes nor removes it",
    "the image",
)
_SET_AGAIN = "let the task set the watch again after the restore"


def _is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)
