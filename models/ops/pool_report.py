"""Pools and their credentials for operators: what is parked or paused and why, limits, usage, and recent outcomes.

It never contains a secret: user, password and query of a credential's address are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import text

from models.database.db import Transaction
from models.ops import limit_usage
from models.ops.lane_report import usage_to_json
from models.ops.limit_usage import CredentialUsage
from models.platform.wire import JsonObject, epoch

# Per credential: models of its pool's lanes with most waiting jobs, and newest attempts for the error rates.
MAX_MODELS = 20
RECENT_S, MAX_RECENT = 600, 200
FAILURES = ("failed", "throttled", "refused", "unknown")


_POOLS = text("""
    WITH live AS MATERIALIZED (SELECT lane_id FROM job WHERE status IN ('admitted', 'running'))
    SELECT pool.*, used.keys, given.credentials, given.parked, lined.lanes, lined.waiting, lined.running
    FROM (
        SELECT * FROM pool WHERE (CAST(:after AS bigint) IS NULL OR id > :after)
        AND (CAST(:kind AS text) IS NULL OR (:kind = 'own') = EXISTS (SELECT FROM key WHERE pool_id = pool.id AND kind = 'own'))
        ORDER BY id LIMIT :limit
    ) AS pool
    CROSS JOIN LATERAL (SELECT count(*)::int AS keys FROM key WHERE pool_id = pool.id AND revoked_at IS NULL) AS used
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS credentials, (count(*) FILTER (
            WHERE parked_at IS NOT NULL OR EXISTS (SELECT FROM parked_model WHERE credential_id = credential.id)
        ))::int AS parked FROM credential WHERE pool_id = pool.id
    ) AS given
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS lanes, coalesce(sum(queued), 0)::int AS waiting,
               (SELECT count(*)::int FROM live WHERE lane_id IN (SELECT id FROM lane WHERE pool_id = pool.id)) AS running
        FROM lane WHERE pool_id = pool.id
    ) AS lined
    ORDER BY pool.id
""")


def list_pools(session: Transaction, *, limit: int, after: int | None, kind: str | None) -> list[JsonObject]:
    """Returns up to limit + 1 pools by id. kind: `own` for pools of callers' own keys, `issued` for the operator's."""
    rows = session.execute(_POOLS, {"after": after, "limit": limit + 1, "kind": kind}).all()
    return [
        {
            "id": row.id,
            "object": "pool",
            "name": row.name,
            "paused": {"at": epoch(row.paused_at), "reason": row.paused_reason} if row.paused_at else None,
            "is_draining": row.draining_at is not None,
            "keys": row.keys,
            "credentials": row.credentials,
            "parked": row.parked,
            "lanes": row.lanes,
            "waiting": row.waiting,
            "running": row.running,
            "created_at": epoch(row.created_at),
        }
        for row in rows
    ]


_CREDENTIALS = text("""
    SELECT credential.id, credential.pool_id, pool.name AS pool, credential.kind, credential.base_url, credential.api_version,
           credential.parked_at, credential.parked_reason,
           credential.weight, credential.paused_at, credential.paused_reason, credential.retired_at, credential.created_at,
           parked.models AS parked_models
    FROM credential JOIN pool ON pool.id = credential.pool_id
    CROSS JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object(
            'model', model, 'endpoint', endpoint, 'reason', reason, 'at', round(extract(epoch FROM parked_at), 3),
            'next_probe_at', round(extract(epoch FROM probe_at), 3)
        ) ORDER BY model, endpoint) AS models FROM parked_model WHERE credential_id = credential.id
    ) AS parked
    WHERE (CAST(:after AS bigint) IS NULL OR credential.id > :after) AND (CAST(:pool AS text) IS NULL OR pool.name = :pool)
    AND (CAST(:is_parked AS boolean) IS NULL OR (credential.parked_at IS NOT NULL OR parked.models IS NOT NULL) = :is_parked)
    ORDER BY credential.id LIMIT :limit
""")
_MODELS = text("""
    SELECT credential.id AS credential_id, lane.model FROM credential
    CROSS JOIN LATERAL (
        SELECT model, queued FROM lane WHERE pool_id = credential.pool_id ORDER BY queued DESC, model LIMIT :model_limit
    ) AS lane
    WHERE credential.id = ANY(:ids) ORDER BY credential.id, lane.queued DESC, lane.model
""")


def list_credentials(session: Transaction, *, limit: int, after: int | None, pool: str | None, is_parked: bool | None) -> list[JsonObject]:
    """Returns up to limit + 1 credentials by id, each with the models that it serves."""
    params = {"after": after, "limit": limit + 1, "pool": pool, "is_parked": is_parked}
    rows = session.execute(_CREDENTIALS, params).all()
    served = session.execute(_MODELS, {"ids": [row.id for row in rows], "model_limit": MAX_MODELS}).all() if rows else []
    bounds = [(one.credential_id, one.model) for one in served]
    usages = limit_usage.usage_of(session, bounds)
    ends = _recent(session, bounds)
    return [
        _to_json(row, [_model(name, usages[number, name], ends.get((number, name))) for number, name in bounds if number == row.id])
        for row in rows
    ]


def _to_json(row: Any, models: Sequence[JsonObject]) -> JsonObject:
    return {
        "id": row.id,
        "object": "credential",
        "pool": {"id": row.pool_id, "name": row.pool},
        "kind": row.kind,
        "base_url": _without_secrets(row.base_url),
        "api_version": row.api_version,
        "weight": row.weight,
        "parked": {"at": epoch(row.parked_at), "reason": row.parked_reason} if row.parked_at else None,
        "parked_models": row.parked_models or [],
        "paused": {"at": epoch(row.paused_at), "reason": row.paused_reason} if row.paused_at else None,
        "retired_at": epoch(row.retired_at),
        "models": list(models),
        "created_at": epoch(row.created_at),
    }


def _model(name: str, reading: CredentialUsage, ends: Any | None) -> JsonObject:
    state = reading.state
    calls = ends.calls if ends else 0
    return {
        "model": name,
        "limits": {each: usage_to_json(one) for each, one in reading.gauges.items()},
        "operator_limits": dict(vars(state.limits)),
        "learned": {"rpm": state.learned_rpm, "tpm": state.learned_tpm, "window": state.window_size},
        "paused_until": epoch(reading.cooldown_until) if ends is not None and ends.is_paused else None,
        "recent": {
            "seconds": RECENT_S,
            "calls": calls,
            "outcomes": dict(ends.outcomes) if ends else {},
            "error_rate": round(sum(ends.outcomes.get(each, 0) for each in FAILURES) / calls, 3) if ends and calls else None,
            "usual_s": None if ends is None or ends.usual_s is None else round(ends.usual_s, 2),
        },
    }


_ENDS = text("""
    SELECT pair.credential_id, pair.model, ended.calls, ended.outcomes, ended.usual_s,
           EXISTS (
               SELECT FROM meter WHERE credential_id = pair.credential_id AND model = pair.model AND cooldown_until > now()
           ) AS is_paused
    FROM unnest(CAST(:credentials AS bigint[]), CAST(:models AS text[])) AS pair (credential_id, model)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(n), 0)::int AS calls, coalesce(jsonb_object_agg(outcome, n) FILTER (WHERE n > 0), '{}') AS outcomes,
               (sum(took_s) FILTER (WHERE outcome = 'succeeded') / greatest(1, sum(n) FILTER (WHERE outcome = 'succeeded')))::float8
               AS usual_s
        FROM (
            SELECT outcome, count(*)::int AS n, sum(extract(epoch FROM ended_at - started_at)) AS took_s FROM (
                SELECT outcome, started_at, ended_at FROM attempt
                WHERE credential_id = pair.credential_id AND model = pair.model
                AND started_at > now() - make_interval(secs => :seconds) ORDER BY started_at DESC LIMIT :limit
            ) AS recent WHERE outcome NOT IN ('running', 'not_sent') GROUP BY outcome
        ) AS by_outcome
    ) AS ended
""")


def _recent(session: Transaction, bounds: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Any]:
    if not bounds:
        return {}
    params = {"credentials": [one[0] for one in bounds], "models": [one[1] for one in bounds], "seconds": RECENT_S, "limit": MAX_RECENT}
    return {(row.credential_id, row.model): row for row in session.execute(_ENDS, params)}


def _without_secrets(base_url: str | None) -> str | None:
    if base_url is None:
        return None
    parts = urlsplit(base_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
