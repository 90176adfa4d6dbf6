"""Milestones of long lines, so that nobody counts all who stand ahead; an index that is never taken for the line's"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "milestones",
        sa.Column("lane_id", sa.BigInteger(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("start_tags", postgresql.ARRAY(sa.Double()), nullable=False),
        sa.Column("ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("jobs", postgresql.ARRAY(sa.Integer()), nullable=False, comment="how many stand before each"),
        sa.Column("tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("images", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.ForeignKeyConstraint(["lane_id"], ["lane.id"], name=op.f("milestones_lane_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("lane_id", name=op.f("milestones_pkey")),
    )

    # The old one goes last: until then jobs can be read.
    op.create_index("job_deadline", "job", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL AND status = 'queued'"))
    op.drop_index("job_expiry", "job")


def downgrade() -> None:
    op.create_index("job_expiry", "job", ["expires_at"], postgresql_where=sa.text("status = 'queued'"))
    op.drop_index("job_deadline", "job")
    op.drop_table("milestones")
