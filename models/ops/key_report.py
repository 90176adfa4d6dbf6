"""Keys for operators: owner, pause, caps, and numbers of waiting and running jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.wire import JsonObject, epoch

# Jobs counted per key; beyond it the figures stop.
MAX_COUNT = 1_000


_KEYS = text("""
    SELECT key.id, key.kind, key.name, key.pool_id, pool.name AS pool, key.created_at, key.revoked_at,
           held.paused_at, held.paused_reason, held.draining_at, bound.caps, open.waiting, open.running
    FROM (
        SELECT * FROM key WHERE (CAST(:after AS bigint) IS NULL OR id > :after)
        AND (CAST(:kind AS text) IS NULL OR kind = :kind) AND (CAST(:name AS text) IS NULL OR name = :name)
        ORDER BY id LIMIT :limit
    ) AS key
    JOIN pool ON pool.id = key.pool_id
    LEFT JOIN cap AS held ON held.scope = 'key' AND held.owner_id = key.id AND held.flow = '' AND held.endpoint = ''
    CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_agg(
            jsonb_build_object('endpoint', nullif(endpoint, ''), 'max_queued', max_queued, 'max_in_flight', max_in_flight, 'rpm', rpm)
            ORDER BY endpoint
        ), '[]') AS caps FROM cap
        WHERE scope = 'key' AND owner_id = key.id AND coalesce(max_queued, max_in_flight, rpm) IS NOT NULL
    ) AS bound
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE status = 'queued')::int AS waiting, count(*) FILTER (WHERE status <> 'queued')::int AS running
        FROM (
            SELECT status FROM job WHERE key_id = key.id AND status IN ('queued', 'admitted', 'running') LIMIT :count_limit
        ) AS counted
    ) AS open
    ORDER BY key.id
""")


def list_keys(session: Transaction, *, limit: int, after: int | None, kind: str | None, name: str | None) -> list[JsonObject]:
    """Returns up to limit + 1 keys by id, never their secrets. kind: `own` or `issued`; name: exact name of the keys."""
    params = {"after": after, "limit": limit + 1, "kind": kind, "name": name, "count_limit": MAX_COUNT}
    return [_to_json(row) for row in session.execute(_KEYS, params)]


def _to_json(row: Any) -> JsonObject:
    return {
        "id": row.id,
        "object": "key",
        "name": row.name,
        "kind": row.kind,
        "pool": {"id": row.pool_id, "name": row.pool},
        "paused": {"at": epoch(row.paused_at), "reason": row.paused_reason} if row.paused_at else None,
        "is_draining": row.draining_at is not None,
        "caps": row.caps,
        "waiting": row.waiting,
        "running": row.running,
        "created_at": epoch(row.created_at),
        "revoked_at": epoch(row.revoked_at),
    }
