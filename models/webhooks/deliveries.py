"""The arrows of a delivery's way. Each is one compare-and-set, fenced by the ticket of the sender that has it.

    pending ─ pick ─▶ rung ─ claim ─▶ sending ─ finish ─▶ delivered | failed
       ▲               │                 │
       └───────────────┴─────────────────┘  not claimed, not arrived, sender lost

Who is picked, and what was lost on the way, is in models/webhooks/dispatch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform import ids
from models.webhooks import endpoints, signing
from models.webhooks.endpoints import PREFIX as ENDPOINT

# A receiver at which so many attempts in a row have failed gets one at a time, until one arrives.
FAILING_ATTEMPTS = 5
# An endpoint is disabled when nothing has arrived there for so long,
MAX_FAILING_DAYS = 5
# or when so many in a row were given up, each after all its retries.
MAX_FAILED_IN_ROW = 10
MAX_ANSWER_BYTES = 1_024

# Makes the payload of a delivery from its row.
Render = Callable[[Transaction, Any], bytes]


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that is this sender's to send. payload: the very bytes; secrets: what signs them, one or two.

    job_id, lane_id, request_id, traceparent: of the job that it tells of, None where there is none (any more).
    """

    id: UUID
    ticket: UUID
    key_id: int
    endpoint_id: UUID | None
    receiver: str
    url: str
    event_type: str
    payload: bytes
    attempts: int
    retries_left: int
    secrets: list[str] = field(repr=False)
    job_id: UUID | None = None
    lane_id: int | None = None
    request_id: UUID | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class AttemptResult:
    """What came of sending once. error: why there is no good answer. is_gone: the receiver said that it will never want this again."""

    has_arrived: bool
    duration_ms: int
    http_status: int | None = None
    answer: bytes = b""
    error: str | None = None
    is_gone: bool = False


@dataclass(frozen=True)
class FinishedAttempt:
    """Where a delivery is after an attempt. is_failing: its receiver is; disabled: why its endpoint was disabled over this, just now."""

    status: str
    is_failing: bool
    disabled: str | None


def claim(session: Transaction, delivery_id: UUID, ticket: UUID, *, lease_s: float, render: Render) -> ClaimedDelivery | None:
    """Claims a delivery for this sender: counts the attempt and stores the payload before any byte goes out; None when the ticket is void.

    render: makes the payload from the delivery's row when it has none yet (models/jobs/webhook_payload.py).
    """
    row = session.execute(_CLAIM, {"id": delivery_id, "ticket": ticket, "lease_s": lease_s}).one_or_none()
    return _claimed(session, row, render)


def claim_next(session: Transaction, receiver: str, ticket: UUID, *, lease_s: float, render: Render) -> ClaimedDelivery | None:
    """The next due for this receiver, in the place of one that is over for now; None when there is none, or it may not be sent."""
    row = session.execute(_CLAIM_NEXT, {"receiver": receiver, "ticket": ticket, "lease_s": lease_s}).one_or_none()
    return _claimed(session, row, render)


def finish(
    session: Transaction, delivery_id: UUID, ticket: UUID, attempt: AttemptResult, *, retry_in_s: float = 0, pause_s: float = 0
) -> FinishedAttempt | None:
    """The attempt is on record: the delivery has arrived, waits for `retry_in_s`, or has failed. None when the ticket is void.

    pause_s: how long the receiver asked to be left alone. A sender that is late with good news is believed as long as nobody else
    has the delivery.
    """
    row = session.execute(
        _FINISH,
        {"id": delivery_id, "ticket": ticket, "ok": attempt.has_arrived, "duration_ms": attempt.duration_ms, "error": attempt.error,
         "http_status": attempt.http_status, "answer": attempt.answer[:MAX_ANSWER_BYTES], "retry_in_s": retry_in_s, "pause_s": pause_s},
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    why = _why_disable(row, attempt) if row.endpoint_id and not row.is_test else None
    disabled = why if why and endpoints.disable(session, row.endpoint_id, reason=why) else None
    return FinishedAttempt(status=row.status, is_failing=(row.attempts_in_row or 0) >= FAILING_ATTEMPTS, disabled=disabled)


def _why_disable(row: Any, attempt: AttemptResult) -> str | None:
    if attempt.is_gone:
        return "it answered 410 Gone"
    if row.failed_in_row is not None and row.failed_in_row >= MAX_FAILED_IN_ROW:
        return f"{row.failed_in_row} deliveries in a row were given up"
    if row.failing_days is not None and row.failing_days >= MAX_FAILING_DAYS:
        return f"nothing has arrived for {MAX_FAILING_DAYS} days"
    return None


def _claimed(session: Transaction, row: Any | None, render: Render) -> ClaimedDelivery | None:
    if row is None:
        return None
    payload = row.payload
    if payload is None:
        payload = render(session, row)
        session.execute(_STORE_PAYLOAD, {"id": row.id, "payload": payload})
    return ClaimedDelivery(
        id=row.id, ticket=row.ticket, key_id=row.key_id, endpoint_id=row.endpoint_id, receiver=row.receiver, url=row.to_url,
        event_type=row.event_type, payload=bytes(payload), attempts=row.attempts, retries_left=row.retries_left,
        secrets=_secrets(session, row), job_id=row.job_id, lane_id=row.lane_id, request_id=row.request_id, traceparent=row.traceparent,
    )  # fmt: skip


def _secrets(session: Transaction, row: Any) -> list[str]:
    owner = ids.format_id(ENDPOINT, row.endpoint_id) if row.endpoint_id else signing.key_owner(row.key_id)
    sealed = [each for each in (row.secret, row.old_secret) if each is not None]
    return [signing.unseal(each, owner=owner) for each in sealed] or [signing.default_secret(session, row.key_id)]


_SENDING = """
    UPDATE delivery SET status = 'sending', ticket = :ticket, attempts = attempts + 1, sent_at = clock_timestamp(),
           held_until = clock_timestamp() + make_interval(secs => :lease_s)
"""
# An endpoint that is off is sent nothing but a test; what waits for it is given up by `put_right`.
_ALLOWED = """
    NOT EXISTS (
        SELECT FROM webhook_endpoint WHERE id = delivery.endpoint_id
        AND (deleted_at IS NOT NULL OR (disabled_at IS NOT NULL AND NOT delivery.is_test))
    )
"""
_WHERE_TO = """
    SELECT mine.*, coalesce(mine.url, endpoint.url) AS to_url, coalesce(endpoint.secret, ours.secret) AS secret,
           CASE WHEN endpoint.old_secret_until > now() THEN endpoint.old_secret
                WHEN ours.old_secret_until > now() THEN ours.old_secret END AS old_secret,
           job.lane_id, job.request_id, job.traceparent
    FROM mine LEFT JOIN job ON job.id = mine.job_id
    LEFT JOIN webhook_endpoint AS endpoint ON endpoint.id = mine.endpoint_id
    LEFT JOIN webhook_secret AS ours ON mine.endpoint_id IS NULL AND ours.key_id = mine.key_id
"""
_CLAIM = text(f"""
    WITH mine AS ({_SENDING} WHERE id = :id AND status = 'rung' AND ticket = :ticket AND {_ALLOWED} RETURNING *) {_WHERE_TO}
""")
_CLAIM_NEXT = text(f"""
    WITH mine AS ({_SENDING}
        WHERE id = (
            SELECT id FROM delivery WHERE receiver = :receiver AND status = 'pending' AND next_at <= now() AND {_ALLOWED}
            AND NOT EXISTS (SELECT FROM receiver WHERE name = :receiver AND paused_until > now())
            ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AND status = 'pending' RETURNING *
    ) {_WHERE_TO}
""")
_STORE_PAYLOAD = text("UPDATE delivery SET payload = :payload WHERE id = :id")
_FINISH = text("""
    WITH done AS (
        UPDATE delivery SET
            status = CASE WHEN :ok THEN 'delivered' WHEN retries_left > 0 THEN 'pending' ELSE 'failed' END,
            next_at = CASE WHEN :ok THEN next_at ELSE clock_timestamp() + make_interval(secs => :retry_in_s) END,
            retries_left = CASE WHEN :ok THEN retries_left ELSE greatest(retries_left - 1, 0) END,
            ended_at = CASE WHEN :ok OR retries_left = 0 THEN clock_timestamp() END,
            ticket = NULL, held_until = NULL, duration_ms = :duration_ms, http_status = :http_status, answer = :answer, error = :error
        WHERE id = :id AND ticket = :ticket AND (status = 'sending' OR (status = 'pending' AND :ok))
        RETURNING status, receiver, endpoint_id, is_test
    ), well AS (
        DELETE FROM receiver USING done WHERE name = done.receiver AND done.status = 'delivered' AND NOT done.is_test
    ), ill AS (
        INSERT INTO receiver (name, failing_since, attempts_in_row, failed_in_row, paused_until)
        SELECT receiver, clock_timestamp(), 1, CASE WHEN status = 'failed' THEN 1 ELSE 0 END,
               CASE WHEN :pause_s > 0 THEN clock_timestamp() + make_interval(secs => :pause_s) END
        FROM done WHERE status <> 'delivered' AND NOT is_test
        ON CONFLICT (name) DO UPDATE SET failing_since = coalesce(receiver.failing_since, excluded.failing_since),
            attempts_in_row = receiver.attempts_in_row + 1, failed_in_row = receiver.failed_in_row + excluded.failed_in_row,
            paused_until = greatest(receiver.paused_until, excluded.paused_until)
        RETURNING attempts_in_row, failed_in_row, failing_since
    )
    SELECT done.*, ill.attempts_in_row, ill.failed_in_row,
           (extract(epoch FROM clock_timestamp() - ill.failing_since) / 86400)::float8 AS failing_days
    FROM done LEFT JOIN ill ON true
""")
