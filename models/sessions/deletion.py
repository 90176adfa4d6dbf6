"""Deletion of sessions and turns: erases requests, answers, images and files. Jobs stay without bodies; usage stays."""

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
    """Marks this key's session as deleted: its name is free and it accepts no more turns. Returns its id. Raises NotFound."""
    row = session.execute(_MARK, {"key_id": key_id, "name": name}).one_or_none()
    if row is None:
        raise NotFound("No such session.")
    return int(row.id)


_OPEN = text("""
    SELECT id, lane_id FROM job WHERE conversation_id = :id AND status IN ('queued', 'admitted', 'running') ORDER BY turn DESC
""")


def open_turns(session: Transaction, conversation_id: int) -> Sequence[Any]:
    """Returns the waiting and running jobs of a conversation, last turn first, so that the caller cancels them. Rows: id, lane_id."""
    return session.execute(_OPEN, {"id": conversation_id}).all()


_ERASED = """
    request = '', response = NULL, response_type = NULL, transcript = NULL, metadata = NULL, headers = NULL, attachments = NULL,
    conversation_id = NULL
"""
_ERASE = text(f"""
    WITH ended AS (
        SELECT job.id FROM conversation JOIN job ON job.conversation_id = conversation.id
        WHERE conversation.deleted_at IS NOT NULL AND (CAST(:id AS bigint) IS NULL OR conversation.id = :id)
        AND job.status IN ('succeeded', 'failed', 'cancelled', 'expired')
        LIMIT :limit FOR UPDATE OF job SKIP LOCKED
    )
    UPDATE job SET {_ERASED}
    FROM ended WHERE job.id = ended.id RETURNING job.id
""")


def erase_turns(session: Transaction, *, limit: int, conversation_id: int | None = None) -> int:
    """Erases the bodies of up to `limit` ended turns of deleted sessions, or of this conversation; returns the number."""
    ids = [row.id for row in session.execute(_ERASE, {"id": conversation_id, "limit": limit})]
    if ids:
        _delete_images_and_index(session, ids)
    return len(ids)


_REMOVE = text("""
    WITH removed AS (
        DELETE FROM conversation WHERE id IN (
            SELECT id FROM conversation AS deleted
            WHERE deleted_at IS NOT NULL AND (CAST(:id AS bigint) IS NULL OR id = :id)
            AND NOT EXISTS (SELECT FROM job WHERE conversation_id = deleted.id)
            LIMIT :limit FOR UPDATE SKIP LOCKED
        ) RETURNING id
    ), files AS (
        DELETE FROM artifact USING removed WHERE artifact.conversation_id = removed.id
    )
    SELECT count(*) FROM removed
""")


def remove_sessions(session: Transaction, *, limit: int, conversation_id: int | None = None) -> int:
    """Deletes the rows of up to `limit` deleted sessions, or of this one, that have no turns left, with their files; returns the number."""
    return int(session.execute(_REMOVE, {"id": conversation_id, "limit": limit}).scalar_one())


_ONE = text("SELECT id, status FROM job WHERE conversation_id = :id AND turn = :turn FOR UPDATE")


def erase_turn(session: Transaction, conversation_id: int, turn: int) -> None:
    """Erases the bodies of one turn and removes it from its conversation. Raises NotFound; WrongState while it waits or runs."""
    row = session.execute(_ONE, {"id": conversation_id, "turn": turn}).one_or_none()
    if row is None:
        raise NotFound("No such message.")
    if row.status in ("queued", "admitted", "running"):
        raise WrongState("This turn has not ended. Cancel its job first.")
    erase_job(session, row.id)


_ERASE_ONE = text(f"UPDATE job SET {_ERASED} WHERE id = :id")


def erase_job(session: Transaction, job_id: UUID) -> None:
    """Erases the bodies and images of an ended job, and removes it from its conversation."""
    session.execute(_ERASE_ONE, {"id": job_id})
    _delete_images_and_index(session, [job_id])


_DELETE_IMAGES = text("DELETE FROM artifact WHERE job_id = ANY(:ids)")
_DELETE_STORED = text("DELETE FROM stored_answer WHERE job_id = ANY(:ids)")


def _delete_images_and_index(session: Transaction, job_ids: Sequence[UUID]) -> None:
    for statement in (_DELETE_IMAGES, _DELETE_STORED):
        session.execute(statement, {"ids": list(job_ids)})
