"""Usage, the ledger and budgets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Identity, Index, Integer, Table, Text, Uuid, text

from models.database.tables.columns import ZERO, metadata, timestamp

usage = Table(
    "usage",
    metadata,
    Column("dispatch_id", Uuid, primary_key=True),
    Column("job_id", Uuid, nullable=False, index=True),
    Column("key_id", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("flow", Text, comment="the user it was for; null: not known any more"),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("cost_microusd", BigInteger, comment="null: no price is known for this model"),
    Column("estimated", Boolean, nullable=False, server_default=text("false"), comment="some of it counted by us, not by the upstream"),
    timestamp("at", nullable=False),
    Index("usage_by_key", "key_id", "at"),
)

# Append-only, enforced by a trigger. The balance of a key is the sum of its entries.
ledger = Table(
    "ledger",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("key_id", BigInteger, nullable=False),
    timestamp("at", nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount_microusd", BigInteger, nullable=False, comment="what the key gains; negative: what it pays"),
    Column("job_id", Uuid),
    Column("dispatch_id", Uuid, comment="the attempt that it is for; null: the operator's own entry"),
    Column("model", Text),
    Column("flow", Text),
    Column("note", Text),
    CheckConstraint("kind IN ('grant','charge','unknown','correction')", name="kind"),
    Index("ledger_by_key", "key_id", "id", postgresql_include=["amount_microusd"]),
    Index("ledger_by_day", "key_id", "at"),
    Index("ledger_once", "dispatch_id", unique=True, postgresql_where=text("kind IN ('charge', 'unknown')")),
    Index("ledger_corrected_once", "dispatch_id", unique=True, postgresql_where=text("kind = 'correction' AND dispatch_id IS NOT NULL")),
)

budget = Table(
    "budget",
    metadata,
    Column("key_id", BigInteger, primary_key=True, autoincrement=False, comment="a key that was granted something; locked by its submits"),
    Column("counted_to", BigInteger, nullable=False, server_default=ZERO, comment="the last of its ledger's entries in counted_microusd"),
    Column("counted_microusd", BigInteger, nullable=False, server_default=ZERO, comment="the sum of its entries up to there"),
    timestamp("created_at", nullable=False),
)
