"""Jobs, their attempts and events, and the processes that serve them.

Tables with a row per job have no foreign keys. A foreign key takes a share lock on the row of the lane or key, the most contended rows,
at every submit. Keys, lanes and credentials are never deleted, and retention deletes the rows of a job together with the job.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models.database.tables.columns import ZERO, metadata, timestamp

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
    # its place in the queue
    Column("flow", Text, nullable=False),
    Column("priority", Text, nullable=False),
    Column("start_tag", Double, nullable=False, comment="in its key's own time; below 0: before all jobs of the lane"),
    Column("share", Double, nullable=False, comment="cost over weight: how far its flow moves on"),
    Column("cost", Double, nullable=False),
    Column("tokens", Integer, nullable=False, comment="reserved: the prompt's estimate and the most the reply may use"),
    Column("images", Integer, nullable=False),
    Column("reserved_microusd", BigInteger, comment="what one call of it may cost at most; null: not known, or nobody asked"),
    timestamp("not_before"),
    # the request
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
    # the client that waits on an open connection
    Column("fingerprint", LargeBinary, comment="of a request that waits: by it a client's own retry is recognised"),
    Column("reader", Uuid, comment="the connection that waits for the answer now"),
    timestamp("left_at"),
    Column("abandoned", Boolean, nullable=False, server_default=text("false"), comment="cancelled because its reader had left"),
    # state and attempts
    timestamp("created_at", nullable=False),
    timestamp("expires_at"),
    timestamp("admitted_at"),
    timestamp("started_at"),
    timestamp("ended_at"),
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
    # the result
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
    # The condition names the flow for the same reason as below: this index finds a user's last job, never a key's first.
    Index("job_flow", "lane_id", "key_id", "flow", "start_tag", postgresql_where=text("flow IS NOT NULL AND status = 'queued'")),
    Index("job_later", "lane_id", "not_before", postgresql_where=text("not_before IS NOT NULL AND status = 'queued'")),
    # The condition names the time: on an empty table the planner used this index in place of job_queue, and kept that plan (measured).
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
    timestamp("started_at", nullable=False),
    timestamp("ended_at"),
    Index("attempt_ledger", "credential_id", "model", "started_at"),
)

job_event = Table(
    "job_event",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("type", Text, nullable=False),
    timestamp("at", nullable=False),
    Column("detail", JSONB),
)

worker = Table(
    "worker",
    metadata,
    Column("name", Text, primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("jobs", ARRAY(Uuid), comment="those it holds, by its last report"),
    timestamp("started_at", nullable=False),
    timestamp("seen_at", nullable=False),
)

api_process = Table(
    "api_process",
    metadata,
    Column("name", Text, primary_key=True),
    timestamp("up_since", nullable=False),
    timestamp("seen_at", nullable=False),
)
