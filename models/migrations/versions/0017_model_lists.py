"""Copies of upstreams' lists of models; since when a credential is parked, and the upstream's words"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_list",
        sa.Column("credential_id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False, comment="JSON: the caller's headers that choose an account; empty: none"),
        sa.Column("source", sa.Text(), nullable=True, comment="the base URL that the copy came from"),
        sa.Column("body", sa.LargeBinary(), nullable=True, comment="the upstream's last good answer; null: none yet"),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=True, comment="when the last refresh ended"),
        sa.Column("refusal", postgresql.JSONB(), nullable=True, comment="of the last refresh: {status, error}; null: it was good"),
        sa.Column("wanted_at", sa.DateTime(timezone=True), nullable=True, comment="since when a refresh is wanted; null: it is not"),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True, comment="until then one worker refreshes it"),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.ForeignKeyConstraint(["credential_id"], ["credential.id"], name=op.f("model_list_credential_id_fkey")),
        sa.PrimaryKeyConstraint("credential_id", "account", name=op.f("model_list_pkey")),
    )
    op.create_index("model_list_wanted", "model_list", ["wanted_at"], postgresql_where=sa.text("wanted_at IS NOT NULL"))
    op.add_column(
        "credential",
        sa.Column("parked_since", sa.DateTime(timezone=True), nullable=True, comment="of the first refusal; probes move parked_at alone"),
    )
    op.add_column("credential", sa.Column("parked_words", postgresql.JSONB(), nullable=True, comment="the upstream's last error object"))


def downgrade() -> None:
    op.drop_column("credential", "parked_words")
    op.drop_column("credential", "parked_since")
    op.drop_table("model_list")
