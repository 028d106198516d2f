"""Makes the sources of paths in one root, the cheapest first, each imported at its first use.

Usually the stored rows answer everything, and the hook imports no other source.
"""

from __future__ import annotations

from irmapdb.model import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from irmapdb.kernel.root import Root
    from irmapdb.resolve.engine import Answer, Resolver, Wanted
    from irmapdb.resolve.mount_fds import MountFds

__all__ = ["Late", "lookups"]


class Late:
    """A resolver that `make` imports and creates at its first use."""

    def __init__(self, source: Source, make: Callable[[], Resolver]) -> None:
        self.source = source
        self._make = make
        self._made: Resolver | None = None

    def __call__(self, wanted: Wanted) -> Iterator[Answer]:
        return self.load()(wanted)

    def load(self) -> Resolver:
        """Import and create it now, if that has not happened yet."""
        if self._made is None:
            self._made = self._make()
        return self._made


def lookups(
    root: Root, mount_fds: MountFds, holders: Collection[int], over: Callable[[], bool]
) -> tuple[Late, ...]:
    """All sources that need no walk. `holders`: the tasks whose open files are read."""

    def handles() -> Resolver:
        from irmapdb.resolve.handle import Handles  # noqa: PLC0415

        return Handles(root, mount_fds, over)

    def overlay() -> Resolver:
        from irmapdb.resolve.overlay import OverlayLayers  # noqa: PLC0415

        return OverlayLayers(root, over)

    def btrfs() -> Resolver:
        from irmapdb.resolve.btrfs import BtrfsLookup  # noqa: PLC0415

        return BtrfsLookup(root, mount_fds, over)

    def xfs() -> Resolver:
        from irmapdb.resolve.xfs import XfsParents  # noqa: PLC0415

        return XfsParents(root, mount_fds, over)

    def open_files() -> Resolver:
        from irmapdb.resolve.open_files import OpenFiles  # noqa: PLC0415

        return OpenFiles(root, holders, over)

    return (
        Late(Source.HANDLE, handles),
        Late(Source.OVERLAY, overlay),
        Late(Source.BTRFS, btrfs),
        Late(Source.XFS, xfs),
        Late(Source.OPEN_FILES, open_files),
    )
