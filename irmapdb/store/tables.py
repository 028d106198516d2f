"""Defines the tables of `irmap.db` at the newest revision.

A new database is made from here; an older one gets here by the revisions in `migrations/`.
tests/test_migrations.py keeps the two the same, word for word. irmapdb.store.values describes the
stored form of inode numbers, paths and times.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "alembic_version",
    "change",
    "image_entry",
    "image_seen",
    "mapping",
    "metadata",
    "origin",
    "run",
    "run_source",
    "tried",
    "version_metadata",
    "watch",
]

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

# alembic makes and reads this table; it is described here for those who do not import alembic.
version_metadata = MetaData()
alembic_version = Table(
    "alembic_version",
    version_metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def _identity() -> tuple[Column[Any], ...]:
    return (
        Column("dev", Integer, nullable=False),
        Column("ino", Integer, nullable=False),
        Column("handle_type", Integer),
        Column("handle", LargeBinary),
    )


def _identity_checks() -> tuple[CheckConstraint, ...]:
    return (
        CheckConstraint("typeof(dev) = 'integer' AND dev BETWEEN 0 AND 4294967295", name="dev"),
        CheckConstraint("typeof(ino) = 'integer'", name="ino"),
        CheckConstraint("(handle IS NULL) = (handle_type IS NULL)", name="handle"),
    )


mapping = Table(
    "mapping",
    metadata,
    Column("id", Integer, primary_key=True),
    *_identity(),
    Column("path", Text, nullable=False),
    Column("mntns", Integer, nullable=False, server_default=text("0")),
    Column("revalidate", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("first_seen_at", Text, nullable=False),
    Column("validated_at", Text),
    Column("last_used_at", Text),
    Column("stale_at", Text),
    Column("stale_reason", Text),
    *_identity_checks(),
    CheckConstraint("typeof(path) IN ('text', 'blob')", name="path"),
    CheckConstraint("revalidate IN (0, 1)", name="revalidate"),
    CheckConstraint("(stale_at IS NULL) = (stale_reason IS NULL)", name="stale"),
    UniqueConstraint("dev", "ino", "path", "mntns"),
)

# The entries of the `irmap-cache` image, in its order. A mapping may be in it more than once:
# CRIU writes an entry a watch.
image_entry = Table(
    "image_entry",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("mapping_id", ForeignKey("mapping.id", ondelete="CASCADE"), nullable=False),
    Index(None, "mapping_id"),
)

# The irmap-cache files as we last read or wrote them. `st_dev` is stat(2)'s, not a kdev.
image_seen = Table(
    "image_seen",
    metadata,
    Column("path", Text, primary_key=True),
    Column("st_dev", Integer, nullable=False),
    Column("ino", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("event", Text, nullable=False),
    Column("pid", Integer),
    Column("comm", Text),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text, nullable=False),
    Column("freezing_us", Integer, nullable=False),
    Column("frozen_us", Integer, nullable=False),
    Column("resolve_us", Integer, nullable=False),
    Column("watches", Integer, nullable=False),
    Column("resolved", Integer, nullable=False),
    Column("unresolved", Integer, nullable=False),
    Column("hits", Integer, nullable=False),
    Column("stale", Integer, nullable=False),
    Column("scanned", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    # The parts of the time in a freeze; 0 and "" for a step without one.
    Column("tasks_frozen", Integer, nullable=False, server_default=text("0")),
    Column("reread_us", Integer, nullable=False, server_default=text("0")),
    Column("reparsed", Integer, nullable=False, server_default=text("0")),
    Column("confirm_us", Integer, nullable=False, server_default=text("0")),
    Column("reproved", Integer, nullable=False, server_default=text("0")),
    Column("reproved_why", Text, nullable=False, server_default=text("''")),
    Column("frozen_resolve_us", Integer, nullable=False, server_default=text("0")),
    Column("paused", Integer, nullable=False, server_default=text("0")),
    Column("paused_us", Integer, nullable=False, server_default=text("0")),
    # The same run in any copy of the database.
    Column("uuid", Text, nullable=False, server_default=text("''")),
    # CRIU's own freeze, which follows the hook; 0 if it is unknown.
    Column("criu_freezing_us", Integer, nullable=False, server_default=text("0")),
    Column("criu_frozen_us", Integer, nullable=False, server_default=text("0")),
)

# One row: the UUID of the database. A copy of the file keeps it.
origin = Table("origin", metadata, Column("uuid", Text, primary_key=True))

# The number of identities that each resolver answered.
run_source = Table(
    "run_source",
    metadata,
    Column("run_id", ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("source", Text, primary_key=True),
    Column("identities", Integer, nullable=False),
)

watch = Table(
    "watch",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("run.id", ondelete="CASCADE"), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("comm", Text),
    Column("fd", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("wd", Integer, nullable=False),
    *_identity(),
    Column("mask", Integer, nullable=False),
    Column("ignored_mask", Integer, nullable=False),
    Column("mflags", Integer, nullable=False),
    Column("path", Text),
    Column("why", Text),
    Column("mntns", Integer, nullable=False, server_default=text("0")),
    *_identity_checks(),
    CheckConstraint("(path IS NULL) <> (why IS NULL)", name="answer"),
    Index(None, "run_id"),
)

# The answer of each resolver for a watch without a path, in the order of the resolvers.
tried = Table(
    "tried",
    metadata,
    Column("watch_id", ForeignKey("watch.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("resolver", Text, nullable=False),
    Column("note", Text, nullable=False),
    sqlite_with_rowid=False,
)

change = Table(
    "change",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("run.id", ondelete="SET NULL")),
    Column("at", Text, nullable=False),
    Column("mapping_id", ForeignKey("mapping.id", ondelete="SET NULL")),
    Column("kind", Text, nullable=False),
    *_identity(),
    Column("path", Text, nullable=False),
    Column("old_path", Text),
    Column("reason", Text),
    Column("mntns", Integer, nullable=False, server_default=text("0")),
    *_identity_checks(),
    Index(None, "run_id"),
    Index(None, "mapping_id"),
)
