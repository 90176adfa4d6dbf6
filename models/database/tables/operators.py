"""Operators and the audit log."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Identity, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from models.database.tables.columns import metadata, timestamp

operator = Table(
    "operator",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, CheckConstraint("role IN ('read', 'write')", name="role"), nullable=False),
    Column("fingerprint", LargeBinary, nullable=False, unique=True),
    timestamp("created_at", nullable=False),
    timestamp("revoked_at"),
)

# Append-only, like the ledger.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    timestamp("at", nullable=False),
    Column("operator", Text, nullable=False, comment="who did it; cli: whoever has the database"),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
    Column("reason", Text),
    Column("request_id", Text),
)
