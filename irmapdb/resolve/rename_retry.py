"""Tries again for files that were renamed between the search and the proof.

Such an inode is not given up before the tasks stand still.
"""

from __future__ import annotations

from irmapdb.model import Source, StaleReason
from irmapdb.resolve.engine import Candidate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity
    from irmapdb.resolve.engine import Disproved, Resolution, Resolver, Wanted

__all__ = ["last_of", "once_more", "were_moving"]

_MOVED = frozenset({StaleReason.GONE, StaleReason.REPLACED, StaleReason.SYMLINK})
"""What a proof says of a path that was renamed or replaced just then."""

_PATHS = 8
"""So many failed paths of an inode are proved once more, the last ones."""


def last_of(failures: Sequence[Disproved]) -> list[Disproved]:
    """As many of an inode's failed paths as are worth another proof."""
    return list(failures[-_PATHS:])


def were_moving(root: Root, outcome: Resolution) -> dict[Identity, list[Disproved]]:
    """What has no path and had one just before, with the paths that failed.

    Not what lies below a mount of another device: that is no rename, and the next proof would say
    the same. A stored path alone does not count: it may have been wrong for years, and a database
    full of such must not keep the tasks waiting. What is renamed just now is in the kernel's cache
    of names, or a scan meets it: one of these has told a path too.
    """
    failed: dict[Identity, list[Disproved]] = {}
    for one in outcome.disproved:
        failure = outcome.unresolved.get(one.identity)
        if failure is not None and not failure.deleted:
            failed.setdefault(one.identity, []).append(one)
    return {
        identity: last_of(failures)
        for identity, failures in failed.items()
        if any(_was_moving(root, one) for one in failures)
    }


def _was_moving(root: Root, one: Disproved) -> bool:
    if one.source is Source.STORED or one.reason not in _MOVED:
        return False
    mount = root.mount_of(one.path)
    return mount is None or mount.kdev == one.identity.kdev


def once_more(
    failed: Mapping[Identity, Sequence[Disproved]], identities: Collection[Identity]
) -> list[Resolver]:
    """Resolvers that give the failed paths of these inodes again, one for each source."""
    by_source: dict[Source, list[Disproved]] = {}
    for identity in identities:
        for one in failed[identity]:
            by_source.setdefault(one.source, []).append(one)
    return [_OnceMore(source, paths) for source, paths in by_source.items()]


class _OnceMore:
    def __init__(self, source: Source, paths: Sequence[Disproved]) -> None:
        self.source = source
        self._paths = paths

    def __call__(self, wanted: Wanted) -> Iterator[Candidate]:
        for one in self._paths:
            if one.identity in wanted:
                yield Candidate(one.identity, one.path)
