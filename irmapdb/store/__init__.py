"""Stores mappings in `irmap.db`: tables, queries, steps and schema revisions.

Only this package imports sqlite3, sqlalchemy or alembic. It returns its rows as the types of
irmapdb.model and irmapdb.store.records.

`database` writes; `ask`, `entries` and `mappings` only read; `revisions` upgrades the schema, and
only that imports sqlalchemy and alembic. So nothing is imported here.
"""
