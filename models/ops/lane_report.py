"""Lanes for operators: waiting jobs, what blocks them, how long they wait, and what is left of each limit.

No figure counts all waiting jobs: each lane is scanned from the head of its queue up to MAX_SCANNED jobs. Beyond that, the reaper's last
count is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.ops import limit_usage
from models.ops.limit_usage import LimitUsage
from models.platform.wire import JsonObject, epoch
from models.queue import position

MAX_SCANNED = 1_000
# Newest submits that are scanned for the arrival rates.
MAX_ARRIVALS = 5_000


@dataclass(frozen=True)
class LaneFilter:
    """Filter and order of lanes. by_waiting: longest queues first instead of by id. is_busy: only lanes with waiting or running jobs."""

    pool: str | None = None
    model: str | None = None
    is_busy: bool = False
    by_waiting: bool = False


@dataclass(frozen=True)
class _Ahead:
    jobs: float
    tokens: float
    images: float


_HEADS = text("""
    SELECT lane.id AS lane_id, head.* FROM lane
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS jobs, coalesce(sum(tokens), 0) AS tokens, coalesce(sum(images), 0) AS images, min(created_at) AS oldest_at
        FROM (
            SELECT tokens, images, created_at FROM job
            WHERE lane_id = lane.id AND status = 'queued' AND NOT held LIMIT :limit
        ) AS one
    ) AS head
    WHERE lane.id = ANY(:ids)
""")
# Ids sort by time, so the newest submits are one index range. With more submits in a minute than are scanned, the rate is measured from
# the first scanned one.
_RATES = text("""
    WITH newest AS MATERIALIZED (
        SELECT lane_id, created_at FROM job WHERE id > (
            rpad(lpad(to_hex((extract(epoch FROM now() - interval '1 minute') * 1000)::bigint), 12, '0'), 32, '0')
        )::uuid ORDER BY id DESC LIMIT :limit
    ), looked AS (
        SELECT CASE WHEN count(*) < :limit THEN 60 ELSE greatest(1, extract(epoch FROM now() - min(created_at)))::float8 END AS seconds
        FROM newest
    )
    SELECT lane_id, round((count(*) * 60 / (SELECT seconds FROM looked))::numeric, 1)::float8 AS arrivals_per_min FROM newest
    WHERE lane_id = ANY(:ids) GROUP BY lane_id
""")


def list_lanes(session: Transaction, which: LaneFilter, *, limit: int, after: int | None) -> list[JsonObject]:
    """Returns up to limit + 1 lanes as JSON. after: id of the last lane of the previous page."""
    rows = session.execute(_page(which), {**vars(which), "limit": limit + 1, "after": after}).all()
    if not rows:
        return []
    ids = [row.id for row in rows]
    heads = {row.lane_id: row for row in session.execute(_HEADS, {"ids": ids, "limit": MAX_SCANNED})}
    rates = {row.lane_id: row for row in session.execute(_RATES, {"ids": ids, "limit": MAX_ARRIVALS})}
    credential_ids = _credentials(session, rows)
    usages = limit_usage.usage_of(session, [(number, row.model) for row in rows for number in credential_ids[row.id]])
    limits = {row.id: limit_usage.combine([usages[number, row.model] for number in credential_ids[row.id]]) for row in rows}
    return [_to_json(row, heads[row.id], rates.get(row.id), limits[row.id]) for row in rows]


_CREDENTIALS = text("""
    SELECT id, pool_id FROM credential
    WHERE pool_id = ANY(:pools) AND parked_at IS NULL AND paused_at IS NULL AND retired_at IS NULL ORDER BY id
""")


def _credentials(session: Transaction, rows: Sequence[Any]) -> Mapping[int, list[int]]:
    by_pool: dict[int, list[int]] = {}
    for row in session.execute(_CREDENTIALS, {"pools": sorted({row.pool_id for row in rows})}):
        by_pool.setdefault(row.pool_id, []).append(row.id)
    return {row.id: by_pool.get(row.pool_id, []) for row in rows}


def _to_json(row: Any, head: Any, rates: Any | None, limits: Mapping[str, LimitUsage]) -> JsonObject:
    waiting = head.jobs if head.jobs < MAX_SCANNED else max(head.jobs, row.queued)
    return {
        "id": row.id,
        "object": "lane",
        "pool": {"id": row.pool_id, "name": row.pool},
        "model": row.model,
        "waiting": waiting,
        "admitted": row.admitted,
        "running": row.running,
        "oldest_wait_s": _oldest_s(row, head),
        "arrivals_per_min": rates.arrivals_per_min if rates else 0.0,
        "calls_per_min": limits["rpm"].used or 0,
        "limits": {name: usage_to_json(usage) for name, usage in limits.items()},
        "usual_s": None if row.usual_s is None else round(row.usual_s, 2),
        "blocked_by": "paused" if row.is_paused else row.blocked_by if waiting else None,
        "wake_at": epoch(row.wake_at) if row.blocked_by and row.wake_in_s > 0 and not row.is_paused else None,
        "eta_last_s": _eta_last_s(row, head, waiting),
        "paused": {"at": epoch(row.since), "reason": row.reason} if row.is_paused else None,
        "is_draining": row.is_draining,
    }


def usage_to_json(usage: LimitUsage) -> JsonObject:
    """Returns {limit, used, left} of one limit."""
    return {"limit": usage.limit, "used": usage.used, "left": usage.left}


def _oldest_s(row: Any, head: Any) -> float | None:
    """Returns the longest wait in this queue: of the scanned jobs, and of all jobs at the reaper's last count."""
    if head.oldest_at is None:
        return None
    seen = [head.oldest_at, *([row.oldest_at] if row.oldest_at is not None and head.jobs >= MAX_SCANNED else [])]
    return round(max(0.0, float((row.now - min(seen)).total_seconds())), 1)


def _eta_last_s(row: Any, head: Any, waiting: int) -> float | None:
    """Estimates when the last job of the queue goes. Jobs that were not scanned count like the average scanned one."""
    if row.is_paused or not waiting:
        return None
    times = (waiting - 1) / head.jobs
    return position.estimate_s(row, _Ahead(jobs=waiting - 1, tokens=float(head.tokens) * times, images=float(head.images) * times))


_LIVE = "SELECT lane_id, status FROM job WHERE status IN ('admitted', 'running')"
_ROWS = f"""
    WITH live AS MATERIALIZED (
        SELECT lane_id, count(*) FILTER (WHERE status = 'admitted')::int AS admitted,
               count(*) FILTER (WHERE status = 'running')::int AS running
        FROM ({_LIVE}) AS job GROUP BY lane_id
    )
    SELECT lane.*, pool.name AS pool, now() AS now, coalesce(live.admitted, 0) AS admitted, coalesce(live.running, 0) AS running,
           coalesce(extract(epoch FROM lane.wake_at - now()), 0)::float8 AS wake_in_s,
           lane.paused_at IS NOT NULL OR pool.paused_at IS NOT NULL AS is_paused,
           lane.draining_at IS NOT NULL OR pool.draining_at IS NOT NULL AS is_draining,
           coalesce(lane.paused_at, pool.paused_at) AS since, coalesce(lane.paused_reason, pool.paused_reason) AS reason
    FROM lane JOIN pool ON pool.id = lane.pool_id LEFT JOIN live ON live.lane_id = lane.id
    WHERE (CAST(:pool AS text) IS NULL OR pool.name = :pool) AND (CAST(:model AS text) IS NULL OR lane.model = :model)
    AND (NOT :is_busy OR lane.wake_at IS NOT NULL OR lane.paused_at IS NOT NULL OR live.lane_id IS NOT NULL)
"""
_BY_ID = text(f"{_ROWS} AND (CAST(:after AS bigint) IS NULL OR lane.id > :after) ORDER BY lane.id LIMIT :limit")
_BY_WAITING = text(f"""
    {_ROWS} AND (CAST(:after AS bigint) IS NULL OR (lane.queued, lane.id) < (SELECT queued, id FROM lane WHERE id = :after))
    ORDER BY lane.queued DESC, lane.id DESC LIMIT :limit
""")


def _page(which: LaneFilter) -> Any:
    return _BY_WAITING if which.by_waiting else _BY_ID
