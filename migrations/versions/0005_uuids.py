"""a UUID of the database, and one of each run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# No downgrade: a backup lies beside every database that was upgraded.

# Version 4 of RFC 9562, from SQLite's own random numbers.
_UUID = """lower(
    hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2)
    || '-' || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2)
    || '-' || hex(randomblob(6))
)"""


def upgrade() -> None:
    """From 0004 to 0005. The views are those of irmapdb.store.views: see migrations/env.py."""
    op.create_table(
        "origin",
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_origin")),
    )
    op.execute(sa.text(f"INSERT INTO origin VALUES ({_UUID})"))  # noqa: S608 fixed text
    op.add_column("run", sa.Column("uuid", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.execute(sa.text(f"UPDATE run SET uuid = {_UUID}"))  # noqa: S608 fixed text
