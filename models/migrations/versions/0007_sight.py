"""Columns for operators' lists: the job that has waited longest in a lane, and the jobs of each worker process"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lane", sa.Column("oldest_at", sa.DateTime(timezone=True), comment="since when the longest wait lasts; as last counted"))
    op.add_column("worker", sa.Column("jobs", postgresql.ARRAY(sa.Uuid()), comment="those it holds, by its last report"))
    op.add_column("worker", sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False))


def downgrade() -> None:
    op.drop_column("worker", "started_at")
    op.drop_column("worker", "jobs")
    op.drop_column("lane", "oldest_at")
