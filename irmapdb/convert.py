"""Converts between the three forms: CRIU's image (PB), crit's JSON, and the database.

The type of a file is detected from its content, never from its name. All three forms have the same
list in the same order, with its duplicates: the list of `irmap-cache`. The images of a dump, an
images dir and an archive can be read too: their list has an entry for each watch with a path.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime

from irmapdb import files
from irmapdb.archive.kind import FileKind, kind_of
from irmapdb.errors import DatabaseError, FileError, ImageError
from irmapdb.image import cache, critjson
from irmapdb.image.formats import Format, sniff
from irmapdb.image.magic import SQLITE_HEADER
from irmapdb.model import Event, RunStats, is_canonical, printable
from irmapdb.record import Record
from irmapdb.scratch import scratch_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from irmapdb.config import Retention
    from irmapdb.model import CacheEntry

__all__ = [
    "Content",
    "Imported",
    "convert",
    "encode",
    "export_image",
    "format_for",
    "import_image",
    "read",
    "read_database",
]

_SUFFIXES = {
    ".json": Format.JSON,
    ".db": Format.DB,
    ".sqlite": Format.DB,
    ".sqlite3": Format.DB,
}


class Content(Record):
    """The content of a file."""

    format: str
    """A `Format`, or the kind of the images that the entries were made from."""
    entries: tuple[CacheEntry, ...]


class Imported(Record):
    """The number of imported entries."""

    entries: int
    unusable: int
    """The entries with an impossible path. They are kept, like every byte of an image, but no proof
    accepts them."""


def format_for(destination: Path) -> Format:
    """The form for the name of a new file: JSON, DB, and PB for any other name."""
    return _SUFFIXES.get(destination.suffix.lower(), Format.PB)


def read(source: Path) -> Content:
    """The entries of a file of any form, or of an images dir.

    FileError, ImageError and DatabaseError name the file.
    """
    name = printable(source)
    kind = kind_of(source)
    if kind is FileKind.STATS:
        message = f"{name} is CRIU's STATS image, which has no paths"
        raise ImageError(message, advice="`irmapdb show` prints it")
    if kind is not FileKind.CACHE:
        from irmapdb.archive.watches import cache_entries  # noqa: PLC0415 the few that ask

        return Content(str(kind), cache_entries(source, kind))
    if sniff(files.read_prefix(source), name) is Format.DB:
        return Content(Format.DB, read_database(source))
    data = files.read_whole(source, limit_bytes=files.LIMIT_BYTES)
    form = sniff(data, name)
    decode = cache.decode_cache if form is Format.PB else critjson.decode_json
    return Content(form, decode(data, name))


def encode(entries: Iterable[CacheEntry], form: Format, *, pretty: bool = False) -> bytes:
    """The bytes of PB or JSON."""
    if form is Format.PB:
        return cache.encode_cache(entries)
    return critjson.encode_json(entries, pretty=pretty)


def convert(source: Path, destination: Path, form: Format, *, pretty: bool = False) -> Content:
    """Write the content of one file into another, which is replaced whole.

    FileError for a destination that is the source, or a database: that is only made new.
    """
    if form is not Format.DB:
        _check_replaceable(source, destination)
    content = read(source)
    if form is Format.DB:
        _make_database(destination, content.entries)
    else:
        files.replace_whole(destination, encode(content.entries, form, pretty=pretty))
    return content


def import_image(source: Path, database: Path, keep: Retention | None = None) -> Imported:
    """Take the entries of a file into the database, to be revalidated.

    They come behind the entries of the database, and so CRIU tries them first. `keep` limits the
    older rows; None: the defaults.
    """
    from irmapdb.config import Retention  # noqa: PLC0415 - as below
    from irmapdb.store.database import Store  # noqa: PLC0415 images do without

    content = read(source)
    now = datetime.now(UTC)
    keep = keep or Retention()
    with Store.open(database, create=True) as store, store.step() as step:
        new = step.import_entries(content.entries, now)
        outcome = f"{len(content.entries)} entries from {printable(source)}"
        step.add_run(
            Event.IMPORT,
            pid=None,
            comm=None,
            started_at=now,
            finished_at=datetime.now(UTC),
            stats=RunStats(),
            outcome=outcome,
        )
        if keep.automatic and not store.made:  # in a new one, nothing is old
            step.prune(keep, now, new)
    return Imported(len(content.entries), _count_unusable(content.entries))


def _count_unusable(entries: Sequence[CacheEntry]) -> int:
    # Of all at once first: there are seldom any, nor anything like them.
    ended = b"\0".join([path for _, _, path in entries] + [b""])
    absolute = ended.startswith(b"/") + ended.count(b"\0/")
    usable = absolute == ended.count(b"\0") == len(entries)
    if usable and not any(odd in ended for odd in (b"/.", b"//", b"/\0")):
        return 0
    return sum(not is_canonical(entry.path) for entry in entries)


def export_image(database: Path, destination: Path) -> int:
    """Write the database's image list as CRIU's image; returns the number of entries.

    As they are stored: nothing is proved.
    FileError for a destination that is a database, this one or another.
    """
    _check_replaceable(database, destination)
    entries = read_database(database)
    files.replace_whole(destination, cache.encode_cache(entries))
    return len(entries)


def read_database(path: Path) -> tuple[CacheEntry, ...]:
    """The image list of a database, without its stale mappings. DatabaseError."""
    from irmapdb.store.entries import read_entries  # noqa: PLC0415 - images do without SQLite

    return tuple(read_entries(path))


def _check_replaceable(source: Path, destination: Path) -> None:
    # Before any database is open: see store/file.py. A file that cannot be read, or is no regular
    # file, is refused by its writer.
    with suppress(OSError):
        if os.path.samestat(os.stat(source), os.lstat(destination)):
            message = f"{destination}: is the file that is read"
            raise FileError(message, advice="write into another file")
    if _is_database(destination):
        message = f"{destination}: is a database, which no image is to replace"
        raise FileError(message, advice="name another file, or remove it first")


def _is_database(path: Path) -> bool:
    try:
        return files.read_prefix(path, follow=False).startswith(SQLITE_HEADER)
    except FileError:
        return False


def _make_database(destination: Path, entries: Sequence[CacheEntry]) -> None:
    from irmapdb.store.database import Store  # noqa: PLC0415 images do without

    if os.path.lexists(destination):
        message = f"{printable(destination)}: is there already"
        advice = "`irmapdb import` adds entries to a database"
        raise FileError(message, advice=advice)
    if not destination.parent.is_dir():
        message = f"{printable(destination.parent)}: no such directory"
        raise FileError(message, advice="make it first")
    files.check_replaceable(destination)
    # Made elsewhere and renamed into place when it is whole. That never replaces an existing file.
    try:
        with scratch_directory("convert") as scratch:
            made = os.path.join(scratch, b"new.db")
            with Store.open(made, create=True) as store, store.step() as step:
                step.import_entries(entries, datetime.now(UTC))
            files.put_new(destination, made)
    except DatabaseError as error:
        # The error's own name is that of the scratch file.
        message = f"cannot write {printable(destination)}: {error.reason}"
        raise FileError(message, advice="free space there, or choose another directory") from error
