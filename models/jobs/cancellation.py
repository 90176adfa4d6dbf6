"""Cancels a job, and expires jobs that waited too long. See states.py for the state machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.jobs.completion import error_json
from models.jobs.states import Status
from models.queue import conversations, key_shares
from models.webhooks import outbox

EXPIRED = {
    "message": "The job waited longer than expires_in_s allowed. Send it again with more time, or at a quieter hour.",
    "type": "server_error",
    "param": None,
    "code": "expired",
}

_CANCEL = text(f"""
    WITH cancelled AS (
        UPDATE job SET
            cancel_requested = true,
            abandoned = :abandoned,
            status = CASE WHEN status = 'running' THEN status ELSE 'cancelled' END,
            ended_at = CASE WHEN status = 'running' THEN NULL ELSE clock_timestamp() END,
            seq = seq + 1
        WHERE id = :id AND key_id = :key_id AND status IN ('queued', 'admitted', 'running') AND NOT cancel_requested
        RETURNING id, status, seq, ended_at, key_id, lane_id, flow, share, conversation_id, held, dispatch_id, credential_id, model,
                  webhook_url
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at)
        SELECT id, seq, CASE WHEN status = 'running' THEN 'job.cancelling' ELSE 'job.cancelled' END, clock_timestamp() FROM cancelled
    ), {outbox.cte("cancelled")}
    SELECT * FROM cancelled
""")


def cancel(session: Transaction, job_id: UUID, key_id: int, *, abandoned: bool = False) -> Any | None:
    """Cancels a queued or admitted job; requests the cancellation of a running one. None: the key has no such open job.

    abandoned: the client that waited for the job disconnected. Row: id, key_id, lane_id, status, credential_id, model, dispatch_id
    (None for a queued job).
    """
    row = session.execute(_CANCEL, {"id": job_id, "key_id": key_id, "abandoned": abandoned}).one_or_none()
    if row is not None and row.status == Status.CANCELLED:
        if not row.held:
            conversations.enqueue_next(session, [row.conversation_id])
        key_shares.refund_flows(session, [row])
    return row


def key_of(session: Transaction, job_id: UUID) -> int | None:
    """The id of the key that submitted this job; None: no such job."""
    key_id: int | None = session.execute(text("SELECT key_id FROM job WHERE id = :id"), {"id": job_id}).scalar_one_or_none()
    return key_id


_EXPIRE = text(f"""
    WITH overdue AS (
        SELECT id FROM job WHERE status = 'queued' AND held = :held AND expires_at < clock_timestamp()
        LIMIT :limit FOR UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE job SET status = 'expired', ended_at = clock_timestamp(), error = CAST(:error AS jsonb), seq = seq + 1
        FROM overdue WHERE job.id = overdue.id AND job.status = 'queued'
        RETURNING job.id, job.status, job.seq, job.conversation_id, job.held, job.ended_at, job.key_id, job.webhook_url,
                  job.lane_id, job.flow, job.share, job.calls, job.created_at, job.request_id, job.traceparent
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.expired', ended_at FROM expired
    ), {outbox.cte("expired")}
    SELECT * FROM expired
""")


def expire(session: Transaction, *, limit: int = 500) -> Sequence[Any]:
    """Expires jobs that waited longer than they may: held turns of conversations or, if there are none, the others.

    One transaction never expires both: held turns are locked after the conversations of the turns before them.
    Rows: id, held; for logs and traces: key_id, lane_id, calls, created_at, request_id, traceparent.
    """
    params = {"limit": limit, "error": error_json(EXPIRED)}
    if held := session.execute(_EXPIRE, {**params, "held": True}).all():
        key_shares.refund_flows(session, held)
        return held
    rows = session.execute(_EXPIRE, {**params, "held": False}).all()
    conversations.enqueue_next(session, [row.conversation_id for row in rows])
    key_shares.refund_flows(session, rows)
    return rows
