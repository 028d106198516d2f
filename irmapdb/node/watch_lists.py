"""Reads the watches of an archive, an image, a database or a task tree, in one form.

Some sources lack some fields: a task tree and a database can have a watch without a path, and
`irmap-cache` has neither kinds nor masks.
"""

from __future__ import annotations

import enum

from irmapdb import convert, files
from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.kind import FileKind, kind_of
from irmapdb.archive.watches import read_image
from irmapdb.checkpoint.work_dir import CACHE_NAME, DATABASE_NAME
from irmapdb.errors import ImageError
from irmapdb.image.fsnotify import FsnotifyWatch
from irmapdb.image.magic import SQLITE_HEADER
from irmapdb.model import Identity, Watch, printable
from irmapdb.node.ps import PsOptions, take
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from irmapdb.config import Config
    from irmapdb.image.fsnotify import FsnotifyFile, MountMark
    from irmapdb.model import WatchKind

__all__ = ["ListedWatch", "SourceKind", "WatchSource", "watches_of_file", "watches_of_tree"]


class SourceKind(enum.StrEnum):
    """The source of a list of watches."""

    TREE = "tree"
    """A live task tree."""
    DATABASE = "database"
    """The last pre-dump or dump in a database."""
    IMAGE = "image"
    """`inotify.img`, `fanotify.img`, `files.img`."""
    CHECKPOINT = "checkpoint"
    """An images dir or an archive."""
    CACHE = "cache"
    """An `irmap-cache`, its JSON, or a database that has no run with watches."""


class ListedWatch(Record):
    """One watch on an inode."""

    kind: WatchKind | None
    """None: the source does not have it."""
    identity: Identity
    mask: int | None
    """None: the source does not have it."""
    path: bytes | None
    is_path_known: bool
    """False: the source found no path, which says nothing about the watch."""


class WatchSource(Record):
    """The watches of one source."""

    name: str
    """For people: the file, or `process 4711`."""
    kind: SourceKind
    watches: tuple[ListedWatch, ...]


def watches_of_file(path: Path) -> WatchSource:
    """The watches of a file, an images dir, or a work dir. FileError, ImageError, DatabaseError."""
    path = _in_work_dir(path)
    name = printable(path)
    kind = kind_of(path)
    if kind is FileKind.STATS:
        raise ImageError(f"{name}: CRIU's figures, which have no watches", advice="name an image")
    if kind is FileKind.CHECKPOINT:
        found = _of_images((one.file, one.watch) for one in read_dumped(path).watches)
        return WatchSource(name, SourceKind.CHECKPOINT, found)
    if kind is not FileKind.CACHE:
        images = read_image(path, kind)
        found = _of_images((file, watch) for file in images for watch in file.watches)
        return WatchSource(name, SourceKind.IMAGE, found)
    if files.read_prefix(path).startswith(SQLITE_HEADER):
        last = _of_last_run(path)
        if last is not None:
            return WatchSource(name, SourceKind.DATABASE, last)
    entries = convert.read(path).entries
    cached = tuple(
        ListedWatch(None, Identity(entry.kdev, entry.ino, None), None, entry.path, True)  # noqa: FBT003 a field
        for entry in entries
    )
    return WatchSource(name, SourceKind.CACHE, cached)


def _in_work_dir(path: Path) -> Path:
    # Its database or irmap-cache. CRIU writes inventory.img last, and often into the work dir.
    try:
        has_images = (path / "inventory.img").exists() or (path / "checkpoint").exists()
        names = () if has_images or not path.is_dir() else (DATABASE_NAME, CACHE_NAME)
        return next((path / name for name in names if (path / name).exists()), path)
    except OSError:  # its reader has the error, with advice
        return path


def watches_of_tree(pid: int, config: Config) -> WatchSource:
    """The watches of a task and its descendants now, without a scan. TaskError."""
    rows = take(PsOptions(pid=pid, config=config)).watches
    found = tuple(_listed(row.watch, row.path) for row in rows if isinstance(row.watch, Watch))
    return WatchSource(f"process {pid}", SourceKind.TREE, found)


def _listed(watch: Watch, path: bytes | None) -> ListedWatch:
    return ListedWatch(watch.kind, watch.identity, watch.mask, path, path is not None)


def _of_images(
    found: Iterable[tuple[FsnotifyFile, FsnotifyWatch | MountMark]],
) -> tuple[ListedWatch, ...]:
    return tuple(
        ListedWatch(file.kind, watch.identity, watch.mask, watch.path, is_path_known=True)
        for file, watch in found
        if isinstance(watch, FsnotifyWatch)
    )


def _of_last_run(path: Path) -> tuple[ListedWatch, ...] | None:
    from irmapdb.store.database import Store  # noqa: PLC0415 files do without

    with Store.open_readonly(path) as store:
        run_id = store.last_step()
        if run_id is None:
            return None
        return tuple(_listed(row.watch, row.path) for row in store.watches(run_id))
