"""Answers that were asked for with `store: true`, found by the upstream's own id"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stored_answer",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False, comment="the upstream's own, not always given only once"),
        sa.Column("models", postgresql.ARRAY(sa.Text()), nullable=False, comment="as asked, and as answered"),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("stored_answer_pkey")),
    )
    op.create_index("stored_answer_by_id", "stored_answer", ["key_id", "id"])
    op.create_index("stored_answer_by_key", "stored_answer", ["key_id", "endpoint", "job_id"])


def downgrade() -> None:
    op.drop_table("stored_answer")
