"""10,000 cold watches on btrfs, and on xfs with parent pointers: lookup beside walk.

Both are the engine with the same proof; one asks the filesystem for the names, the other walks.
Nothing is cached, also no content of the disk.

The tree is like a Linux system, with ten files in each directory. Shared: all files of 1,000
directories are watched. Spread: one file in each of 10,000 directories. The worst case has no goal:
the tree that the other sections scan, with one watched file in each of its 10,000 directories, so
that both ways read every directory.
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
_FILES_A_DIRECTORY = 10  # counted on a Debian 12: 10.7 below /, 7.9 below /usr
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
                    bench.say(f"building the trees on {kind}")
                    ordinary, dense = _build(bench, top)
                # Anew: by then all data is on the disk, and no writeback is running.
                with _mounted(device, top):
                    yield from _measure(bench, kind, ordinary, dense)
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


def _build(bench: Bench, top: Path) -> tuple[Tree, Tree]:
    directories, files = bench.settings.directories, bench.settings.files
    width = min(_FILES_A_DIRECTORY, files)
    return (
        tree.prepare(top, files // width, files // width * width),
        tree.prepare(top, directories, files),
    )


def _measure(bench: Bench, kind: str, ordinary: Tree, dense: Tree) -> Iterator[Figure]:
    count = min(_WATCHES, ordinary.files)
    for where, paths in (("shared", ordinary.shared(count)), ("spread", ordinary.spread(count))):
        walk, lookup = _compare(bench, f"{kind}, {where}", ordinary, paths)
        yield from (walk, lookup)
        if bench.full_size:
            ratio = lookup.median / walk.median
            yield Goal(NAME, f"{kind}, {where}: lookup beside walk", 1 / _GOAL, ratio, "times")
    paths = dense.spread(min(_WATCHES, dense.directories))
    yield from _compare(bench, f"{kind}, in every directory", dense, paths)


def _compare(bench: Bench, what: str, planted: Tree, paths: list[bytes]) -> tuple[Row, Row]:
    """The walk and the lookup."""
    took: dict[str, list[float]] = {"walk": [], "lookup": []}
    with bench.watching(paths) as watched:
        for _ in range(bench.settings.repeats):
            for method, seconds in took.items():
                machine.drop_caches(_FROM_DISK)
                command = [sys.executable, str(_SCRIPT), method, str(watched.pid), str(watched.fd)]
                said = bench.output(*command, planted.top).split()
                if said[1] != said[2]:
                    raise BenchError(f"{method} on {what}: {said[1]} of {said[2]} resolved")
                seconds.append(int(said[0]) / 1e6)
    walk = Row(NAME, f"{what}, by one walk", len(paths), tuple(took["walk"]))
    lookup = Row(NAME, f"{what}, by lookup", len(paths), tuple(took["lookup"]))
    return walk, dataclasses.replace(lookup, beside=Beside("the walk", walk.median))
