"""Ends a job with a result, and settles the attempt that produced it. See states.py for the state machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.billing import ledger, usage
from models.billing.usage import Usage
from models.database.db import Transaction
from models.jobs.states import AttemptResult, JobResult
from models.queue import conversations, history_window, key_shares
from models.webhooks import outbox

# Error codes of upstreams for messages that exceed the context of their model: OpenAI's, llama.cpp's.
TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})

_HELD = "status = 'running' AND dispatch_id = :dispatch_id"
_ADOPTED = "status IN ('queued', 'admitted') AND lost_dispatch_id = :dispatch_id"


def _ended(condition: str) -> str:
    """SQL: the CTE `ended`, with its event and its deliveries."""
    return f"""
    ended AS (
        UPDATE job SET status = :status, http_status = :http_status, response = :response, response_type = :response_type,
               transcript = :transcript,
               error = CAST(:error AS jsonb), turn_tokens = turn_tokens + :turn_tokens,
               ended_at = clock_timestamp(), lease_until = NULL, lost_dispatch_id = NULL, not_before = NULL, seq = seq + 1,
               possible_duplicate_calls = possible_duplicate_calls - CASE WHEN status = 'running' THEN 0 ELSE 1 END
        WHERE id = :id AND ({condition})
        RETURNING id, status, seq, ended_at, key_id, lane_id, model, flow, conversation_id, started_at, webhook_url, reserved_microusd
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.' || status, ended_at FROM ended
    ), {outbox.cte("ended")}"""


_END_ATTEMPT = """
    UPDATE attempt SET outcome = :outcome, http_status = :attempt_status, upstream_request_id = :upstream_request_id,
           ended_at = clock_timestamp()
    WHERE dispatch_id = :dispatch_id
"""
# While a job runs, its attempt is unchanged and uncharged: a transaction that changes either also takes the job's lease away.
_FINISH_FAST = text(f"""
    WITH {_ended(_HELD)}, settled AS ({_END_ATTEMPT} AND EXISTS (SELECT FROM ended)),
         {ledger.charge_ended_cte("ended")}, {usage.usage_cte("ended")}
    SELECT *, {outbox.DUE} FROM ended
""")


def finish_fast(
    session: Transaction, job_id: UUID, dispatch_id: UUID, result: JobResult, attempt: AttemptResult, used: Usage | None
) -> Any | None:
    """Ends the job that this lease still holds, with charge and usage, in a single statement. Returns the row of `finish`.

    None: the lease is lost, and `finish` decides what that means. Not for turns of a conversation: it does not enqueue the next turn.
    used: None without an answer.
    """
    counted = used or Usage()
    return session.execute(
        _FINISH_FAST,
        {**_job_params(job_id, dispatch_id, result), **_attempt_params(dispatch_id, attempt), **vars(counted),
         "owed": attempt.owed_microusd, "note": attempt.note, "cost": attempt.cost_microusd, "is_used": used is not None},
    ).one_or_none()  # fmt: skip


_FINISH = text(f"WITH {_ended(f'({_HELD}) OR ({_ADOPTED})')} SELECT *, {outbox.DUE} FROM ended")


def finish(session: Transaction, job_id: UUID, dispatch_id: UUID, result: JobResult, attempt: AttemptResult) -> Any | None:
    """Ends the job with this result, and settles the attempt in any case.

    None: the lease was lost, and the job was called again, ended or cancelled since. A reaped job that was not called again adopts the
    late answer, and then has no possible duplicate. The row's `due` are the receivers of its webhooks.
    """
    row = session.execute(_FINISH, _job_params(job_id, dispatch_id, result)).one_or_none()
    settle_attempt(session, dispatch_id, attempt)
    if row is not None:
        error = result.error or {}
        if row.conversation_id is not None and not TOO_LONG.isdisjoint({error.get("code"), error.get("type")}):
            history_window.halve_context(session, job_id)
        conversations.enqueue_next(session, [row.conversation_id])
    return row


_SETTLE = text(f"{_END_ATTEMPT} AND outcome IN ('running', 'unknown') RETURNING dispatch_id")


def settle_attempt(session: Transaction, dispatch_id: UUID, attempt: AttemptResult) -> None:
    """Records the attempt's outcome, and its cost in the ledger. Call it after locking the job's row: the reaper locks in that order."""
    row = session.execute(_SETTLE, _attempt_params(dispatch_id, attempt)).one_or_none()
    # A statement of its own, after the lock: it must see the reaper's charge.
    if row is not None:
        ledger.settle(session, dispatch_id, cost_microusd=attempt.owed_microusd, note=attempt.note)


def _job_params(job_id: UUID, dispatch_id: UUID, result: JobResult) -> dict[str, object]:
    return {**vars(result), "id": job_id, "dispatch_id": dispatch_id, "error": error_json(result.error)}


def _attempt_params(dispatch_id: UUID, attempt: AttemptResult) -> dict[str, object]:
    return {
        "dispatch_id": dispatch_id, "outcome": attempt.outcome, "attempt_status": attempt.http_status,
        "upstream_request_id": attempt.upstream_request_id,
    }  # fmt: skip


_FAIL_QUEUED = text(f"""
    WITH failed AS (
        UPDATE job SET status = 'failed', ended_at = clock_timestamp(), error = CAST(:error AS jsonb), seq = seq + 1,
               http_status = :http_status
        WHERE id = :id AND status = 'queued'
        RETURNING id, key_id, lane_id, flow, share, webhook_url, status, seq, ended_at, conversation_id
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.failed', ended_at FROM failed
    ), {outbox.cte("failed")}
    SELECT conversation_id, lane_id, key_id, flow, share FROM failed
""")


def fail_queued(session: Transaction, job_id: UUID, *, error: Mapping[str, object], http_status: int | None = None) -> bool:
    """Fails a queued job that can never be admitted, without a call. False: it is no longer queued.

    http_status: the upstream's status for such jobs; None: the error's code determines it.
    """
    row = session.execute(_FAIL_QUEUED, {"id": job_id, "error": error_json(error), "http_status": http_status}).one_or_none()
    rows = [row] if row is not None else []
    conversations.enqueue_next(session, [row.conversation_id for row in rows])
    key_shares.refund_flows(session, rows)
    return row is not None


def error_json(error: Mapping[str, object] | None) -> str | None:
    """The error object as the text of a jsonb parameter."""
    return None if error is None else json.dumps(error)
