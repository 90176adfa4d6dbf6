"""Webhook endpoints, signing secrets, deliveries, and the health of targets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY

from models.database.tables.columns import UUID7, ZERO, metadata, timestamp

webhook_endpoint = Table(
    "webhook_endpoint",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("key_id", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False, comment="of the URL, with its port"),
    Column("event_types", ARRAY(Text), nullable=False),
    Column("include_result", Boolean, nullable=False, server_default=text("false"), comment="the whole job is sent, not only its id"),
    Column("secret", LargeBinary, nullable=False, comment="AES-256-GCM, bound to this row"),
    Column("old_secret", LargeBinary, comment="signs as well until old_secret_until"),
    timestamp("old_secret_until"),
    Column("hint", Text, nullable=False, comment="the secret's last characters"),
    timestamp("disabled_at"),
    Column("disabled_reason", Text),
    timestamp("deleted_at"),
    timestamp("created_at", nullable=False),
    timestamp("updated_at", nullable=False),
    Index("webhook_endpoint_by_key", "key_id", "id", postgresql_where=text("deleted_at IS NULL")),
)

webhook_secret = Table(
    "webhook_secret",
    metadata,
    Column("key_id", BigInteger, primary_key=True, autoincrement=False),
    Column("secret", LargeBinary, nullable=False, comment="signs what goes to the webhook_url of the key's jobs"),
    Column("old_secret", LargeBinary),
    timestamp("old_secret_until"),
    timestamp("created_at", nullable=False),
)

IN_FLIGHT = "status IN ('rung', 'sending')"

delivery = Table(
    "delivery",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=UUID7),
    Column("key_id", BigInteger, nullable=False),
    Column("endpoint_id", Uuid, comment="null: it goes to the job's own webhook_url"),
    Column("url", Text, comment="null: the endpoint's, whatever it is when it is sent"),
    Column("receiver", Text, nullable=False, comment="an endpoint, or a key's jobs at one host: who shares slots and health"),
    Column("host", Text, nullable=False),
    # the event
    Column("job_id", Uuid),
    Column("event_id", Uuid, nullable=False),
    Column("event_type", Text, nullable=False),
    timestamp("event_at", nullable=False),
    Column("payload", LargeBinary, comment="what is sent, byte for byte, each time; null: the whole job, rendered before it is first sent"),
    # state
    Column("is_test", Boolean, nullable=False, server_default=text("false"), comment="says nothing of its receiver's health"),
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    timestamp("next_at", nullable=False),
    Column("ticket", Uuid, comment="of the one sender that has it"),
    timestamp("held_until"),
    Column("attempts", SmallInteger, nullable=False, server_default=ZERO),
    Column("retries_left", SmallInteger, nullable=False),
    # the last attempt
    timestamp("sent_at"),
    Column("duration_ms", Integer),
    Column("http_status", SmallInteger),
    Column("answer", LargeBinary, comment="its first kilobyte"),
    Column("error", Text),
    timestamp("ended_at"),
    timestamp("created_at", nullable=False),
    CheckConstraint("status IN ('pending','rung','sending','delivered','failed')", name="status"),
    Index("delivery_due", "receiver", "next_at", postgresql_where=text("status = 'pending'")),
    Index("delivery_in_flight", "receiver", "host", postgresql_where=text(IN_FLIGHT)),
    Index("delivery_by_endpoint", "endpoint_id", "id", postgresql_where=text("endpoint_id IS NOT NULL")),
    Index("delivery_by_job", "job_id", "id", postgresql_where=text("endpoint_id IS NULL")),
)

receiver = Table(
    "receiver",
    metadata,
    Column("name", Text, primary_key=True, comment="there is a row only while something is wrong with it"),
    timestamp("failing_since"),
    Column("attempts_in_row", Integer, nullable=False, server_default=ZERO, comment="that failed, none arriving in between"),
    Column("failed_in_row", Integer, nullable=False, server_default=ZERO, comment="deliveries given up, none arriving in between"),
    timestamp("paused_until"),
)
