"""The store room: `irmap.db`, its tables, questions, steps and schema revisions.

The only room that imports sqlite3, sqlalchemy or alembic. Rows leave it as nouns: those of
irmapdb.model, and a few of its own in irmapdb.store.records.

`database` is the file as an object, for who writes; `ask` and `entries` only read, and do without
sqlalchemy; `revisions` is the way from one schema to the next. So nothing is imported here.
"""
