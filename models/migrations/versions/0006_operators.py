"""Operators: tokens with a role, an audit log that only grows, pauses and caps of keys and flows"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _at(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=None if nullable else sa.text("now()"))


def upgrade() -> None:
    op.add_column("pool", _at("draining_at"))
    op.add_column("lane", _at("draining_at"))
    op.add_column("credential", sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False, comment=WEIGHT))
    for column in (_at("paused_at"), sa.Column("paused_reason", sa.Text()), _at("retired_at")):
        op.add_column("credential", column)
    op.create_table(
        "operator",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        _at("created_at", nullable=False),
        _at("revoked_at"),
        sa.CheckConstraint("role IN ('read', 'write')", name=op.f("operator_role_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("operator_pkey")),
        sa.UniqueConstraint("fingerprint", name=op.f("operator_fingerprint_key")),
        sa.UniqueConstraint("name", name=op.f("operator_name_key")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        _at("at", nullable=False),
        sa.Column("operator", sa.Text(), nullable=False, comment="who did it; cli: whoever has the database"),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB()),
        sa.Column("after", postgresql.JSONB()),
        sa.Column("reason", sa.Text()),
        sa.Column("request_id", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pkey")),
    )
    op.execute(ONLY_GROWS)
    op.create_table(
        "cap",
        sa.Column("scope", sa.Text(), nullable=False, comment="key, or flow"),
        sa.Column("owner_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the key; of a flow: its lane"),
        sa.Column("flow", sa.Text(), nullable=False, comment="of a key: empty"),
        sa.Column("endpoint", sa.Text(), nullable=False, comment="the class of requests it is for; empty: all"),
        *(sa.Column(name, sa.Integer(), comment="null: open") for name in ("max_queued", "max_in_flight", "rpm")),
        _at("paused_at"),
        sa.Column("paused_reason", sa.Text()),
        _at("draining_at"),
        sa.CheckConstraint("scope IN ('key', 'flow')", name=op.f("cap_scope_check")),
        sa.PrimaryKeyConstraint("scope", "owner_id", "flow", "endpoint", name=op.f("cap_pkey")),
    )
    op.create_table(
        "cap_use",
        sa.Column("dispatch_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("flow", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        _at("at", nullable=False),
        sa.PrimaryKeyConstraint("dispatch_id", "scope", "owner_id", "flow", "endpoint", name=op.f("cap_use_pkey")),
    )
    op.create_index("job_retry_of", "job", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))
    op.create_index("cap_use_recent", "cap_use", ["scope", "owner_id", "flow", "endpoint", "at"])


def downgrade() -> None:
    for table in ("cap_use", "cap", "audit", "operator"):
        op.drop_table(table)
    op.execute("DROP FUNCTION audit_only_grows()")
    op.drop_index("job_retry_of", "job")
    for column in ("retired_at", "paused_reason", "paused_at", "weight"):
        op.drop_column("credential", column)
    op.drop_column("lane", "draining_at")
    op.drop_column("pool", "draining_at")


WEIGHT = "of several with room, how much this one is preferred"
ONLY_GROWS = """
    CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the audit log only grows' USING ERRCODE = 'integrity_constraint_violation';
    END $$;
    CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()
"""
