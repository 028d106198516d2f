"""Checks the entries of irmap-cache, and scans, as CRIU's irmap does.

Sources: irmap_revalidate() and irmap_scan() of criu/irmap.c.
"""

from __future__ import annotations

from irmapdb.config import HINTS
from irmapdb.criu.check.criu_view import found_at, numbers
from irmapdb.criu.check.facts import CacheLook
from irmapdb.criu.check.walks import ROOT_HINT
from irmapdb.kernel.syscalls import Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from irmapdb.criu.check.criu_view import CriuView
    from irmapdb.criu.check.facts import Call, Facts, Found
    from irmapdb.criu.check.walks import Walks
    from irmapdb.model import CacheEntry, Identity, InodeKey

__all__ = ["ByIrmap"]


class ByIrmap:
    """Takes `Look.CACHE` and `Look.SCAN`."""

    def __init__(
        self, criu_view: CriuView, call: Call, walks: Walks, entries: Iterable[CacheEntry]
    ) -> None:
        self._criu_view = criu_view
        self._root = criu_view.root
        self._call = call
        self._walks = walks
        self._entries: dict[InodeKey, list[bytes]] = {}
        for entry in entries:
            self._entries.setdefault(entry.key, []).append(entry.path)

    def caches(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts with `Look.CACHE`."""
        for facts in batch:
            yield facts._replace(cache=self._in_cache(facts.identity))

    def _in_cache(self, identity: Identity) -> CacheLook:
        refused: list[bytes] = []
        for path in reversed(self._entries.get(identity.key, ())):
            found = self.revalidated(identity, path)
            if found is not None:
                return CacheLook(found, tuple(refused))
            refused.append(path)
        return CacheLook(None, tuple(refused))

    def revalidated(self, identity: Identity, path: bytes) -> Found | None:
        """The path, if CRIU accepts it for the inode."""
        # A C string ends at the first NUL, and CRIU assumes that its first byte is the slash.
        name = path.partition(b"\0")[0]
        try:
            fd = self._criu_view.lookup(name[1:], root=self._root)
        except OSError:
            return None
        with Descriptor(fd):
            if numbers(fd) != identity.key:
                return None
            return found_at(name, identity, self._root, fd)

    def scans(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts with `Look.SCAN`."""
        found = self._scan([facts.identity for facts in batch])
        for facts in batch:
            yield facts._replace(scan=tuple(found[facts.identity]))

    def _scan(self, identities: Iterable[Identity]) -> dict[Identity, list[Found]]:
        found: dict[Identity, list[Found]] = {identity: [] for identity in identities}
        # On btrfs no st_dev is that of the superblock.
        pending = [one for one in found if not self._criu_view.is_on(one.kdev, "btrfs")]
        for start in (*self._call.scan_paths, *HINTS, ROOT_HINT):
            done: set[Identity] = set()
            for identity, path in self._walks.below(start, pending, done):
                hit = self.revalidated(identity, path)
                if hit is None:
                    continue
                found[identity].append(hit)
                # Several files of an overlay may have the same numbers, and each of them counts.
                if not self._criu_view.is_on(identity.kdev, "overlay"):
                    done.add(identity)
            pending = [identity for identity in pending if not found[identity]]
        return found
