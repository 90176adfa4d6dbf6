"""Sessions: what a conversation remembers, its rules, and files attached to it"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ALIVE = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    for column in (
        sa.Column("title", sa.Text()),
        sa.Column("system_prompt", sa.Text(), comment="null here and below: as the settings have it"),
        sa.Column("context_tokens", sa.Integer(), comment="the most that a turn's messages may be"),
        sa.Column("fresh_after_s", sa.Double(), comment="0: never"),
        sa.Column("on_failed_turn", sa.Text(), server_default=sa.text("'skip'"), nullable=False),
        sa.Column("learned_tokens", sa.Integer(), comment="half of what the upstream found too long"),
        sa.Column("last_active_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("conversation", column)
    op.create_check_constraint(op.f("conversation_on_failed_turn_check"), "conversation", "on_failed_turn IN ('skip', 'stop')")
    op.drop_constraint("conversation_key_id_name_key", "conversation", type_="unique")
    op.create_index("conversation_name", "conversation", ["key_id", "name"], unique=True, postgresql_where=ALIVE)
    op.create_index("conversation_by_key", "conversation", ["key_id", "last_active_at", "id"], unique=False, postgresql_where=ALIVE)
    op.create_index("conversation_deleted", "conversation", ["id"], unique=False, postgresql_where=sa.text("deleted_at IS NOT NULL"))
    op.create_index("conversation_silent", "conversation", ["last_active_at"], unique=False)
    for column in (
        sa.Column("turn_tokens", sa.Integer(), comment="what it weighs in the history of later turns; null: it is no part of that"),
        sa.Column("since_turn", sa.Integer(), comment="the first turn that it remembers, if it fits; null: it was never let into the line"),
        sa.Column("history_tokens", sa.Integer(), comment="of tokens: what is reserved for what it remembers"),
        sa.Column("attachments", postgresql.ARRAY(sa.Uuid())),
    ):
        op.add_column("job", column)
    in_conversation = sa.text("conversation_id IS NOT NULL")
    op.create_index("job_history", "job", ["conversation_id", "turn"], unique=False, postgresql_where=in_conversation)
    op.alter_column("artifact", "job_id", nullable=True, comment="null: not a job's picture but an attachment of its conversation")
    for column in (
        sa.Column("conversation_id", sa.BigInteger()),
        sa.Column("name", sa.Text(), comment="of the file that was attached"),
        sa.Column("tokens", sa.Integer(), comment="what it weighs in a question"),
    ):
        op.add_column("artifact", column)
    op.create_index("artifact_attached", "artifact", ["conversation_id", "id"], unique=False, postgresql_where=in_conversation)


def downgrade() -> None:
    op.execute("DELETE FROM artifact WHERE job_id IS NULL")
    op.drop_index("artifact_attached", table_name="artifact")
    for name in ("tokens", "name", "conversation_id"):
        op.drop_column("artifact", name)
    op.alter_column("artifact", "job_id", nullable=False, comment=None)
    op.drop_index("job_history", table_name="job")
    for name in ("attachments", "history_tokens", "since_turn", "turn_tokens"):
        op.drop_column("job", name)
    op.execute("DELETE FROM conversation WHERE deleted_at IS NOT NULL")
    for name in ("conversation_silent", "conversation_deleted", "conversation_by_key", "conversation_name"):
        op.drop_index(name, table_name="conversation")
    op.create_unique_constraint("conversation_key_id_name_key", "conversation", ["key_id", "name"])
    op.drop_constraint("conversation_on_failed_turn_check", "conversation", type_="check")
    for name in (
        "deleted_at", "last_active_at", "learned_tokens", "on_failed_turn", "fresh_after_s", "context_tokens", "system_prompt", "title",
    ):  # fmt: skip
        op.drop_column("conversation", name)
