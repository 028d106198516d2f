"""Runs the revisions of the fleet's database for alembic, in the transaction of the caller.

irmapdb.fleet.schema calls it. A new revision: copy the last one in `versions`, then add it to
REVISIONS in irmapdb/fleet/schema.py, and a new table to TABLES there. A change of
irmapdb/fleet/views.sql needs a revision too, if only an empty one.
"""

from __future__ import annotations

from alembic import context

from irmapdb.fleet import views
from irmapdb.fleet.schema import VERSION_TABLE

connection = context.config.attributes["connection"]

context.configure(connection=connection, version_table=VERSION_TABLE)
with context.begin_transaction():
    views.drop(connection)
    context.run_migrations()
    views.create(connection)
