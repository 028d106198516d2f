"""Kernel facts and stored rows as resolvers for the engine, one module each.

Each gives candidates for a batch; none decides. `irmapdb.search` asks them in this order,
cheapest first: stored rows, file handles, the tasks' own open files, a scan.
"""

from __future__ import annotations

from irmapdb.resolvers.handles import Handles
from irmapdb.resolvers.open_files import OpenFiles
from irmapdb.resolvers.scan import Scan
from irmapdb.resolvers.stored import StoredRows

__all__ = ["Handles", "OpenFiles", "Scan", "StoredRows"]
