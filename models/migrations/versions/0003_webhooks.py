"""Webhooks: where they go, what signs them, and each on its way"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# A UUIDv7: the clock in milliseconds, then chance.
UUID7 = (
    "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING "
    "substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid"
)


def upgrade() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", sa.Uuid(), server_default=sa.text(UUID7), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), comment="null: it goes to the job's own webhook_url"),
        sa.Column("url", sa.Text(), comment="null: the endpoint's, whatever it is when it is sent"),
        sa.Column("receiver", sa.Text(), nullable=False, comment="an endpoint, or a key's jobs at one host: who shares slots and health"),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("event_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary(),
            comment="what is sent, byte for byte, each time; null: the whole job, rendered before it is first sent",
        ),
        sa.Column(
            "is_test", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="says nothing of its receiver's health"
        ),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ticket", sa.Uuid(), comment="of the one sender that has it"),
        sa.Column("held_until", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("retries_left", sa.SmallInteger(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("duration_ms", sa.Integer()),
        sa.Column("http_status", sa.SmallInteger()),
        sa.Column("answer", sa.LargeBinary(), comment="its first kilobyte"),
        sa.Column("error", sa.Text()),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('pending','rung','sending','delivered','failed')", name=op.f("delivery_status_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("delivery_pkey")),
    )
    op.create_index(
        "delivery_by_endpoint", "delivery", ["endpoint_id", "id"], unique=False, postgresql_where=sa.text("endpoint_id IS NOT NULL")
    )
    op.create_index("delivery_by_job", "delivery", ["job_id", "id"], unique=False, postgresql_where=sa.text("endpoint_id IS NULL"))
    op.create_index("delivery_due", "delivery", ["receiver", "next_at"], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_index(
        "delivery_in_flight", "delivery", ["receiver", "host"], unique=False, postgresql_where=sa.text("status IN ('rung', 'sending')")
    )
    op.create_table(
        "receiver",
        sa.Column("name", sa.Text(), nullable=False, comment="there is a row only while something is wrong with it"),
        sa.Column("failing_since", sa.DateTime(timezone=True)),
        sa.Column(
            "attempts_in_row",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="that failed, none arriving in between",
        ),
        sa.Column(
            "failed_in_row",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="deliveries given up, none arriving in between",
        ),
        sa.Column("paused_until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("name", name=op.f("receiver_pkey")),
    )
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False, comment="of the URL, with its port"),
        sa.Column("event_types", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "include_result",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="the whole job is sent, not only its id",
        ),
        sa.Column("secret", sa.LargeBinary(), nullable=False, comment="AES-256-GCM, bound to this row"),
        sa.Column("old_secret", sa.LargeBinary(), comment="signs as well until old_secret_until"),
        sa.Column("old_secret_until", sa.DateTime(timezone=True)),
        sa.Column("hint", sa.Text(), nullable=False, comment="the secret's last characters"),
        sa.Column("disabled_at", sa.DateTime(timezone=True)),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_endpoint_pkey")),
    )
    op.create_index(
        "webhook_endpoint_by_key", "webhook_endpoint", ["key_id", "id"], unique=False, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_table(
        "webhook_secret",
        sa.Column("key_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False, comment="signs what goes to the webhook_url of the key's jobs"),
        sa.Column("old_secret", sa.LargeBinary()),
        sa.Column("old_secret_until", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("webhook_secret_pkey")),
    )


def downgrade() -> None:
    for name in ("webhook_secret", "webhook_endpoint", "receiver", "delivery"):
        op.drop_table(name)
