"""Reads the facts that CRIU will read, without changing CRIU's result.

The result of CRIU for a handle depends on the file's name in the kernel's cache (its dentry), and
every lookup of a path adds the name. So each watch is first checked by its handle only, which adds
no name; CRIU begins in the same way. Paths of irmap-cache and of a scan are looked up only if CRIU
would look them up too. To search for a file without a cached name (for advice), only listings are
read. If a lookup adds a name, the path is right, and CRIU finds the same path earlier.
"""

from __future__ import annotations

from irmapdb.criu.check.criu_view import Mountpoints
from irmapdb.criu.check.facts import Facts, Look
from irmapdb.criu.check.looks.advice_search import AdviceSearch
from irmapdb.criu.check.looks.handle import ByHandle
from irmapdb.criu.check.looks.irmap import ByIrmap
from irmapdb.criu.check.looks.overlay_walk import ByOverlayWalk
from irmapdb.criu.check.walks import Walks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from irmapdb.config import Config
    from irmapdb.criu.check.criu_view import CriuView
    from irmapdb.criu.check.facts import Call
    from irmapdb.model import CacheEntry, Identity

__all__ = ["Observer"]


class Observer:
    """Takes looks for batches of watched inodes. A context manager that keeps mount points open."""

    def __init__(
        self,
        criu_view: CriuView,
        call: Call,
        entries: Iterable[CacheEntry],
        *,
        config: Config,
        progress: Callable[[int, bytes], None] = lambda _scanned, _top: None,
    ) -> None:
        self._criu_view = criu_view
        self._mountpoints = Mountpoints(criu_view.views)
        walks = Walks(criu_view, progress)
        self._handle = ByHandle(criu_view, call, self._mountpoints)
        irmap = ByIrmap(criu_view, call, walks, entries)
        self._takers: dict[Look, Callable[[Sequence[Facts]], Iterator[Facts]]] = {
            Look.HANDLE: self._handle,
            Look.OVERLAY: ByOverlayWalk(criu_view.root, walks),
            Look.CACHE: irmap.caches,
            Look.SCAN: irmap.scans,
            Look.SEARCH: AdviceSearch(criu_view, call, walks, irmap, config, progress),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mountpoints.close()

    @property
    def denied(self) -> bool:
        """Whether a handle could not be opened without CAP_DAC_READ_SEARCH."""
        return self._handle.denied

    def facts(self, identity: Identity) -> Facts:
        """The facts before the first look."""
        opened = self._mountpoints.of(identity.kdev)
        fstype = opened[0][0].mount.fstype if opened else None
        covered = None if opened else self._criu_view.covered(identity.kdev)
        return Facts(identity, fstype, own_mounts=self._criu_view.foreign, covered=covered)

    def take(self, look: Look, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts of a batch with one look more."""
        return self._takers[look](batch)
