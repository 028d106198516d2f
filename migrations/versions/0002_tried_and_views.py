"""what each resolver said, and views."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# No downgrade: a backup lies beside every database that was upgraded.


def upgrade() -> None:
    """From 0001 to 0002. The views are those of irmapdb.store.views: see migrations/env.py."""
    op.create_table(
        "tried",
        sa.Column("watch_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("resolver", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("watch_id", "position", name=op.f("pk_tried")),
        sa.ForeignKeyConstraint(
            ["watch_id"], ["watch.id"], name=op.f("fk_tried_watch_id_watch"), ondelete="CASCADE"
        ),
        sqlite_with_rowid=False,
    )
