"""Checks the scan paths of the user before a step begins."""

from __future__ import annotations

import os
import stat

from irmapdb.errors import FileError
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.log import Log
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.config import Config
    from irmapdb.kernel.root import Root

__all__ = ["check_scan_paths"]

_log = Log(__name__)

_PATIENCE_S = 5.0


class _Trouble(Record):
    """The reason why a path cannot be scanned."""

    why: str
    advice: str


def check_scan_paths(root: Root, named: Iterable[bytes], config: Config) -> None:
    """Refuse a useless path of the command line (FileError); warn about a configured one."""
    for path in named:
        if trouble := _trouble(root, path):
            message = f"{printable(path)}: {trouble.why}"
            raise FileError(message, advice=trouble.advice, about="scan path")
    # The paths of the configuration are for all containers, and need not exist in each.
    for path in config.scan_paths:
        if trouble := _trouble(root, path):
            _log.warning("[scan] paths: %s: %s; not scanned", printable(path), trouble.why)


def _trouble(root: Root, path: bytes) -> _Trouble | None:
    if not path.startswith(b"/"):
        return _Trouble("not absolute", "write it as seen from the root of the tasks")
    kinds = root.blocking_kinds_to(path)
    if not kinds:
        return _trouble_at(root, path)
    advice = "check the server of that filesystem, or leave the path out"
    return ask_in_child(
        lambda: _trouble_at(root, path),
        lambda why: _Trouble(f"{kinds}: {why}", advice),
        _PATIENCE_S,
    )


def _trouble_at(root: Root, path: bytes) -> _Trouble | None:
    try:
        fd = root.open(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return _Trouble(f"{why} in the root of the tasks", "name the target, without links")
    with Descriptor(fd):
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            return _Trouble("is a symbolic link, which is not followed", "name its target")
    return None
