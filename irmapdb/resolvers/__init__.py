"""Kernel facts and stored rows as resolvers for the engine, one module each.

Each gives candidates for a batch; none decides. `irmapdb.search` asks them in this order,
cheapest first: stored rows, file handles, the handles within an overlay's, what btrfs and xfs know,
the tasks' own open files, a scan.
"""

from __future__ import annotations

from irmapdb.resolvers.btrfs import BtrfsLookup
from irmapdb.resolvers.doors import Doors
from irmapdb.resolvers.handles import Handles
from irmapdb.resolvers.open_files import OpenFiles
from irmapdb.resolvers.overlay import OverlayLayers
from irmapdb.resolvers.scan import Scan
from irmapdb.resolvers.stored import StoredRows
from irmapdb.resolvers.xfs import XfsParents

__all__ = [
    "BtrfsLookup",
    "Doors",
    "Handles",
    "OpenFiles",
    "OverlayLayers",
    "Scan",
    "StoredRows",
    "XfsParents",
]
