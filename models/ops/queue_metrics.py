"""Figures for Prometheus gauges: lanes by pool and model, parked credentials, unsent webhooks, retention backlog."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.ops import retention
from models.telemetry.metrics import POOL_LABEL

# Ids are UUIDv7: the lowest id is the oldest job, and the index of the queue contains it.
_LANES = text(f"""
    WITH counted AS (
        SELECT lane_id, count(*) AS waiting, 0 AS running, min(id::text COLLATE "C") AS first
        FROM job WHERE status = 'queued' AND NOT held GROUP BY lane_id
        UNION ALL SELECT lane_id, 0, count(*), NULL FROM job WHERE status IN ('admitted', 'running') GROUP BY lane_id
    )
    SELECT {POOL_LABEL} AS pool, lane.model, CASE WHEN lane.paused_at IS NULL THEN lane.blocked_by ELSE 'paused' END AS blocked_by,
           sum(waiting)::int AS waiting, sum(running)::int AS running,
           coalesce(extract(epoch FROM clock_timestamp())
                    - ('x' || replace(left(min(first), 13), '-', ''))::bit(48)::bigint / 1000.0, 0)::float8 AS oldest_s
    FROM counted JOIN lane ON lane.id = counted.lane_id JOIN pool ON pool.id = lane.pool_id GROUP BY lane.id, pool.id
""")


def lane_counts(session: Transaction) -> Sequence[Any]:
    """Returns every lane with waiting or running jobs. Rows: pool, model, blocked_by, waiting, running, oldest_s."""
    return session.execute(_LANES).all()


_USE = text(f"""
    SELECT {POOL_LABEL} AS pool, lane.model, recent.requests / nullif(lane.rpm, 0) AS rpm, recent.tokens / nullif(lane.tpm, 0) AS tpm,
           (SELECT count(*) FROM job WHERE job.lane_id = lane.id AND job.status IN ('admitted', 'running'))
           / nullif(lane.max_in_flight, 0) AS in_flight
    FROM lane JOIN pool ON pool.id = lane.pool_id CROSS JOIN LATERAL (
        SELECT count(*)::float8 AS requests, coalesce(sum(tokens), 0)::float8 AS tokens
        FROM attempt JOIN credential ON credential.id = attempt.credential_id
        WHERE credential.pool_id = pool.id AND attempt.model = lane.model AND attempt.started_at > now() - interval '60 s'
    ) AS recent
    WHERE (lane.rpm IS NOT NULL OR lane.tpm IS NOT NULL OR lane.max_in_flight IS NOT NULL)
    AND NOT EXISTS (SELECT FROM key WHERE key.pool_id = pool.id AND key.kind = 'own')
""")


def limit_use(session: Transaction) -> Sequence[Any]:
    """Returns the used share of each limit in the last minute, for lanes of issued keys. Rows: pool, model, rpm, tpm, in_flight."""
    return session.execute(_USE).all()


_PARKED = text(f"""
    SELECT pool, count(*)::int AS parked FROM (
        SELECT {POOL_LABEL} AS pool FROM credential JOIN pool ON pool.id = credential.pool_id
        WHERE credential.parked_at IS NOT NULL OR EXISTS (SELECT FROM parked_model WHERE credential_id = credential.id)
    ) AS by_credential GROUP BY pool
""")


def parked_credentials(session: Transaction) -> Sequence[Any]:
    """Returns the number of parked credentials by pool. Rows: pool, parked."""
    return session.execute(_PARKED).all()


_TOTALS = text("""
    SELECT coalesce((SELECT sum(slots) FROM worker WHERE seen_at > now() - make_interval(secs => :seen_within_s)), 0)::int AS slots,
           (SELECT count(*) FROM delivery WHERE status = 'pending')::int AS unsent
""")


def totals(session: Transaction, *, seen_within_s: float) -> Any:
    """Returns one row: slots of workers with a heartbeat within this time, and webhooks that are not delivered yet."""
    return session.execute(_TOTALS, {"seen_within_s": seen_within_s}).one()


_BACKLOG = text(f"""
    SELECT count(*)::int AS jobs, coalesce(extract(epoch FROM :before - min(ended_at)), 0)::float8 AS age_s
    FROM (SELECT ended_at FROM job WHERE id < {retention.OLD_ID} AND {retention.ENDED} ORDER BY id LIMIT :limit) AS overdue
""")


def retention_backlog(session: Transaction, *, days: int, limit: int) -> Any:
    """Returns one row of ended jobs past retention: jobs (counted up to `limit`), age_s of the oldest by id (0.0 if none)."""
    return session.execute(_BACKLOG, {"before": retention.database_now(session) - timedelta(days=days), "limit": limit}).one()
