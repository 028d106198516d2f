"""Opens the handles of watches as CRIU does first, which adds no name to the kernel's cache.

Source: alloc_openable() of criu/fsnotify.c.
"""

from __future__ import annotations

import errno
import os
import stat

from irmapdb.criu.check.criu_view import found_at, numbers
from irmapdb.criu.check.facts import HandleLook, SearchLook
from irmapdb.kernel import syscalls
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.resolve.mount_points import at_mount_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.criu.check.criu_view import CriuView, Mountpoints
    from irmapdb.criu.check.facts import Call, Facts, Found
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity

__all__ = ["ByHandle"]


class ByHandle:
    """Takes `Look.HANDLE`."""

    def __init__(self, criu_view: CriuView, call: Call, mountpoints: Mountpoints) -> None:
        self.denied = False
        """Whether a handle could not be opened without CAP_DAC_READ_SEARCH."""
        self._criu_view = criu_view
        self._root = criu_view.root
        self._call = call
        self._mountpoints = mountpoints

    def __call__(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts with this look."""
        for facts in batch:
            yield facts._replace(handle=self._look(facts.identity))

    def _look(self, identity: Identity) -> HandleLook:
        look = HandleLook(opened=False)
        for view, mount_fd in self._mountpoints.of(identity.kdev):
            if identity.handle is None:
                break
            try:
                fd = syscalls.open_by_handle_at(mount_fd, identity.handle, os.O_PATH)
            except OSError as error:
                self.denied |= error.errno == errno.EPERM
                look = look._replace(why_not=look.why_not or error.strerror or "")
                continue
            with Descriptor(fd):
                look = _opened(fd)
                link = _link_of(fd)
            if link is None:  # CRIU looks through no other mount then
                return look._replace(too_long=True)
            found = self._named(view.root, identity, link)
            if found is not None:
                return look._replace(found=found)
        return look._replace(mounted=self._mounted(identity)) if look.opened else look

    def _mounted(self, identity: Identity) -> SearchLook | None:
        nested = (root for root in self._criu_view.nested if not root.may_block(identity.kdev))
        for root in (self._root, *nested):
            for candidate in at_mount_points(root, [identity]):
                if disproof(root, *candidate) is None:
                    if root is self._root:
                        return SearchLook(candidate.path, hinted=self._call.scans(candidate.path))
                    return SearchLook(candidate.path, mntns=root.mntns)
        return None

    def _named(self, root: Root, identity: Identity, link: bytes) -> Found | None:
        # CRIU compares only the inode number, and follows a link at the end.
        try:
            fd = self._criu_view.lookup(link[1:] or b".", os.O_PATH, root=root)
        except OSError:
            return None
        with Descriptor(fd):
            if numbers(fd).ino != identity.ino:
                return None
            return found_at(link, identity, root, fd)


def _opened(fd: int) -> HandleLook:
    status = os.fstat(fd)
    return HandleLook(
        opened=True,
        deleted=status.st_nlink == 0,
        symlink=stat.S_ISLNK(status.st_mode),
        directory=stat.S_ISDIR(status.st_mode),
    )


def _link_of(fd: int) -> bytes | None:
    # None: the path is too long for a link (proc_pid_readlink() of fs/proc/base.c).
    try:
        return os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
