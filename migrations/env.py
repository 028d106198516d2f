"""Runs the revisions for alembic, on the connection and in the transaction of the caller.

irmapdb.store.revisions calls it. A new revision: `alembic revision --rev-id 0007 -m SUBJECT` in
the checkout, then add it to REVISIONS in irmapdb/store/version.py, and its tables and columns to
irmapdb/store/schemas. A change of irmapdb/store/views.sql needs a revision too, if only an empty
one: irmapdb detects an old database by its revision.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import MetaData

from irmapdb.store import views
from irmapdb.store.connect import raw_of

# https://alembic.sqlalchemy.org/en/latest/naming.html: batch mode finds a constraint by its name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
connection = context.config.attributes["connection"]

# The caller's transaction is open already: alembic joins it, and neither begins nor commits.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    dropped = views.drop(raw_of(connection))
    context.run_migrations()
    views.create(raw_of(connection), dropped)
