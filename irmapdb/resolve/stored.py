"""Gives the paths that the database has."""

from __future__ import annotations

from irmapdb.model import Source
from irmapdb.resolve.engine import Candidate
from irmapdb.store.mappings import most_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from typing import Protocol

    from irmapdb.model import Identity, InodeKey, Mapping
    from irmapdb.resolve.engine import Answer, Wanted

    class Load(Protocol):
        """The store's rows for a batch of keys, of one mount namespace."""

        def __call__(
            self, keys: Collection[InodeKey], mntns: int = 0
        ) -> dict[InodeKey, list[Mapping]]: ...


__all__ = ["Load", "StoredRows", "nothing_stored"]

_SLICE = 4096
"""The number of inodes that are loaded at once: proving their paths takes about as long."""


def nothing_stored(
    keys: Collection[InodeKey],  # noqa: ARG001 nothing is stored for any
    mntns: int = 0,  # noqa: ARG001
) -> dict[InodeKey, list[Mapping]]:
    """The rows if there is no database."""
    return {}


class StoredRows:
    """The paths that the database has for an inode, the last proved one last."""

    source = Source.STORED

    def __init__(
        self, load: Callable[[Collection[InodeKey]], dict[InodeKey, list[Mapping]]]
    ) -> None:
        self._load = load
        self.rows: dict[InodeKey, list[Mapping]] = {}
        """Every row that was loaded, also stale ones. An inode without rows is not in it."""
        self._asked: set[Identity] = set()

    def load(self, identities: Iterable[Identity]) -> None:
        """Load the rows of these inodes that were not loaded before."""
        new = set(identities) - self._asked
        self._asked |= new
        self.rows |= self._load({identity.key for identity in new})

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        identities = list(wanted)
        for start in range(0, len(identities), _SLICE):
            yield from self._paths_of(identities[start : start + _SLICE])

    def _paths_of(self, identities: list[Identity]) -> Iterator[Answer]:
        self.load(identities)
        if not self.rows:
            return
        # A stale row is history. A row with another handle is tried: its path may name this inode
        # now.
        live = [
            (identity, [row for row in self.rows.get(identity.key, ()) if not row.stale])
            for identity in identities
        ]
        most = most_rows(len(identities))
        if sum(len(rows) for _, rows in live) > most:
            live = [(one, _last(one, rows, most // len(identities))) for one, rows in live]
        for identity, rows in live:
            for row in rows:
                yield Candidate(identity, row.path)


def _last(identity: Identity, rows: Iterable[Mapping], most: int) -> list[Mapping]:
    # Another user can have put any number into a database or an irmap-cache. The rows of another
    # file with the same number are the first to go.
    return sorted(rows, key=lambda row: row.identity.matches(identity))[-most:]
