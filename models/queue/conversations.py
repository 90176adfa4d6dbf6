"""Conversations in order: at most one turn of a conversation is queued, admitted or running; later turns are held behind it.

When a turn is enqueued, the tokens of its history are reserved with it (models/queue/history_window.py). In conversations with
`on_failed_turn: stop`, a failed turn cancels the turns that are held behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import history_window, key_shares, lanes
from models.queue.history_window import HistoryWindow
from models.queue.submission import Submission
from models.webhooks import outbox

STOPPED = {
    "message": "An earlier turn of this conversation failed, and its on_failed_turn is `stop`: the turns that waited behind it were "
    "cancelled. Send this one again to go on.",
    "type": "invalid_request_error",
    "param": "conversation",
    "code": "earlier_turn_failed",
}


@dataclass(frozen=True)
class Turn:
    """A job's turn in its conversation, counted from 1. window: its history; None while it is held behind another turn."""

    conversation_id: int
    number: int
    window: HistoryWindow | None


_TAKE = text("""
    INSERT INTO conversation (key_id, name) VALUES (:key_id, :name)
    ON CONFLICT (key_id, name) WHERE deleted_at IS NULL
    DO UPDATE SET turns = conversation.turns + 1, last_active_at = clock_timestamp() RETURNING id, turns
""")
_HAS_OPEN = text("SELECT EXISTS (SELECT FROM job WHERE conversation_id = :id AND status IN ('queued', 'admitted', 'running'))")


def take_turn(session: Transaction, submission: Submission, *, lane_id: int) -> Turn | None:
    """Returns the next turn of the submission's conversation, which is created on first use; None without a conversation.

    Locks the conversation's row until the transaction ends.
    """
    if submission.conversation is None:
        return None
    row = session.execute(_TAKE, {"key_id": submission.key.id, "name": submission.conversation}).one()
    # A statement of its own, after the lock: it must see what earlier transactions committed.
    if session.execute(_HAS_OPEN, {"id": row.id}).scalar_one():
        return Turn(row.id, row.turns, window=None)
    window = history_window.open_window(session, submission, conversation_id=row.id, turn=row.turns, lane_id=lane_id)
    return Turn(row.id, row.turns, window=window)


_LOCK = text("SELECT on_failed_turn = 'stop' AS stops FROM conversation WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
# A held turn that another transaction is cancelling: the statement waits for it, and skips it if it is gone.
_ENQUEUE_NEXT = text("""
    WITH next AS (
        SELECT first.id FROM unnest(CAST(:ids AS bigint[])) AS ended (id) CROSS JOIN LATERAL (
            SELECT id FROM job WHERE conversation_id = ended.id AND status = 'queued' AND held ORDER BY turn LIMIT 1 FOR UPDATE
        ) AS first
    )
    UPDATE job SET held = false FROM next WHERE job.id = next.id
    AND NOT EXISTS (
        SELECT FROM job AS other WHERE other.conversation_id = job.conversation_id AND other.id <> job.id
        AND (other.status IN ('admitted', 'running') OR (other.status = 'queued' AND NOT other.held))
    )
    RETURNING job.id, job.lane_id, job.key_id, job.start_tag
""")


def enqueue_next(
    session: Transaction, conversation_ids: Iterable[int | None], *, also: Iterable[tuple[int, int, float, float]] = ()
) -> None:
    """Enqueues the next held turn of each of these conversations, unless a turn that is not held is open.

    Call it when a turn that was not held has ended. Lock order: that turn, the conversation, the held turn, the share, the lane.
    also: jobs that are requeued in the same transaction, as for `key_shares.restore_requeued`.
    """
    ids = sorted({number for number in conversation_ids if number is not None})
    next_turns: Sequence[Any] = []
    if ids:
        if any(row.stops for row in session.execute(_LOCK, {"ids": ids})):
            _cancel_held_turns(session, ids)
        next_turns = session.execute(_ENQUEUE_NEXT, {"ids": ids}).all()
        history_window.fit_windows(session, [row.id for row in next_turns])
    requeued = [*((row.lane_id, row.key_id, row.start_tag, 0.0) for row in next_turns), *also]
    key_shares.restore_requeued(session, requeued)
    lanes.wake(session, [lane_id for lane_id, *_ in requeued])


_CANCEL_HELD_TURNS = text(f"""
    WITH failed AS (
        SELECT talk.id FROM conversation AS talk CROSS JOIN LATERAL (
            SELECT status FROM job WHERE conversation_id = talk.id AND since_turn IS NOT NULL ORDER BY turn DESC LIMIT 1
        ) AS last
        WHERE talk.id = ANY(:ids) AND talk.on_failed_turn = 'stop' AND last.status IN ('failed', 'expired')
    ), held AS (
        SELECT job.id FROM failed JOIN job ON job.conversation_id = failed.id
        WHERE job.status = 'queued' AND job.held ORDER BY job.conversation_id, job.turn FOR UPDATE OF job
    ), cancelled AS (
        UPDATE job SET status = 'cancelled', ended_at = clock_timestamp(), error = CAST(:error AS jsonb), seq = seq + 1
        FROM held WHERE job.id = held.id AND job.status = 'queued'
        RETURNING job.id, job.key_id, job.lane_id, job.flow, job.share, job.webhook_url, job.status, job.seq, job.ended_at
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.cancelled', ended_at FROM cancelled
    ), {outbox.cte("cancelled")}
    SELECT id, lane_id, key_id, flow, share FROM cancelled
""")


def _cancel_held_turns(session: Transaction, conversation_ids: Sequence[int]) -> None:
    """Cancels the held turns of those of these locked conversations whose last turn failed or expired.

    Turns submitted later are enqueued: their caller knows how the failed turn ended.
    """
    params = {"ids": list(conversation_ids), "error": json.dumps(STOPPED)}
    key_shares.refund_flows(session, session.execute(_CANCEL_HELD_TURNS, params).all())


_OPEN_TURNS = text("""
    SELECT id, lane_id, status, held, start_tag, conversation_id, turn FROM job
    WHERE conversation_id = ANY(:ids) AND status IN ('queued', 'admitted', 'running') ORDER BY turn
""")


def open_turns(session: Transaction, conversation_ids: Iterable[int]) -> dict[int, list[Any]]:
    """The open turns of each of these conversations, in order. Rows: id, lane_id, status, held, start_tag, turn."""
    turns: dict[int, list[Any]] = {number: [] for number in conversation_ids}
    for row in session.execute(_OPEN_TURNS, {"ids": list(turns)}) if turns else ():
        turns[row.conversation_id].append(row)
    return turns
