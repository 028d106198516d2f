"""10,000 cold watches on btrfs, and on xfs with parent pointers: lookup beside walk.

Both are the engine with the same proof; one asks the filesystem for the names, the other walks.
Nothing is cached, not even what was read from disk. Shared: all files of 100 directories from all
over the tree. Spread: one file in each directory, so that both have every directory to read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import machine, tree
from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Row, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Bench
    from bench.tree import Tree

__all__ = ["NAME", "measure"]

NAME = "reverse"

_WATCHES = 10_000
_GOAL = 5
_FROM_DISK = 3  # what goes into drop_caches
_IMAGE_BYTES = 8 << 30  # sparse
_SCRIPT = Path(__file__).parent.parent / "reverse_lookup.py"


def measure(bench: Bench) -> Iterator[Figure]:
    """Both filesystems in turn."""
    if bench.why_not_cold:
        yield Skipped(NAME, "cold lookups", bench.why_not_cold)
        return
    for kind in ("btrfs", "xfs"):
        try:
            with _attached(bench, kind) as (device, top):
                with _mounted(device, top):
                    bench.say(f"building the tree on {kind}")
                    planted = tree.prepare(top, bench.settings.directories, bench.settings.files)
                # Anew: by then all of that is on the disk, and nobody is still writing it.
                with _mounted(device, top):
                    yield from _measure(bench, kind, planted)
        except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
            yield Skipped(NAME, kind, str(error))


@contextlib.contextmanager
def _attached(bench: Bench, kind: str) -> Iterator[tuple[str, Path]]:
    place = bench.new_directory()
    image, top = place / "image", place / kind
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run([*_make(kind), image], check=True, capture_output=True)
    # Not through the page cache of the file below, which would answer one read at a time.
    attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    attached = subprocess.run(attach, check=True, capture_output=True, text=True)
    device = attached.stdout.strip()
    try:
        yield device, top
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)
        image.unlink()


@contextlib.contextmanager
def _mounted(device: str, top: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "noatime", device, top], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", top], check=True)


def _make(kind: str) -> list[str | Path]:
    if kind == "btrfs":
        return ["mkfs.btrfs", "-q"]
    from tests.support import packages  # noqa: PLC0415 fetches packages: only where it is asked

    return [packages.mkfs_xfs_wrapper(), "-q", "-n", "parent=1"]


def _measure(bench: Bench, kind: str, planted: Tree) -> Iterator[Figure]:
    count = min(_WATCHES, bench.settings.files)
    yield from _compare(bench, kind, planted, "shared", planted.shared(count))
    yield from _compare(bench, kind, planted, "spread", planted.spread(count))


def _compare(
    bench: Bench, kind: str, planted: Tree, where: str, paths: list[bytes]
) -> Iterator[Figure]:
    took: dict[str, list[float]] = {"walk": [], "lookup": []}
    with bench.watching(paths) as watched:
        for _ in range(bench.settings.repeats):
            for method, seconds in took.items():
                machine.drop_caches(_FROM_DISK)
                command = [sys.executable, str(_SCRIPT), method, str(watched.pid), str(watched.fd)]
                said = bench.output(*command, planted.top).split()
                if said[1] != said[2]:
                    raise BenchError(f"{method} on {kind}: {said[1]} of {said[2]} resolved")
                seconds.append(int(said[0]) / 1e6)
    walk = Row(NAME, f"{kind}, {where}, by one walk", len(paths), tuple(took["walk"]))
    lookup = Row(NAME, f"{kind}, {where}, by lookup", len(paths), tuple(took["lookup"]))
    yield walk
    yield dataclasses.replace(lookup, beside=Beside("the walk", walk.median))
    if bench.full_size:
        ratio = lookup.median / walk.median
        yield Goal(NAME, f"{kind}, {where}: lookup beside walk", 1 / _GOAL, ratio, "times")
