"""what the time in a freeze went into, and views."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# No downgrade: a backup lies beside every database that was upgraded.


def upgrade() -> None:
    """From 0002 to 0003. The views are those of irmapdb.store.views: see migrations/env.py."""
    for column in (
        _number("tasks_frozen"),
        _number("reread_us"),
        _number("reparsed"),
        _number("confirm_us"),
        _number("reproved"),
        sa.Column("reproved_why", sa.Text(), server_default=sa.text("''"), nullable=False),
        _number("frozen_resolve_us"),
    ):
        op.add_column("run", column)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)
