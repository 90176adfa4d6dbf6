"""Result of one attempt to deliver a webhook: finishes the delivery, tracks the health of its receiver, disables a failing endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.webhooks import endpoints

# After this many failed attempts in a row a receiver gets one delivery at a time, until one arrives.
FAILING_ATTEMPTS = 5
# An endpoint is disabled when no delivery has arrived for this many days,
MAX_FAILING_DAYS = 5
# or when this many deliveries in a row have failed, each after all its retries.
MAX_FAILED_IN_ROW = 10
MAX_ANSWER_BYTES = 1_024


@dataclass(frozen=True)
class SendResult:
    """Result of one POST. error: why it failed; is_gone: the receiver answered 410 and never wants this event again."""

    has_arrived: bool
    duration_ms: int
    http_status: int | None = None
    answer: bytes = b""
    error: str | None = None
    is_gone: bool = False


@dataclass(frozen=True)
class FinishedAttempt:
    """State after an attempt. is_failing: the receiver is failing; disabled: why this attempt disabled the endpoint, else None."""

    status: str
    is_failing: bool
    disabled: str | None


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
    ), healthy AS (
        DELETE FROM receiver USING done WHERE name = done.receiver AND done.status = 'delivered' AND NOT done.is_test
    ), failing AS (
        INSERT INTO receiver (name, failing_since, attempts_in_row, failed_in_row, paused_until)
        SELECT receiver, clock_timestamp(), 1, CASE WHEN status = 'failed' THEN 1 ELSE 0 END,
               CASE WHEN :pause_s > 0 THEN clock_timestamp() + make_interval(secs => :pause_s) END
        FROM done WHERE status <> 'delivered' AND NOT is_test
        ON CONFLICT (name) DO UPDATE SET failing_since = coalesce(receiver.failing_since, excluded.failing_since),
            attempts_in_row = receiver.attempts_in_row + 1, failed_in_row = receiver.failed_in_row + excluded.failed_in_row,
            paused_until = greatest(receiver.paused_until, excluded.paused_until)
        RETURNING attempts_in_row, failed_in_row, failing_since
    )
    SELECT done.*, failing.attempts_in_row, failing.failed_in_row,
           (extract(epoch FROM clock_timestamp() - failing.failing_since) / 86400)::float8 AS failing_days
    FROM done LEFT JOIN failing ON true
""")


def finish(
    session: Transaction, delivery_id: UUID, ticket: UUID, attempt: SendResult, *, retry_in_s: float = 0, pause_s: float = 0
) -> FinishedAttempt | None:
    """Records the attempt: the delivery is delivered, pending again for `retry_in_s`, or failed. None if the ticket is stale.

    pause_s: the pause that the receiver asked for. A late success is accepted as long as no other sender has the delivery.
    """
    row = session.execute(
        _FINISH,
        {"id": delivery_id, "ticket": ticket, "ok": attempt.has_arrived, "duration_ms": attempt.duration_ms, "error": attempt.error,
         "http_status": attempt.http_status, "answer": attempt.answer[:MAX_ANSWER_BYTES], "retry_in_s": retry_in_s, "pause_s": pause_s},
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    reason = _disable_reason(row, attempt) if row.endpoint_id and not row.is_test else None
    disabled = reason if reason and endpoints.disable(session, row.endpoint_id, reason=reason) else None
    return FinishedAttempt(status=row.status, is_failing=(row.attempts_in_row or 0) >= FAILING_ATTEMPTS, disabled=disabled)


def _disable_reason(row: Any, attempt: SendResult) -> str | None:
    if attempt.is_gone:
        return "it answered 410 Gone"
    if row.failed_in_row is not None and row.failed_in_row >= MAX_FAILED_IN_ROW:
        return f"{row.failed_in_row} deliveries in a row were given up"
    if row.failing_days is not None and row.failing_days >= MAX_FAILING_DAYS:
        return f"nothing has arrived for {MAX_FAILING_DAYS} days"
    return None
