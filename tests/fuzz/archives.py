"""Targets: archives of checkpoints, as a file and by their parts."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from irmapdb.archive.dumped import read_dumped
from irmapdb.commands.dumped_rows import dumped_json
from irmapdb.criu.check.restore import check_images
from irmapdb.errors import FileError, ImageError
from irmapdb.image.magic import FILES, HEADER, MOUNTS, STATS
from irmapdb.image.stats import decode_stats
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target, check, refusal
from tests.support.archives import (
    ENGINES,
    INVENTORY,
    engine_files,
    files_img,
    mountpoints,
    pack,
    spec_dump,
    tar_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TARGETS"]

_APART = b"\0--\0"
_PARTS = ("checkpoint/files.img", "checkpoint/mountpoints-1.img", "config.dump", "spec.dump")
_PARTS += ("deleted.files", "rootfs-diff.tar", "checkpoint/ghost-file-1.img", "stats-dump")
_STATS = HEADER.pack(*STATS) + b"\x0c\0\0\0\x0a\x0a\x08\x01\x10\x02\x18\x03\x20\x04\x40\x05"


@functools.cache
def _file() -> Path:
    return scratch() / "archive"


def _read(data: bytes) -> None:
    path = _file()
    path.write_bytes(data)
    with refusal(ImageError, FileError) as refused:
        dumped = read_dumped(path)
        json.dumps(dumped_json(dumped))
        # The only paths of the archive that are looked up are the sources of bind mounts.
        report = check_images(path)
        check(len(report.watches) == len(dumped.watches), "a watch was lost")
    again = b"" if refused else path.read_bytes()
    check(refused or again == data, "the archive was changed")


def _archive(data: bytes) -> None:
    _read(data)


def _checkpoint(data: bytes) -> None:
    """The content of the members, between marks; the archive around them is whole."""
    members = dict(zip(_PARTS, data.split(_APART), strict=False))
    _stats(members.get("stats-dump", b""))
    _read(tar_of({"checkpoint/inventory.img": INVENTORY, **members}))


def _stats(data: bytes) -> None:
    with refusal(ImageError):
        stats = decode_stats(data, "input")
        check(stats.of in {"dump", "restore"}, "of nothing")
        check(all(type(one) is int for one in stats.figures.values()), "no number")


def _whole(engine: str) -> dict[str, bytes]:
    images = {
        "files.img": files_img([b"/etc/a", b"/data/b", None], mnt_id=10),
        "mountpoints-1.img": mountpoints({b"/data": 7}),
    }
    mounts = [{"destination": "/data", "type": "bind", "source": "/no-such-directory"}]
    more = {"rootfs-diff.tar": _short(tar_of({"etc/a": b""})), "deleted.files": b'["/etc/b"]'}
    files = engine_files(engine, images, mounts=mounts, more=more)
    return {**files, "checkpoint/pages-1.img": b"x"}


def _short(tar: bytes) -> bytes:
    return tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % 512 + 1024)


def _archive_seeds() -> Iterator[bytes]:
    for engine in ENGINES:
        tar = _short(tar_of(_whole(engine)))
        yield from (pack(tar, form) for form in ("tar", "gzip", "zstd"))
    blob = {"blobs/sha256/ab": pack(_short(tar_of(_whole("podman"))), "gzip")}
    yield _short(tar_of(blob))


def _checkpoint_seeds() -> Iterator[bytes]:
    for engine in ENGINES:
        files = {**_whole(engine), "spec.dump": spec_dump(engine), "stats-dump": _STATS}
        yield _APART.join(files.get(part, b"") for part in _PARTS)


TARGETS = (
    Target(
        "archive",
        _archive,
        _archive_seeds,
        (b"ustar\0" + b"00", b"checkpoint/", b"inventory.img", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"),
        16384,
        short_runs=500,
    ),
    Target(
        "checkpoint",
        _checkpoint,
        _checkpoint_seeds,
        (_APART, HEADER.pack(*FILES), HEADER.pack(*MOUNTS), b'"mounts"', b'"source"', b'"/"'),
        4096,
        short_runs=500,
    ),
)
"""All targets by name."""
