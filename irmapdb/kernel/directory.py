"""Opens a directory of our own tree as a root: an unpacked image, or a container's rootfs.

proc_pid_mountinfo(5) lists the mounts of our namespace as seen from our root. This module
translates the mounts below the directory to the view of a process whose root is that directory.
"""

from __future__ import annotations

import contextlib
import functools
import os

from irmapdb.errors import FileError
from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import mountinfo
from irmapdb.kernel.root import Root
from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from irmapdb.model import Mount

__all__ = ["open_directory_root"]


def _below(fd: int, prefix: bytes, mounts: tuple[Mount, ...]) -> Iterator[Mount]:
    """The mounts at or below the directory `fd`, whose path is `prefix`, as seen from it."""
    own = syscalls.statx(fd).mnt_id
    if own is None:  # before Linux 5.8
        own = _nearest(mounts, prefix)
    below = {own}
    grown = True
    while grown:  # a mount can stand before the mount that it is mounted on
        more = {mount.mnt_id for mount in mounts if mount.parent_id in below} - below
        below |= more
        grown = bool(more)
    for mount in mounts:
        if mount.mnt_id == own:
            within = prefix.removeprefix(mount.mountpoint.rstrip(b"/"))
            root = mount.root.rstrip(b"/") + within
            yield mount._replace(mountpoint=b"/", root=root or b"/")
        elif mount.mnt_id in below and mount.mountpoint.startswith(prefix + b"/"):
            yield mount._replace(mountpoint=mount.mountpoint.removeprefix(prefix))


def _nearest(mounts: Iterable[Mount], path: bytes) -> int | None:
    above = [m for m in mounts if (path + b"/").startswith(m.mountpoint.rstrip(b"/") + b"/")]
    return max(above, key=lambda mount: len(mount.mountpoint)).mnt_id if above else None


def open_directory_root(directory: bytes) -> Root:
    """The root that begins at a directory. It follows links on the way there, none below.

    FileError if it is no directory, or is in another mount namespace (as /proc/PID/root can be).
    """
    name = printable(directory)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(f"{name}: {error.strerror}", advice="name a directory") from error
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, fd)
        own = syscalls.statx(fd).mnt_id
        if own is not None and own not in {m.mnt_id for m in mountinfo.read_mountinfo("self")}:
            message = f"{name}: lies in another mount namespace"
            raise FileError(message, advice="name one of its tasks", remedy="task")
        prefix = os.fsencode(os.readlink(f"/proc/self/fd/{fd}")).rstrip(b"/")
        table = mountinfo.MountinfoFile("self")
        opened.callback(table.close)
        view = functools.partial(_below, fd, prefix)
        root = Root(fd, table, mountinfo.mount_namespace("self"), prefix, view)
        opened.pop_all()
        return root
