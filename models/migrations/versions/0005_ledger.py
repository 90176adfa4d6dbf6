"""Money: a ledger that only grows, budgets, and what an open job reserves"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount_microusd", sa.BigInteger(), nullable=False, comment="what the key gains; negative: what it pays"),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("dispatch_id", sa.Uuid(), comment="the attempt that it is for; null: the operator's own entry"),
        sa.Column("model", sa.Text()),
        sa.Column("flow", sa.Text()),
        sa.Column("note", sa.Text()),
        sa.CheckConstraint("kind IN ('grant','charge','unknown','correction')", name=op.f("ledger_kind_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("ledger_pkey")),
    )
    op.create_index("ledger_by_key", "ledger", ["key_id", "id"], unique=False, postgresql_include=["amount_microusd"])
    op.create_index("ledger_by_day", "ledger", ["key_id", "at"], unique=False)
    op.create_index("ledger_once", "ledger", ["dispatch_id"], unique=True, postgresql_where=sa.text("kind IN ('charge', 'unknown')"))
    op.create_index(
        "ledger_corrected_once",
        "ledger",
        ["dispatch_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'correction' AND dispatch_id IS NOT NULL"),
    )
    op.execute(ONLY_GROWS)
    op.create_table(
        "budget",
        sa.Column(
            "key_id",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="a key that was granted something; locked by its submits",
        ),
        sa.Column("counted_to", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=COUNTED_TO),
        sa.Column(
            "counted_microusd", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="the sum of its entries up to there"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("budget_pkey")),
    )
    op.add_column("job", sa.Column("reserved_microusd", sa.BigInteger(), comment=RESERVED))
    op.add_column("usage", sa.Column("flow", sa.Text(), comment="the user it was for; null: not known any more"))
    op.execute("UPDATE usage SET flow = job.flow FROM job WHERE job.id = usage.job_id")


def downgrade() -> None:
    op.drop_column("usage", "flow")
    op.drop_column("job", "reserved_microusd")
    op.drop_table("budget")
    op.drop_table("ledger")
    op.execute("DROP FUNCTION ledger_only_grows()")


COUNTED_TO = "the last of its ledger's entries in counted_microusd"
RESERVED = "what one call of it may cost at most; null: not known, or nobody asked"
ONLY_GROWS = """
    CREATE FUNCTION ledger_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the ledger only grows: write a correction instead' USING ERRCODE = 'integrity_constraint_violation';
    END $$;
    CREATE TRIGGER ledger_only_grows BEFORE UPDATE OR DELETE ON ledger FOR EACH STATEMENT EXECUTE FUNCTION ledger_only_grows()
"""
