"""What /proc tells: watches (fdinfo) and mounts (mountinfo).

The parsers are pure, bytes in and model out; the readers take the proc root. Sources:
proc_pid_fdinfo(5), proc_pid_mountinfo(5); fs/notify/fdinfo.c, fs/proc_namespace.c. All numbers
of fdinfo's inotify and fanotify lines are hex.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from irmapdb.kernel import syscalls
from irmapdb.model import (
    FileHandle,
    Identity,
    Mark,
    MarkKind,
    Mount,
    Watch,
    WatchFile,
    WatchKind,
    kdev_of,
    printable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "OpenFile",
    "RawWatchFile",
    "living_thread",
    "mapped_files",
    "mount_namespace",
    "namespace_pids",
    "open_files",
    "parse_fdinfo",
    "parse_mountinfo",
    "read_file",
    "read_mountinfo",
    "read_open",
    "read_raw",
    "threads_apart",
    "watch_descriptors",
]

_HANDLE = rb"(?: ?fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:((?:[0-9a-f]{2})*))?"
_INOTIFY_LINE = re.compile(
    rb"^inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+)"
    rb" mask:([0-9a-f]+) ignored_mask:([0-9a-f]+)" + _HANDLE,
    re.MULTILINE,
)
_FANOTIFY_LINE = re.compile(
    rb"^fanotify (?:"
    rb"mnt_id:(?P<mnt_id>[0-9a-f]+)"
    rb"|mnt_ns:(?P<mnt_ns>[0-9]+)"  # the only decimal number
    rb"|ino:(?P<ino>[0-9a-f]+) sdev:(?P<sdev>[0-9a-f]+)"
    rb"|sdev:(?P<fs>[0-9a-f]+)"
    rb") mflags:(?P<mflags>[0-9a-f]+) mask:(?P<mask>[0-9a-f]+)"
    rb" ignored_mask:(?P<ignored>[0-9a-f]+)" + _HANDLE,
    re.MULTILINE,
)
_FANOTIFY_GROUP = re.compile(rb"^fanotify flags:([0-9a-f]+) event-flags:([0-9a-f]+)", re.MULTILINE)
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)


def _handle(size: bytes | None, kind: bytes | None, data: bytes | None) -> FileHandle | None:
    if not size or not kind or not data:
        return None
    content = bytes.fromhex(data.decode("ascii"))
    if len(content) != int(size, 16):
        return None  # a line cut short is no handle to compare with
    return FileHandle(int(kind, 16), content)


def parse_fdinfo(raw: bytes, pid: int, fd: int, kind: WatchKind) -> WatchFile:
    """The watches and marks of one descriptor's fdinfo, in the kernel's order (newest first).

    Lines that are neither are passed over. A watch whose filesystem encodes no handle has
    `handle` None.
    """
    found = _FLAGS.search(raw)
    flags = int(found[1], 8) if found else 0
    if kind is WatchKind.INOTIFY:
        watches = tuple(_inotify_watches(raw, pid, fd))
        return WatchFile(pid, fd, kind, flags, 0, 0, watches, ())
    group = _FANOTIFY_GROUP.search(raw)
    faflags, evflags = (int(group[1], 16), int(group[2], 16)) if group else (0, 0)
    inodes: list[Watch] = []
    marks: list[Mark] = []
    for line in _FANOTIFY_LINE.finditer(raw):
        if line["ino"] is not None:
            inodes.append(_fanotify_watch(line, pid, fd))
        else:
            marks.append(_fanotify_mark(line, pid, fd))
    return WatchFile(pid, fd, kind, flags, faflags, evflags, tuple(inodes), tuple(marks))


class _Hex(dict[bytes, int]):
    # Most numbers stand on every line: a look-up is a quarter of the work.
    def __missing__(self, digits: bytes) -> int:
        number = self[digits] = int(digits, 16)
        return number


def _inotify_watches(raw: bytes, pid: int, fd: int) -> Iterator[Watch]:
    kind, known = WatchKind.INOTIFY, _Hex()
    for line in _INOTIFY_LINE.finditer(raw):
        wd, ino, sdev, mask, ignored, size, htype, data = line.groups()
        identity = Identity(known[sdev], int(ino, 16), _handle(size, htype, data))
        yield Watch(pid, fd, kind, int(wd, 16), identity, known[mask], known[ignored], 0)


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


_OCTAL = re.compile(rb"\\([0-7]{3})")


def _unescape(field: bytes) -> bytes:
    # mangle_path() of fs/seq_file.c writes space, tab, newline, backslash (and '#') in octal.
    if b"\\" not in field:
        return field
    return _OCTAL.sub(lambda m: bytes([int(m[1], 8) & 0xFF]), field)


_MOUNTINFO_FIELDS = 6


def parse_mountinfo(raw: bytes) -> tuple[Mount, ...]:
    """Every mount of one mountinfo text, in its order. A line cut short is passed over."""
    return tuple(filter(None, map(_mount, raw.split(b"\n"))))


def _mount(line: bytes) -> Mount | None:
    left, separator, right = line.partition(b" - ")
    head, tail = left.split(b" "), right.split(b" ")
    if not separator or len(head) < _MOUNTINFO_FIELDS or len(tail) < 3:  # noqa: PLR2004 fields 9-11
        return None
    try:
        major, minor = head[2].split(b":")
        return Mount(
            mnt_id=int(head[0]),
            parent_id=int(head[1]),
            kdev=kdev_of(int(major), int(minor)),
            root=_unescape(head[3]),
            mountpoint=_unescape(head[4]),
            options=_unescape(head[5]),
            # What follows `fuse.` the filesystem's server has chosen.
            fstype=printable(_unescape(tail[0])),
            source=_unescape(tail[1]),
            super_options=tail[2],
        )
    except ValueError:
        return None


def read_mountinfo(pid: int | str, proc: str = "/proc") -> tuple[Mount, ...]:
    """The mounts that a task sees, in its own root. OSError where it is gone or denied."""
    return parse_mountinfo(read_file(f"{proc}/{pid}/mountinfo"))


def mount_namespace(pid: int | str, proc: str = "/proc") -> int:
    """The inode number of a task's mount namespace, namespaces(7). OSError as above."""
    try:
        return os.stat(f"{proc}/{pid}/ns/mnt").st_ino
    except FileNotFoundError:
        return os.stat(f"{proc}/{living_thread(pid, proc)}/ns/mnt").st_ino


def living_thread(pid: int | str, proc: str = "/proc") -> int | str:
    """The task as given; where its first thread has ended, another one that lives.

    A first thread that has ended has no descriptors, root and namespaces any more (do_exit() of
    kernel/exit.c), while the others have. Any thread's number can be looked up in /proc. OSError
    where the task is gone.
    """
    if _has_ended(f"{proc}/{pid}"):
        for tid in os.listdir(f"{proc}/{pid}/task"):
            if not _has_ended(f"{proc}/{pid}/task/{tid}"):
                return int(tid)
    return pid


def _has_ended(directory: str) -> bool:
    stat = read_file(f"{directory}/stat")
    return stat[stat.rfind(b")") + 2 :][:1] in {b"Z", b"X"}


def namespace_pids(pid: int, proc: str = "/proc") -> tuple[int, ...]:
    """A task's pid in each pid namespace that it is in: `NSpid:` of proc_pid_status(5).

    Empty where the task is gone.
    """
    try:
        status = read_file(f"{proc}/{pid}/status")
    except OSError:
        return ()
    found = re.search(rb"^NSpid:([\d\s]+?)$", status, re.MULTILINE)
    return tuple(map(int, found[1].split())) if found else (pid,)


def threads_apart(pid: int, proc: str = "/proc") -> list[int]:
    """The threads of a task that have a table of descriptors of their own (CLONE_FILES unset).

    Empty where the task is gone. Each number can be looked up in /proc like a task's.
    """
    try:
        # proc_task_getattr() of fs/proc/base.c: two links, and one for each thread.
        if os.stat(f"{proc}/{pid}/task").st_nlink <= _LINKS_OF_ONE_THREAD:
            return []
        first = int(living_thread(pid, proc))
        threads = [int(tid) for tid in os.listdir(f"{proc}/{pid}/task")]
    except OSError:
        return []
    # A first thread that has ended has no table at all.
    others = (tid for tid in threads if tid not in {pid, first})
    return sorted(tid for tid in others if not syscalls.same_descriptors(first, tid))


_LINKS_OF_ONE_THREAD = 3


class RawWatchFile(NamedTuple):
    """A descriptor that watches, and its fdinfo as read: parsed later, or never."""

    pid: int
    """The task, or a thread that has a table of descriptors of its own."""
    fd: int
    kind: WatchKind
    raw: bytes

    def parse(self) -> WatchFile:
        return parse_fdinfo(self.raw, self.pid, self.fd, self.kind)


_LINKS = {
    "anon_inode:inotify": WatchKind.INOTIFY,
    "anon_inode:[fanotify]": WatchKind.FANOTIFY,
}


# ENAMETOOLONG: a file whose path is longer than a link can tell.
_NO_WATCH = {errno.ENOENT, errno.ESRCH, errno.ENAMETOOLONG}


def watch_descriptors(pid: int, proc: str = "/proc") -> list[tuple[int, WatchKind]]:
    """The inotify and fanotify descriptors of a task, by number.

    A descriptor that vanishes is left out; OSError where the task is gone or denied.
    """
    directory = f"{proc}/{pid}/fd"
    found = []
    names = os.listdir(directory)
    if not names:
        directory = f"{proc}/{living_thread(pid, proc)}/fd"
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


def read_raw(pid: int, fd: int, kind: WatchKind, proc: str = "/proc") -> RawWatchFile | None:
    """One descriptor's fdinfo; None where descriptor or task vanished."""
    try:
        try:
            raw = read_file(f"{proc}/{pid}/fdinfo/{fd}")
        except FileNotFoundError:
            raw = read_file(f"{proc}/{living_thread(pid, proc)}/fdinfo/{fd}")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return RawWatchFile(pid, fd, kind, raw)


# The kernel makes the whole text of one fdinfo at the first read (single_open), so large reads
# only save calls.
_CHUNK_BYTES = 1 << 20


def read_file(path: str) -> bytes:
    """One file of /proc, whole, in as few calls as can be. OSError as open(2) and read(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_open(fd)
    finally:
        os.close(fd)


def read_open(fd: int) -> bytes:
    """An open file of /proc, whole, as it is now."""
    os.lseek(fd, 0, os.SEEK_SET)
    chunks = []
    while chunk := os.read(fd, _CHUNK_BYTES):
        chunks.append(chunk)
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


class OpenFile(NamedTuple):
    """Something that a task holds open, and the name that the kernel has for it."""

    link: str
    """The magic link: /proc/PID/fd/N, cwd, root, exe, or one of map_files."""
    path: bytes
    """What it reads as; ` (deleted)` behind it may be a part of the name."""


def open_files(pid: int, proc: str = "/proc") -> Iterator[OpenFile]:
    """The named files, directories and executables that a task holds open.

    Sockets, pipes and anonymous inodes have no path and are left out. Whatever vanishes or is
    denied is left out too.
    """
    try:
        base = f"{proc}/{living_thread(pid, proc)}"
        links = [f"{base}/{name}" for name in ("cwd", "root", "exe")]
        links += [f"{base}/fd/{name}" for name in os.listdir(f"{base}/fd")]
    except OSError:
        return
    yield from _named(links)


# A task may have 65,530 maps (vm.max_map_count of proc_sys_vm(5)), and more where that is raised.
_MOST_MAPS = 10_000


def mapped_files(pid: int, proc: str = "/proc") -> Iterator[OpenFile]:
    """The named files that a task has in its memory, which need not be open any more.

    Each name once, of the first 10,000 maps. To follow the links takes CAP_SYS_ADMIN or
    CAP_CHECKPOINT_RESTORE in the machine's own user namespace (proc_pid_map_files(5)).
    """
    try:
        directory = f"{proc}/{living_thread(pid, proc)}/map_files"
        with os.scandir(directory) as entries:
            links = [entry.path for entry in itertools.islice(entries, _MOST_MAPS)]
    except OSError:
        return
    known: set[bytes] = set()
    for file in _named(links):
        if file.path not in known:
            yield file
        # Of one name any number of files can have been deleted.
        if not file.path.endswith(b" (deleted)"):
            known.add(file.path)


def _named(links: Iterable[str]) -> Iterator[OpenFile]:
    for link in links:
        try:
            path = os.fsencode(os.readlink(link))
        except OSError:
            continue
        if path.startswith(b"/"):
            yield OpenFile(link, path)
