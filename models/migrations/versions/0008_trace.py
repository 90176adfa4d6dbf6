"""Columns for the origin of a job: its request and its trace"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("request_id", sa.Uuid(), comment="of the request that brought it: X-Request-Id, without req_"))
    op.add_column("job", sa.Column("traceparent", sa.Text(), comment="W3C: of its span `submit`; null: traces were off"))


def downgrade() -> None:
    op.drop_column("job", "traceparent")
    op.drop_column("job", "request_id")
