"""The machine that the figures are from, and its caches.

Facts: proc_cpuinfo(5), proc_meminfo(5), proc_pid_mountinfo(5); `drop_caches` in
Documentation/admin-guide/sysctl/vm.rst.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import sys
from pathlib import Path
from typing import Any

from bench.errors import BenchError

__all__ = [
    "check_watches",
    "describe",
    "drop_caches",
    "filesystem_of",
    "quietest_core",
    "why_not_cold",
]

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_MAX_USER_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")
_LIBRARIES = ("alembic", "protobuf", "sqlalchemy", "typer")


def describe(place: Path, core: int) -> dict[str, Any]:
    """The facts that are needed to compare the figures with those of another machine."""
    return {
        "cpu": _after("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "core_used": core,
        "memory": _after("/proc/meminfo", "MemTotal"),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "filesystem": filesystem_of(place),
        "root": os.geteuid() == 0,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "sqlite": sqlite3.sqlite_version,
        **{name: _version(name) for name in _LIBRARIES},
    }


def _after(path: str, name: str) -> str | None:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def filesystem_of(place: Path) -> str:
    """The type of the filesystem that a directory lies on."""
    best, found = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        head, _, tail = line.partition(" - ")
        mountpoint = head.split()[4]
        if place.is_relative_to(mountpoint) and len(mountpoint) >= len(best):
            best, found = mountpoint, tail.split()[0]
    return found


def quietest_core() -> int:
    """Of the cores that we may use the one that has served the fewest interrupts of devices."""
    head, *lines = Path("/proc/interrupts").read_text(encoding="utf-8").splitlines()
    served = dict.fromkeys(sorted(os.sched_getaffinity(0), reverse=True), 0)
    cores = [int(name.removeprefix("CPU")) for name in head.split()]
    for line in lines:
        number, *counts = line.split()
        if not number.rstrip(":").isdigit():
            continue  # interrupts between cores
        for core, count in zip(cores, counts, strict=False):
            if core in served:
                served[core] += int(count)
    return min(served, key=served.__getitem__)


def check_watches(wanted: int) -> None:
    """BenchError where a user may not have so many inotify watches."""
    limit = int(_MAX_USER_WATCHES.read_text())
    if limit < wanted:
        message = f"fs.inotify.max_user_watches is {limit}, {wanted} watches are to be set"
        advice = f"sysctl fs.inotify.max_user_watches={wanted + 8192}, or fewer with --watches"
        raise BenchError(message, advice=advice)


def why_not_cold(place: Path) -> str | None:
    """Why dentries cannot be dropped here; None if they can."""
    if not os.access(_DROP_CACHES, os.W_OK):
        return f"{_DROP_CACHES} cannot be written: run as root, outside of a container"
    filesystem = filesystem_of(place)
    if filesystem in {"tmpfs", "ramfs"}:
        return f"{filesystem} never forgets a name: name a place on disk with --dir"
    return None


def drop_caches(what: int) -> None:
    """Drop caches of the whole machine: 2 names and inodes, 3 also the content of files."""
    os.sync()  # dirty pages are not dropped
    _DROP_CACHES.write_text(f"{what}\n")
