"""Finds the tasks that have a deleted file open, and the last name of that file.

The link of a descriptor of such a file ends in ` (deleted)` (d_path() of fs/d_path.c). The text
before it is the name at the time of the removal.
"""

from __future__ import annotations

import os
import stat

from irmapdb.kernel import proof
from irmapdb.kernel.proc import open_files
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity

__all__ = ["Holder", "deleted_holders"]

_DELETED = b" (deleted)"
_DESCRIPTOR = r"/fd/(\d+)\Z"


class Holder(Record):
    """One task that has a deleted file open."""

    pid: int
    where: str
    """`fd 5`; or `cwd`, `root`, `exe`."""
    last_name: bytes
    """Absolute in the root of the root task; as the kernel gives it if it is outside of that."""
    is_directory: bool

    def __str__(self) -> str:
        return f"it was {printable(self.last_name)}; task {self.pid} holds it as {self.where}"


def deleted_holders(
    root: Root,
    pids: Sequence[int],
    wanted: Iterable[Identity],
) -> dict[Identity, Holder]:
    """The first task that has each wanted inode open.

    Only wanted files are looked up, because the device of the descriptor's mount is compared first.
    Filesystems that may block are not asked.
    """
    by_ino: dict[int, list[Identity]] = {}
    for identity in wanted:
        if not root.may_block(identity.kdev):
            by_ino.setdefault(identity.ino, []).append(identity)
    found: dict[Identity, Holder] = {}
    kdevs = {one.kdev for many in by_ino.values() for one in many}
    for pid in pids if by_ino else ():
        for file in open_files.open_files(pid):
            if not file.path.endswith(_DELETED):
                continue
            held, is_directory = _held(root, file.link, by_ino, kdevs)
            for identity in held:
                name = file.path.removesuffix(_DELETED)
                holder = Holder(pid, _where(file.link), root.strip(name) or name, is_directory)
                found.setdefault(identity, holder)
    return found


def _held(
    root: Root, link: str, by_ino: dict[int, list[Identity]], kdevs: set[int]
) -> tuple[list[Identity], bool]:
    # The second: whether it is a directory.
    try:
        with Descriptor(os.open(link, os.O_PATH | os.O_CLOEXEC)) as fd:
            mount = root.mount_by_id(proof.mount_id(fd))
            if mount is None or mount.kdev not in kdevs:
                return [], False
            status = os.fstat(fd)
            candidates = by_ino.get(status.st_ino, ())
            if status.st_nlink or not candidates:
                return [], False
            held = proof.identify_fd(root, fd)
            is_directory = stat.S_ISDIR(status.st_mode)
            return [identity for identity in candidates if held.matches(identity)], is_directory
    except OSError:
        return [], False


def _where(link: str) -> str:
    import re  # noqa: PLC0415 the hook needs it seldom

    descriptor = re.search(_DESCRIPTOR, link)
    return f"fd {descriptor[1]}" if descriptor else link.rpartition("/")[2]
