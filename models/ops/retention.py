"""Retention: deletes old ended jobs with their rows in other tables, sessions, deliveries and tokens. Usage and ledger stay.

Each step deletes one batch in one transaction; workers/pacer/cleanup.py repeats it until a batch is not full.
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
    """Deletes up to `limit` rows of one table; returns the number. Fewer than `limit`: no more rows are due."""

    def __call__(self, session: Transaction, limit: int) -> int: ...


def database_now(session: Transaction) -> datetime:
    """Returns the time of Postgres: the clock of a pacer's host may be wrong, and deleted rows are lost."""
    at: datetime = session.execute(text("SELECT now()")).scalar_one()
    return at


# Ids are UUIDv7 and begin with the milliseconds of their creation, so the primary key finds old rows without an index of their times.
OLD_ID = "(lpad(to_hex((extract(epoch FROM CAST(:before AS timestamptz)) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid"
_TOKENS = text("""
    DELETE FROM idempotency WHERE (key_id, token) IN (
        SELECT key_id, token FROM idempotency WHERE created_at < :before ORDER BY created_at LIMIT :limit
    ) RETURNING 1
""")
# A flow whose last finish lies before its key's virtual time holds no information, unless it has a weight. A flow with waiting jobs stays
# for operators: refunds of cancelled jobs may have moved its last finish before the remaining jobs.
# The row is locked, so that a concurrent submit does not lose its update.
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
# Pending deliveries and those being sent stay.
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
# A concurrent submit of a turn holds the lock of its conversation.
_SESSIONS = text("""
    DELETE FROM conversation WHERE id IN (
        SELECT id FROM conversation AS idle WHERE last_active_at < :before
        AND NOT EXISTS (SELECT FROM job WHERE conversation_id = idle.id) LIMIT :limit FOR UPDATE SKIP LOCKED
    ) RETURNING 1
""")
# Lists that no client has requested for this time.
_MODEL_LISTS = text("""
    DELETE FROM model_list WHERE (credential_id, account) IN (
        SELECT credential_id, account FROM model_list WHERE asked_at < :before LIMIT :limit FOR UPDATE SKIP LOCKED
    ) RETURNING 1
""")
# The health of a receiver is kept while deliveries are pending for it, and of an endpoint as long as the endpoint exists.
_RECEIVERS = text("""
    DELETE FROM receiver WHERE name IN (
        SELECT name FROM receiver WHERE NOT EXISTS (SELECT FROM delivery WHERE delivery.receiver = receiver.name AND status = 'pending')
        AND NOT EXISTS (
            SELECT FROM webhook_endpoint WHERE deleted_at IS NULL AND 'whe_' || replace(id::text, '-', '') = receiver.name
        ) LIMIT :limit
    ) RETURNING 1
""")


def steps(at: datetime, *, days: int, idempotency_hours: int) -> Mapping[str, Step]:
    """Returns the steps of one pass by the name of what they delete. at: the time that ages are measured against."""
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
_DELETE_BY_JOB = [
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
    """Deletes in order of ids, so that a batch does not scan the dead index entries of earlier batches."""

    before: datetime
    after: UUID = FIRST_ID

    def __call__(self, session: Transaction, limit: int) -> int:
        ids = [row.id for row in session.execute(_OLD_JOBS, {"before": self.before, "after": self.after, "limit": limit})]
        if ids:
            self.after = ids[-1]
            for statement in _DELETE_BY_JOB:
                session.execute(statement, {"ids": ids})
        return len(ids)


@dataclass(frozen=True)
class _Rows:
    statement: TextClause
    before: datetime | None

    def __call__(self, session: Transaction, limit: int) -> int:
        values = {"limit": limit} if self.before is None else {"before": self.before, "limit": limit}
        return len(session.execute(self.statement, values).all())
