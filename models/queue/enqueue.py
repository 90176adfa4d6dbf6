"""Enqueues jobs in fair order: hierarchical start-time fair queueing in columns (Goyal, Vin, Cheng 1996).

A lane is one (pool, model). Its keys share it (models/queue/key_shares.py), and the users of a key share the key's part. A job's start tag
is `max(share.virtual_time, flow.last_finish)`, and the job advances its flow's last finish by cost / weight. The pacer takes the key with
the lowest turn, and of its jobs the one with the lowest tag. The order is in the columns and is never rebuilt.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.errors import DivisionByZero
from sqlalchemy import text

from models.billing import budgets
from models.content import attachments
from models.database.db import Transaction, autocommit
from models.database.tables.jobs import OPEN
from models.platform.errors import LimiterUnavailable
from models.queue import conversations, key_shares, lanes, position, position_index, refusals
from models.queue.key_shares import SETTLED_S
from models.queue.position import LANE_FIGURES, Enqueued
from models.queue.position_index import MAX_COUNTED
from models.queue.submission import MAX_TOKENS, PRIORITY_WEIGHTS, Submission


def prepare(submission: Submission) -> int:
    """Returns the id of the submission's lane; creates the lane and the key's share if missing. Call it before the transaction.

    It runs in transactions of its own, so that the first submit of a key does not block others. Inside an open transaction it would wait
    for a second connection: as many submits as there are connections would all wait for each other.
    """
    pool_id, key_id = submission.key.pool_id, submission.key.id
    lane_id = lanes.id_of(pool_id, submission.model)
    with autocommit() as session:
        exists = lanes.exists(session, lane_id)
        if exists:
            key_shares.ensure_share(session, lane_id, key_id)
    if not exists:
        lanes.id_of.cache_clear()
    return lane_id if exists else lanes.id_of(pool_id, submission.model)


_LANE_AHEAD = position_index.lane_ahead(
    lane_id=":lane_id", key_id=":key_id", lane_time="this_lane.virtual_time", start_tag="enqueued.start_tag", job_id="enqueued.id",
    share="share",
)  # fmt: skip
# Wakes a dormant lane (without jobs for SETTLED_S). A busy lane is not written to, because submits would wait for its row; the pacer
# itself finds lanes that became idle less than twice SETTLED_S ago. The counts do not include the new job.
_STATEMENT = f"""
    WITH this_lane AS ({LANE_FIGURES} WHERE lane.id = :lane_id AND lane.leaving_at IS NULL), {key_shares.SHARE_CTES}, advanced_flow AS (
        INSERT INTO key_flow AS f (lane_id, key_id, name, last_finish)
        SELECT this_lane.id, :key_id, :flow, share.virtual_time + CAST(:share AS float8) FROM this_lane, share
        ON CONFLICT (lane_id, key_id, name) DO UPDATE
        SET last_finish = greatest(excluded.last_finish - :share, f.last_finish) + :share / f.weight
        RETURNING last_finish, weight
    ), enqueued AS (
        -- Behind the user's last job, even if an earlier one was cancelled and refunded.
        -- Rounding: last_finish - share may be one ulp below the key's virtual time, where the low-water mark may be: clamp it.
        INSERT INTO job (
            id, key_id, lane_id, status, held, flow, priority, start_tag, share, cost, tokens, images, reserved_microusd, endpoint, model,
            request, conversation_id, turn, timeout_s, on_lost, on_unreadable, metadata, webhook_url, created_at, expires_at,
            max_attempts, retry_of, content_type, streamed, wants_urls, fingerprint, reader, attachments, turn_tokens, since_turn,
            history_tokens, request_id, traceparent, headers
        )
        SELECT :id, :key_id, :lane_id, 'queued', :held, :flow, :priority,
               greatest(advanced_flow.last_finish - :share / advanced_flow.weight, share.virtual_time, (
                   SELECT last.start_tag + last.share FROM job AS last
                   WHERE last.lane_id = :lane_id AND last.key_id = :key_id AND last.flow = :flow AND last.status = 'queued'
                   ORDER BY last.start_tag DESC LIMIT 1
               )),
               :share / advanced_flow.weight, :cost, :tokens, :images, :reserved_microusd, :endpoint, :model, :request, :conversation_id,
               :turn, :timeout_s, :on_lost, :on_unreadable, CAST(:metadata AS jsonb), :webhook_url, clock_timestamp(),
               clock_timestamp() + :expires_in, :max_attempts, :retry_of, :content_type, :streamed, :wants_urls, :fingerprint, :reader,
               CAST(:attachments AS uuid[]), :turn_tokens, :since_turn, :history_tokens, :request_id, :traceparent,
               CAST(:headers AS jsonb)
        FROM advanced_flow, share RETURNING id, start_tag, created_at, expires_at, held, not_before
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, 1, 'job.queued', created_at FROM enqueued
    ), woken AS (
        -- Locks the share before the lane, as everywhere.
        UPDATE lane SET wake_at = now(), idle_since = NULL FROM this_lane
        WHERE lane.id = this_lane.id AND this_lane.wake_at IS NULL AND lane.wake_at IS NULL
        AND (this_lane.idle_since IS NULL OR this_lane.idle_since < now() - make_interval(secs => :settled_s))
        AND (SELECT count(*) FROM kept) >= 0
    )
    SELECT this_lane.queued, this_lane.rpm, this_lane.tpm, this_lane.ipm, this_lane.max_in_flight, this_lane.usual_s,
           this_lane.blocked_by, this_lane.wake_in_s, this_lane.is_paused, this_lane.is_draining, this_lane.has_caps, this_lane.wake_at,
           this_lane.now, enqueued.id, enqueued.start_tag, enqueued.held, enqueued.not_before, enqueued.created_at, enqueued.expires_at,
           ahead.jobs, ahead.tokens, ahead.images, counted.in_lane, counted.of_key
           {{check}}
    FROM enqueued, this_lane, share, LATERAL (
        SELECT (SELECT count(*) FROM (
                   SELECT FROM job WHERE lane_id = :lane_id AND status = 'queued' AND NOT held LIMIT :lane_count_limit
               ) AS queued) AS in_lane,
               CASE WHEN :key_count_limit > 0 THEN (
                   SELECT count(*) FROM (SELECT FROM job WHERE key_id = :key_id AND {OPEN} LIMIT :key_count_limit) AS open
               ) END AS of_key
    ) AS counted, LATERAL (
        {_LANE_AHEAD}
    ) AS ahead
"""
_ENQUEUE = text(_STATEMENT.format(check=""))


def enqueue_job(session: Transaction, submission: Submission, *, lane_id: int, job_id: UUID) -> Enqueued:
    """Inserts the job with its first event, and reserves its maximum cost. lane_id: of `prepare`.

    Raises BudgetExhausted, QueueFull, Draining, or TooLate if the estimated wait is too long; Invalid for unknown attachments of the
    conversation.
    """
    budgets.reserve(session, submission.key, submission.reserved_microusd)
    submission = _with_attachments(session, submission)
    turn = conversations.take_turn(session, submission, lane_id=lane_id)
    params = _params(submission, job_id, lane_id, turn)
    # The first execution inserts nothing while another submit inserts the key's share. The second sees that share.
    row = session.execute(_ENQUEUE, params).one_or_none() or session.execute(_ENQUEUE, params).one_or_none()
    if row is None:
        lanes.id_of.cache_clear()
        raise LimiterUnavailable("The line for this model is just being cleaned up. Send the request again.")
    refusals.check_fits(submission, row)
    if row.has_caps:
        refusals.check_caps(session, key_id=submission.key.id, lane_id=lane_id, flow=submission.flow, endpoint=submission.endpoint)
    refusals.check_wait(submission, row)
    is_plain = turn is None and not row.has_caps
    return Enqueued(row.created_at, row.expires_at, position.from_rows(row, row, row) if is_plain else None)


# A job that `enqueue_job` would refuse or examine fails the whole statement, so that nothing is stored. Estimates are rounded to 0.1 s.
_ENQUEUE_FAST = text(
    _STATEMENT.format(
        check="""
           , 1 / CASE WHEN this_lane.is_draining OR this_lane.has_caps OR counted.of_key >= :key_count_limit
                      OR CASE WHEN :lane_count_limit > 0 THEN counted.in_lane ELSE this_lane.queued END >= :max_per_lane
                      OR NOT this_lane.is_paused AND make_interval(secs => 0.1 + greatest(
                          CASE WHEN this_lane.blocked_by IS NOT NULL THEN this_lane.wake_in_s END,
                          ahead.jobs * 60 / nullif(this_lane.rpm, 0), ahead.tokens * 60 / nullif(this_lane.tpm, 0),
                          ahead.images * 60 / nullif(this_lane.ipm, 0),
                          (ahead.jobs + 1) / nullif(this_lane.max_in_flight, 0) * this_lane.usual_s, 0
                      )) > :expires_in
                 THEN 0 ELSE 1 END
        """
    )
)


def enqueue_fast(session: Transaction, submission: Submission, *, lane_id: int, job_id: UUID) -> Enqueued | None:
    """Inserts an ordinary job with a single statement, which needs no transaction around it.

    None: nothing was stored, and `enqueue_job` has to decide: there is a budget, a conversation or a cap, or the lane may be full.
    """
    if submission.conversation is not None or budgets.applies_to(submission.key, submission.reserved_microusd):
        return None
    if refusals.slow_lanes.is_slow(lane_id, now=time.monotonic()):
        return None
    try:
        row = session.execute(_ENQUEUE_FAST, _params(submission, job_id, lane_id, None)).one_or_none()
    except DivisionByZero:
        refusals.slow_lanes.mark(lane_id, now=time.monotonic())
        return None
    if row is None:  # The lane was deleted, or another submit inserts the key's share.
        return None
    refusals.remember_count(submission.key.id, row)
    return Enqueued(row.created_at, row.expires_at, position.from_rows(row, row, row))


_SAME_NAME = (
    "flow", "priority", "cost", "images", "reserved_microusd", "endpoint", "model", "request", "timeout_s", "on_lost", "on_unreadable",
    "webhook_url", "max_attempts", "retry_of", "content_type", "streamed", "wants_urls", "fingerprint", "reader", "request_id",
    "traceparent",
)  # fmt: skip


def _params(submission: Submission, job_id: UUID, lane_id: int, turn: conversations.Turn | None) -> dict[str, Any]:
    window = turn.window if turn else None
    return {
        **{name: getattr(submission, name) for name in _SAME_NAME},
        "id": job_id, "key_id": submission.key.id, "lane_id": lane_id,
        "share": submission.cost / PRIORITY_WEIGHTS[submission.priority],
        "tokens": min(MAX_TOKENS, submission.tokens + (window.tokens if window else 0)),
        "conversation_id": turn and turn.conversation_id, "turn": turn and turn.number, "turn_tokens": turn and submission.turn_tokens,
        "held": turn is not None and window is None, "since_turn": window and window.since_turn, "history_tokens": window and window.tokens,
        "attachments": list(submission.attachments) or None, "expires_in": timedelta(seconds=submission.expires_in_s),
        "metadata": None if submission.metadata is None else json.dumps(submission.metadata),
        "headers": None if submission.headers is None else json.dumps(submission.headers),
        "settled_s": SETTLED_S, "max_counted": MAX_COUNTED, **refusals.limit_params(submission.key.id),
    }  # fmt: skip


def _with_attachments(session: Transaction, submission: Submission) -> Submission:
    """Adds the tokens of the attachments: they are part of the question, in its reservation and in the history."""
    if not submission.attachments or submission.conversation is None:
        return submission
    tokens = attachments.total_tokens(session, submission.key.id, submission.conversation, submission.attachments)
    return replace(submission, tokens=submission.tokens + tokens, turn_tokens=(submission.turn_tokens or 0) + tokens)
