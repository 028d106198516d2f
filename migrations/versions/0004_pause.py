"""whether an engine had the tasks paused, for how long we made it longer, and views."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# No downgrade: a backup lies beside every database that was upgraded.


def upgrade() -> None:
    """From 0003 to 0004. The views are those of irmapdb.store.views: see migrations/env.py."""
    for name in ("paused", "paused_us"):
        op.add_column(
            "run", sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
