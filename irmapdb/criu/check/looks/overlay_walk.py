"""Walks an overlay for its watches, as CRIU 4.3 does."""

from __future__ import annotations

import contextlib
import time

from irmapdb.criu.check.criu_view import found_at, numbers
from irmapdb.criu.check.facts import OverlayLook, by_device
from irmapdb.kernel.syscalls import Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.criu.check.facts import Facts, Found
    from irmapdb.criu.check.walks import Walks
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity

__all__ = ["ByOverlayWalk"]

# CRIU 4.3 stats every entry, our walk reads listings: on a tree of a million files CRIU took
# 1.55 s for each watch where our walk took 0.9 s.
_CRIU_WALK_FACTOR = 1.7


class ByOverlayWalk:
    """Takes `Look.OVERLAY`."""

    def __init__(self, root: Root, walks: Walks) -> None:
        self._root = root
        self._walks = walks

    def __call__(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts with this look."""
        for kdev, facts in by_device(batch):
            yield from self._walk(kdev, facts)

    def _walk(self, kdev: int, batch: Sequence[Facts]) -> Iterator[Facts]:
        before, start = self._walks.entries, time.monotonic_ns()
        candidates = [
            candidate
            for mount in self._root.mounts.of_device(kdev)[:1]
            for candidate in self._walks.mount(mount, [facts.identity for facts in batch])
        ]
        walk_us = int((time.monotonic_ns() - start) / 1000 * _CRIU_WALK_FACTOR)
        entries = self._walks.entries - before
        hits: dict[Identity, list[Found]] = {}
        for identity, path in candidates:
            hit = self._numbered(identity, path)
            if hit is not None:
                hits.setdefault(identity, []).append(hit)
        for facts in batch:
            look = OverlayLook(tuple(hits.get(facts.identity, ())), entries, walk_us)
            yield facts._replace(overlay=look)

    def _numbered(self, identity: Identity, path: bytes) -> Found | None:
        with contextlib.suppress(OSError), Descriptor(self._root.open(path)) as fd:
            if numbers(fd) == identity.key:
                return found_at(path, identity, self._root, fd)
        return None
