"""A deleted session goes, or one turn: what was asked and answered, its pictures and files. The jobs stay, without bodies; usage stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.errors import NotFound, WrongState

_MARK = text("""
    UPDATE conversation SET deleted_at = clock_timestamp()
    WHERE key_id = :key_id AND name = :name AND deleted_at IS NULL RETURNING id
""")


def mark_deleted(session: Transaction, key_id: int, name: str) -> int:
    """This key's session is deleted, its name is free, and no turn joins it any more; returns its number. Raises NotFound."""
    row = session.execute(_MARK, {"key_id": key_id, "name": name}).one_or_none()
    if row is None:
        raise NotFound("No such session.")
    return int(row.id)


_OPEN = text("""
    SELECT id, lane_id FROM job WHERE conversation_id = :id AND status IN ('queued', 'admitted', 'running') ORDER BY turn DESC
""")


def open_turns(session: Transaction, conversation_id: int) -> Sequence[Any]:
    """What of it waits or runs, last first, to be cancelled one by one. Rows: id, lane_id."""
    return session.execute(_OPEN, {"id": conversation_id}).all()


_GONE = """
    request = '', response = NULL, response_type = NULL, transcript = NULL, metadata = NULL, headers = NULL, attachments = NULL,
    conversation_id = NULL
"""
_ERASE = text(f"""
    WITH mine AS (
        SELECT job.id FROM conversation JOIN job ON job.conversation_id = conversation.id
        WHERE conversation.deleted_at IS NOT NULL AND (CAST(:id AS bigint) IS NULL OR conversation.id = :id)
        AND job.status IN ('succeeded', 'failed', 'cancelled', 'expired')
        LIMIT :limit FOR UPDATE OF job SKIP LOCKED
    )
    UPDATE job SET {_GONE}
    FROM mine WHERE job.id = mine.id RETURNING job.id
""")


def erase_turns(session: Transaction, *, limit: int, conversation_id: int | None = None) -> int:
    """Deletes the bodies of up to `limit` ended turns of deleted sessions, or of this one; returns how many."""
    ids = [row.id for row in session.execute(_ERASE, {"id": conversation_id, "limit": limit})]
    if ids:
        _erase_belongings(session, ids)
    return len(ids)


_FORGET = text("""
    WITH gone AS (
        DELETE FROM conversation WHERE id IN (
            SELECT id FROM conversation AS talk
            WHERE deleted_at IS NOT NULL AND (CAST(:id AS bigint) IS NULL OR id = :id)
            AND NOT EXISTS (SELECT FROM job WHERE conversation_id = talk.id)
            LIMIT :limit FOR UPDATE SKIP LOCKED
        ) RETURNING id
    ), files AS (
        DELETE FROM artifact USING gone WHERE artifact.conversation_id = gone.id
    )
    SELECT count(*) FROM gone
""")


def remove_sessions(session: Transaction, *, limit: int, conversation_id: int | None = None) -> int:
    """Removes up to `limit` deleted sessions, or this one, that have no turn any more, with their files; returns how many."""
    return int(session.execute(_FORGET, {"id": conversation_id, "limit": limit}).scalar_one())


_ONE = text("SELECT id, status FROM job WHERE conversation_id = :id AND turn = :turn FOR UPDATE")


def erase_turn(session: Transaction, conversation_id: int, turn: int) -> None:
    """This turn has no bodies any more and is of no conversation. Raises NotFound; WrongState while it waits or runs."""
    row = session.execute(_ONE, {"id": conversation_id, "turn": turn}).one_or_none()
    if row is None:
        raise NotFound("No such message.")
    if row.status in ("queued", "admitted", "running"):
        raise WrongState("This turn has not ended. Cancel its job first.")
    erase_job(session, row.id)


_ERASE_ONE = text(f"UPDATE job SET {_GONE} WHERE id = :id")


def erase_job(session: Transaction, job_id: UUID) -> None:
    """Deletes the bodies and pictures of an ended job, and removes it from its conversation."""
    session.execute(_ERASE_ONE, {"id": job_id})
    _erase_belongings(session, [job_id])


_PICTURES = text("DELETE FROM artifact WHERE job_id = ANY(:ids)")
_STORED = text("DELETE FROM stored_answer WHERE job_id = ANY(:ids)")


def _erase_belongings(session: Transaction, job_ids: Sequence[UUID]) -> None:
    for statement in (_PICTURES, _STORED):
        session.execute(statement, {"ids": list(job_ids)})
