"""Opens, reads, writes and closes the database file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing, contextmanager, suppress

from irmapdb.errors import DatabaseError
from irmapdb.log import Log
from irmapdb.store import retention, version
from irmapdb.store.failures import show, translated
from irmapdb.store.inode_report import InodeReports
from irmapdb.store.place import open_place
from irmapdb.store.raw import connect_raw, immediate, open_raw, use_wal
from irmapdb.store.schema import create as make_schema
from irmapdb.store.version import check_newest, read_revision, refuse_empty
from irmapdb.store.write import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import Self

    from irmapdb.config import Retention
    from irmapdb.store.file import AnyPath
    from irmapdb.store.place import Place
    from irmapdb.store.retention import Pruned
    from irmapdb.store.revisions import Upgrade

__all__ = ["Store"]

_log = Log(__name__)


class Store(InodeReports):
    """An open `irmap.db`. A context manager; not for use by several threads."""

    def __init__(
        self, raw: sqlite3.Connection, place: Place, wait_s: float, stack: ExitStack
    ) -> None:
        super().__init__(raw, place.path, wait_s)
        self._place = place
        self._stack = stack
        self._failed = False
        self.made = place.made
        """Whether this object made the file, and no step has been committed since. If a step fails,
        the file is removed with the object."""
        self.upgraded: Upgrade | None = None
        """The upgrade of an older schema when it was opened."""

    @property
    def why_copied(self) -> str:
        """Why SQLite works on a private copy of the database; "" if it works in place."""
        return self._place.why_copied

    @classmethod
    def open(cls, path: AnyPath, *, create: bool, wait_s: float = 10.0) -> Store:
        """Open for reading and writing; an older schema is upgraded, with a backup beside it.

        `create`: make the database, mode 0600, if there is none or an empty file. `wait_s`: the
        longest wait for another process's step, now and in each step. Raises DatabaseError, also
        for a symlink and for any file that is no database of irmapdb.
        """
        place: Place | None = None
        try:
            with ExitStack() as stack:
                place = stack.enter_context(
                    open_place(path, write=True, create=create, wait_s=wait_s)
                )
                raw = stack.enter_context(connect_raw(place, write=True, wait_s=wait_s))
                upgraded = _prepare(raw, place, create=create, wait_s=wait_s)
                store = cls(raw, place, wait_s, stack.pop_all())
        except DatabaseError:
            if place is not None and place.made:
                _unmake(place)
            raise
        store.upgraded = upgraded
        return store

    @classmethod
    def open_readonly(cls, path: AnyPath, *, wait_s: float = 10.0) -> Store:
        """Open only for reading, also while another process writes.

        Raises DatabaseError for an older schema, because it changes nothing.
        """
        with ExitStack() as stack:
            place = stack.enter_context(open_place(path, write=False))
            raw = stack.enter_context(connect_raw(place, write=False, wait_s=wait_s))
            with translated(place.path, wait_s):
                check_newest(raw, place)
            return cls(raw, place, wait_s, stack.pop_all())

    @contextmanager
    def step(self, *, more: bool = False) -> Iterator[Step]:
        """One transaction: committed at the end of the block, undone if anything is raised.

        Other writers wait meanwhile; readers do not. `more`: another step follows, so that a
        private copy need not be put back yet.
        """
        try:
            with translated(self.path, self._wait_s), immediate(self._raw):
                yield Step(self._raw, self.path, self._wait_s)
            self._place.mark_changed()
            if not more:
                self._place.put_back()
        except BaseException:
            self._failed = True
            raise
        self.made = False

    def prunable(self, keep: Retention, now: datetime) -> Pruned:
        """The rows that repeated calls of Step.prune would delete."""
        with translated(self.path, self._wait_s):
            return retention.count(self._raw, keep, now)

    def size(self) -> tuple[int, int]:
        """The size of the file, and the bytes in it that are free for new rows."""
        with translated(self.path, self._wait_s):
            page, pages, free = (
                self._raw.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
        return page * pages, page * free

    def vacuum(self) -> None:
        """Rewrite the file without its free pages. This needs free space of its size."""
        with translated(self.path, self._wait_s):
            self._raw.execute("VACUUM")
        self._place.mark_changed()
        self._place.put_back()

    def close(self) -> None:
        """Give the file back. A second time does nothing."""
        with self._stack:
            self._place.put_back()
        if self.made and self._failed:
            self.made = False
            _unmake(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prepare(
    raw: sqlite3.Connection, place: Place, *, create: bool, wait_s: float
) -> Upgrade | None:
    with translated(place.path, wait_s):
        revision = read_revision(raw, place)
    if revision is None:
        if not create:
            raise refuse_empty(place.path)
        with translated(place.path, wait_s):
            make_schema(raw, place)
            if not place.copied:
                use_wal(place.work)
        return None
    if revision == version.HEAD:
        return None
    from irmapdb.store.revisions import upgrade_place  # noqa: PLC0415 seldom

    done = upgrade_place(place, wait_s=wait_s)
    kept = "" if done.backup is None else f", the old one kept as {show(done.backup)}"
    _log.warning("%s: schema %s → %s%s", show(place.path), done.old, done.new, kept)
    return done


def _unmake(place: Place) -> None:
    # A database that could not be made (the disk is full), or that its first step did not need,
    # leaves no file. (A private copy is removed in any case.) Another process may have opened it
    # meanwhile: then its WAL cannot be removed, and the file stays. While we hold the write lock,
    # no process writes it, and SQLite refuses to write a file that has lost its name and has no
    # WAL.
    with (
        suppress(sqlite3.Error, OSError),
        closing(open_raw(place.work, write=True, wait_s=0)) as raw,
    ):
        raw.execute("PRAGMA journal_mode = MEMORY")  # the disk may be full
        raw.execute("BEGIN IMMEDIATE")
        if os.stat(place.work).st_size == 0 or not _holds_anything(raw):
            os.unlink(place.work)


def _holds_anything(raw: sqlite3.Connection) -> bool:
    # Every committed step leaves a row in one of these.
    return any(
        raw.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608 - fixed words
        for table in ("run", "mapping", "image_seen")
    )
