"""Flows for operators: how many jobs of each user wait in a lane, since when, and how many run.

Only the first MAX_SCANNED jobs of each queue are counted; for a longer queue `is_whole` is false.
"""

from __future__ import annotations

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.wire import JsonObject, epoch

MAX_SCANNED = 10_000
# Without a lane: this many of the longest queues, and fewer jobs of each.
MAX_LANES, MAX_SCANNED_EACH = 20, 1_000


_RANKED = text("""
    WITH line AS MATERIALIZED (
        SELECT id FROM lane
        WHERE (CAST(:lane AS bigint) IS NOT NULL AND id = :lane) OR (CAST(:lane AS bigint) IS NULL AND wake_at IS NOT NULL)
        ORDER BY queued DESC, id LIMIT :lane_limit
    ), head AS MATERIALIZED (
        -- The same number of jobs of every key, as far as they go.
        SELECT line.id AS lane_id, share.key_id, one.flow, one.created_at, one.cut
        FROM line JOIN key_share AS share ON share.lane_id = line.id
        CROSS JOIN LATERAL (
            SELECT flow, created_at, row_number() OVER () = part.job_limit AS cut FROM (
                SELECT greatest(1, :limit / (SELECT count(*) FROM key_share AS each WHERE each.lane_id = line.id))::int AS job_limit
            ) AS part CROSS JOIN LATERAL (
                SELECT flow, created_at FROM job WHERE lane_id = line.id AND key_id = share.key_id AND status = 'queued' AND NOT held
                AND start_tag >= share.low_water ORDER BY start_tag, id LIMIT part.job_limit
            ) AS first
        ) AS one
    ), live AS MATERIALIZED (
        SELECT lane_id, key_id, flow FROM job WHERE status IN ('admitted', 'running') AND (CAST(:lane AS bigint) IS NULL OR lane_id = :lane)
    ), looked AS (
        SELECT lane_id, bool_or(cut) AS is_cut FROM head GROUP BY lane_id
    ), counted AS (
        SELECT lane_id, key_id, flow, count(*) FILTER (WHERE waits)::int AS waiting, count(*) FILTER (WHERE NOT waits)::int AS running,
               min(created_at) AS oldest_at
        FROM (
            SELECT lane_id, key_id, flow, created_at, true AS waits FROM head UNION ALL SELECT lane_id, key_id, flow, NULL, false FROM live
        ) AS one
        WHERE CAST(:user AS text) IS NULL OR flow = :user GROUP BY lane_id, key_id, flow
    )
    SELECT counted.lane_id, counted.key_id, key.name AS key_name, key.kind AS key_kind, counted.flow AS name,
           counted.waiting, counted.running,
           counted.oldest_at, now() AS now,
           coalesce(flow.weight, 1) AS weight, lane.model, pool.name AS pool, coalesce(looked.is_cut, false) AS is_cut,
           halted.paused_at, halted.paused_reason, halted.draining_at
    FROM counted JOIN lane ON lane.id = counted.lane_id JOIN pool ON pool.id = lane.pool_id JOIN key ON key.id = counted.key_id
    LEFT JOIN looked ON looked.lane_id = counted.lane_id
    LEFT JOIN key_flow AS flow
        ON flow.lane_id = counted.lane_id AND flow.key_id = counted.key_id AND flow.name = counted.flow
    LEFT JOIN cap AS halted ON halted.scope = 'flow' AND halted.owner_id = counted.lane_id AND halted.key_id = counted.key_id
        AND halted.flow = counted.key_id || ':' || counted.flow AND halted.endpoint = ''
    ORDER BY counted.waiting DESC, counted.running DESC, counted.lane_id, counted.key_id, counted.flow LIMIT 10000
""")


def list_flows(session: Transaction, *, lane: int | None, user: str | None) -> list[JsonObject]:
    """Returns the flows with waiting or running jobs in this lane, or in the longest queues; most waiting jobs first."""
    params = {
        "lane": lane, "user": user, "lane_limit": 1 if lane is not None else MAX_LANES,
        "limit": MAX_SCANNED if lane is not None else MAX_SCANNED_EACH,
    }  # fmt: skip
    return [
        {
            "id": f"{row.lane_id}.{row.key_id}:{row.name}",
            "object": "flow",
            "lane": row.lane_id,
            "pool": row.pool,
            "model": row.model,
            "key": {"id": row.key_id, "name": row.key_name, "kind": row.key_kind},
            "user": row.name,
            "weight": row.weight,
            "waiting": row.waiting,
            "running": row.running,
            "oldest_wait_s": None if row.oldest_at is None else round(max(0.0, (row.now - row.oldest_at).total_seconds()), 1),
            "oldest_at": epoch(row.oldest_at),
            "paused": {"at": epoch(row.paused_at), "reason": row.paused_reason} if row.paused_at else None,
            "is_draining": row.draining_at is not None,
            "is_whole": not row.is_cut,
        }
        for row in session.execute(_RANKED, params)
    ]
