"""What is old goes: ended jobs with bodies, events, attempts and pictures, sessions, and deliveries, after retention_days.

Usage and money stay.
"""

from __future__ import annotations

from sqlalchemy import text

from models import erasure
from models.db import Session

MOST = 1_000
# A job makes one for each receiver, and they are small.
DELIVERIES_A_JOB = 4


def sweep(session: Session, *, days: int, idempotency_hours: int) -> int:
    """Up to MOST ended jobs and their belongings are gone, and idempotency keys past their time; returns the number of jobs."""
    ids = [row.id for row in session.execute(_OLD, {"days": days, "most": MOST})]
    if ids:
        for statement in _BELONGINGS:
            session.execute(statement, {"ids": ids})
    session.execute(_TOKENS, {"hours": idempotency_hours, "most": MOST})
    session.execute(_FLOWS, {"most": MOST})
    session.execute(_DELIVERIES, {"days": days, "most": MOST * DELIVERIES_A_JOB})
    session.execute(_ENDPOINTS, {"days": days})
    session.execute(_RECEIVERS, {"most": MOST})
    session.execute(_ATTACHMENTS, {"days": days, "most": MOST})
    session.execute(_SESSIONS, {"days": days, "most": MOST})
    erasure.erase(session, most=MOST)
    return len(ids)


_OLD = text("""
    SELECT id FROM job WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired') AND ended_at < now() - make_interval(days => :days)
    ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED
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
_TOKENS = text("""
    DELETE FROM idempotency WHERE (key_id, token) IN (
        SELECT key_id, token FROM idempotency WHERE created_at < now() - make_interval(hours => :hours) LIMIT :most
    )
""")
# A flow whose last finish its lane has passed says nothing that the lane's virtual time does not, unless it has a weight of its own.
_FLOWS = text("""
    DELETE FROM flow WHERE (lane_id, name) IN (
        SELECT flow.lane_id, flow.name FROM flow JOIN lane ON lane.id = flow.lane_id
        WHERE flow.last_finish < lane.low_water AND flow.weight = 1 LIMIT :most
    )
""")
# Their ids begin with the time in milliseconds, so the oldest are found along the primary key. What is on its way stays.
_DELIVERIES = text("""
    DELETE FROM delivery WHERE id IN (
        SELECT id FROM delivery WHERE status IN ('delivered', 'failed') AND id < (
            lpad(to_hex((extract(epoch FROM now() - make_interval(days => :days)) * 1000)::bigint), 12, '0') || repeat('0', 20)
        )::uuid ORDER BY id LIMIT :most
    ) AND status IN ('delivered', 'failed')
""")
_ENDPOINTS = text("""
    DELETE FROM webhook_endpoint AS endpoint WHERE deleted_at < now() - make_interval(days => :days)
    AND NOT EXISTS (SELECT FROM delivery WHERE endpoint_id = endpoint.id)
""")
_ATTACHMENTS = text("""
    DELETE FROM artifact WHERE id IN (
        SELECT id FROM artifact WHERE conversation_id IS NOT NULL AND created_at < now() - make_interval(days => :days) LIMIT :most
    )
""")
# A turn that is being submitted right now holds its conversation's row.
_SESSIONS = text("""
    DELETE FROM conversation WHERE id IN (
        SELECT id FROM conversation AS talk WHERE last_active_at < now() - make_interval(days => :days)
        AND NOT EXISTS (SELECT FROM job WHERE conversation_id = talk.id) LIMIT :most FOR UPDATE SKIP LOCKED
    )
""")
# How a receiver does is of no interest when nothing waits for it; an endpoint's is, for as long as there is the endpoint.
_RECEIVERS = text("""
    DELETE FROM receiver WHERE name IN (
        SELECT name FROM receiver WHERE NOT EXISTS (SELECT FROM delivery WHERE delivery.receiver = receiver.name AND status = 'pending')
        AND NOT EXISTS (
            SELECT FROM webhook_endpoint WHERE deleted_at IS NULL AND 'whe_' || replace(id::text, '-', '') = receiver.name
        ) LIMIT :most
    )
""")
