"""Finds paths by file handles: open_by_handle_at(2), and the name in the kernel's cache."""

from __future__ import annotations

import errno
import os
import stat

from irmapdb.kernel import syscalls
from irmapdb.kernel.fs.inode_state import opens_handles
from irmapdb.model import Source, format_kdev
from irmapdb.resolve.engine import Candidate, Deleted, Note
from irmapdb.resolve.mount_fds import MountLookup
from irmapdb.resolve.mount_points import at_mount_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.model import FileHandle, Identity, Mount
    from irmapdb.resolve.engine import Answer, Wanted

__all__ = ["Handles"]

_CANNOT_OPEN = "this filesystem cannot open handles"
_NO_NAME = "the kernel has no name cached for it"


class Handles(MountLookup):
    """open_by_handle_at(2) through the mounts of the device, and the cached name in the kernel.

    A file whose dentry was dropped opens, but has no name; a directory always has one. A deleted
    file may still have a mount point. Needs CAP_DAC_READ_SEARCH.
    """

    source = Source.HANDLE

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        by_kdev: dict[int, list[Identity]] = {}
        for identity in wanted:
            by_kdev.setdefault(identity.kdev, []).append(identity)
        for kdev, identities in by_kdev.items():
            notes: dict[Identity, str] = {}
            deleted: dict[Identity, Deleted] = {}
            mounts = self._root.mounts.of_device(kdev)
            for mount in mounts:
                yield from self._through(mount, identities, wanted, notes, deleted)
            # The root of a mount has a cached name, also if that was removed.
            left = [one for one in identities if one in wanted and notes.get(one) != _NO_NAME]
            yield from at_mount_points(self._root, left)
            yield from deleted.values()
            missing = "" if mounts else f"{format_kdev(kdev)} is not mounted in this root"
            for identity in identities:
                yield Note(identity, notes.get(identity) or missing or "cannot be opened")

    def _through(
        self,
        mount: Mount,
        identities: list[Identity],
        wanted: Wanted,
        notes: dict[Identity, str],
        deleted: dict[Identity, Deleted],
    ) -> Iterator[Candidate]:
        try:
            # A mount point that is a file cannot be opened like this, and is skipped.
            mount_fd = self._mount_fds.open(mount.mountpoint)
        except OSError:
            return
        try:
            opens = opens_handles(mount_fd)
            for identity in identities:
                if self._over():
                    return
                if identity not in wanted or identity in deleted:
                    continue  # another mount of the device has already answered
                if identity.handle is None:
                    notes[identity] = "the kernel shows no handle for it"
                    continue
                if not opens:
                    notes[identity] = _CANNOT_OPEN
                    continue
                answer = self._open(mount_fd, identity, identity.handle)
                if isinstance(answer, str):
                    notes.setdefault(identity, answer)
                    continue
                if isinstance(answer, Deleted):
                    deleted[identity] = answer
                    continue
                yield answer
                if identity in wanted:
                    notes[identity] = "the cached name does not lead to it"
        finally:
            os.close(mount_fd)

    def _open(
        self, mount_fd: int, identity: Identity, handle: FileHandle
    ) -> Candidate | Deleted | str:
        # Or why there is none.
        try:
            fd = syscalls.open_by_handle_at(mount_fd, handle, os.O_PATH)
        except OSError as error:
            return _why_not_opened(error)
        try:
            link = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
            if link != b"/" and not link.endswith(b" (deleted)"):
                path = self._root.strip(link)
            else:
                status = os.fstat(fd)
                if status.st_nlink == 0:
                    return Deleted(identity)
                if link == b"/" and not stat.S_ISDIR(status.st_mode):
                    return _NO_NAME
                path = self._root.strip(link)
        except OSError as error:  # a path beyond PATH_MAX, too long for a link
            return f"the kernel does not give its name: {error.strerror}"
        finally:
            os.close(fd)
        if path is None:
            return "it lies outside of this root"
        return Candidate(identity, path)


def _why_not_opened(error: OSError) -> str:
    match error.errno:
        case errno.ESTALE:
            return "the filesystem does not know this handle"
        case errno.EOPNOTSUPP:
            return _CANNOT_OPEN
        case errno.EPERM:
            return "opening handles needs CAP_DAC_READ_SEARCH"
        case _:
            return f"open_by_handle_at: {error.strerror}"
