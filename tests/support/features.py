"""Checks the features of this machine that a test needs.

A test without a feature is skipped, with the name of the feature. With IRMAPDB_REQUIRE_KERNEL=1 it
fails instead, so that a run of all tests cannot pass with skipped tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.programs import find_program, run

__all__ = [
    "has_filesystem",
    "is_root",
    "require",
    "require_filesystem",
    "require_program",
    "require_root",
]


def require(condition: object, what: str) -> None:
    """Skip the running test, or fail it under IRMAPDB_REQUIRE_KERNEL=1, unless `condition`.

    `what` names the missing kernel feature or program, as in "xfs in /proc/filesystems".
    """
    if condition:
        return
    if os.environ.get("IRMAPDB_REQUIRE_KERNEL") == "1":
        pytest.fail(f"this machine lacks {what}", pytrace=False)
    pytest.skip(f"needs {what}")


def is_root() -> bool:
    """Whether mount(2) and fanotify_init(2) may be expected to work."""
    return os.geteuid() == 0


def require_root() -> None:
    """Root's rights, for mounts, namespaces and fanotify."""
    require(is_root(), "root")


def _known_filesystems() -> set[str]:
    # Lines are "nodev\tNAME" or "\tNAME": proc_filesystems(5).
    return {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}


def has_filesystem(fstype: str) -> bool:
    """Whether the kernel can mount `fstype`; loads its module where there is one."""
    if fstype in _known_filesystems():
        return True
    if find_program("modprobe") is None or not is_root():
        return False
    run("modprobe", "--quiet", "--all", f"fs-{fstype}", fstype)
    return fstype in _known_filesystems()


def require_filesystem(fstype: str) -> None:
    """Kernel support of `fstype`."""
    require(has_filesystem(fstype), f"{fstype} in /proc/filesystems")


def require_program(name: str, *, package: str | None = None) -> None:
    """Program `name`; `package` is its package, if the names differ."""
    require(find_program(name), f"the program {name} (package {package or name})")
