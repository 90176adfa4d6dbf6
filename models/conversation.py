"""Conversations in order: at most one job of a conversation is in line, admitted or running; the later turns are held behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.db import Session


@dataclass(frozen=True)
class Turn:
    """A job's turn in its conversation, counted from 1."""

    conversation_id: int
    number: int
    is_behind_another: bool


def take_turn(session: Session, key_id: int, name: str) -> Turn:
    """The next turn of this key's conversation, which is made on first use. Holds its row until the transaction ends."""
    row = session.execute(_TAKE, {"key_id": key_id, "name": name}).one()
    # A statement of its own, after the lock: it must see what those before us have committed.
    behind = session.execute(_HAS_OPEN, {"id": row.id}).scalar_one()
    return Turn(conversation_id=row.id, number=row.turns, is_behind_another=behind)


def let_next(session: Session, conversation_ids: Iterable[int | None]) -> list[int]:
    """The next held turn of each of these conversations stands in line; returns the lanes that have to be looked at."""
    ids = sorted({number for number in conversation_ids if number is not None})
    if not ids:
        return []
    session.execute(_LOCK, {"ids": ids})
    return [row.lane_id for row in session.execute(_LET_NEXT, {"ids": ids})]


def head_before(session: Session, job: Any) -> tuple[Any, int]:
    """The turn of this conversation that stands in line (or runs), and how many held turns stand between it and `job`."""
    rows = session.execute(_BEFORE, {"id": job.conversation_id, "turn": job.turn}).all()
    return (rows[0], len(rows)) if rows else (job, 0)


_TAKE = text("""
    INSERT INTO conversation (key_id, name) VALUES (:key_id, :name)
    ON CONFLICT (key_id, name) DO UPDATE SET turns = conversation.turns + 1 RETURNING id, turns
""")
_HAS_OPEN = text("SELECT EXISTS (SELECT FROM job WHERE conversation_id = :id AND status IN ('queued', 'admitted', 'running'))")
_LOCK = text("SELECT id FROM conversation WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
_LET_NEXT = text("""
    WITH next AS (
        SELECT DISTINCT ON (conversation_id) id FROM job
        WHERE conversation_id = ANY(:ids) AND status = 'queued' AND held ORDER BY conversation_id, turn
    ), let AS (
        UPDATE job SET held = false FROM next WHERE job.id = next.id
        AND NOT EXISTS (
            SELECT FROM job AS other WHERE other.conversation_id = job.conversation_id AND other.id <> job.id
            AND (other.status IN ('admitted', 'running') OR (other.status = 'queued' AND NOT other.held))
        )
        RETURNING job.lane_id, job.start_tag
    )
    UPDATE lane SET low_water = least(low_water, let.start_tag), wake_at = now(), idle_since = NULL
    FROM (SELECT lane_id, min(start_tag) AS start_tag FROM let GROUP BY lane_id) AS let
    WHERE lane.id = let.lane_id RETURNING lane.id AS lane_id
""")
_BEFORE = text("""
    SELECT id, start_tag FROM job
    WHERE conversation_id = :id AND turn < :turn AND status IN ('queued', 'admitted', 'running') ORDER BY turn
""")
