"""check --images of a large archive: time and memory, beside tar and zstd alone."""

from __future__ import annotations

import json
import random
import shutil
import tarfile
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped
from tests.support.archives import engine_files, files_img, mountpoints, tar_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.figures import Timing
    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "archive"
_SIZE_BYTES = 1 << 30
_WATCHES = 1000
_CHANGED = 10_000
"""Files in rootfs-diff.tar."""
_PEAK_GOAL_MB = 150
_CHUNK_BYTES = 1 << 20


def measure(bench: Bench) -> Iterator[Figure]:
    """An archive with 1 GiB of memory of the tasks, plain and packed with zstd."""
    directory = bench.new_directory()
    plain = directory / "plain.tar"
    _make(plain, _SIZE_BYTES if bench.full_size else _CHUNK_BYTES)
    yield from _measure(bench, plain, "plain", ("tar", "-tf", plain))
    packed = directory / "packed.tar.zst"
    if shutil.which("zstd") is None:
        yield Skipped(NAME, "zstd", "no zstd on PATH")
        return
    bench.time("zstd", "-q", "-1", plain, "-o", packed)
    plain.unlink()
    unpack = ("zstd", "-q", "-d", packed, "-o", "/dev/null", "-f")
    yield from _measure(bench, packed, "zstd", unpack)


def _measure(
    bench: Bench, archive: Path, form: str, peer: tuple[str | Path, ...]
) -> Iterator[Figure]:
    ways: dict[str, Callable[[], Timing]] = {
        "check --images": lambda: bench.irmapdb("check", "--images", archive, "-q"),
        str(peer[0]): lambda: bench.time(*peer),
    }
    samples = {what: Samples() for what in ways}
    for _ in range(bench.settings.repeats):
        for what, run in ways.items():
            samples[what].add_command(run())
    _check(bench, archive)
    other = samples[str(peer[0])]
    beside = Beside(f"{peer[0]}, {form}", other.median)
    row = samples["check --images"].row(NAME, f"check --images, {form}", _WATCHES, beside=beside)
    yield row
    yield other.row(NAME, f"{peer[0]} {peer[1]}, {form}", _WATCHES)
    if bench.full_size:
        peak = (row.peak_bytes or 0) / 1e6
        yield Goal(NAME, f"peak memory, 1 GiB, {form}", _PEAK_GOAL_MB, peak, "MB")


def _make(archive: Path, size_bytes: int) -> None:
    """The layout of podman, with pages that are half random and half zeros."""
    paths = [b"/etc/file%d" % number for number in range(_WATCHES // 2)]
    paths += [b"/data/file%d" % number for number in range(_WATCHES // 2)]
    images = {
        "files.img": files_img(paths, mnt_id=10),
        "mountpoints-10.img": mountpoints({b"/data": 7}),
    }
    changed = tar_of({f"etc/file{number}": b"x" * 100 for number in range(_CHANGED)})
    files = engine_files("podman", images, more={"rootfs-diff.tar": changed})
    generator = random.Random(1)
    page = [generator.randbytes(_CHUNK_BYTES // 2) + bytes(_CHUNK_BYTES // 2) for _ in range(16)]
    with tarfile.open(archive, "w") as tar:
        tar.addfile(_entry("checkpoint/pages-2.img", size_bytes), _Pages(page))
    with archive.open("r+b") as file:
        file.truncate(512 + size_bytes)  # without the end mark
        file.seek(0, 2)
        file.write(tar_of(files))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


class _Pages:
    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self._number = 0
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            self._left += self._chunks[self._number % len(self._chunks)]
            self._number += 1
        data, self._left = self._left[:size], self._left[size:]
        return data


def _check(bench: Bench, archive: Path) -> None:
    said = json.loads(bench.output(*bench.settings.irmapdb, "check", "--images", archive, "--json"))
    origins = [one["origin"] for one in said["watches"]]
    if origins.count("rootfs-diff") != _WATCHES // 2 or origins.count("mount") != _WATCHES // 2:
        raise BenchError(f"{archive}: not the origins of what was put in")
