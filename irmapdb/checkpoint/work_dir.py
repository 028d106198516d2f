"""Reads and writes the files of a step: the cache image and the database in CRIU's directories.

`-D` is the images dir (default "."), `-W` the work dir (default: the images dir); irmap-cache and
irmap.db lie in the work dir. A step that writes makes either directory if its parent exists. If the
work dir has no cache, the step reads the cache of the previous dump. That is in
`--prev-images-dir`, relative to the images dir as with CRIU, or in the target of the link `parent`
in the images dir, which CRIU makes (open_irmap_cache() of its criu/irmap.c).
"""

from __future__ import annotations

import contextlib
import os
import stat

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.image.cache_bytes import cache_bytes, cache_entries
from irmapdb.model import Identity, Mapping, Source, printable
from irmapdb.ownership import open_directory
from irmapdb.record import Record
from irmapdb.store.mappings import ROWS_OF_INODE
from irmapdb.store.records import FileStamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from contextlib import ExitStack
    from datetime import datetime

    from irmapdb.model import AnyPath, CacheEntry, InodeKey
    from irmapdb.store.write import Step

__all__ = [
    "CACHE_NAME",
    "DATABASE_NAME",
    "MappingsAndNews",
    "News",
    "WorkDir",
    "made_directory",
    "read_news",
    "save_images",
    "within",
    "write_cache",
]

CACHE_NAME = "irmap-cache"
PARENT_NAME = b"parent"
DATABASE_NAME = "irmap.db"


class WorkDir(Record):
    """The directories of one step; `open` checks that they exist."""

    images: bytes
    work: bytes
    database: bytes
    previous: bytes | None
    """The images of the previous dump."""

    @classmethod
    def open(
        cls,
        images: AnyPath,
        work: AnyPath | None = None,
        *,
        database: AnyPath | None = None,
        previous: AnyPath | None = None,
    ) -> WorkDir:
        """FileError if one of them is no directory."""
        images = os.fsencode(images)
        work = images if work is None else os.fsencode(work)
        asked = [("images dir", images), ("work dir", work)]
        if previous is None:
            parent = within(images, PARENT_NAME)
            before = parent if os.path.isdir(parent) else None  # False if we may not look
        else:
            before = within(images, os.fsencode(previous))
            asked.append(("previous images dir", before))
        for setting, directory in asked:
            if why := _no_directory(directory):
                advice = "make it, or name another one"
                raise FileError(f"{printable(directory)}: {why}", advice=advice, remedy=setting)
        return cls(
            images=images,
            work=work,
            database=(
                within(work, os.fsencode(DATABASE_NAME))
                if database is None
                else os.fsencode(database)
            ),
            previous=before,
        )

    @property
    def cache(self) -> bytes:
        return within(self.work, os.fsencode(CACHE_NAME))


def within(directory: bytes, path: bytes) -> bytes:
    """A path relative to a directory, as people write it: without `./` in the current one."""
    return path if directory == b"." else os.path.join(directory, path)


def _no_directory(path: bytes) -> str:
    # The reason why it is no directory; "" if it is one. We need no right to list it.
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such directory"
    except OSError as error:
        return error.strerror or str(error)
    return "" if stat.S_ISDIR(mode) else "not a directory"


@contextlib.contextmanager
def made_directory(path: AnyPath | None) -> Iterator[None]:
    """Make a directory with mode 0700, if it is missing and its parent exists.

    If the body raises, the directory is removed again, unless it has files. A missing parent is not
    made: `WorkDir.open` names the directory. FileError if it cannot be made, or if its path leads
    through a symbolic link of another user.
    """
    if path is None or os.path.lexists(path):
        yield
        return
    with contextlib.ExitStack() as stack:
        remove = _make(os.fsencode(path), stack)
        try:
            yield
        except BaseException:
            remove()
            raise


def _make(path: bytes, stack: contextlib.ExitStack) -> Callable[[], None]:
    # mkdirat(2) and unlinkat(2) in the parent, which is opened once: another user may be able to
    # change the target of its path.
    parent, name = os.path.split(path)
    try:
        at = stack.enter_context(open_directory(parent)).fd
        os.mkdir(name, 0o700, dir_fd=at)
    except (FileExistsError, FileNotFoundError, NotADirectoryError):
        return lambda: None
    except OSError as error:
        message = f"{printable(path)}: cannot be made: {error.strerror}"
        raise FileError(message, advice="name another directory") from error

    def remove() -> None:
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(name, dir_fd=at)

    return remove


class News(Record):
    """An irmap-cache that is not the file that we last read or wrote."""

    path: bytes
    stamp: FileStamp
    entries: tuple[CacheEntry, ...]


def read_news(image_seen: Callable[[bytes], FileStamp | None], place: WorkDir) -> News | None:
    """Read irmap-cache if it is new. A missing cache is normal.

    `image_seen` has the stamp of a file from when the database last read or wrote it.
    """
    for directory in filter(None, (place.work, place.previous)):
        path = within(directory, os.fsencode(CACHE_NAME))
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            message = f"cannot read {printable(path)}: {error.strerror}"
            raise FileError(message, advice="run as its owner, or as root") from error
        stamp = FileStamp.of(status)
        if image_seen(path) == stamp:
            return None
        data = files.read_whole(path, limit_bytes=files.LIMIT_BYTES)
        return News(path, stamp, _decode(data, printable(path)))
    return None


def _decode(data: bytes, name: str) -> tuple[CacheEntry, ...]:
    if (entries := cache_entries(data)) is not None:
        return entries
    from irmapdb.image import cache  # noqa: PLC0415 protobuf takes longer than most steps

    return cache.decode_cache(data, name)


class MappingsAndNews:
    """The rows of a database as they will be after an irmap-cache is imported.

    A row that is not stored yet has a negative id.
    """

    def __init__(
        self,
        load: Callable[[Collection[InodeKey], int], dict[InodeKey, list[Mapping]]],
        news: News | None,
        now: datetime,
    ) -> None:
        self._load = load
        self._now = now
        self._new: dict[InodeKey, dict[bytes, int]] = {}
        for number, entry in enumerate(news.entries if news else (), 1):
            self._new.setdefault(entry.key, {})[entry.path] = -number

    def __call__(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        """As the store's `load`."""
        found = self._load(keys, mntns)
        if mntns or not self._new:
            return found
        for key in keys:
            if new := self._new.get(key):
                rows = found.setdefault(key, [])
                # If the image has a stale row again, the row is live again.
                rows[:] = [r._replace(stale_at=None) if r.path in new else r for r in rows]
                known = {row.path for row in rows}
                rows += (
                    Mapping(Identity(*key, None), path, Source.IMAGE, True, self._now, id=row_id)  # noqa: FBT003 to be proved
                    for path, row_id in [*new.items()][-ROWS_OF_INODE:]
                    if path not in known
                )
        return found


def write_cache(
    place: WorkDir, entries: Sequence[CacheEntry], *, synced: bool, after: bytes = b""
) -> FileStamp:
    """Replace irmap-cache as a whole, or not at all.

    `synced`: whether it is on the disk then. `after`: as for `cache_bytes`.
    """
    image = cache_bytes(entries, after)
    return FileStamp.of(files.replace_whole(place.cache, image, synced=synced))


def save_images(
    step: Step,
    place: WorkDir,
    entries: Sequence[CacheEntry],
    others: Iterable[tuple[bytes, bytes]],
    until_committed: ExitStack,
) -> None:
    """Replace irmap-cache, and other images before it, and remember it as our own.

    If `until_committed` ends with an exception, the old images are restored.
    """
    step.set_image(entries)
    images = [*others, (place.cache, cache_bytes(entries))]
    *_, status = until_committed.enter_context(files.replaced(images))
    step.set_image_seen(place.cache, FileStamp.of(status))
