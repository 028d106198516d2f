"""What alembic runs: the revisions, on the connection and in the transaction it is handed.

irmapdb.store.revisions calls it. A new revision: `alembic revision --rev-id 0002 -m SUBJECT` in
the checkout, then add it to REVISIONS in irmapdb/store/tables.py, and the tables with it.
"""

from __future__ import annotations

from alembic import context

from irmapdb.store.tables import metadata

# The caller's transaction is open already: alembic joins it, and neither begins nor commits.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
