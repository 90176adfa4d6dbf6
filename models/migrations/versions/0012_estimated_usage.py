"""Usage that was estimated says so; a conversation's own system prompt has its tokens beside it"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A constant default: no row is rewritten, and an earlier version goes on writing rows without it.
    op.add_column(
        "usage",
        sa.Column(
            "estimated", sa.Boolean(), server_default=sa.text("false"), nullable=False,
            comment="some of it counted by us, not by the upstream",
        ),
    )  # fmt: skip
    op.add_column(
        "conversation",
        sa.Column("system_prompt_tokens", sa.Integer(), comment="what it takes of each turn; null: none, or not counted yet"),
    )


def downgrade() -> None:
    op.drop_column("conversation", "system_prompt_tokens")
    op.drop_column("usage", "estimated")
