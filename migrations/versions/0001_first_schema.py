"""first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# No downgrade: a backup lies beside every database that was upgraded.

# Names are given whole (op.f): what a released revision makes must not change with the
# conventions of migrations/env.py.


def upgrade() -> None:
    """From an empty database to 0001."""
    _create_mapping()
    _create_image()
    _create_run()
    _create_watch()
    _create_change()
    # "IRMP": as irmapdb.store.version.APPLICATION_ID
    op.execute(sa.text("PRAGMA application_id = 1230130512"))


def _identity() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("dev", sa.Integer(), nullable=False),
        sa.Column("ino", sa.Integer(), nullable=False),
        sa.Column("handle_type", sa.Integer(), nullable=True),
        sa.Column("handle", sa.LargeBinary(), nullable=True),
    )


def _identity_checks(table: str) -> tuple[sa.CheckConstraint, ...]:
    return (
        sa.CheckConstraint(
            "typeof(dev) = 'integer' AND dev BETWEEN 0 AND 4294967295",
            name=op.f(f"ck_{table}_dev"),
        ),
        sa.CheckConstraint("typeof(ino) = 'integer'", name=op.f(f"ck_{table}_ino")),
        sa.CheckConstraint(
            "(handle IS NULL) = (handle_type IS NULL)", name=op.f(f"ck_{table}_handle")
        ),
    )


def _mntns() -> sa.Column[int]:
    return sa.Column("mntns", sa.Integer(), server_default=sa.text("0"), nullable=False)


def _create_mapping() -> None:
    op.create_table(
        "mapping",
        sa.Column("id", sa.Integer(), nullable=False),
        *_identity(),
        sa.Column("path", sa.Text(), nullable=False),
        _mntns(),
        sa.Column("revalidate", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("first_seen_at", sa.Text(), nullable=False),
        sa.Column("validated_at", sa.Text(), nullable=True),
        sa.Column("last_used_at", sa.Text(), nullable=True),
        sa.Column("stale_at", sa.Text(), nullable=True),
        sa.Column("stale_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mapping")),
        *_identity_checks("mapping"),
        sa.CheckConstraint("typeof(path) IN ('text', 'blob')", name=op.f("ck_mapping_path")),
        sa.CheckConstraint("revalidate IN (0, 1)", name=op.f("ck_mapping_revalidate")),
        sa.CheckConstraint(
            "(stale_at IS NULL) = (stale_reason IS NULL)", name=op.f("ck_mapping_stale")
        ),
        sa.UniqueConstraint(
            "dev", "ino", "path", "mntns", name=op.f("uq_mapping_dev_ino_path_mntns")
        ),
    )


def _create_image() -> None:
    op.create_table(
        "image_entry",
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("mapping_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_image_entry")),
        sa.ForeignKeyConstraint(
            ["mapping_id"],
            ["mapping.id"],
            name=op.f("fk_image_entry_mapping_id_mapping"),
            ondelete="CASCADE",
        ),
    )
    op.create_index(op.f("ix_image_entry_mapping_id"), "image_entry", ["mapping_id"])
    op.create_table(
        "image_seen",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("st_dev", sa.Integer(), nullable=False),
        sa.Column("ino", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("mtime_ns", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_image_seen")),
    )


def _create_run() -> None:
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("comm", sa.Text(), nullable=True),
        sa.Column("started_at", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.Text(), nullable=False),
        sa.Column("freezing_us", sa.Integer(), nullable=False),
        sa.Column("frozen_us", sa.Integer(), nullable=False),
        sa.Column("resolve_us", sa.Integer(), nullable=False),
        sa.Column("watches", sa.Integer(), nullable=False),
        sa.Column("resolved", sa.Integer(), nullable=False),
        sa.Column("unresolved", sa.Integer(), nullable=False),
        sa.Column("hits", sa.Integer(), nullable=False),
        sa.Column("stale", sa.Integer(), nullable=False),
        sa.Column("scanned", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_table(
        "run_source",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("identities", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "source", name=op.f("pk_run_source")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_run_source_run_id_run"), ondelete="CASCADE"
        ),
    )


def _create_watch() -> None:
    op.create_table(
        "watch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("comm", sa.Text(), nullable=True),
        sa.Column("fd", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("wd", sa.Integer(), nullable=False),
        *_identity(),
        sa.Column("mask", sa.Integer(), nullable=False),
        sa.Column("ignored_mask", sa.Integer(), nullable=False),
        sa.Column("mflags", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        _mntns(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watch")),
        *_identity_checks("watch"),
        sa.CheckConstraint("(path IS NULL) <> (why IS NULL)", name=op.f("ck_watch_answer")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_watch_run_id_run"), ondelete="CASCADE"
        ),
    )
    op.create_index(op.f("ix_watch_run_id"), "watch", ["run_id"])


def _create_change() -> None:
    op.create_table(
        "change",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("mapping_id", sa.Integer(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        *_identity(),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("old_path", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        _mntns(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change")),
        *_identity_checks("change"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_change_run_id_run"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["mapping_id"],
            ["mapping.id"],
            name=op.f("fk_change_mapping_id_mapping"),
            ondelete="SET NULL",
        ),
    )
    op.create_index(op.f("ix_change_run_id"), "change", ["run_id"])
    op.create_index(op.f("ix_change_mapping_id"), "change", ["mapping_id"])
