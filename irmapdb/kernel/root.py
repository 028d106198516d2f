"""Opens a root directory with its mounts, and looks up paths in it.

No lookup follows a symbolic link or leaves the root, with any files that a tenant makes: openat2(2)
with RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. Which directory is the root:
__mntns_get_root_fd() of CRIU's criu/mount.c.
"""

from __future__ import annotations

import errno
import os

from irmapdb.config import Config
from irmapdb.errors import TaskError
from irmapdb.kernel import syscalls
from irmapdb.kernel.fs.own_mounts import OwnMounts
from irmapdb.kernel.fs.superblock import Superblock, superblock_of
from irmapdb.kernel.mount_table import MountTable
from irmapdb.kernel.proc import mountinfo, procfs
from irmapdb.kernel.syscalls import AT_EMPTY_PATH
from irmapdb.model import Mount, is_fuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from irmapdb.kernel.proc.mountinfo import MountinfoFile

__all__ = ["Root", "adopt_from", "open_beneath", "open_root"]

# The errors of a seccomp profile; for statx glibc turns ENOSYS into EINVAL (its own emulation).
_REFUSED = frozenset({errno.EPERM})
_REFUSED_OR_UNKNOWN = frozenset({errno.EPERM, errno.ENOSYS, errno.EINVAL})
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
# One lookup takes a path of less than PATH_MAX (4096) bytes; a longer one goes in pieces.
_LONGEST_LOOKUP_BYTES = 4000


def open_beneath(dir_fd: int, path: bytes, flags: int, *, resolve: int = _RESOLVE) -> int:
    """Open `path` below `dir_fd`, through no symbolic link and never outside.

    A leading slash is the directory itself. Paths beyond PATH_MAX are walked in pieces.
    OSError: ENOENT, ENOTDIR; ELOOP for a link anywhere; ValueError: a NUL byte.
    """
    path = path.strip(b"/") or b"."
    if len(path) < _LONGEST_LOOKUP_BYTES:
        return syscalls.openat2(dir_fd, path, flags, resolve)
    current = os.dup(dir_fd)
    try:
        while len(path) >= _LONGEST_LOOKUP_BYTES:
            cut = path.rfind(b"/", 0, _LONGEST_LOOKUP_BYTES)
            if cut < 0:
                break  # a single name that long: the kernel says ENAMETOOLONG
            deeper = syscalls.openat2(current, path[:cut], os.O_PATH | os.O_DIRECTORY, resolve)
            os.close(current)
            current, path = deeper, path[cut:].lstrip(b"/")
        return syscalls.openat2(current, path, flags, resolve)
    finally:
        os.close(current)


class Root:
    """An open root and a snapshot of its mounts. A context manager that closes its descriptors."""

    def __init__(
        self,
        fd: int,
        mountinfo_file: MountinfoFile,
        mntns: int,
        prefix: bytes,
        view: Callable[[tuple[Mount, ...]], Iterable[Mount]] = lambda mounts: mounts,
    ) -> None:
        self.fd = fd
        """An O_PATH descriptor of the root directory."""
        self.mountinfo = mountinfo_file
        """The mountinfo that goes with it."""
        self.mntns = mntns
        """Inode number of the mount namespace."""
        self.prefix = prefix
        """The prefix that the kernel adds to a path in this root when we read a link: b"" unless
        the root is a chroot."""
        self.mounts = MountTable((), None)
        """The mounts as they were when they were read last."""
        self.superblocks = OwnMounts(_open_own_root)
        """The superblocks of our own mount namespace, for the layers of its overlays."""
        self.skip_paths: tuple[bytes, ...] = ()
        """Directories that the user wants left out of every scan."""
        self.trusted: set[int] = set()
        """FUSE devices that the user has named, and so trusts."""
        self._view = view
        """Translates the mounts of mountinfo into those of this root."""
        self._outside = False
        """Whether the table lacks the mount of the root directory."""
        self._top: Mount | None = None
        """That mount."""
        self.is_local: Callable[[str], bool] = Config().walkable
        """Whether a type of filesystem never blocks on a server."""
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.superblocks.close()
        os.close(self.fd)
        self.mountinfo.close()

    @property
    def is_namespaces_own(self) -> bool:
        """Whether it is the root of its mount namespace, and no chroot."""
        # A root that was unmounted reads "/" too, but no table has it.
        return not self.prefix and not self._outside

    def refresh(self) -> None:
        """Read the mounts again."""
        self.mountinfo.has_changed()
        self._read()

    def renew(self) -> None:
        """Read the mounts again if a mount was added, moved or removed since.

        The kernel reports this (mounts_poll() of fs/proc_namespace.c), and the call is very fast.
        It does not report the rename of a directory above a mount point: only `refresh` sees that.
        """
        if self.mountinfo.has_changed():
            self._read()

    def _read(self) -> None:
        mounts = tuple(self._view(self.mountinfo.read()))
        own = syscalls.statx(self.fd)
        self._outside = own.mnt_id is not None and all(m.mnt_id != own.mnt_id for m in mounts)
        if own.mnt_id is not None and self._outside:
            # A chroot that is no mount point: the table begins with the mounts below it.
            # Read once: an open directory stays on its mount.
            self._top = self._top or _mount_of_directory(self.fd, own.mnt_id, own.st_kdev)
            mounts = (self._top, *mounts)
        self.mounts = MountTable(mounts, own.mnt_id)

    def open(self, path: bytes, flags: int = os.O_PATH | os.O_NOFOLLOW) -> int:
        """Open an absolute path of this root. The caller closes the descriptor."""
        return open_beneath(self.fd, path, flags)

    def adopt(self, config: Config, scan_paths: Iterable[bytes] = ()) -> None:
        """Let the configuration say which types of filesystem may block, and which paths may not.

        It also has the directories that no scan enters.

        A device that one of `scan_paths`, or of the configuration's, lies on is trusted.
        """
        self.is_local = config.walkable
        self.skip_paths = config.skip_paths
        self.trust((*scan_paths, *config.scan_paths))

    def trust(self, scan_paths: Iterable[bytes]) -> None:
        """Trust the FUSE servers of these absolute paths, because the user has named them."""
        for path in scan_paths:
            mount = self.mounts.of_path(path.rstrip(b"/"))
            if mount is not None and is_fuse(mount.fstype):
                self.trusted.add(mount.kdev)

    def may_block(self, kdev: int) -> bool:
        """Whether a lookup on this device may block on a network or FUSE server, or on autofs."""
        return any(not self.is_local(mount.fstype) for mount in self.mounts.on_way_to(kdev))

    def blocking_kinds(self, kdev: int) -> str:
        """The types of filesystem on which it may block, for people; "" for none."""
        return _blocking_kinds(self.mounts.on_way_to(kdev), self.is_local)

    def blocking_kinds_to(self, path: bytes) -> str:
        """The same of a lookup of an absolute path."""
        return _blocking_kinds(self.mounts.along(path), self.is_local)

    def mount_by_id(self, mnt_id: int) -> Mount | None:
        """A mount by its number; None if it is not in this root."""
        self.renew()  # a new mount often gets the number of one that is gone
        return self.mounts.by_id.get(mnt_id)

    def strip(self, link: bytes) -> bytes | None:
        """The path in this root for the text of a magic link; None if it is outside."""
        if not self.prefix:
            return link
        if link == self.prefix:
            return b"/"
        return link.removeprefix(self.prefix) if link.startswith(self.prefix + b"/") else None


def _blocking_kinds(mounts: Iterable[Mount], is_local: Callable[[str], bool]) -> str:
    kinds = {mount.fstype for mount in mounts if not is_local(mount.fstype)}
    return ", ".join(sorted(kinds))


def _mount_of_directory(fd: int, mnt_id: int, st_kdev: int) -> Mount:
    # If its superblock is unknown, the device of stat is right except on btrfs and some overlays,
    # and there it matches nothing.
    kdev, fstype = superblock_of(fd) or Superblock(st_kdev, "")
    return Mount(mnt_id, mnt_id, kdev, b"/", b"/", b"", fstype, b"", b"")


def adopt_from(nested: Root, main: Root) -> None:
    """`Root.adopt` for a nested root: the policy of the main root, and the devices trusted there.

    A path that you name is one in the main root. At the same path of its own mount namespace, any
    user of a container may mount a FUSE server. A trusted device is the same in all roots.
    """
    nested.is_local = main.is_local
    nested.skip_paths = main.skip_paths
    nested.trusted = main.trusted


def _require_calls(fd: int) -> None:
    """TaskError if a sandbox refuses a call that every proof needs."""
    for name, call in (
        # ENOENT without a lookup: the lookup of a root on FUSE would wait for the server.
        ("openat2", lambda: syscalls.openat2(fd, b"", os.O_PATH, _RESOLVE)),
        ("statx", lambda: syscalls.statx(fd)),
        ("name_to_handle_at", lambda: syscalls.name_to_handle_at(fd, b"", AT_EMPTY_PATH)),
    ):
        try:
            call()
        except OSError as error:
            # Without CONFIG_FHANDLE there are no handles to compare; that is no refusal.
            handles = name == "name_to_handle_at"
            if error.errno not in (_REFUSED if handles else _REFUSED_OR_UNKNOWN):
                continue
            message = f"{name}(2) cannot be used here: {error.strerror}"
            advice = "allow it in the seccomp profile of the sandbox that this runs in"
            if error.errno != errno.EPERM:
                advice += ", or use a newer kernel (Linux 5.6)"
            raise TaskError(message, advice=advice) from error


def open_root(pid: int) -> Root:
    """The root of a task's mount namespace.

    For a task in our own namespace it is our root, also if the task is in a chroot, as with CRIU.
    For a task in another namespace it is the task's own root. TaskError if we may not open it, or
    if the task does not exist.
    """
    try:
        mntns = mountinfo.mount_namespace(pid)
        ours = mntns == mountinfo.mount_namespace("self")
        who = "self" if ours else str(procfs.living_thread(pid))
        # Seen from outside, the link of another namespace's root reads "/".
        prefix = os.fsencode(os.readlink(f"{procfs.ROOT}/{who}/root")).rstrip(b"/")
        fd = os.open(f"{procfs.ROOT}/{who}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mountinfo_file = mountinfo.MountinfoFile(who)
        except OSError:
            os.close(fd)
            raise
    except (FileNotFoundError, ProcessLookupError) as error:
        message = f"no process {pid}"
        raise TaskError(
            message, advice="it has ended, or lives in another pid namespace"
        ) from error
    except OSError as error:
        message = f"cannot look into the root of process {pid}: {error.strerror}"
        raise TaskError(message, advice="run as root, or as the owner of the process") from error
    try:
        _require_calls(fd)
        return Root(fd, mountinfo_file, mntns, prefix)
    except BaseException:
        os.close(fd)
        mountinfo_file.close()
        raise


def _open_own_root() -> Root:
    return open_root(os.getpid())
