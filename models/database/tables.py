"""The tables as they are: the source of migrations and of the pages that describe them. The arrows between states are elsewhere."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

NOW = text("now()")
ZERO = text("0")
# A UUIDv7, so that ids sort by time (PostgreSQL has a function for it from 18 on): the clock in milliseconds, then chance.
UUID7 = text(
    "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING "
    "substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid"
)


def _at(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=None if nullable else NOW)


pool = Table(
    "pool",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    _at("paused_at"),
    Column("paused_reason", Text),
    _at("draining_at"),
    _at("created_at", nullable=False),
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
    _at("parked_at"),
    Column("parked_reason", Text),
    Column("parked_error", JSONB, comment="of an own key that the upstream does not know: what its waiting jobs are told"),
    Column("parked_since", DateTime(timezone=True), comment="of the first refusal; probes move parked_at alone"),
    Column("parked_words", JSONB, comment="the upstream's last error object"),
    Column("weight", Double, nullable=False, server_default=text("1"), comment="of several with room, how much this one is preferred"),
    _at("paused_at"),
    Column("paused_reason", Text),
    _at("retired_at"),
    _at("created_at", nullable=False),
)

parked_model = Table(
    "parked_model",
    metadata,
    Column("credential_id", ForeignKey("credential.id"), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("reason", Text, nullable=False, comment="status and words of the upstream's refusal"),
    Column("job_id", Uuid, nullable=False, comment="the job that was refused last"),
    _at("parked_at", nullable=False),
    _at("probe_at", nullable=False),
    Column("probes", Integer, nullable=False, server_default=ZERO, comment="refused in a row; each doubles the time until the next"),
)

model_list = Table(
    "model_list",
    metadata,
    Column("credential_id", ForeignKey("credential.id"), primary_key=True),
    Column("account", Text, primary_key=True, comment="JSON: the caller's headers that choose an account; empty: none"),
    Column("source", Text, comment="the base URL that the copy came from"),
    Column("body", LargeBinary, comment="the upstream's last good answer; null: none yet"),
    _at("fetched_at"),
    Column("tried_at", DateTime(timezone=True), comment="when the last refresh ended"),
    Column("refusal", JSONB, comment="of the last refresh: {status, error}; null: it was good"),
    Column("wanted_at", DateTime(timezone=True), comment="since when a refresh is wanted; null: it is not"),
    Column("claimed_until", DateTime(timezone=True), comment="until then one worker refreshes it"),
    _at("asked_at", nullable=False),
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
    _at("cooldown_until"),
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
    _at("created_at", nullable=False),
    _at("revoked_at"),
)

lane = Table(
    "lane",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pool_id", ForeignKey("pool.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("virtual_time", Double, nullable=False, server_default=ZERO, comment="the turn last admitted, of all its keys"),
    Column("low_water", Double, nullable=False, server_default=ZERO, comment="of versions before 0016"),
    _at("wake_at"),
    _at("claimed_until"),
    _at("idle_since"),
    _at("paused_at"),
    Column("paused_reason", Text),
    _at("draining_at"),
    Column("blocked_by", Text),
    Column("leaving_at", DateTime(timezone=True), comment="since when no submit joins it any more: it will be deleted"),
    Column("queued", Integer, nullable=False, server_default=ZERO, comment="as last counted"),
    Column("oldest_at", DateTime(timezone=True), comment="since when the longest wait lasts; as last counted"),
    Column("rpm", Double, comment="what the credentials together may do; null: no limit known"),
    Column("tpm", Double),
    Column("ipm", Double),
    Column("max_in_flight", Double),
    Column("usual_s", Double, comment="how long a call takes here, smoothed"),
    UniqueConstraint("pool_id", "model"),
    Index("lane_due", "wake_at", postgresql_where=text("wake_at IS NOT NULL")),
    Index("lane_idle", "idle_since", postgresql_where=text("idle_since IS NOT NULL")),
    postgresql_with={"fillfactor": "50"},
)

# What holds of one key in one lane while it has jobs there. Keys without any have no row.
key_share = Table(
    "key_share",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("key_id", BigInteger, primary_key=True),
    Column("last_finish", Double, nullable=False, comment="in the lane's time: when what it was given ends"),
    Column("virtual_time", Double, nullable=False, comment="in the key's own time: the start tag last admitted"),
    Column("low_water", Double, nullable=False, server_default=text("'-infinity'"), comment="no queued job of it has a lower tag"),
    Column("queued", Integer, nullable=False, server_default=ZERO, comment="as last counted"),
    _at("idle_since"),
    postgresql_with={"fillfactor": "50"},
)

# One user of one key in one lane.
key_flow = Table(
    "key_flow",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("key_id", BigInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("last_finish", Double, nullable=False, comment="in the key's own time"),
    Column("weight", Double, nullable=False, server_default=text("1")),
    postgresql_with={"fillfactor": "50"},
)

key_milestones = Table(
    "key_milestones",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("key_id", BigInteger, primary_key=True),
    _at("set_at", nullable=False),
    Column("start_tags", ARRAY(Double), nullable=False),
    Column("ids", ARRAY(Uuid), nullable=False),
    Column("jobs", ARRAY(Integer), nullable=False, comment="how many of the key's stand before each"),
    Column("tokens", ARRAY(BigInteger), nullable=False),
    Column("images", ARRAY(BigInteger), nullable=False),
    Column("costs", ARRAY(Double), nullable=False),
)

# Of versions before 0016, which may still run beside this one during an upgrade. To be dropped by a later migration.
milestones = Table(
    "milestones",
    metadata,
    Column("lane_id", ForeignKey("lane.id", ondelete="CASCADE"), primary_key=True),
    _at("set_at", nullable=False),
    Column("start_tags", ARRAY(Double), nullable=False),
    Column("ids", ARRAY(Uuid), nullable=False),
    Column("jobs", ARRAY(Integer), nullable=False, comment="how many stand before each"),
    Column("tokens", ARRAY(BigInteger), nullable=False),
    Column("images", ARRAY(BigInteger), nullable=False),
)
flow = Table(
    "flow",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("last_finish", Double, nullable=False),
    Column("weight", Double, nullable=False, server_default=text("1")),
    postgresql_with={"fillfactor": "50"},
)

conversation = Table(
    "conversation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("key_id", ForeignKey("key.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("turns", Integer, nullable=False, server_default=text("1")),
    Column("title", Text),
    Column("system_prompt", Text, comment="null here and below: as the settings have it"),
    Column("system_prompt_tokens", Integer, comment="what it takes of each turn; null: none, or not counted yet"),
    Column("context_tokens", Integer, comment="the most that a turn's messages may be"),
    Column("fresh_after_s", Double, comment="0: never"),
    Column("on_failed_turn", Text, nullable=False, server_default=text("'skip'")),
    Column("learned_tokens", Integer, comment="half of what the upstream found too long"),
    _at("created_at", nullable=False),
    _at("last_active_at", nullable=False),
    _at("deleted_at"),
    CheckConstraint("on_failed_turn IN ('skip', 'stop')", name="on_failed_turn"),
    Index("conversation_name", "key_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("conversation_by_key", "key_id", "last_active_at", "id", postgresql_where=text("deleted_at IS NULL")),
    Index("conversation_deleted", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index("conversation_silent", "last_active_at"),
)

# No foreign keys from here on: each would take a share lock on its lane's or key's row, the busiest rows there are, at every
# submit. Keys, lanes and credentials are never deleted, and sweep deletes what belongs to a job together with it.
QUEUED = "status = 'queued' AND NOT held"
OPEN = "status IN ('queued', 'admitted', 'running')"

job = Table(
    "job",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("key_id", BigInteger, nullable=False),
    Column("lane_id", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("held", Boolean, nullable=False, comment="an earlier turn of its conversation has not ended"),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("seq", Integer, nullable=False, server_default=text("1"), comment="number of its last event"),
    # the line
    Column("flow", Text, nullable=False),
    Column("priority", Text, nullable=False),
    Column("start_tag", Double, nullable=False, comment="in its key's own time; below 0: before all jobs of the lane"),
    Column("share", Double, nullable=False, comment="cost over weight: how far its flow moves on"),
    Column("cost", Double, nullable=False),
    Column("tokens", Integer, nullable=False, comment="reserved: the prompt's estimate and the most the reply may use"),
    Column("images", Integer, nullable=False),
    Column("reserved_microusd", BigInteger, comment="what one call of it may cost at most; null: not known, or nobody asked"),
    _at("not_before"),
    # what was asked
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("content_type", Text, comment="of the request; null: JSON"),
    Column("headers", JSONB, comment="of the caller's request, for the upstream; null: none"),
    Column("streamed", Boolean, nullable=False, server_default=text("false"), comment="the upstream is asked for a stream"),
    Column("wants_urls", Boolean, nullable=False, server_default=text("false"), comment="pictures are answered as links"),
    Column("conversation_id", BigInteger),
    Column("turn", Integer),
    Column("turn_tokens", Integer, comment="what it weighs in the history of later turns; null: it is no part of that"),
    Column("since_turn", Integer, comment="the first turn that it remembers, if it fits; null: it was never let into the line"),
    Column("history_tokens", Integer, comment="of tokens: what is reserved for what it remembers"),
    Column("attachments", ARRAY(Uuid)),
    Column("timeout_s", Double, nullable=False),
    Column("on_lost", Text, nullable=False),
    Column("on_unreadable", Text, nullable=False, server_default=text("'fail'")),
    Column("metadata", JSONB),
    Column("webhook_url", Text),
    Column("retry_of", Uuid, comment="the ended job that this one repeats"),
    Column("request_id", Uuid, comment="of the request that brought it: X-Request-Id, without req_"),
    Column("traceparent", Text, comment="W3C: of its span `submit`; null: traces were off"),
    # who waits for it on an open connection
    Column("fingerprint", LargeBinary, comment="of a request that waits: by it a client's own retry is recognised"),
    Column("reader", Uuid, comment="the connection that waits for the answer now"),
    _at("left_at"),
    Column("abandoned", Boolean, nullable=False, server_default=text("false"), comment="cancelled because its reader had left"),
    # its life
    _at("created_at", nullable=False),
    _at("expires_at"),
    _at("admitted_at"),
    _at("started_at"),
    _at("ended_at"),
    Column("dispatch_id", Uuid),
    Column("lost_dispatch_id", Uuid, comment="the call whose answer would still be taken"),
    Column("lease_until", DateTime(timezone=True)),
    Column("credential_id", BigInteger),
    Column("calls", SmallInteger, nullable=False, server_default=ZERO),
    Column("failures", SmallInteger, nullable=False, server_default=ZERO, comment="counts against max_attempts"),
    Column("throttles", SmallInteger, nullable=False, server_default=ZERO, comment="refusals for load"),
    Column("refusals", JSONB, comment="of credentials that cannot serve it: [{credential_id, status, error}]"),
    Column("ran_s", Double, nullable=False, server_default=ZERO, comment="of timeout_s, what attempts that ended have taken"),
    Column("max_attempts", SmallInteger, nullable=False),
    Column("possible_duplicate_calls", SmallInteger, nullable=False, server_default=ZERO),
    # what came of it
    Column("http_status", SmallInteger),
    Column("response", LargeBinary),
    Column("response_type", Text, comment="media type of a response that is no JSON, or not the answer it should be; null: JSON"),
    Column("transcript", LargeBinary, comment="of a stream: its events as they were relayed, one after another"),
    Column("error", JSONB),
    CheckConstraint("status IN ('queued','admitted','running','succeeded','failed','cancelled','expired')", name="status"),
    Index(
        "job_queue",
        "lane_id",
        "key_id",
        "start_tag",
        "id",
        postgresql_where=text(QUEUED),
        postgresql_include=["tokens", "images", "cost"],
    ),
    # With the flow in its condition, for the same reason as below: it is for one user's last job, never for a key's first.
    Index("job_flow", "lane_id", "key_id", "flow", "start_tag", postgresql_where=text("flow IS NOT NULL AND status = 'queued'")),
    Index("job_later", "lane_id", "not_before", postgresql_where=text("not_before IS NOT NULL AND status = 'queued'")),
    # With a time in its condition: on an empty table the planner has taken it for the line's own, and kept that plan (measured).
    Index("job_deadline", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND status = 'queued'")),
    Index("job_live", "status", "lane_id", postgresql_where=text("status IN ('admitted', 'running')")),
    Index("job_open", "key_id", postgresql_where=text(OPEN)),
    Index("job_by_key", "key_id", "id"),
    Index("job_retry_of", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
    Index("job_fingerprint", "key_id", "fingerprint", postgresql_where=text("fingerprint IS NOT NULL")),
    Index("job_left", "left_at", postgresql_where=text(f"left_at IS NOT NULL AND {OPEN}")),
    Index("job_turn", "conversation_id", "turn", postgresql_where=text(f"conversation_id IS NOT NULL AND {OPEN}")),
    Index("job_history", "conversation_id", "turn", postgresql_where=text("conversation_id IS NOT NULL")),
)

attempt = Table(
    "attempt",
    metadata,
    Column("dispatch_id", Uuid, primary_key=True),
    Column("job_id", Uuid, nullable=False, index=True),
    Column("n", SmallInteger, nullable=False),
    Column("credential_id", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("http_status", SmallInteger),
    Column("upstream_request_id", Text),
    _at("started_at", nullable=False),
    _at("ended_at"),
    Index("attempt_ledger", "credential_id", "model", "started_at"),
)

job_event = Table(
    "job_event",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("type", Text, nullable=False),
    _at("at", nullable=False),
    Column("detail", JSONB),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key_id", BigInteger, primary_key=True),
    Column("token", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("job_id", Uuid, nullable=False),
    _at("created_at", nullable=False),
    Index("idempotency_created", "created_at"),
)

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
    _at("at", nullable=False),
    Index("usage_by_key", "key_id", "at"),
)

# Nothing here is ever changed or deleted: a trigger sees to it. A key's balance is the sum of its entries.
ledger = Table(
    "ledger",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("key_id", BigInteger, nullable=False),
    _at("at", nullable=False),
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
    _at("created_at", nullable=False),
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
    _at("created_at", nullable=False),
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

worker = Table(
    "worker",
    metadata,
    Column("name", Text, primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("jobs", ARRAY(Uuid), comment="those it holds, by its last report"),
    _at("started_at", nullable=False),
    _at("seen_at", nullable=False),
)

api_process = Table(
    "api_process",
    metadata,
    Column("name", Text, primary_key=True),
    _at("up_since", nullable=False),
    _at("seen_at", nullable=False),
)

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
    _at("old_secret_until"),
    Column("hint", Text, nullable=False, comment="the secret's last characters"),
    _at("disabled_at"),
    Column("disabled_reason", Text),
    _at("deleted_at"),
    _at("created_at", nullable=False),
    _at("updated_at", nullable=False),
    Index("webhook_endpoint_by_key", "key_id", "id", postgresql_where=text("deleted_at IS NULL")),
)

webhook_secret = Table(
    "webhook_secret",
    metadata,
    Column("key_id", BigInteger, primary_key=True, autoincrement=False),
    Column("secret", LargeBinary, nullable=False, comment="signs what goes to the webhook_url of the key's jobs"),
    Column("old_secret", LargeBinary),
    _at("old_secret_until"),
    _at("created_at", nullable=False),
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
    _at("event_at", nullable=False),
    Column("payload", LargeBinary, comment="what is sent, byte for byte, each time; null: the whole job, rendered before it is first sent"),
    # its way
    Column("is_test", Boolean, nullable=False, server_default=text("false"), comment="says nothing of its receiver's health"),
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    _at("next_at", nullable=False),
    Column("ticket", Uuid, comment="of the one sender that has it"),
    _at("held_until"),
    Column("attempts", SmallInteger, nullable=False, server_default=ZERO),
    Column("retries_left", SmallInteger, nullable=False),
    # what came of the last attempt
    _at("sent_at"),
    Column("duration_ms", Integer),
    Column("http_status", SmallInteger),
    Column("answer", LargeBinary, comment="its first kilobyte"),
    Column("error", Text),
    _at("ended_at"),
    _at("created_at", nullable=False),
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
    _at("failing_since"),
    Column("attempts_in_row", Integer, nullable=False, server_default=ZERO, comment="that failed, none arriving in between"),
    Column("failed_in_row", Integer, nullable=False, server_default=ZERO, comment="deliveries given up, none arriving in between"),
    _at("paused_until"),
)

operator = Table(
    "operator",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, CheckConstraint("role IN ('read', 'write')", name="role"), nullable=False),
    Column("fingerprint", LargeBinary, nullable=False, unique=True),
    _at("created_at", nullable=False),
    _at("revoked_at"),
)

# As the ledger: it only grows.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _at("at", nullable=False),
    Column("operator", Text, nullable=False, comment="who did it; cli: whoever has the database"),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
    Column("reason", Text),
    Column("request_id", Text),
)

cap = Table(
    "cap",
    metadata,
    Column("scope", Text, primary_key=True, comment="key, or flow"),
    Column("owner_id", BigInteger, primary_key=True, autoincrement=False, comment="the key; of a flow: its lane"),
    Column("flow", Text, primary_key=True, comment="<key>:<user>; of a key: empty"),
    Column("endpoint", Text, primary_key=True, comment="the class of requests it is for; empty: all"),
    Column("key_id", BigInteger, nullable=False, server_default=ZERO, comment="of a flow; 0: of a key, or of this user of any key"),
    *(Column(name, Integer, comment="null: open") for name in ("max_queued", "max_in_flight", "rpm")),
    _at("paused_at"),
    Column("paused_reason", Text),
    _at("draining_at"),
    CheckConstraint("scope IN ('key', 'flow')", name="scope"),
)

cap_use = Table(
    "cap_use",
    metadata,
    Column("dispatch_id", Uuid, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("owner_id", BigInteger, primary_key=True, autoincrement=False),
    Column("flow", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    _at("at", nullable=False),
    Index("cap_use_recent", "scope", "owner_id", "flow", "endpoint", "at"),
)
