"""Tables of a job's idempotency key, images and files, and the index of stored completions."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models.database.tables.columns import metadata, timestamp

idempotency = Table(
    "idempotency",
    metadata,
    Column("key_id", BigInteger, primary_key=True),
    Column("token", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("job_id", Uuid, nullable=False),
    timestamp("created_at", nullable=False),
    Index("idempotency_created", "created_at"),
)

artifact = Table(
    "artifact",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("job_id", Uuid, index=True, comment="null: not a job's picture but an attachment of its conversation"),
    Column("n", SmallInteger, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("conversation_id", BigInteger),
    Column("name", Text, comment="of the file that was attached"),
    Column("tokens", Integer, comment="what it weighs in a question"),
    timestamp("created_at", nullable=False),
    Index("artifact_attached", "conversation_id", "id", postgresql_where=text("conversation_id IS NOT NULL")),
)

stored_answer = Table(
    "stored_answer",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("key_id", BigInteger, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("id", Text, nullable=False, comment="the upstream's own, not always given only once"),
    Column("models", ARRAY(Text), nullable=False, comment="as asked, and as answered"),
    Column("metadata", JSONB, nullable=False),
    Index("stored_answer_by_id", "key_id", "id"),
    Index("stored_answer_by_key", "key_id", "endpoint", "job_id"),
)
