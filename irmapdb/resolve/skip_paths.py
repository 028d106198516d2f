"""Has the directories that every scan leaves out: `[scan] skip-paths` of the configuration.

A path that the user names for the scan has precedence: it is walked also if it is such a directory,
or is below one. Paths are compared as texts, because a scan follows no link.
"""

from __future__ import annotations

import os

from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from irmapdb.model import Mount

__all__ = ["SkipPaths", "canonical_path", "is_below"]


def canonical_path(path: bytes) -> bytes:
    """An absolute path without `.`, `..` and double slashes."""
    # Only by the text, because no link is followed. normpath keeps two leading slashes.
    return b"/" + os.path.normpath(path).lstrip(b"/")


def is_below(path: bytes, top: bytes) -> bool:
    """Whether a path is `top` itself, or below it."""
    return (path.rstrip(b"/") + b"/").startswith(top.rstrip(b"/") + b"/")


class SkipPaths:
    """The directories that one walk leaves out, absolute in the root of the tasks."""

    def __init__(self, paths: Iterable[bytes] = ()) -> None:
        self._paths = tuple(dict.fromkeys(map(canonical_path, paths)))

    def for_named(self, path: bytes) -> SkipPaths:
        """Those that a walk from a named path leaves out."""
        return SkipPaths(skip for skip in self._paths if not is_below(path, skip))

    def has(self, path: bytes) -> bool:
        """Whether a path is one of them, or below one."""
        return any(is_below(path, skip) for skip in self._paths)

    def below(self, top: bytes) -> frozenset[bytes]:
        """Those below a directory, relative to it."""
        start = top.rstrip(b"/") + b"/"
        return frozenset(skip.removeprefix(start) for skip in self._paths if skip.startswith(start))

    def note(self, mounts: Sequence[Mount], mount_of: Callable[[bytes], Mount | None]) -> str:
        """The directories that are left out of the walks of these mounts, for people; "" for none.

        `mounts` are the visible mounts of one device, `mount_of` gives the mount of any path.
        """
        found = [
            skip
            for skip in self._paths
            if mount_of(skip) in mounts or any(is_below(one.mountpoint, skip) for one in mounts)
        ]
        if not found:
            return ""
        first = printable(found[0])
        if len(found) == 1:
            return f"{first} is left out (skip-paths)"
        return f"{len(found)} directories are left out (skip-paths), the first is {first}"
