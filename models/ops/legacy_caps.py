"""Caps set before migration 0016, which belong to a user of any key."""

from __future__ import annotations

from sqlalchemy import text

from models.database.db import Transaction

_SPLIT = text("""
    WITH old AS (
        DELETE FROM cap WHERE scope = 'flow' AND owner_id = :lane_id AND flow = :flow AND key_id = 0 RETURNING *
    )
    INSERT INTO cap (scope, owner_id, flow, endpoint, key_id, max_queued, max_in_flight, rpm, paused_at, paused_reason, draining_at)
    SELECT old.scope, old.owner_id, each.key_id || ':' || old.flow, old.endpoint, each.key_id, old.max_queued, old.max_in_flight, old.rpm,
           old.paused_at, old.paused_reason, old.draining_at
    FROM old JOIN key_flow AS each ON each.lane_id = old.owner_id AND each.name = old.flow
    ON CONFLICT (scope, owner_id, flow, endpoint) DO UPDATE SET
        max_queued = coalesce(cap.max_queued, excluded.max_queued), max_in_flight = coalesce(cap.max_in_flight, excluded.max_in_flight),
        rpm = coalesce(cap.rpm, excluded.rpm), paused_at = coalesce(cap.paused_at, excluded.paused_at),
        paused_reason = coalesce(cap.paused_reason, excluded.paused_reason), draining_at = coalesce(cap.draining_at, excluded.draining_at)
""")


def split_legacy_caps(session: Transaction, *, lane_id: int, user: str) -> None:
    """Replaces caps set before 0016 for this user of any key by caps of this user of each key: else they could not be lifted.

    user: empty: no user, and nothing happens.
    """
    if user:
        session.execute(_SPLIT, {"lane_id": lane_id, "flow": user})
