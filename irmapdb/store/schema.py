"""Creates a new database: its tables, views and revision."""

from __future__ import annotations

from irmapdb.store import compiled, version, views
from irmapdb.store.objects import creations
from irmapdb.store.raw import immediate
from irmapdb.store.values import new_uuid
from irmapdb.store.version import read_revision

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

    from irmapdb.store.place import Place

__all__ = ["create"]

# Not SQLite's 4096: a long list takes a tenth less time to write, and the file is made once.
_PAGE_BYTES = 16384


def create(raw: sqlite3.Connection, place: Place) -> None:
    """Make the newest schema, unless another process has just made one."""
    raw.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    with immediate(raw):
        if read_revision(raw, place) is not None:
            return
        for statement in creations(version.HEAD).values():
            raw.execute(statement)
        views.create(raw)
        compiled.ADD_ORIGIN.run(raw, uuid=new_uuid())
        compiled.ADD_VERSION.run(raw, version_num=version.HEAD)
        raw.execute(f"PRAGMA application_id = {version.APPLICATION_ID}")
