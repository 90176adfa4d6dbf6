"""Returns jobs to the queue: after an attempt, after an unclaimed admission, and after a lost worker. See states.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.billing import ledger
from models.config.settings import settings
from models.database.db import Transaction
from models.jobs.completion import settle_attempt
from models.jobs.states import MIN_CALL_S, TERMINAL, AttemptResult, Outcome, Status
from models.queue import conversations, key_shares, lanes
from models.webhooks import outbox

LOST = {
    "message": "The worker was lost during the call, so it is unknown whether the upstream answered. The job is not called again, because "
    "on_lost is `fail`, its stream had begun, or max_attempts is reached. POST …/retry makes a new job of it.",
    "type": "server_error",
    "param": None,
    "code": "upstream_outcome_unknown",
}

# A job whose cancellation was requested is not requeued: it ends here.
_REQUEUE = text(f"""
    WITH requeued AS (
        UPDATE job SET
            status = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
            ended_at = CASE WHEN cancel_requested THEN clock_timestamp() END,
            not_before = CASE WHEN :delay_s > 0 THEN clock_timestamp() + make_interval(secs => :delay_s) END,
            failures = failures + :failed, possible_duplicate_calls = possible_duplicate_calls + :maybe_sent,
            throttles = throttles + :throttled,
            refusals = CASE WHEN CAST(:refusal AS jsonb) IS NULL OR refusals @> CAST(:refused_by AS jsonb) THEN refusals
                            ELSE coalesce(refusals, '[]') || CAST(:refusal AS jsonb) END,
            ran_s = ran_s + CASE WHEN status = 'running' THEN extract(epoch FROM clock_timestamp() - started_at) ELSE 0 END,
            dispatch_id = NULL, lease_until = NULL, admitted_at = NULL, seq = seq + 1
        WHERE id = :id AND dispatch_id = :dispatch_id AND status IN ('admitted', 'running')
        RETURNING id, status, seq, ended_at, key_id, lane_id, start_tag, cost, conversation_id, webhook_url
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at, detail)
        SELECT id, seq, 'job.' || status, clock_timestamp(), CAST(:detail AS jsonb) FROM requeued
    ), {outbox.cte("requeued")}
    SELECT * FROM requeued
""")


def requeue_job(
    session: Transaction, job_id: UUID, dispatch_id: UUID, attempt: AttemptResult, *, delay_s: float = 0, counts: bool = False,
    reason: str = "", throttled: bool = False, refusal: Mapping[str, object] | None = None,
) -> bool:  # fmt: skip
    """Requeues the job at its old start tag, not before `delay_s`. False: this dispatch no longer holds the job.

    counts: the attempt counts against max_attempts. throttled: it counts against NOWSERVING_MAX_THROTTLES.
    refusal: {credential_id, status, error} of a credential that cannot serve the job; the pacer tries the others.
    A job whose cancellation was requested is cancelled instead.
    """
    row = session.execute(
        _REQUEUE,
        {"id": job_id, "dispatch_id": dispatch_id, "delay_s": delay_s, "failed": int(counts), "throttled": int(throttled),
         "detail": json.dumps({"reason": reason or attempt.outcome}), "maybe_sent": int(attempt.outcome == Outcome.UNKNOWN),
         "refusal": json.dumps(refusal) if refusal is not None else None,
         "refused_by": json.dumps([{"credential_id": refusal["credential_id"]}]) if refusal else None},
    ).one_or_none()  # fmt: skip
    settle_attempt(session, dispatch_id, attempt)
    if row is not None:
        requeued = [(row.lane_id, row.key_id, row.start_tag, row.cost)] if row.status == Status.QUEUED else []
        conversations.enqueue_next(session, [row.conversation_id] if row.status == Status.CANCELLED else [], also=requeued)
    return row is not None


_REQUEUE_UNCLAIMED = text("""
    WITH unclaimed AS (
        SELECT id, dispatch_id FROM job
        WHERE status = 'admitted' AND admitted_at <= clock_timestamp() - make_interval(secs => :older_than_s)
        AND (CAST(:credential_id AS bigint) IS NULL OR (credential_id = :credential_id AND model = :model))
        LIMIT :limit FOR UPDATE SKIP LOCKED
    ), requeued AS (
        UPDATE job SET status = 'queued', dispatch_id = NULL, admitted_at = NULL FROM unclaimed
        WHERE job.id = unclaimed.id AND job.status = 'admitted'
        RETURNING job.id, unclaimed.dispatch_id, job.lane_id, job.key_id, job.start_tag, job.cost, job.credential_id, job.model
    )
    SELECT * FROM requeued
""")


def requeue_unclaimed(
    session: Transaction, *, older_than_s: float, credential_id: int | None = None, model: str | None = None
) -> Sequence[Any]:
    """Requeues admitted jobs that no worker claimed, at their old start tags. Rows: id, dispatch_id, lane_id, credential_id, model."""
    params = {"older_than_s": older_than_s, "credential_id": credential_id, "model": model, "limit": 500}
    rows = session.execute(_REQUEUE_UNCLAIMED, params).all()
    key_shares.restore_requeued(session, [(row.lane_id, row.key_id, row.start_tag, row.cost) for row in rows])
    lanes.wake(session, [row.lane_id for row in rows])
    return rows


_REAP = text(f"""
    WITH lost AS (
        SELECT id, dispatch_id AS dispatch, ran.s AS ran_s,
               cancel_requested OR on_lost = 'fail' OR failures + 1 >= max_attempts OR ran.s > timeout_s - {MIN_CALL_S} AS ends
        FROM job, LATERAL (
            -- Until the last heartbeat: how long the call went on after it is unknown.
            SELECT job.ran_s + greatest(0, extract(epoch FROM lease_until - started_at) - :lease_s)::float8 AS s
        ) AS ran
        WHERE status = 'running' AND lease_until < clock_timestamp() LIMIT :limit FOR UPDATE OF job SKIP LOCKED
    ), reaped AS (
        UPDATE job SET
            status = CASE WHEN cancel_requested THEN 'cancelled' WHEN ends THEN 'failed' ELSE 'queued' END,
            ended_at = CASE WHEN ends THEN clock_timestamp() END,
            error = CASE WHEN ends AND NOT cancel_requested THEN CAST(:error AS jsonb) END,
            possible_duplicate_calls = possible_duplicate_calls + CASE WHEN ends THEN 0 ELSE 1 END,
            failures = failures + 1, ran_s = lost.ran_s, lost_dispatch_id = dispatch,
            dispatch_id = NULL, lease_until = NULL, admitted_at = NULL, seq = seq + 1
        FROM lost WHERE job.id = lost.id AND job.status = 'running' AND job.dispatch_id = dispatch AND job.lease_until < clock_timestamp()
        RETURNING job.id, job.status, job.seq, job.lane_id, job.start_tag, job.conversation_id, dispatch AS dispatch_id,
                  job.credential_id, job.model, job.key_id, job.webhook_url, job.ended_at, job.flow, job.reserved_microusd,
                  job.endpoint, job.calls, job.started_at, job.request_id, job.traceparent
    ), {ledger.charge_lost_cte("reaped")}, flagged AS (
        UPDATE attempt SET outcome = 'unknown', ended_at = clock_timestamp() FROM reaped
        WHERE attempt.dispatch_id = reaped.dispatch_id AND attempt.outcome = 'running'
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at, detail)
        SELECT id, seq, 'job.' || status, clock_timestamp(), CAST(:detail AS jsonb) FROM reaped
    ), {outbox.cte("reaped")}
    SELECT * FROM reaped
""")


def reap(session: Transaction, *, limit: int = 200) -> Sequence[Any]:
    """Ends or requeues running jobs whose lease has expired, and marks their attempts unknown.

    A job fails with `on_lost: fail`, without attempts or time left, and is cancelled if that was requested. The update checks status and
    lease again. Rows: id, status, lane_id, dispatch_id, credential_id, model; for logs and traces: key_id, endpoint, calls, started_at,
    ended_at, request_id, traceparent.
    """
    params = {"limit": limit, "error": json.dumps(LOST), "detail": json.dumps({"reason": "lost"}), "lease_s": settings().lease_s}
    rows = session.execute(_REAP, params).all()
    # The lost call may have been answered, so its cost stays charged to the queue share.
    requeued = [(row.lane_id, row.key_id, row.start_tag, 0.0) for row in rows if row.status == Status.QUEUED]
    conversations.enqueue_next(session, [row.conversation_id for row in rows if row.status in TERMINAL], also=requeued)
    return rows
