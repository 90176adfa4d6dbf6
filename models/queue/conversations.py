"""Conversations in order: at most one job of a conversation is in line, admitted or running; the later turns are held behind it.

What a turn remembers of those before it is reserved with it when it is let into the line (models/queue/history_window.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import cascade, history_window, key_shares, lanes
from models.queue.history_window import HistoryWindow


@dataclass(frozen=True)
class Turn:
    """A job's turn in its conversation, counted from 1. recall: what it remembers; None while it is held behind another."""

    conversation_id: int
    number: int
    recall: HistoryWindow | None


def take_turn(session: Transaction, key_id: int, name: str, *, endpoint: str, lane_id: int, tokens: int, turn_tokens: int | None) -> Turn:
    """The next turn of this key's conversation, which is made on first use. Holds its row until the transaction ends.

    tokens, turn_tokens: as models.queue.enqueue.Order has them.
    """
    row = session.execute(_TAKE, {"key_id": key_id, "name": name}).one()
    # A statement of its own, after the lock: it must see what those before us have committed.
    if session.execute(_HAS_OPEN, {"id": row.id}).scalar_one():
        return Turn(row.id, row.turns, recall=None)
    remembered = history_window.open_window(
        session, conversation_id=row.id, turn=row.turns, endpoint=endpoint, lane_id=lane_id, tokens=tokens, turn_tokens=turn_tokens
    )
    return Turn(row.id, row.turns, recall=remembered)


def enqueue_next(
    session: Transaction, conversation_ids: Iterable[int | None], *, also: Iterable[tuple[int, int, float, float]] = ()
) -> None:
    """The next held turn of each of these conversations stands in line, unless a turn that is not held is open.

    To be called when such a turn has ended. Locks go from that turn to the conversation, to the held turn, to the share, to the lane.
    also: jobs that come back beside them, as `key_share.come_back` takes them.
    """
    ids = sorted({number for number in conversation_ids if number is not None})
    let: Sequence[Any] = []
    if ids:
        if any(row.stops for row in session.execute(_LOCK, {"ids": ids})):
            cascade.cancel_held_turns(session, ids)
        let = session.execute(_LET_NEXT, {"ids": ids}).all()
        history_window.fit_windows(session, [row.id for row in let])
    back = [*((row.lane_id, row.key_id, row.start_tag, 0.0) for row in let), *also]
    key_shares.restore_requeued(session, back)
    lanes.wake(session, [one[0] for one in back])


def open_before(session: Transaction, job: Any) -> Sequence[Any]:
    """The turns before `job` that have not ended, in order. Rows: id, lane_id, status, held, start_tag."""
    return session.execute(_BEFORE, {"id": job.conversation_id, "turn": job.turn}).all()


def open_turns(session: Transaction, conversation_ids: Iterable[int]) -> dict[int, list[Any]]:
    """Of each of these conversations the turns that have not ended, in order. Rows: as of open_before, and turn."""
    made: dict[int, list[Any]] = {number: [] for number in conversation_ids}
    for row in session.execute(_OPEN, {"ids": list(made)}) if made else ():
        made[row.conversation_id].append(row)
    return made


_TAKE = text("""
    INSERT INTO conversation (key_id, name) VALUES (:key_id, :name)
    ON CONFLICT (key_id, name) WHERE deleted_at IS NULL
    DO UPDATE SET turns = conversation.turns + 1, last_active_at = clock_timestamp() RETURNING id, turns
""")
_HAS_OPEN = text("SELECT EXISTS (SELECT FROM job WHERE conversation_id = :id AND status IN ('queued', 'admitted', 'running'))")
_LOCK = text("SELECT on_failed_turn = 'stop' AS stops FROM conversation WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
# A held turn that is being cancelled right now is waited for, and passed over when it is gone.
_LET_NEXT = text("""
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
_BEFORE = text("""
    SELECT id, lane_id, status, held, start_tag FROM job
    WHERE conversation_id = :id AND turn < :turn AND status IN ('queued', 'admitted', 'running') ORDER BY turn
""")
_OPEN = text("""
    SELECT id, lane_id, status, held, start_tag, conversation_id, turn FROM job
    WHERE conversation_id = ANY(:ids) AND status IN ('queued', 'admitted', 'running') ORDER BY turn
""")
