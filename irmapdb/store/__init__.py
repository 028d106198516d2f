"""The store room: `irmap.db`, its tables, questions, steps and schema revisions.

The only room that imports sqlalchemy or alembic. Rows leave it as nouns of irmapdb.model.
"""

from __future__ import annotations

from irmapdb.store.ask import FUNCTIONS, Answer, Ask, Value
from irmapdb.store.database import Store
from irmapdb.store.dossiers import Dossier, Sighting
from irmapdb.store.retention import Pruned
from irmapdb.store.revisions import Revision, Upgrade, backup, current, history, upgrade
from irmapdb.store.rows import ChangeRow, FileStamp, RunRow, WatchRow
from irmapdb.store.sqltext import is_complete
from irmapdb.store.tables import HEAD
from irmapdb.store.write import Step

__all__ = [
    "FUNCTIONS",
    "HEAD",
    "Answer",
    "Ask",
    "ChangeRow",
    "Dossier",
    "FileStamp",
    "Pruned",
    "Revision",
    "RunRow",
    "Sighting",
    "Step",
    "Store",
    "Upgrade",
    "Value",
    "WatchRow",
    "backup",
    "current",
    "history",
    "is_complete",
    "upgrade",
]
