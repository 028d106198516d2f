"""Reads and writes whole files. A reader never sees a half-written file.

A file is written beside its target and renamed over it: open(2) O_TMPFILE, linkat(2), rename(2),
fsync(2) of the file before and of the directory after. A crash at any instruction leaves the old
file or the new one. All of it happens relative to one descriptor of the directory, so that
a user who renames a parent meanwhile cannot lead the write elsewhere.

A writer that is killed between giving the new file a name and renaming it leaves that name behind.
It holds a flock(2) on the file until then, and the kernel drops that with the process: the next
writer in the same directory removes every such file that no process has locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat

from irmapdb.errors import FileError
from irmapdb.model import printable
from irmapdb.ownership import open_directory
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    from typing_extensions import Buffer

__all__ = [
    "LIMIT_BYTES",
    "check_replaceable",
    "open_regular",
    "open_stream",
    "put_file",
    "put_new",
    "read_if_there",
    "read_prefix",
    "read_whole",
    "replace_whole",
    "replaced",
]

LIMIT_BYTES = 1 << 30
"""No image that we read is larger than this: several million entries are not."""

_CHUNK_BYTES = 1 << 20
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_NEXT_STEP_READING = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "run as its owner, or as root",
    errno.EAGAIN: "save it to a file, and name the file",
    errno.EBADF: "open it for reading",
    errno.EISDIR: "name a file in it",
    errno.EIO: "look into the kernel's log",
}
_NEXT_STEP_WRITING = {
    errno.ENOENT: "check the path, or make the directory first",
    errno.ENOTDIR: "check the path, or make the directory first",
    errno.EACCES: "try as root",
    errno.EPERM: "try as root",
    errno.EROFS: "choose a directory that can be written to",
    errno.ENOSPC: "free some space there, or choose another directory",
    errno.EDQUOT: "free some space there, or choose another directory",
    errno.EBUSY: "unmount what is mounted on it, or choose another file",
    errno.EIO: "look into the kernel's log",
}

_FILE_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def _failed(verb: str, path: bytes, error: OSError) -> FileError:
    number = error.errno or 0
    return FileError(
        f"cannot {verb} {printable(path)}: {os.strerror(number)}",
        advice=(_NEXT_STEP_READING if verb == "read" else _NEXT_STEP_WRITING).get(number, ""),
    )


def _refuse_unless_regular(verb: str, path: bytes, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = _FILE_TYPES.get(stat.S_IFMT(mode), "of an unknown type")
        raise FileError(
            f"cannot {verb} {printable(path)}: it is {what}, not a regular file",
            advice="have a regular file there, or pipe it in where `-` is taken"
            if verb == "read"
            else "remove it, or choose another file",
        )


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


# --- reading ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_regular(path: bytes, *, follow: bool) -> Iterator[int]:
    # The target of the name is opened with O_PATH first, and read only if it is a regular file: to
    # open a device can have an effect, and the name may lead elsewhere a moment later.
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with _closing(os.open(path, flags)) as held:
        _refuse_unless_regular("read", path, os.fstat(held).st_mode)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with _closing(os.open(f"/proc/self/fd/{held}", flags)) as fd:
            if not os.fstat(fd).st_size and _is_made_by_kernel(fd):
                raise FileError(
                    f"cannot read {printable(path)}: the kernel makes its content, and a read can "
                    "wait or take it away",
                    advice="copy it into a file, and name the file",
                )
            yield fd


def _is_made_by_kernel(fd: int) -> bool:
    # /proc/kmsg and trace_pipe are regular files without a size. fstatfs(2); linux/magic.h.
    import ctypes  # noqa: PLC0415 hardly any file is empty

    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with the type
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, buffer):
        return False
    return ctypes.c_long.from_buffer(buffer).value in _KERNELS_FILESYSTEMS


_KERNELS_FILESYSTEMS = {0x9FA0, 0x74726163, 0x64626720}  # procfs, tracefs, debugfs


def _read_up_to(fd: int, size_bytes: int) -> bytes:
    # Less only if the file ends before.
    chunks = []
    left = size_bytes
    while left > 0 and (chunk := os.read(fd, min(left, _CHUNK_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def read_prefix(
    path: bytes | os.PathLike[str], *, size_bytes: int = 512, follow: bool = True
) -> bytes:
    """The first bytes of a regular file, or all of it if it is shorter; as `read_whole`.

    `follow`: whether a symbolic link is.
    """
    source = os.fsencode(path)
    try:
        with _open_regular(source, follow=follow) as fd:
            return _read_up_to(fd, size_bytes)
    except OSError as error:
        raise _failed("read", source, error) from error


def read_whole(path: bytes | os.PathLike[str], *, limit_bytes: int) -> bytes:
    """The bytes of a regular file.

    Never waits for a FIFO, a device or /proc/kmsg, and follows symbolic links, as CRIU does. Raises
    FileError for what is no regular file, has more than `limit_bytes`, or cannot be read.
    """
    source = os.fsencode(path)
    data = read_prefix(source, size_bytes=limit_bytes + 1)
    if len(data) > limit_bytes:
        raise FileError(
            f"cannot read {printable(source)}: it has more than {limit_bytes} bytes",
            advice="check that it is the right file",
        )
    return data


@contextlib.contextmanager
def open_regular(path: bytes | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A regular file to be read as a stream.

    FileError as `read_whole` if it cannot be opened, and from each read that fails.
    """
    source = os.fsencode(path)
    with contextlib.ExitStack() as stack:
        try:
            fd = stack.enter_context(_open_regular(source, follow=True))
        except OSError as error:
            raise _failed("read", source, error) from error
        yield stack.enter_context(open_stream(fd, source))


def open_stream(fd: int, path: bytes | os.PathLike[str]) -> BinaryIO:
    """The rest of an open file as a stream, which leaves the descriptor open.

    FileError, with `path`, now and from each read that fails.
    """
    source = os.fsencode(path)
    try:
        return io.BufferedReader(_Named(fd, source))
    except OSError as error:
        raise _failed("read", source, error) from error


class _Named(io.FileIO):
    # A file whose errors name it.
    def __init__(self, fd: int, path: bytes) -> None:
        super().__init__(fd, "rb", closefd=False)
        self._path = path

    def readinto(self, buffer: Buffer, /) -> int:
        try:
            size_bytes = super().readinto(buffer)
            if size_bytes is None:  # a file on FUSE may have nothing yet
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            raise _failed("read", self._path, error) from error
        return size_bytes


def read_if_there(path: bytes | os.PathLike[str], *, limit_bytes: int) -> bytes | None:
    """The bytes of a regular file, or None if it does not exist; as `read_whole`."""
    try:
        return read_whole(path, limit_bytes=limit_bytes)
    except FileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


# --- writing ------------------------------------------------------------------------------------


_NEW = b".irmapdb-new"
_RANDOM_BYTES = 8
_HEX = b"0123456789abcdef"


def _new_name(name: bytes) -> bytes:
    # Cut, because the target's own name may already be as long as a name can be (255 bytes).
    return b".%s.%s%s" % (name[:200], os.urandom(_RANDOM_BYTES).hex().encode(), _NEW)


def _is_leftover(name: bytes) -> bool:
    # Only irmapdb uses such names, so each is removed, for any target.
    start, _, random = name.removesuffix(_NEW).rpartition(b".")
    is_random = len(random) == 2 * _RANDOM_BYTES and not random.translate(None, _HEX)
    return name.endswith(_NEW) and start.startswith(b".") and is_random


def _remove_leftovers(dir_fd: int) -> None:
    # Files of _new_name from a process that ended before it could rename or remove them.
    try:
        names = os.listdir(dir_fd)
    except OSError as error:
        if error.errno == errno.EBADF:  # O_PATH
            return
        raise
    for found in map(os.fsencode, names):
        if not _is_leftover(found):
            continue
        # In use, gone meanwhile, or not ours to open: a reason each to leave it alone.
        with contextlib.suppress(OSError), _closing(os.open(found, _LOOK, dir_fd=dir_fd)) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(found, dir_fd=dir_fd)


def _lock(fd: int) -> bool:
    # False: another process has it. A filesystem without locks has no other holder, because
    # _remove_leftovers then finds no lock to take.
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class _Content(Record):
    """The properties of a new file."""

    data: bytes | int
    """The bytes, or a descriptor of a file that has them."""
    mode: int
    owner: tuple[int, int] | None = None
    """User and group; None: as a new file of this process has them."""
    synced: bool = True
    """Whether the bytes are on the disk before the file is anywhere."""


def _fill(fd: int, content: _Content) -> None:
    if content.owner is not None:
        # Without the permission, the file stays ours. Before chmod: chown(2) clears mode bits.
        with contextlib.suppress(PermissionError):
            os.fchown(fd, *content.owner)
    os.fchmod(fd, content.mode)
    if isinstance(content.data, int):
        offset = 0
        while count := os.sendfile(fd, content.data, offset, _CHUNK_BYTES):
            offset += count
    else:
        left = memoryview(content.data)
        while left:
            left = left[os.write(fd, left) :]
    if content.synced:
        os.fsync(fd)


def _make_nameless(dir_fd: int, name: bytes, content: _Content) -> tuple[int, bytes]:
    # The file gets its name when it is whole, so that a failure or a kill leaves nothing.
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        _fill(fd, content)
        _lock(fd)
        new_name = _new_name(name)
        os.link(f"/proc/self/fd/{fd}", new_name, dst_dir_fd=dir_fd, follow_symlinks=True)
    except BaseException:
        os.close(fd)
        raise
    return fd, new_name


def _make_named(dir_fd: int, name: bytes, content: _Content) -> tuple[int, bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        new_name = _new_name(name)
        fd = os.open(new_name, flags, 0o600, dir_fd=dir_fd)
        try:
            # Before it was locked, another writer may have taken it for a leftover.
            if _lock(fd) and os.fstat(fd).st_nlink:
                _fill(fd, content)
                return fd, new_name
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(new_name, dir_fd=dir_fd)
            raise
        os.close(fd)


def _make_new(dir_fd: int, name: bytes, content: _Content) -> tuple[int, bytes]:
    # A whole, synced and locked file beside the target: its descriptor and its name.
    try:
        return _make_nameless(dir_fd, name, content)
    except OSError:
        # A filesystem without O_TMPFILE or links, or no /proc: the plain way works everywhere,
        # and fails for the same reason if the reason was another.
        return _make_named(dir_fd, name, content)


def _sync_directory(dir_fd: int) -> None:
    try:
        os.fsync(dir_fd)
    except OSError as error:
        # A filesystem that has no such thing: fsync(2); a directory that may not be read.
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise


class _New(Record):
    """A new file, whole, synced and locked, beside its target."""

    target: bytes
    dir_fd: int
    name: bytes
    fd: int
    new_name: bytes

    def rename(self) -> None:
        os.rename(self.new_name, self.name, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)


@contextlib.contextmanager
def _writing(target: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed("write", target, error) from error


@contextlib.contextmanager
def _replaceable(target: bytes) -> Iterator[tuple[int, bytes]]:
    # The directory of a target that may be replaced, and its name there.
    directory, name = os.path.split(target)
    if name in (b"", b".", b".."):
        raise FileError(f"cannot write {printable(target)}: no file name", advice="add a file name")
    # By no link with which another user could lead us to another directory.
    with open_directory(directory) as found:
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(name, dir_fd=found.fd, follow_symlinks=False)
            _refuse_unless_regular("replace", target, old.st_mode)
        yield found.fd, name


@contextlib.contextmanager
def _prepared(target: bytes, data: bytes, mode: int, *, synced: bool = True) -> Iterator[_New]:
    content = _Content(data, mode, synced=synced)
    with _replaceable(target) as (dir_fd, name), _made(target, dir_fd, name, content) as new:
        yield new


@contextlib.contextmanager
def _made(target: bytes, dir_fd: int, name: bytes, content: _Content) -> Iterator[_New]:
    _remove_leftovers(dir_fd)
    fd, new_name = _make_new(dir_fd, name, content)
    with _closing(fd):
        try:
            yield _New(target, dir_fd, name, fd, new_name)
        except BaseException:
            with contextlib.suppress(OSError):  # it was renamed
                os.unlink(new_name, dir_fd=dir_fd)
            raise


def check_replaceable(path: bytes | os.PathLike[str]) -> None:
    """FileError if `replace_whole` would surely fail."""
    target = os.fsencode(path)
    with _writing(target), _replaceable(target) as (dir_fd, _):
        if not os.access(b".", os.W_OK | os.X_OK, dir_fd=dir_fd, effective_ids=True):
            read_only = os.fstatvfs(dir_fd).f_flag & os.ST_RDONLY
            raise OSError(errno.EROFS if read_only else errno.EACCES, "")


def replace_whole(
    path: bytes | os.PathLike[str],
    data: bytes,
    mode: int = 0o600,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    in_place: Callable[[], None] | None = None,
    synced: bool = True,
) -> os.stat_result:
    """Make `path` a regular file with these bytes and this mode, as a whole or not at all.

    `is_wanted` is asked when the bytes are on the disk, which can take long: FileError if not.
    `in_place` is called when readers see the new file, and with it the bytes go to the disk only
    after that: for a reader that waits, and a file that is worth nothing after a power loss.
    Without `synced`, the caller does that later (`sync`). Returns the new file's stat. Raises
    FileError, and leaves the old file and nothing else, for a target that is there and no regular
    file (a symbolic link is not followed), a directory that is missing, full or read-only, and any
    other error of the write.
    """
    target = os.fsencode(path)
    first = synced and in_place is None
    with _writing(target), _prepared(target, data, mode, synced=first) as new:
        if not is_wanted():
            raise FileError(f"{printable(target)}: not replaced, because it came too late")
        new.rename()
        if in_place is not None:
            in_place()
        if synced and not first:
            os.fsync(new.fd)
        if synced:
            _sync_directory(new.dir_fd)
        return os.fstat(new.fd)


def sync(path: bytes | os.PathLike[str]) -> None:
    """Put the bytes of a regular file, and its name, on the disk. FileError."""
    target = os.fsencode(path)
    with _writing(target), _replaceable(target) as (dir_fd, name):
        with _closing(os.open(name, _LOOK, dir_fd=dir_fd)) as fd:
            os.fsync(fd)
        _sync_directory(dir_fd)


def put_file(
    dir_fd: int,
    name: bytes,
    source_fd: int,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    replace: bool,
) -> os.stat_result:
    """Put a copy of an open file into an open directory, whole or not at all; returns its stat.

    `owner`: user and group ids, if the caller may set them. `replace`: whether a file of that name
    is replaced; else it is FileExistsError. Raises OSError.
    """
    with _made(name, dir_fd, name, _Content(source_fd, mode, owner)) as new:
        if replace:
            new.rename()
        else:
            within = {"src_dir_fd": dir_fd, "dst_dir_fd": dir_fd}
            os.link(new.new_name, name, **within, follow_symlinks=False)
            os.unlink(new.new_name, dir_fd=dir_fd)
        _sync_directory(dir_fd)
        return os.fstat(new.fd)


def put_new(path: bytes | os.PathLike[str], source: bytes) -> None:
    """Copy a file to `path`, mode 0600, which must not exist: whole or not at all. FileError."""
    target = os.fsencode(path)
    with _writing(target), _replaceable(target) as (dir_fd, name), open(source, "rb") as file:
        put_file(dir_fd, name, file.fileno(), replace=False)


@contextlib.contextmanager
def replaced(
    contents: Iterable[tuple[bytes | os.PathLike[str], bytes]],
) -> Iterator[list[os.stat_result]]:
    """Several files of mode 0600, replaced in the block. If the block raises, the old ones return.

    The first is renamed when all of them are on the disk, so a disk that is full leaves all old
    files; so does an exception of the block. Only a crash can leave some files new and some old.
    """
    with contextlib.ExitStack() as stack:
        news: list[_New] = []
        for path, data in contents:
            target = os.fsencode(path)
            with _writing(target):
                news.append(stack.enter_context(_prepared(target, data, 0o600)))
        for new in news:
            with _writing(new.target):
                stack.enter_context(_old_kept(new))
                new.rename()
        for new in {os.path.dirname(new.target): new for new in news}.values():
            with _writing(new.target):
                _sync_directory(new.dir_fd)
        yield [os.fstat(new.fd) for new in news]


@contextlib.contextmanager
def _old_kept(new: _New) -> Iterator[None]:
    # Under a second name, which a kill leaves behind for _remove_leftovers. Where the filesystem
    # has no such thing the new file stays.
    within = {"src_dir_fd": new.dir_fd, "dst_dir_fd": new.dir_fd}
    second_name = _new_name(new.name)
    old_name: bytes | None = None
    there = True
    old_fd: int | None = None
    with contextlib.suppress(OSError):
        old_fd = os.open(new.name, _LOOK, dir_fd=new.dir_fd)
        fcntl.flock(old_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # it is no leftover
    try:
        os.link(new.name, second_name, **within, follow_symlinks=False)
        old_name = second_name
    except FileNotFoundError:
        there = False
    except OSError:
        pass
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if old_name is not None:
                os.rename(old_name, new.name, **within)
            elif not there:
                os.unlink(new.name, dir_fd=new.dir_fd)
        raise
    finally:
        # After an error it is still there if no file was renamed: rename(2) of two names of one
        # file does nothing.
        if old_name is not None:
            with contextlib.suppress(OSError):
                os.unlink(old_name, dir_fd=new.dir_fd)
        if old_fd is not None:
            os.close(old_fd)
