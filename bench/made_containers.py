"""Containers with watches, for the sections that need some: see bench/containers.py."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cgroups import freezer_hierarchy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench

__all__ = ["made_containers"]


@contextlib.contextmanager
def made_containers(bench: Bench, count: int, watches: int) -> Iterator[Path]:
    """The parent of the cgroups of this number of containers. OSError if none can be made."""
    cgroup = freezer_hierarchy() / f"irmapdb-bench-{os.getpid()}"
    cgroup.mkdir()
    try:
        script = str(Path(__file__).with_name("containers.py"))
        words = (str(count), str(watches), str(bench.new_directory()), str(cgroup))
        command = [sys.executable, "-I", "-S", script, *words]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as maker:
            assert maker.stdout is not None
            assert maker.stdin is not None
            said = maker.stdout.readline().strip()
            if said != "ready":
                raise OSError(said or "the program that makes them has ended")
            try:
                yield cgroup
            finally:
                maker.stdin.close()
                maker.wait()
    finally:
        cgroup.rmdir()
