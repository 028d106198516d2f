"""The store room: `irmap.db`, its tables, questions, steps and schema revisions.

The only room that imports sqlalchemy or alembic. Rows leave it as nouns of irmapdb.model.
"""

from __future__ import annotations

from irmapdb.store.database import Store
from irmapdb.store.revisions import Revision, Upgrade, backup, current, history, upgrade
from irmapdb.store.rows import ChangeRow, FileStamp, RunRow, WatchRow
from irmapdb.store.tables import HEAD
from irmapdb.store.write import Step

__all__ = [
    "HEAD",
    "ChangeRow",
    "FileStamp",
    "Revision",
    "RunRow",
    "Step",
    "Store",
    "Upgrade",
    "WatchRow",
    "backup",
    "current",
    "history",
    "upgrade",
]
