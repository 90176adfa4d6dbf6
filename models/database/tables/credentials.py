"""Pools, credentials, their limits, parked models and model lists; callers' keys."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.database.tables.columns import ZERO, metadata, timestamp

pool = Table(
    "pool",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    timestamp("paused_at"),
    Column("paused_reason", Text),
    timestamp("draining_at"),
    timestamp("created_at", nullable=False),
)

credential = Table(
    "credential",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pool_id", ForeignKey("pool.id"), nullable=False, index=True),
    Column("base_url", Text, comment="null: OPENAI_BASE_URL, whatever it is today"),
    Column("secret", LargeBinary, nullable=False, comment="AES-256-GCM, bound to this row"),
    Column(
        "kind",
        Text,
        nullable=False,
        server_default=text("'openai'"),
        comment="openai: Bearer key and OpenAI's paths; azure: api-key and Azure's",
    ),
    Column("api_version", Text, comment="of azure: the api-version of deployment paths; null: the v1 API"),
    timestamp("parked_at"),
    Column("parked_reason", Text),
    Column("parked_error", JSONB, comment="of an own key that the upstream does not know: what its waiting jobs are told"),
    Column("parked_since", DateTime(timezone=True), comment="of the first refusal; probes move parked_at alone"),
    Column("parked_words", JSONB, comment="the upstream's last error object"),
    Column("weight", Double, nullable=False, server_default=text("1"), comment="of several with room, how much this one is preferred"),
    timestamp("paused_at"),
    Column("paused_reason", Text),
    timestamp("retired_at"),
    timestamp("created_at", nullable=False),
)

parked_model = Table(
    "parked_model",
    metadata,
    Column("credential_id", ForeignKey("credential.id"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("reason", Text, nullable=False, comment="status and words of the upstream's refusal"),
    Column("job_id", Uuid, nullable=False, comment="the job that was refused last"),
    timestamp("parked_at", nullable=False),
    timestamp("probe_at", nullable=False),
    Column("probes", Integer, nullable=False, server_default=ZERO, comment="refused in a row; each doubles the time until the next"),
)

model_list = Table(
    "model_list",
    metadata,
    Column("credential_id", ForeignKey("credential.id"), primary_key=True),
    Column("account", Text, primary_key=True, comment="JSON: the caller's headers that choose an account; empty: none"),
    Column("source", Text, comment="the base URL that the copy came from"),
    Column("body", LargeBinary, comment="the upstream's last good answer; null: none yet"),
    timestamp("fetched_at"),
    Column("tried_at", DateTime(timezone=True), comment="when the last refresh ended"),
    Column("refusal", JSONB, comment="of the last refresh: {status, error}; null: it was good"),
    Column("wanted_at", DateTime(timezone=True), comment="since when a refresh is wanted; null: it is not"),
    Column("claimed_until", DateTime(timezone=True), comment="until then one worker refreshes it"),
    timestamp("asked_at", nullable=False),
    Index("model_list_wanted", "wanted_at", postgresql_where=text("wanted_at IS NOT NULL")),
)

meter = Table(
    "meter",
    metadata,
    Column("credential_id", ForeignKey("credential.id"), primary_key=True),
    Column("model", Text, primary_key=True, comment="* : every model without a row of its own"),
    *(Column(name, Integer, comment="the operator's; null: open") for name in ("rpm", "tpm", "ipm", "rpd", "max_in_flight")),
    Column("learned_rpm", Integer),
    Column("learned_tpm", Integer),
    Column("window_size", Double, comment="calls in flight that the upstream has borne so far; null: unbounded"),
    timestamp("cooldown_until"),
)

key = Table(
    "key",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False, unique=True),
    Column("kind", Text, CheckConstraint("kind IN ('own', 'issued')", name="kind"), nullable=False),
    Column("name", Text),
    Column("pool_id", ForeignKey("pool.id"), nullable=False, index=True),
    Column("weight", Double, nullable=False, server_default=text("1"), comment="its part of each lane beside the pool's other keys"),
    timestamp("created_at", nullable=False),
    timestamp("revoked_at"),
)
