"""Kernel facts and stored rows as resolvers for the engine, one module each.

Each gives candidates for a batch; none decides. `irmapdb.resolve.search` asks them in this order,
cheapest first: stored rows, file handles, the handles within an overlay's, what btrfs and xfs know,
the tasks' own open files, a scan.
"""

from __future__ import annotations

from irmapdb.resolve.btrfs import BtrfsLookup
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.mount_fds import MountFds
from irmapdb.resolve.open_files import OpenFiles
from irmapdb.resolve.overlay import OverlayLayers
from irmapdb.resolve.scan import Scan
from irmapdb.resolve.stored import StoredRows
from irmapdb.resolve.xfs import XfsParents

__all__ = [
    "BtrfsLookup",
    "Handles",
    "MountFds",
    "OpenFiles",
    "OverlayLayers",
    "Scan",
    "StoredRows",
    "XfsParents",
]
