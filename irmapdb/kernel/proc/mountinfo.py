"""Reads the mountinfo of a task: proc_pid_mountinfo(5), fs/proc_namespace.c."""

from __future__ import annotations

import os
import select

from irmapdb.kernel.proc import procfs
from irmapdb.kernel.proc.procfs import living_thread, read_file
from irmapdb.model import Mount, kdev_of, printable

__all__ = ["MountinfoFile", "mount_namespace", "parse_mountinfo", "read_mountinfo"]

_OCTAL = rb"\\([0-7]{3})"


def _unescape(field: bytes) -> bytes:
    # mangle_path() of fs/seq_file.c writes space, tab, newline, backslash (and '#') in octal.
    if b"\\" not in field:
        return field
    import re  # noqa: PLC0415 the hook needs it seldom

    return re.sub(_OCTAL, lambda m: bytes([int(m[1], 8) & 0xFF]), field)


_MOUNTINFO_FIELDS = 6


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
            # The filesystem's server chooses the text after `fuse.`.
            fstype=printable(_unescape(tail[0])),
            source=_unescape(tail[1]),
            super_options=tail[2],
        )
    except ValueError:
        return None


def parse_mountinfo(raw: bytes) -> tuple[Mount, ...]:
    """Every mount of one mountinfo text, in its order. A cut-off line is ignored."""
    return tuple(filter(None, map(_mount, raw.split(b"\n"))))


def read_mountinfo(pid: int | str) -> tuple[Mount, ...]:
    """The mounts that a task sees, in its own root. OSError if it is gone or denied."""
    return parse_mountinfo(read_file(f"{procfs.ROOT}/{pid}/mountinfo"))


class MountinfoFile:
    """The mountinfo of a task, kept open. It outlives the task, and tells when it changes."""

    def __init__(self, pid: int | str) -> None:
        self.generation = 0
        """Counts mounts, moves and unmounts. A new mount may look the same as the old one, with the
        same number and device."""
        self._fd = os.open(f"{procfs.ROOT}/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._opener = os.getpid()
        self._changes = select.poll()
        self._changes.register(self._fd, select.POLLPRI)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def read(self) -> tuple[Mount, ...]:
        """Its mounts as they are now."""
        return parse_mountinfo(procfs.read_open(self._fd))

    def has_changed(self) -> bool:
        """Whether a mount was added, moved or removed since the last call; True if unknown."""
        if os.getpid() == self._opener:
            changed = bool(self._changes.poll(0))
            self.generation += changed
            return changed
        # A forked child shares the open file, and would consume the notification of its parent.
        self._open_own()
        self.generation += 1
        return True

    def _open_own(self) -> None:
        try:
            own = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # the task has ended: the next call tries again
        os.dup2(own, self._fd, inheritable=False)
        os.close(own)
        self._opener = os.getpid()


def mount_namespace(pid: int | str) -> int:
    """The inode number of a task's mount namespace, namespaces(7). OSError as above."""
    try:
        return os.stat(f"{procfs.ROOT}/{pid}/ns/mnt").st_ino
    except FileNotFoundError:
        return os.stat(f"{procfs.ROOT}/{living_thread(pid)}/ns/mnt").st_ino
