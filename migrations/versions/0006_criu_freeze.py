"""the time of CRIU's own freeze, in a run of the hook."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# No downgrade: a backup lies beside every database that was upgraded.


def upgrade() -> None:
    """From 0005 to 0006. The views are those of irmapdb.store.views: see migrations/env.py."""
    for name in ("criu_freezing_us", "criu_frozen_us"):
        op.add_column(
            "run", sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
