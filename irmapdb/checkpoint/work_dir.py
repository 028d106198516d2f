"""Where things lie: CRIU's directories, the database, the cache image.

`-D` is the images dir (default "."), `-W` the work dir (default: the images dir); irmap-cache
and irmap.db lie in the work dir. A step that writes makes either directory if its parent is there.
Where the work dir has no cache, that of the dump before serves: `--prev-images-dir`, relative to
the images dir as CRIU has it, or what the link `parent` in the images dir leads to, which CRIU
leaves there (open_irmap_cache() of its criu/irmap.c).
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
    """The directories of one step; `open` makes sure that they are there."""

    images: bytes
    work: bytes
    database: bytes
    previous: bytes | None
    """The images of the dump before."""

    @classmethod
    def open(
        cls,
        images: AnyPath,
        work: AnyPath | None = None,
        *,
        database: AnyPath | None = None,
        previous: AnyPath | None = None,
    ) -> WorkDir:
        """FileError names the directory that is not one."""
        images = os.fsencode(images)
        work = images if work is None else os.fsencode(work)
        asked = [("images dir", images), ("work dir", work)]
        if previous is None:
            parent = within(images, PARENT_NAME)
            before = parent if os.path.isdir(parent) else None  # False where we may not look
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
    # Why not; "" where it is one. It need not be one that we may list.
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such directory"
    except OSError as error:
        return error.strerror or str(error)
    return "" if stat.S_ISDIR(mode) else "not a directory"


@contextlib.contextmanager
def made_directory(path: AnyPath | None) -> Iterator[None]:
    """Make a directory with mode 0700, if it is missing and its parent is there.

    If the body raises, the directory is removed again, unless something lies in it. A missing
    parent is not made: `WorkDir.open` names the directory. FileError if it cannot be made, or if
    its path leads through a symbolic link of another user.
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
    # change where its path leads.
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
    """An irmap-cache that is another file than we last read or wrote."""

    path: bytes
    stamp: FileStamp
    entries: tuple[CacheEntry, ...]


def read_news(image_seen: Callable[[bytes], FileStamp | None], place: WorkDir) -> News | None:
    """What irmap-cache holds, where it is news. A missing cache is normal.

    `image_seen` tells how a file was when the database last heard of it.
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
    """The rows of a database as they will be once an irmap-cache has been taken in.

    What is not stored yet has a negative id.
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
                # A stale row that the image has again is live again.
                rows[:] = [r._replace(stale_at=None) if r.path in new else r for r in rows]
                known = {row.path for row in rows}
                rows += (
                    Mapping(Identity(*key, None), path, Source.IMAGE, True, self._now, id=row_id)  # noqa: FBT003 to be proved
                    for path, row_id in new.items()
                    if path not in known
                )
        return found


def write_cache(place: WorkDir, entries: Sequence[CacheEntry]) -> FileStamp:
    """Replace irmap-cache, wholly or not at all."""
    return FileStamp.of(files.replace_whole(place.cache, cache_bytes(entries)))


def save_images(
    step: Step,
    place: WorkDir,
    entries: Sequence[CacheEntry],
    others: Iterable[tuple[bytes, bytes]],
    until_committed: ExitStack,
) -> None:
    """Replace irmap-cache, and other images before it, and remember it as our own.

    The old ones come back if `until_committed` is closed by an exception.
    """
    step.set_image(entries)
    images = [*others, (place.cache, cache_bytes(entries))]
    *_, status = until_committed.enter_context(files.replaced(images))
    step.set_image_seen(place.cache, FileStamp.of(status))
