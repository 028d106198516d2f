"""Reads the watches of a checkpoint, its container, and the source of each path at a restore."""

from __future__ import annotations

from irmapdb.archive.container import read_container
from irmapdb.archive.files import open_checkpoint
from irmapdb.archive.origins import OriginKind, read_origins
from irmapdb.errors import ImageError
from irmapdb.image.fsnotify import FsnotifyWatch, decode_files_img
from irmapdb.image.stats import decode_stats
from irmapdb.kernel.fs.overlay import unwrap
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from irmapdb.archive.container import DumpedContainer
    from irmapdb.archive.files import CheckpointFiles
    from irmapdb.archive.origins import Origin, Origins
    from irmapdb.image.fsnotify import FsnotifyFile, MountMark
    from irmapdb.image.stats import CriuStats

__all__ = ["Dumped", "DumpedWatch", "read_dumped", "start_of"]


class DumpedWatch(Record):
    """One watch or mount mark of a checkpoint."""

    file: FsnotifyFile
    watch: FsnotifyWatch | MountMark
    kind: OriginKind | None
    """The source of its path; None: it has no path, or its file was deleted."""
    origin: Origin | None
    """The source of its path; None: the root, or none at all."""
    word: str
    """The same in one word: `image`, `root`, the kind, `missing`, `deleted`, `handle`, `mount`."""
    where: str
    """The same for people: `the image`, `rootfs-diff.tar`, `missing (deleted.files has it)`."""
    lacks: str
    """Why neither the image nor the checkpoint of a container has the path; empty: one may."""


class Dumped(Record):
    """The content of a checkpoint."""

    files_img: Path
    """The `files.img` of a directory, or the archive."""
    container: DumpedContainer
    origins: Origins
    watches: tuple[DumpedWatch, ...]
    stats: CriuStats | None
    """The figures of the dump, if the checkpoint has them."""


def read_dumped(path: Path) -> Dumped:
    """The content of an images dir or an archive.

    FileError if it cannot be read, or if the dump has failed; ImageError if an image or the archive
    is damaged, or has no checkpoint.
    """
    checkpoint = open_checkpoint(path)
    container = read_container(checkpoint)
    files = decode_files_img(
        checkpoint.files_img(),
        checkpoint.shown("files.img"),
        most_watches=checkpoint.most_watches,
    )
    every: list[tuple[FsnotifyFile, FsnotifyWatch | MountMark]] = [
        *((file, watch) for file in files for watch in file.watches),
        *((file, mark) for file in files for mark in file.mount_marks),
    ]
    starts = {start_of(watch) for _, watch in every if watch.path is not None}
    origins = read_origins(checkpoint, container, starts)
    # `ctr` has the changes of the root in a layer of their own, which is not read.
    has_changes = any(checkpoint.beside(name) is not None for name in ("config.dump", "spec.dump"))
    root = _Root(container.is_of_engine, container.is_of_engine and has_changes)
    return Dumped(
        checkpoint.files_img_path,
        container,
        origins,
        tuple(DumpedWatch(file, watch, *_source(watch, origins, root)) for file, watch in every),
        _stats(checkpoint),
    )


def start_of(watch: FsnotifyWatch | MountMark) -> tuple[bytes, int | None]:
    """The path, and the mount that determines its namespace; None: the root task's."""
    return watch.path or b"", watch.mnt_id if isinstance(watch, FsnotifyWatch) else None


class _Root(Record):
    is_image: bool
    has_changes: bool
    """Whether `rootfs-diff.tar` has the changes of the container."""


def _source(
    watch: FsnotifyWatch | MountMark, origins: Origins, root: _Root
) -> tuple[OriginKind | None, Origin | None, str, str, str]:
    if isinstance(watch, FsnotifyWatch) and watch.identity.key in origins.ghosts:
        return None, None, "deleted", "a deleted file", ""
    if watch.path is None:
        if isinstance(watch, FsnotifyWatch):
            return None, None, "handle", "the handle, without a path", ""
        return None, None, "mount", "its mount", ""
    origin = origins.of(*start_of(watch))
    if origin is None:
        lacks = _lacks(watch, watch.path, origins) if root.has_changes else ""
        if lacks or watch.path in origins.removed:
            why = lacks or "deleted.files has it"
            return OriginKind.ROOT, None, "missing", f"missing ({why})", lacks
        word = "image" if root.is_image else "root"
        return OriginKind.ROOT, None, word, f"the {word}", ""
    if origin.has_it is False:
        return origin.kind, origin, "missing", f"missing ({origin.what} lacks it)", ""
    where = origin.what
    if origin.source is not None:
        where = f"{where} ({printable(origin.source)} on the host)"
    return origin.kind, origin, str(origin.kind), where, ""


def _lacks(watch: FsnotifyWatch | MountMark, path: bytes, origins: Origins) -> str:
    # The handle of an overlay tells whether the file is in the upper layer alone; for the root it
    # always tells that: ovl_check_encode_origin() of fs/overlayfs/export.c.
    if not isinstance(watch, FsnotifyWatch) or path in _ROOTS or path in origins.removed:
        return ""
    wrapped = unwrap(watch.identity.handle)
    if wrapped is None or not wrapped.upper:
        return ""
    return "the container made it, and rootfs-diff.tar does not have it"


_ROOTS = {b"/", b"/."}


def _stats(checkpoint: CheckpointFiles) -> CriuStats | None:
    data = checkpoint.beside("stats-dump")
    if data is None:
        return None
    try:
        return decode_stats(data, checkpoint.shown("stats-dump"))
    except ImageError:  # they say nothing about a watch
        return None
