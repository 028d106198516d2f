"""Runs the revisions for alembic, on the connection and in the transaction of the caller.

irmapdb.store.revisions calls it. A new revision: `alembic revision --rev-id 0007 -m SUBJECT` in
the checkout, then add it to REVISIONS in irmapdb/store/version.py, and its tables and columns to
irmapdb/store/tables.py. A change of irmapdb/store/views.sql needs a revision too, if only an empty
one: irmapdb detects an old database by its revision.
"""

from __future__ import annotations

from alembic import context

from irmapdb.store import views
from irmapdb.store.connect import raw_of
from irmapdb.store.tables import metadata

connection = context.config.attributes["connection"]

# The caller's transaction is open already: alembic joins it, and neither begins nor commits.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    dropped = views.drop(raw_of(connection))
    context.run_migrations()
    views.create(raw_of(connection), dropped)
