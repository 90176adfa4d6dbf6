"""Heartbeats of API processes; a job says whether it was cancelled because its reader had left"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_process",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("up_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("api_process_pkey")),
    )
    # A constant default: no row is rewritten, and an earlier version goes on writing rows without it.
    op.add_column(
        "job",
        sa.Column(
            "abandoned", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="cancelled because its reader had left"
        ),
    )


def downgrade() -> None:
    op.drop_column("job", "abandoned")
    op.drop_table("api_process")
