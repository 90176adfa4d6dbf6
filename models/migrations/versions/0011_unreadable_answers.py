"""Answers that cannot be read are kept with their media type, and a job says whether to call again after one"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Workers of before write neither: their failures keep JSON only, and their jobs fail at once.
    op.add_column("job", sa.Column("on_unreadable", sa.Text(), server_default=sa.text("'fail'"), nullable=False))
    comment = "media type of a response that is no JSON, or not the answer it should be; null: JSON"
    op.add_column("job", sa.Column("response_type", sa.Text(), nullable=True, comment=comment))


def downgrade() -> None:
    op.drop_column("job", "response_type")
    op.drop_column("job", "on_unreadable")
