"""Retention: removes ended jobs with all that belongs to them, sessions, deliveries and tokens after their time. Usage and money stay.

Each step removes one batch in one transaction; workers/pacer/cleanup.py repeats it until a batch is not full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from sqlalchemy import TextClause, text

from models.database.db import Transaction
from models.queue import lanes
from models.sessions import deletion

FIRST_ID = UUID(int=0)


class Step(Protocol):
    """Removes up to `limit` rows of one table; returns how many. Fewer than `limit`: nothing else is due."""

    def __call__(self, session: Transaction, limit: int) -> int: ...


def database_now(session: Transaction) -> datetime:
    """Postgres's clock: a pacer's host may have a wrong one, and what is removed is gone."""
    at: datetime = session.execute(text("SELECT now()")).scalar_one()
    return at


# Ids are UUIDv7 and begin with the milliseconds of their creation, so the primary key finds old rows without an index of their times.
OLD_ID = "(lpad(to_hex((extract(epoch FROM CAST(:before AS timestamptz)) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid"
_TOKENS = text("""
    DELETE FROM idempotency WHERE (key_id, token) IN (
        SELECT key_id, token FROM idempotency WHERE created_at < :before ORDER BY created_at LIMIT :limit
    ) RETURNING 1
""")
# A user's last finish that the key's own time has passed says nothing that this time does not, unless the user has a weight. One who waits
# stays, for operators: what was given back for cancelled jobs may have put the last finish before the jobs that are left.
# Locked, so that a submit at the same moment does not lose what it has added.
_FLOWS = text("""
    DELETE FROM key_flow WHERE (lane_id, key_id, name) IN (
        SELECT flow.lane_id, flow.key_id, flow.name FROM key_flow AS flow JOIN lane ON lane.id = flow.lane_id
        LEFT JOIN key_share AS share ON share.lane_id = flow.lane_id AND share.key_id = flow.key_id
        WHERE flow.last_finish < coalesce(share.low_water, lane.virtual_time) AND flow.weight = 1
        AND NOT EXISTS (
            SELECT FROM job WHERE job.lane_id = flow.lane_id AND job.key_id = flow.key_id AND job.flow = flow.name AND status = 'queued'
        )
        LIMIT :limit FOR UPDATE OF flow SKIP LOCKED
    ) RETURNING 1
""")
# Deliveries on their way stay.
_DELIVERIES = text(f"""
    DELETE FROM delivery WHERE id IN (
        SELECT id FROM delivery WHERE status IN ('delivered', 'failed') AND id < {OLD_ID} ORDER BY id LIMIT :limit
    ) AND status IN ('delivered', 'failed') RETURNING 1
""")
_ENDPOINTS = text("""
    DELETE FROM webhook_endpoint WHERE id IN (
        SELECT id FROM webhook_endpoint AS endpoint WHERE deleted_at < :before
        AND NOT EXISTS (SELECT FROM delivery WHERE endpoint_id = endpoint.id) LIMIT :limit
    ) RETURNING 1
""")
_ATTACHMENTS = text(f"""
    DELETE FROM artifact WHERE id IN (
        SELECT id FROM artifact WHERE conversation_id IS NOT NULL AND id < {OLD_ID} AND created_at < :before ORDER BY id LIMIT :limit
    ) RETURNING 1
""")
# A turn that is being submitted right now holds its conversation's row.
_SESSIONS = text("""
    DELETE FROM conversation WHERE id IN (
        SELECT id FROM conversation AS talk WHERE last_active_at < :before
        AND NOT EXISTS (SELECT FROM job WHERE conversation_id = talk.id) LIMIT :limit FOR UPDATE SKIP LOCKED
    ) RETURNING 1
""")
# Nobody has asked for these for as long.
_MODEL_LISTS = text("""
    DELETE FROM model_list WHERE (credential_id, account) IN (
        SELECT credential_id, account FROM model_list WHERE asked_at < :before LIMIT :limit FOR UPDATE SKIP LOCKED
    ) RETURNING 1
""")
# How a receiver does is of no interest when nothing waits for it; an endpoint's is, for as long as there is the endpoint.
_RECEIVERS = text("""
    DELETE FROM receiver WHERE name IN (
        SELECT name FROM receiver WHERE NOT EXISTS (SELECT FROM delivery WHERE delivery.receiver = receiver.name AND status = 'pending')
        AND NOT EXISTS (
            SELECT FROM webhook_endpoint WHERE deleted_at IS NULL AND 'whe_' || replace(id::text, '-', '') = receiver.name
        ) LIMIT :limit
    ) RETURNING 1
""")


def steps(at: datetime, *, days: int, idempotency_hours: int) -> Mapping[str, Step]:
    """The steps of one pass by the name of what they remove. at: the time against which ages are counted."""
    before = at - timedelta(days=days)
    return {
        "jobs": _Jobs(before),
        "deliveries": _Rows(_DELIVERIES, before),
        "idempotency": _Rows(_TOKENS, at - timedelta(hours=idempotency_hours)),
        "flows": _Rows(_FLOWS, None),
        "lanes": lambda session, limit: lanes.delete_idle(session, limit=limit),
        "endpoints": _Rows(_ENDPOINTS, before),
        "receivers": _Rows(_RECEIVERS, None),
        "attachments": _Rows(_ATTACHMENTS, before),
        "erased_turns": lambda session, limit: deletion.erase_turns(session, limit=limit),
        "deleted_sessions": lambda session, limit: deletion.remove_sessions(session, limit=limit),
        "sessions": _Rows(_SESSIONS, before),
        "model_lists": _Rows(_MODEL_LISTS, before),
    }


ENDED = "status IN ('succeeded', 'failed', 'cancelled', 'expired') AND ended_at < :before"
_OLD_JOBS = text(f"""
    SELECT id FROM job WHERE id > :after AND id < {OLD_ID} AND {ENDED} ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
""")
_BELONGINGS = [
    text(f"DELETE FROM {table} WHERE {column} = ANY(:ids)")
    for table, column in (
        ("artifact", "job_id"),
        ("stored_answer", "job_id"),
        ("job_event", "job_id"),
        ("attempt", "job_id"),
        ("job", "id"),
    )
]


@dataclass
class _Jobs:
    """Goes through ids in order, so that a batch does not pass over the dead index entries of the batches before."""

    before: datetime
    after: UUID = FIRST_ID

    def __call__(self, session: Transaction, limit: int) -> int:
        ids = [row.id for row in session.execute(_OLD_JOBS, {"before": self.before, "after": self.after, "limit": limit})]
        if ids:
            self.after = ids[-1]
            for statement in _BELONGINGS:
                session.execute(statement, {"ids": ids})
        return len(ids)


@dataclass(frozen=True)
class _Rows:
    statement: TextClause
    before: datetime | None

    def __call__(self, session: Transaction, limit: int) -> int:
        values = {"limit": limit} if self.before is None else {"before": self.before, "limit": limit}
        return len(session.execute(self.statement, values).all())
