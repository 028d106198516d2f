"""Cgroups for the sections that pause a container, as an engine does."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["freezer_hierarchy", "frozen"]

_REST_S = 10.0


@contextlib.contextmanager
def frozen(group: Path) -> Iterator[None]:
    """With all tasks of a cgroup frozen."""
    from irmapdb.kernel.own_freezer import cgroup as cgroups  # noqa: PLC0415 of the checkout

    freezer = cgroups.open_freezer(group)
    freezer.control.write_bytes(freezer.on)
    try:
        end = time.monotonic() + _REST_S
        while not cgroups.is_frozen(freezer) and time.monotonic() < end:
            time.sleep(0.001)
        yield
    finally:
        freezer.control.write_bytes(freezer.off)


def freezer_hierarchy() -> Path:
    """The root of cgroup v2, or of the v1 hierarchy that has the freezer. OSError for neither."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mountpoint, fstype, options = line.split(" ")[:4]
        freezer = fstype == "cgroup" and "freezer" in options.split(",")
        if (fstype == "cgroup2" or freezer) and os.access(mountpoint, os.W_OK):
            return Path(mountpoint)
    message = "no cgroup hierarchy is mounted here"
    raise OSError(message)
