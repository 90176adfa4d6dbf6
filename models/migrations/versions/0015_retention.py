"""Retention finds old Idempotency-Keys along an index"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A day's keys at most, a few bytes each: submits with an Idempotency-Key wait while it is built (docs/guides/deploy.md).
    op.create_index("idempotency_created", "idempotency", ["created_at"])


def downgrade() -> None:
    op.drop_index("idempotency_created", "idempotency")
