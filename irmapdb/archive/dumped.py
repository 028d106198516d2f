"""Reads the watches of a checkpoint, its container, and the source of each path at a restore."""

from __future__ import annotations

from irmapdb.archive.container import read_container
from irmapdb.archive.files import open_checkpoint
from irmapdb.archive.origins import CHANGES, OriginKind, read_origins
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
    lacks: str = ""
    """Why neither the image nor the checkpoint of a container has the path; empty: one may."""
    is_replaced: bool = False
    """Whether the container replaced the file of the image, and the checkpoint lacks the new one:
    podman and CRI-O pack no such file."""


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
    has_changes = any(checkpoint.beside(name) is not None for name in ("config.dump", "spec.dump"))
    # `ctr` has the changes of the root in a layer of their own, if it was called with --rw.
    is_of_ctr = checkpoint.in_layer and not has_changes
    new = {start_of(watch) for _, watch in every if is_of_ctr and _is_in_upper_layer(watch)}
    origins = read_origins(checkpoint, container, starts, new)
    has_changes = (has_changes or is_of_ctr) and container.is_of_engine
    are_packed = checkpoint.has_inside(CHANGES) or checkpoint.beside("deleted.files") is not None
    root = _Root(container.is_of_engine, has_changes, are_packed)
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
    """Whether the checkpoint may have the new files of the container."""
    are_packed: bool
    """Whether the engine packed the changes of the root."""


def _source(
    watch: FsnotifyWatch | MountMark, origins: Origins, root: _Root
) -> tuple[OriginKind | None, Origin | None, str, str, str, bool]:
    if isinstance(watch, FsnotifyWatch) and watch.identity.key in origins.ghosts:
        return None, None, "deleted", "a deleted file", "", False
    if watch.path is None:
        if isinstance(watch, FsnotifyWatch):
            return None, None, "handle", "the handle, without a path", "", False
        return None, None, "mount", "its mount", "", False
    is_new = root.has_changes and _is_in_upper_layer(watch)
    origin = origins.of(*start_of(watch))
    if origin is None and is_new:
        origin = origins.of_parent(watch.path)
    if origin is None:
        return _of_root(watch.path, origins, root, is_new=is_new)
    if origin.has_it is False:
        return origin.kind, origin, "missing", f"missing ({origin.what} lacks it)", "", False
    where = origin.what
    if origin.source is not None:
        where = f"{where} ({printable(origin.source)} on the host)"
    return origin.kind, origin, str(origin.kind), where, "", False


def _of_root(
    path: bytes, origins: Origins, root: _Root, *, is_new: bool
) -> tuple[OriginKind, None, str, str, str, bool]:
    if origins.removes(path):
        return OriginKind.ROOT, None, "missing", "missing (deleted.files has it)", "", False
    if is_new and not root.are_packed:
        return OriginKind.ROOT, None, "missing", f"missing ({_NOT_PACKED})", _NOT_PACKED, False
    word = "image" if root.is_image else "root"
    return OriginKind.ROOT, None, word, f"the {word}", "", is_new


def _is_in_upper_layer(watch: FsnotifyWatch | MountMark) -> bool:
    # The handle of an overlay tells whether the file is in the upper layer alone; for the root it
    # always tells that: ovl_check_encode_origin() of fs/overlayfs/export.c.
    if not isinstance(watch, FsnotifyWatch) or watch.path in _ROOTS:
        return False
    wrapped = unwrap(watch.identity.handle)
    return wrapped is not None and wrapped.upper


_NOT_PACKED = "the container made it, and the checkpoint has no changes of the root"
_ROOTS = {b"/", b"/."}


def _stats(checkpoint: CheckpointFiles) -> CriuStats | None:
    data = checkpoint.beside("stats-dump")
    if data is None:
        return None
    try:
        return decode_stats(data, checkpoint.shown("stats-dump"))
    except ImageError:  # they say nothing about a watch
        return None
