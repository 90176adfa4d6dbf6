"""Job search for operators: by id, key, user, status, lane, pool, model and time. It never returns requests, answers or attachments.

One search scans at most MAX_SCANNED jobs, newest first, however many match; the next page continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.jobs import job_view
from models.jobs.states import Status
from models.platform import wire
from models.platform.wire import JsonObject, epoch
from models.queue import position

MAX_SCANNED = 20_000
# Most searches find a full page among the first jobs.
FIRST_SCAN = 1_000


@dataclass(frozen=True)
class JobQuery:
    """Conditions of a search; None matches any. key: id or name of the key. user: the flow. since, until: time of the submit."""

    id: UUID | None = None
    key: str | None = None
    user: str | None = None
    status: Status | None = None
    lane: int | None = None
    pool: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class JobPage:
    """One page of results. next_after: where the next page continues; None: every job was scanned."""

    jobs: list[JsonObject]
    next_after: UUID | None


_SHOWING = """
    SELECT job.id, job.lane_id, job.status, job.held, job.flow, job.priority, job.start_tag, job.endpoint, job.model, job.conversation_id,
           job.turn, job.not_before, job.key_id, job.created_at, job.started_at, job.ended_at, job.calls, job.credential_id,
           job.cancel_requested, job.http_status, job.error, now() AS now, key.name AS key_name, key.kind AS key_kind, pool.name AS pool
    FROM job JOIN key ON key.id = job.key_id JOIN pool ON pool.id = key.pool_id
"""
_ONE = text(f"{_SHOWING} WHERE job.id = :id")
_SHOWN = text(f"{_SHOWING} WHERE job.id = ANY(:ids) ORDER BY job.id DESC")
_LOOKED = """
    WITH looked AS MATERIALIZED (
        SELECT id, lane_id, flow, model, status, key_id FROM job
        WHERE id >= :low AND id < :high AND (CAST(:after AS uuid) IS NULL OR id < :after) AND {where} ORDER BY id DESC LIMIT :looked
    )
    SELECT (SELECT count(*)::int FROM looked) AS looked, (SELECT id FROM looked ORDER BY id LIMIT 1) AS last, ARRAY(
        SELECT id FROM looked
        WHERE (CAST(:user AS text) IS NULL OR flow = :user) AND (CAST(:status AS text) IS NULL OR status = :status)
        -- A lane may be deleted before its jobs.
        AND (CAST(:lane AS bigint) IS NULL OR lane_id = :lane) AND (CAST(:model AS text) IS NULL OR model = :model)
        AND (CAST(:pool_id AS bigint) IS NULL OR EXISTS (SELECT FROM key WHERE key.id = looked.key_id AND key.pool_id = :pool_id))
        AND (cardinality(CAST(:key_ids AS bigint[])) = 0 OR key_id = ANY(:key_ids)) ORDER BY id DESC LIMIT :limit
    ) AS fits
"""
_NEWEST = text(_LOOKED.format(where="true"))
_BY_KEY = text(_LOOKED.format(where="key_id = ANY(CAST(:key_ids AS bigint[]))"))
# Live jobs are as few as the slots of the workers, and may be older than any number of waiting jobs.
_LIVE = text(_LOOKED.format(where="status IN ('admitted', 'running')"))


def search(session: Transaction, query: JobQuery, *, limit: int, after: UUID | None) -> JobPage:
    """Returns up to `limit` matching jobs, newest first. A page may be empty although later pages are not (next_after)."""
    params = _params(session, query) if query.id is None else {"id": query.id}
    if params is None:
        return JobPage([], None)
    if query.id is not None:
        rows = session.execute(_ONE, params).all()
        return JobPage(_show_all(session, rows), None)
    statement = _LIVE if query.status in (Status.ADMITTED, Status.RUNNING) else _BY_KEY if params["key_ids"] else _NEWEST
    for looked in (FIRST_SCAN, MAX_SCANNED):
        seen = session.execute(statement, {**params, "after": after, "looked": looked, "limit": limit + 1}).one()
        if len(seen.fits) > limit or seen.looked < looked:
            break
    ids = list(seen.fits[:limit])
    rows = session.execute(_SHOWN, {"ids": ids}).all() if ids else []
    if len(seen.fits) > limit:
        return JobPage(_show_all(session, rows), ids[-1])
    return JobPage(_show_all(session, rows), seen.last if seen.looked == looked else None)


_KEYS = text("SELECT id FROM key WHERE id::text = :key OR name = :key LIMIT 100")
_POOL = text("SELECT id FROM pool WHERE name = :pool")


def _params(session: Transaction, query: JobQuery) -> Mapping[str, Any] | None:
    """Returns the parameters of the statements; None if there is no such key or pool."""
    key_ids = [row.id for row in session.execute(_KEYS, {"key": query.key})] if query.key is not None else []
    pool = session.execute(_POOL, {"pool": query.pool}).one_or_none() if query.pool is not None else None
    if (query.key is not None and not key_ids) or (query.pool is not None and pool is None):
        return None
    return {
        "key_ids": key_ids, "lane": query.lane, "pool_id": None if pool is None else pool.id, "model": query.model,
        "user": query.user, "status": query.status,
        "low": _first_id(query.since) if query.since else UUID(int=0),
        "high": _first_id(query.until) if query.until else UUID(int=2**128 - 1),
    }  # fmt: skip


def _first_id(at: datetime) -> UUID:
    """Returns the lowest id of jobs submitted at this time or later: ids are UUIDv7."""
    return UUID(int=max(0, min(int(at.timestamp() * 1000), 2**48 - 1)) << 80)


def _show_all(session: Transaction, rows: Sequence[Any]) -> list[JsonObject]:
    places = position.positions_of(session, [row for row in rows if row.status == Status.QUEUED])
    return [_show(row, places.get(row.id)) for row in rows]


def _show(row: Any, place: position.QueuePosition | None) -> JsonObject:
    waited_to = row.started_at or row.ended_at or row.now
    return {
        "id": wire.public_id(row.id),
        "object": "job",
        "status": row.status,
        "queue": None if place is None else job_view.render_position(place),
        "key": {"id": row.key_id, "name": row.key_name, "kind": row.key_kind},
        "lane": row.lane_id,
        "pool": row.pool,
        "endpoint": row.endpoint,
        "model": row.model,
        "user": row.flow,
        "priority": row.priority,
        "created_at": epoch(row.created_at),
        "started_at": epoch(row.started_at),
        "ended_at": epoch(row.ended_at),
        "waited_s": round(max(0.0, (waited_to - row.created_at).total_seconds()), 1),
        "attempts": row.calls,
        "credential": row.credential_id,
        "cancel_requested": row.cancel_requested,
        "http_status": row.http_status,
        # Without the message: it may quote the request.
        "error_code": (row.error or {}).get("code") or (row.error or {}).get("type"),
    }
