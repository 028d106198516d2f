"""Where things lie: CRIU's directories, the database, the cache image.

`-D` is the images dir (default "."), `-W` the work dir (default: the images dir); irmap-cache
and irmap.db lie in the work dir. Where the work dir has no cache, that of the dump before serves:
`--prev-images-dir`, relative to the images dir as CRIU has it, or what the link `parent` in the
images dir leads to, which CRIU leaves there (open_irmap_cache() of its criu/irmap.c).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.image import cache
from irmapdb.model import printable
from irmapdb.store.nouns import FileStamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import ExitStack
    from datetime import datetime
    from pathlib import Path

    from irmapdb.model import CacheEntry
    from irmapdb.store.write import Step

__all__ = ["CACHE_NAME", "DATABASE_NAME", "WorkDir", "load_cache", "save_images"]

CACHE_NAME = "irmap-cache"
PARENT_NAME = "parent"
DATABASE_NAME = "irmap.db"


@dataclass(frozen=True, slots=True)
class WorkDir:
    """The directories of one step; `open` makes sure that they are there."""

    images: Path
    work: Path
    database: Path
    previous: Path | None
    """The images of the dump before."""

    @classmethod
    def open(
        cls,
        images: Path,
        work: Path | None = None,
        *,
        database: Path | None = None,
        previous: Path | None = None,
    ) -> WorkDir:
        """FileError names the directory that is not one."""
        work = images if work is None else work
        asked = [("-D", images), ("-W", work)]
        if previous is None:
            parent = images / PARENT_NAME
            previous = parent if os.path.isdir(parent) else None  # False where we may not look
        else:
            previous = images / previous
            asked.append(("--prev-images-dir", previous))
        for option, directory in asked:
            if why := _no_directory(directory):
                advice = f"make it, or name another one with {option}"
                raise FileError(f"{printable(directory)}: {why}", advice=advice)
        return cls(
            images=images,
            work=work,
            database=work / DATABASE_NAME if database is None else database,
            previous=previous,
        )

    @property
    def cache(self) -> Path:
        return self.work / CACHE_NAME


def _no_directory(path: Path) -> str:
    # Why not; "" where it is one. It need not be one that we may list.
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such directory"
    except OSError as error:
        return error.strerror or str(error)
    return "" if stat.S_ISDIR(mode) else "not a directory"


def load_cache(step: Step, place: WorkDir, now: datetime) -> int:
    """Take the entries of irmap-cache over as mappings to revalidate; how many there were.

    Only where the file is another one than we last read or wrote. A missing cache is normal.
    """
    for directory in filter(None, (place.work, place.previous)):
        path = directory / CACHE_NAME
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            message = f"cannot read {printable(path)}: {error.strerror}"
            raise FileError(message, advice="run as its owner, or as root") from error
        stamp = FileStamp.of(status)
        if step.image_seen(path) == stamp:
            return 0
        entries = cache.decode_cache(
            files.read_whole(path, limit_bytes=files.LIMIT_BYTES), printable(path)
        )
        step.import_entries(entries, now)
        step.set_image_seen(path, stamp)
        return len(entries)
    return 0


def save_images(
    step: Step,
    place: WorkDir,
    entries: Sequence[CacheEntry],
    others: Iterable[tuple[Path, bytes]],
    until_committed: ExitStack,
) -> None:
    """Replace irmap-cache, and other images before it, and remember it as our own.

    The old ones come back if `until_committed` is closed by an exception.
    """
    step.set_image(entries)
    images = [*others, (place.cache, cache.encode_cache(entries))]
    *_, status = until_committed.enter_context(files.replaced(images))
    step.set_image_seen(place.cache, FileStamp.of(status))
