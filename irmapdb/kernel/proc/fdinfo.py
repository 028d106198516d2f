"""Reads watches and marks from the fdinfo of their descriptors.

The parser is pure, bytes in and model out. Sources: proc_pid_fdinfo(5), fs/notify/fdinfo.c. All
numbers of the inotify and fanotify lines are hex.
"""

from __future__ import annotations

import errno
import os

from irmapdb.kernel.proc import procfs
from irmapdb.kernel.proc.procfs import living_thread, read_file
from irmapdb.model import (
    FileHandle,
    Identity,
    Mark,
    MarkKind,
    Watch,
    WatchFile,
    WatchKind,
)
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

__all__ = [
    "RawWatchFile",
    "parse_fdinfo",
    "read_raw",
    "watch_descriptors",
]

_HANDLE = rb"(?: ?fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:((?:[0-9a-f]{2})*))?"
_FANOTIFY_LINE = (
    rb"(?m)^fanotify (?:"
    rb"mnt_id:(?P<mnt_id>[0-9a-f]+)"
    rb"|mnt_ns:(?P<mnt_ns>[0-9]+)"  # the only decimal number
    rb"|ino:(?P<ino>[0-9a-f]+) sdev:(?P<sdev>[0-9a-f]+)"
    rb"|sdev:(?P<fs>[0-9a-f]+)"
    rb") mflags:(?P<mflags>[0-9a-f]+) mask:(?P<mask>[0-9a-f]+)"
    rb" ignored_mask:(?P<ignored>[0-9a-f]+)" + _HANDLE
)
_FANOTIFY_GROUP = rb"(?m)^fanotify flags:([0-9a-f]+) event-flags:([0-9a-f]+)"
_KEYS = [b"wd", b"ino", b"sdev", b"mask", b"ignored_mask"]
_HANDLE_KEYS = [b"fhandle-bytes", b"fhandle-type", b"f_handle"]
_BARE_WORDS = 1 + 2 * len(_KEYS)  # `inotify`, keys and values
_WORDS = _BARE_WORDS + 2 * len(_HANDLE_KEYS)


def _handle(size: bytes | None, kind: bytes | None, data: bytes | None) -> FileHandle | None:
    if not size or not kind or not data:
        return None
    if len(data) != 2 * int(size, 16):
        return None  # do not compare with the handle of a cut-off line
    return FileHandle(int(kind, 16), bytes.fromhex(data.decode("ascii")))


def _flags(raw: bytes) -> int:
    # In octal; the second line of any fdinfo.
    for line in raw.split(b"\n", 4)[:4]:
        name, _, digits = line.partition(b"\t")
        if name == b"flags:" and digits and not digits.translate(None, b"01234567"):
            return int(digits, 8)
    return 0


def parse_fdinfo(raw: bytes, pid: int, fd: int, kind: WatchKind) -> WatchFile:
    """The watches and marks of one descriptor's fdinfo, in the kernel's order (newest first).

    Other lines are ignored. `handle` is None if the filesystem of the watch encodes no handle.
    """
    flags = _flags(raw)
    if kind is WatchKind.INOTIFY:
        watches = tuple(_inotify_watches(raw, pid, fd))
        return WatchFile(pid, fd, kind, flags, 0, 0, watches, ())
    import re  # noqa: PLC0415 the hook needs it seldom

    group = re.search(_FANOTIFY_GROUP, raw)
    faflags, evflags = (int(group[1], 16), int(group[2], 16)) if group else (0, 0)
    inodes: list[Watch] = []
    marks: list[Mark] = []
    for line in re.finditer(_FANOTIFY_LINE, raw):
        if line["ino"] is not None:
            inodes.append(_fanotify_watch(line, pid, fd))
        else:
            marks.append(_fanotify_mark(line, pid, fd))
    return WatchFile(pid, fd, kind, flags, faflags, evflags, tuple(inodes), tuple(marks))


class _Hex(dict[bytes, int]):
    # Most numbers repeat on every line: a dictionary lookup takes a quarter of the time.
    def __missing__(self, digits: bytes) -> int:
        number = self[digits] = int(digits, 16)
        return number


def _inotify_watches(raw: bytes, pid: int, fd: int) -> Iterator[Watch]:
    kind, known = WatchKind.INOTIFY, _Hex()
    for line in raw.split(b"\n"):
        if not line.startswith(b"inotify wd:"):
            continue
        # Key, value, key, value, … No regular expression: the import of `re` takes longer than a
        # thousand lines, and a paused container waits for it.
        words = line.replace(b":", b" ").split()
        if words[1:_BARE_WORDS:2] != _KEYS or len(words) < _BARE_WORDS:
            continue  # cut off
        handle = None
        try:
            if words[_BARE_WORDS:_WORDS:2] == _HANDLE_KEYS and len(words) >= _WORDS:
                handle = _handle(words[12], words[14], words[16])
            identity = Identity(known[words[6]], int(words[4], 16), handle)
            wd, mask, ignored = int(words[2], 16), known[words[8]], known[words[10]]
        except ValueError:
            continue  # not a line of the kernel
        yield Watch(pid, fd, kind, wd, identity, mask, ignored, 0)


def _fanotify_watch(line: re.Match[bytes], pid: int, fd: int) -> Watch:
    size, htype, data = line.groups()[-3:]
    identity = Identity(int(line["sdev"], 16), int(line["ino"], 16), _handle(size, htype, data))
    return Watch(
        pid,
        fd,
        WatchKind.FANOTIFY,
        -1,
        identity,
        int(line["mask"], 16),
        int(line["ignored"], 16),
        int(line["mflags"], 16),
    )


def _fanotify_mark(line: re.Match[bytes], pid: int, fd: int) -> Mark:
    if line["mnt_id"] is not None:
        kind, target = MarkKind.MOUNT, int(line["mnt_id"], 16)
    elif line["mnt_ns"] is not None:
        kind, target = MarkKind.NAMESPACE, int(line["mnt_ns"])
    else:
        kind, target = MarkKind.FILESYSTEM, int(line["fs"], 16)
    return Mark(
        pid,
        fd,
        kind,
        target,
        int(line["mask"], 16),
        int(line["ignored"], 16),
        int(line["mflags"], 16),
    )


class RawWatchFile(Record):
    """An inotify or fanotify descriptor, and the text of its fdinfo for a later parse."""

    pid: int
    """The task, or a thread with its own table of descriptors."""
    fd: int
    kind: WatchKind
    raw: bytes

    def parse(self) -> WatchFile:
        return parse_fdinfo(self.raw, self.pid, self.fd, self.kind)


_LINKS = {
    "anon_inode:inotify": WatchKind.INOTIFY,
    "anon_inode:[fanotify]": WatchKind.FANOTIFY,
}


# ENAMETOOLONG: the path is longer than the kernel gives for a link.
_NO_WATCH = {errno.ENOENT, errno.ESRCH, errno.ENAMETOOLONG}


def watch_descriptors(pid: int) -> list[tuple[int, WatchKind]]:
    """The inotify and fanotify descriptors of a task, by number.

    A descriptor that vanishes is left out; OSError where the task is gone or denied.
    """
    directory = f"{procfs.ROOT}/{pid}/fd"
    found = []
    names = os.listdir(directory)
    if not names:
        directory = f"{procfs.ROOT}/{living_thread(pid)}/fd"
        names = os.listdir(directory)
    for name in names:
        try:
            kind = _LINKS.get(os.readlink(f"{directory}/{name}"))
        except OSError as error:
            if error.errno not in _NO_WATCH:
                raise
            continue
        if kind is not None:
            found.append((int(name), kind))
    return sorted(found)


def read_raw(pid: int, fd: int, kind: WatchKind) -> RawWatchFile | None:
    """One descriptor's fdinfo; None if the descriptor or task is gone."""
    try:
        try:
            raw = read_file(f"{procfs.ROOT}/{pid}/fdinfo/{fd}")
        except FileNotFoundError:
            raw = read_file(f"{procfs.ROOT}/{living_thread(pid)}/fdinfo/{fd}")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return RawWatchFile(pid, fd, kind, raw)
