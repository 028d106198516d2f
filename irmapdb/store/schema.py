"""Creates a new database: its tables, views and revision."""

from __future__ import annotations

from sqlalchemy import insert

from irmapdb.store import tables, version, views
from irmapdb.store.connect import immediate, raw_of
from irmapdb.store.values import new_uuid
from irmapdb.store.version import read_revision

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlalchemy import Connection

    from irmapdb.store.place import Place

__all__ = ["create"]

# Not SQLite's 4096: a long list takes a tenth less time to write, and the file is made once.
_PAGE_BYTES = 16384


def create(connection: Connection, place: Place) -> None:
    """Make the newest schema, unless another process has just made one."""
    raw_of(connection).execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    with immediate(connection):
        if read_revision(raw_of(connection), place) is not None:
            return
        tables.metadata.create_all(connection, checkfirst=False)
        tables.version_metadata.create_all(connection, checkfirst=False)
        views.create(connection)
        connection.execute(insert(tables.origin), {"uuid": new_uuid()})
        connection.execute(insert(tables.alembic_version), {"version_num": version.HEAD})
        connection.exec_driver_sql(f"PRAGMA application_id = {version.APPLICATION_ID}")
