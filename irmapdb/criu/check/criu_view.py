"""Sees files as CRIU does: its list of mounts, its root, and its way to look up a path.

Sources: collect_mnt_namespaces(), mntns_get_root_fd() and __open_mountpoint() of criu/mount.c,
walk_namespaces() of criu/namespaces.c, parse_mountinfo() of criu/proc_parse.c.
"""

from __future__ import annotations

import contextlib
import os
import stat

from irmapdb.criu.check.facts import Found
from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.proc import mountinfo
from irmapdb.kernel.proof import disproof_of_fd, identify_fd
from irmapdb.kernel.root import Root, open_root
from irmapdb.model import InodeKey, Mount, StaleReason, kdev_of
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.model import Identity

__all__ = [
    "CriuMount",
    "CriuView",
    "Mountpoints",
    "criu_mounts",
    "found_at",
    "numbers",
    "open_criu_view",
]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK


class CriuMount(Record):
    """A mount of CRIU's list, and the root in which CRIU looks up its mount point."""

    root: Root
    mount: Mount

    def open(self) -> int | None:
        """A descriptor of the mount point; None if it is a file, hidden, or not reachable."""
        try:
            fd = self.root.open(self.mount.mountpoint, _DIRECTORY)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if numbers(fd).kdev == self.mount.kdev:
                return fd
            # On btrfs st_dev is the subvolume's.
            if self.mount.fstype == "btrfs" and identify_fd(self.root, fd).kdev == self.mount.kdev:
                return fd
        os.close(fd)
        return None


class Mountpoints:
    """Descriptors to open handles through, each opened once, until `close`."""

    def __init__(self, views: Iterable[CriuMount]) -> None:
        self._views = tuple(views)
        self._opened: dict[int, list[tuple[CriuMount, int]]] = {}
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """Close them all."""
        self._stack.close()

    def of(self, kdev: int) -> list[tuple[CriuMount, int]]:
        """The mounts of a device that can be reached, in their order."""
        found = self._opened.get(kdev)
        if found is None:
            found = self._opened[kdev] = []
            for view in self._views:
                fd = view.open() if view.mount.kdev == kdev else None
                if fd is not None:
                    self._stack.callback(os.close, fd)
                    found.append((view, fd))
        return found


class CriuView(Record):
    """One task tree as CRIU sees it."""

    root: Root
    """The root task's root; CRIU's and our own root, if they share the mount namespace."""
    views: tuple[CriuMount, ...]
    """In the order in which CRIU tries them."""
    foreign: bool
    """Whether the root task has a mount namespace of its own."""
    pids: tuple[int, ...]
    nested: tuple[Root, ...] = ()
    """The roots of other mount namespaces of the tree."""

    def lookup(self, path: bytes, flags: int = os.O_PATH | os.O_NOFOLLOW, *, root: Root) -> int:
        """A descriptor of a path without its first slash, as CRIU's openat(2) and fstatat(2) go.

        Links on the way are followed. In another mount namespace, an absolute link leads CRIU out
        into its own root; here it raises OSError.
        """
        stay = syscalls.RESOLVE_BENEATH if self.foreign else syscalls.RESOLVE_IN_ROOT
        return syscalls.openat2(root.fd, path, flags, stay | syscalls.RESOLVE_NO_MAGICLINKS)

    def covered(self, kdev: int) -> bytes | None:
        """A mount point of a device, if other mounts cover all its mounts; else None."""
        here = [view for view in self.views if view.mount.kdev == kdev]
        if not here or any(view.root.mounts.of_device(kdev) for view in here):
            return None
        return here[0].mount.mountpoint

    def is_on(self, kdev: int, fstype: str) -> bool:
        """Whether a device is mounted anywhere as this type of filesystem."""
        return any(view.mount.kdev == kdev and view.mount.fstype == fstype for view in self.views)


def numbers(fd: int) -> InodeKey:
    """The numbers that CRIU compares: st_dev, in the kernel's encoding, and st_ino."""
    status = os.fstat(fd)
    return InodeKey(kdev_of(os.major(status.st_dev), os.minor(status.st_dev)), status.st_ino)


def found_at(path: bytes, identity: Identity, root: Root, fd: int) -> Found:
    """A path that CRIU accepts, with the proof that CRIU does not make. `fd` is open there."""
    try:
        reason = disproof_of_fd(root, identity, fd)
    except OSError:
        right: bool | None = False
    else:
        right = None if reason is StaleReason.AMBIGUOUS else reason is None
    return Found(path, right, stat.S_ISLNK(os.fstat(fd).st_mode))


@contextlib.contextmanager
def open_criu_view(tasks: Sequence[Task]) -> Iterator[CriuView]:
    """These tasks as CRIU would see them, the root task first. TaskError as `open_root`.

    CRIU tries a namespace's mounts from the last to the first, and begins with the namespace of the
    task that it read last.
    """
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(open_root(tasks[0].pid))
        roots: dict[int, Root] = {root.mntns: root}
        for task in tasks[1:]:
            try:
                mntns = mountinfo.mount_namespace(task.pid)
                if mntns in roots:
                    continue
                nested = stack.enter_context(open_root(task.pid))
            except (OSError, TaskError):
                continue
            if not nested.prefix:  # else its first task is in a chroot, and CRIU sees nothing
                roots[mntns] = nested
        foreign = root.mntns != mountinfo.mount_namespace("self")
        views = tuple(
            # In its own namespace CRIU looks up everything in its own root.
            CriuMount(one if foreign else root, mount)
            for one in reversed(roots.values())
            for mount in criu_mounts(one)
        )
        pids = tuple(task.pid for task in tasks)
        yield CriuView(root, views, foreign, pids, tuple(roots.values())[1:])


def criu_mounts(root: Root) -> list[Mount]:
    """The mounts of one namespace in CRIU's order, the last one first.

    Without the mounts that CRIU leaves out, those with a name that it reads wrongly, and the mount
    that a `Root` adds for a chroot.
    """
    return [
        mount
        for mount in reversed(root.mounts.all)
        if mount.fstype not in {"", "tracefs"} and b"\n" not in mount.mountpoint
    ]
