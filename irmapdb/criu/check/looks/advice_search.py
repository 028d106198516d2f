"""Searches for the file of a watch that CRIU does not find: only for better advice.

A file with a handle that opens has no name in the kernel's cache, and CRIU would find the name
after a lookup. So only listings are read for it.
"""

from __future__ import annotations

import contextlib
import os
import time

from irmapdb.criu.check.criu_view import numbers
from irmapdb.criu.check.facts import SearchLook, by_device
from irmapdb.criu.check.walks import ROOT_HINT
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.resolve import engine
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.open_files import OpenFiles
from irmapdb.resolve.overlay import OverlayLayers
from irmapdb.resolve.scan import Scan
from irmapdb.resolve.skip_paths import SkipPaths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from irmapdb.config import Config
    from irmapdb.criu.check.criu_view import CriuView
    from irmapdb.criu.check.facts import Call, Facts
    from irmapdb.criu.check.looks.irmap import ByIrmap
    from irmapdb.criu.check.walks import Walks
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity

__all__ = ["AdviceSearch"]

_SEARCH_S = 5.0
"""The time limit."""

_LATE = f"not found within {_SEARCH_S:g} s"


class AdviceSearch:
    """Takes `Look.SEARCH`."""

    def __init__(
        self,
        criu_view: CriuView,
        call: Call,
        walks: Walks,
        irmap: ByIrmap,
        config: Config,
        progress: Callable[[int, bytes], None],
    ) -> None:
        self._criu_view = criu_view
        self._root = criu_view.root
        self._call = call
        self._walks = walks
        self._irmap = irmap
        self._config = config
        self._progress = progress

    def __call__(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        """The facts with this look."""
        cold: list[Facts] = []
        rest: list[Facts] = []
        for facts in batch:
            (cold if facts.handle and facts.handle.opened else rest).append(facts)
        for kdev, on_device in by_device(cold):
            yield from self._search_listings(kdev, on_device)
        yield from self._search(rest)

    def _search_listings(self, kdev: int, batch: Sequence[Facts]) -> Iterator[Facts]:
        # No name is looked up, because CRIU would find it afterwards.
        paths: dict[Identity, bytes] = {}
        identities = [facts.identity for facts in batch]
        gave_up = self._unwalked(kdev)
        if not gave_up:
            with self._walks.limited(_SEARCH_S):
                skips = SkipPaths(self._config.skip_paths)
                for mount in self._root.mounts.of_device(kdev):
                    for identity, path in self._walks.mount(mount, identities, paths, skips=skips):
                        paths.setdefault(identity, path)
            gave_up = _LATE if self._walks.over else ""
        for facts in batch:
            found = paths.get(facts.identity)
            if found is None:
                yield facts._replace(search=SearchLook(gave_up=gave_up))
            else:
                yield facts._replace(search=self._seen(facts.identity, found))

    def _unwalked(self, kdev: int) -> str:
        kinds = self._root.blocking_kinds(kdev)
        return f"{kinds} is walked only where --irmap-scan-path names it" if kinds else ""

    def _seen(self, identity: Identity, path: bytes) -> SearchLook:
        acceptable = False
        # A directory has the st_dev of its files, but on an overlay of several filesystems.
        with contextlib.suppress(OSError), Descriptor(self._root.open(os.path.dirname(path))) as fd:
            acceptable = numbers(fd).kdev == identity.kdev
        return SearchLook(path, acceptable=acceptable, hinted=self._call.scans(path))

    def _search(self, batch: Sequence[Facts]) -> Iterator[Facts]:
        # By any source: no handle opens there, so a cached name does not matter.
        root, pids = self._root, self._criu_view.pids
        paths = self._call.scan_paths
        deadline = time.monotonic() + _SEARCH_S

        def over() -> bool:
            return time.monotonic() > deadline

        scan = Scan(root, self._config, paths=paths, pids=pids, progress=self._progress, over=over)
        outcome = engine.resolve(
            [facts.identity for facts in batch],
            (OverlayLayers(root, over), OpenFiles(root, pids), scan),
            lambda identity, path: disproof(root, identity, path),
            over=over,
        )
        elsewhere = self._elsewhere(
            [one for one, failure in outcome.unresolved.items() if not failure.deleted], over
        )
        late = _LATE if over() else ""
        for facts in batch:
            answer = outcome.resolved.get(facts.identity)
            if facts.identity in elsewhere:
                yield facts._replace(search=elsewhere[facts.identity])
                continue
            if answer is None:
                deleted = outcome.unresolved[facts.identity].deleted
                gave_up = self._unwalked(facts.identity.kdev) or late
                yield facts._replace(search=SearchLook(deleted=deleted, gave_up=gave_up))
                continue
            path = ROOT_HINT if answer.path == b"/" else answer.path
            acceptable = self._irmap.revalidated(facts.identity, path) is not None
            yield facts._replace(search=SearchLook(path, acceptable=acceptable))

    def _elsewhere(
        self, identities: Iterable[Identity], over: Callable[[], bool]
    ) -> dict[Identity, SearchLook]:
        # In the tree's other mount namespaces. pre-dump searches there, and CRIU does not.
        found: dict[Identity, SearchLook] = {}
        left = list(identities)
        for root in self._criu_view.nested:
            here = [one for one in left if root.mounts.of_device(one.kdev)]
            outcome = self._resolve_in(root, here, over)
            for identity, answer in outcome.resolved.items():
                found[identity] = SearchLook(answer.path, mntns=root.mntns)
            for identity in here:
                failure = outcome.unresolved.get(identity)
                if failure is not None and failure.deleted:
                    found[identity] = SearchLook(deleted=True)
                elif identity not in found and not self._root.mounts.of_device(identity.kdev):
                    found[identity] = SearchLook(mntns=root.mntns)  # where its device is
            left = [one for one in left if one not in found]
        return found

    def _resolve_in(
        self, root: Root, identities: Iterable[Identity], over: Callable[[], bool]
    ) -> engine.Resolution:
        pids, config = self._criu_view.pids, self._config
        return engine.resolve(
            [one for one in identities if not root.may_block(one.kdev)],
            (
                Handles(root),
                OverlayLayers(root, over),
                OpenFiles(root, pids),
                Scan(root, config, pids=pids, progress=self._progress, over=over),
            ),
            lambda identity, path: disproof(root, identity, path),
            over=over,
        )
