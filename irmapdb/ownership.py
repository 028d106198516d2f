"""Checks whether only root and the caller can change the entries of a directory.

A program that runs as root may use a file by its name only if no other user can put another file
under that name. This is certain if the directory and each of its parents belong to root or to the
caller, and no other user may write to them. A sticky directory, as /tmp, may be a parent: there the
kernel lets others neither rename nor remove our entries. None of them may lie on a FUSE filesystem
of another user, whose server reports the owner of a file.

Source: path_resolution(7), openat(2) O_PATH, inode(7) "sticky bit", proc(5) /proc/PID/fd,
proc_pid_mountinfo(5), mount.fuse3(8) user_id.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

from irmapdb.errors import FileError
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Directory", "belongs_to_us", "open_directory"]

_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FUSE_USER = rb" - fuse\S* \S+ \S*\buser_id=(\d+)"
_MOST_LINKS = 40  # MAXSYMLINKS in include/linux/namei.h


class Directory(Record):
    """An open directory."""

    fd: int
    """A descriptor for reading; O_PATH if it may not be listed."""
    path: bytes
    """Its path without symbolic links; b"" if it has none in our root."""
    shared_with: str
    """Why another user can change its entries, in words; "" if none can."""


def belongs_to_us(status: os.stat_result) -> bool:
    """Whether the owner is root or the caller."""
    return not _is_other(status.st_uid)


@contextmanager
def open_directory(path: bytes) -> Iterator[Directory]:
    """Open a directory, once; closed at the end.

    FileError if the path leads through a symbolic link of another user to a directory that does not
    belong to that user. OSError if there is no such directory.
    """
    found, planters = _walk(path)
    try:
        yield_fd = _reopened(found)
        try:
            directory = _look_up(yield_fd)
            _check_planters(path, directory, planters)
            yield directory
        finally:
            if yield_fd != found:
                os.close(yield_fd)
    finally:
        os.close(found)


def _reopened(fd: int) -> int:
    try:
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except PermissionError:
        return fd  # names in it can be used all the same


def _check_planters(path: bytes, directory: Directory, planters: set[int]) -> None:
    # A link of another user must lead to a directory of that user.
    owner = os.fstat(directory.fd).st_uid
    if planters and not (directory.shared_with and planters == {owner}):
        uids = ", ".join(map(str, sorted(planters)))
        raise FileError(
            f"{printable(path)}: leads through a symbolic link of uid {uids} to a directory of uid "
            f"{owner}",
            advice="name the directory itself",
        )


# --- the way there --------------------------------------------------------------------------------


def _walk(path: bytes) -> tuple[int, set[int]]:
    # The directory, and the other users that can have made the symbolic links on the way.
    todo = path.split(b"/")[::-1]
    planters: set[int] = set()
    links = 0
    fd = os.open(b"/" if path.startswith(b"/") else b".", _PATH)
    try:
        while todo:
            name = todo.pop()
            if name in {b"", b"."}:
                continue
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                fd = _moved(fd, name, _PATH | os.O_NOFOLLOW)
            elif _is_proc(status):
                fd = _moved(fd, name, _PATH)  # not a path: the kernel goes to the object itself
            else:
                links += 1
                _check_count(links, path)
                planters |= _planter(os.fstat(fd), status)
                target = os.readlink(name, dir_fd=fd)
                todo += target.split(b"/")[::-1]
                if target.startswith(b"/"):
                    fd = _moved(fd, b"/", _PATH)
    except BaseException:
        os.close(fd)
        raise
    return fd, planters


def _check_count(links: int, path: bytes) -> None:
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _moved(fd: int, name: bytes, flags: int) -> int:
    # From one directory to the next. Only the next one stays open.
    new = os.open(name, flags, dir_fd=fd)
    os.close(fd)
    return new


def _is_proc(status: os.stat_result) -> bool:
    try:
        return status.st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def _planter(directory: os.stat_result, link: os.stat_result) -> set[int]:
    if not _why_shared(directory, link):
        return set()
    return {directory.st_uid if belongs_to_us(link) else link.st_uid}


# --- the directory and its parents ----------------------------------------------------------------


def _look_up(fd: int) -> Directory:
    shared_with = _why_shared_above(fd)
    try:
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        same = os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except OSError:
        same = False
    if not same:
        return Directory(fd, b"", shared_with or "it has no path here")
    return Directory(fd, path, shared_with)


def _why_shared_above(fd: int) -> str:
    # By "..": a rename of a parent cannot change this without notice.
    child: os.stat_result | None = None
    devices: set[int] = set()
    at = os.open(b".", _PATH, dir_fd=fd)
    try:
        while True:
            status = os.fstat(at)
            devices.add(status.st_dev)
            if why := _why_shared(status, child):
                return f"{_name(at)} {why}"
            parent = os.open(b"..", _PATH, dir_fd=at)
            os.close(at)
            at = parent
            if os.path.samestat(os.fstat(at), status):
                break
            child = status
        if not os.path.samestat(os.fstat(at), os.stat(b"/")):
            return "it lies outside of our root"
        return _why_served(devices)
    except OSError as error:
        return f"a parent directory cannot be read: {error.strerror}"
    finally:
        os.close(at)


def _why_served(devices: set[int]) -> str:
    # Whether a program of another user serves one of these filesystems.
    numbers = {b"0:%d" % os.minor(device) for device in devices if not os.major(device)}
    if not numbers:
        return ""
    import re  # noqa: PLC0415

    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            if b" - fuse" not in line:
                continue
            found = re.search(_FUSE_USER, line)
            if found and line.split(b" ", 3)[2] in numbers and _is_other(int(found[1])):
                return f"it lies on a FUSE filesystem that uid {int(found[1])} has mounted"
    return ""


def _is_other(uid: int) -> bool:
    return uid not in {0, os.geteuid()}


def _why_shared(directory: os.stat_result, entry: os.stat_result | None) -> str:
    # The rights of other users on an entry of a directory; without an entry, on any.
    if not belongs_to_us(directory):
        return f"belongs to uid {directory.st_uid}"
    if not directory.st_mode & _OTHERS_WRITE:
        return ""
    if entry is None or not directory.st_mode & stat.S_ISVTX:
        return f"can be written by others (mode {stat.S_IMODE(directory.st_mode):04o})"
    return "" if belongs_to_us(entry) else f"is sticky, and the entry belongs to uid {entry.st_uid}"


def _name(fd: int) -> str:
    try:
        return printable(os.readlink(b"/proc/self/fd/%d" % fd))
    except OSError:
        return "a parent"
