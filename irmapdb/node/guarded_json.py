"""Reads the state files of container engines: JSON in directories that only root can change.

A name in such a file can come from a tenant, and the file can be half written, missing or huge. So
a file counts only if root or the caller owns it and all directories above it, and if no other user
can write there (irmapdb.ownership). It is opened through that directory, follows no symbolic link,
never waits for a FIFO, and has a size limit. A file that cannot be read counts as absent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat

from irmapdb.errors import FileError
from irmapdb.kernel.proc import mountinfo, procfs
from irmapdb.ownership import belongs_to_us, open_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _Made = TypeVar("_Made")

__all__ = ["GuardedFiles", "host_root", "parsed"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_INIT = 1
_LIMIT_BYTES = 1 << 20
"""An OCI config.json with a seccomp profile has 50 KiB. A pod may have 256 KiB of annotations."""
_MOST_NAMES = 10_000
"""The largest number of entries of a directory that are looked at."""


def host_root() -> str:
    """The directory that has the root of the machine; "" if it is our own root, or not found.

    In a container that manages its machine, such as a DaemonSet of Kubernetes, it is `/host`, for
    example: there the root mount of init is mounted once more.
    """
    try:
        own, inits = (os.readlink(f"{procfs.ROOT}/{pid}/ns/mnt") for pid in ("self", _INIT))
        if own == inits:
            return ""
        tops = [one for one in mountinfo.read_mountinfo(_INIT) if one.mountpoint == b"/"]
        for mount in mountinfo.read_mountinfo("self"):
            if tops and (mount.kdev, mount.root) == (tops[-1].kdev, tops[-1].root):
                return os.fsdecode(mount.mountpoint).rstrip("/")
    except OSError:
        return ""
    return ""


class GuardedFiles:
    """The state files, as they are during one listing: some are read once for all containers."""

    def __init__(self, root: str = "") -> None:
        """`root`: the directory at which the paths start; "" for our own root."""
        self._root = root
        self._kept: dict[str, Any] = {}

    def text(self, path: str, *, limit_bytes: int = _LIMIT_BYTES) -> bytes | None:
        """The content of a file; None if it is absent, too long, or others can change it."""
        directory, name = os.path.split(path)
        try:
            with open_directory(os.fsencode(self._root + directory)) as found:
                if found.shared_with:
                    return None
                fd = os.open(name, _READ, dir_fd=found.fd)
        except (OSError, FileError, ValueError):  # ValueError: a NUL in the path
            return None
        with contextlib.suppress(OSError), open(fd, "rb") as file:
            status = os.fstat(fd)
            if (
                stat.S_ISREG(status.st_mode)
                and belongs_to_us(status)
                and not status.st_mode & _OTHERS_WRITE
            ):
                data = file.read(limit_bytes + 1)
                return data if len(data) <= limit_bytes else None
        return None

    def document(self, path: str, *, limit_bytes: int = _LIMIT_BYTES) -> Any:  # noqa: ANN401 JSON
        """The JSON in a file; None as `text`, and for a text that is not JSON."""
        data = self.text(path, limit_bytes=limit_bytes)
        if data is None:
            return None
        return parsed(data)

    def number(self, path: str) -> int | None:
        """The number in a file, such as a pid; None as `text`, and for another text."""
        data = self.text(path, limit_bytes=64)
        try:
            return None if data is None else int(data)
        except ValueError:
            return None

    def names(self, path: str) -> tuple[str, ...]:
        """The entries of a directory, at most 10,000; () if it is absent, or not ours alone."""
        try:
            with open_directory(os.fsencode(self._root + path)) as found:
                if found.shared_with:
                    return ()
                with os.scandir(found.fd) as entries:
                    return tuple(entry.name for entry in itertools.islice(entries, _MOST_NAMES))
        except (OSError, FileError, ValueError):
            return ()

    def once(self, key: str, make: Callable[[], _Made]) -> _Made:
        """The result of `make` for this key. It is called once."""
        if key not in self._kept:
            self._kept[key] = make()
        made: _Made = self._kept[key]
        return made


def parsed(data: bytes | str) -> Any:  # noqa: ANN401 JSON
    """The JSON of a text; None if it is none, or nested too deeply."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
