"""Heartbeats of the worker processes: how many jobs each can run at once, and which jobs it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction
from models.platform import wire
from models.platform.wire import JsonObject, epoch

_RECORD = text("""
    INSERT INTO worker (name, slots, jobs, seen_at) VALUES (:name, :slots, CAST(:jobs AS uuid[]), now())
    ON CONFLICT (name) DO UPDATE SET slots = excluded.slots, jobs = excluded.jobs, seen_at = excluded.seen_at
""")


def record_heartbeat(session: Transaction, name: str, *, slots: int, jobs: Sequence[UUID] = ()) -> None:
    """Records that this process is alive and can run `slots` jobs at once; 0 while it drains. jobs: those it runs now."""
    session.execute(_RECORD, {"name": name, "slots": slots, "jobs": list(jobs)})


def remove_worker(session: Transaction, name: str) -> None:
    """Removes a process that shuts down."""
    session.execute(text("DELETE FROM worker WHERE name = :name"), {"name": name})


def remove_silent(session: Transaction, *, unseen_s: float) -> None:
    """Removes processes without a heartbeat for this long."""
    session.execute(text("DELETE FROM worker WHERE seen_at < now() - make_interval(secs => :unseen_s)"), {"unseen_s": unseen_s})


_ANY_ALIVE = text("""
    SELECT EXISTS (
        SELECT FROM worker
        WHERE slots > 0 AND seen_at > greatest(now() - make_interval(secs => :within_s), pg_postmaster_start_time())
    )
""")


def is_any_alive(session: Transaction, *, within_s: float) -> bool:
    """Whether a process with slots has sent a heartbeat within this time, and since Postgres started.

    `nowserving up` starts its own Postgres, so heartbeats of an earlier stack that was killed do not count.
    """
    return bool(session.execute(_ANY_ALIVE, {"within_s": within_s}).scalar_one())


_IDLE = text("""
    SELECT coalesce((SELECT sum(slots) FROM worker WHERE seen_at > now() - make_interval(secs => :within_s)), 0)
         - (SELECT count(*) FROM job WHERE status = 'running' AND lease_until > now())
""")


def idle_slots(session: Transaction) -> int:
    """Slots without a running job, of processes with a recent heartbeat. A slot that waits for an admitted job is idle."""
    return int(session.execute(_IDLE, {"within_s": settings().heartbeat_s * 3}).scalar_one())


_FREE_SLOTS = text("""
    SELECT coalesce((SELECT sum(slots) FROM worker WHERE seen_at > now() - make_interval(secs => :seen_within_s)), 0)
         - (SELECT count(*) FROM job WHERE status IN ('admitted', 'running') AND (
               status = 'admitted' OR lease_until > clock_timestamp() + make_interval(secs => :lease_s - :seen_within_s)))
""")


def free_slots(session: Transaction, *, seen_within_s: float) -> int:
    """The number of jobs that workers could run in addition: their reported slots minus admitted and running jobs.

    Heartbeats and leases older than `seen_within_s` both do not count: the jobs of a dead worker block no living one.
    """
    return int(session.execute(_FREE_SLOTS, {"seen_within_s": seen_within_s, "lease_s": settings().lease_s}).scalar_one())


_LIST = text("""
    SELECT *, seen_at < now() - make_interval(secs => :silent_s) AS is_silent FROM worker
    WHERE CAST(:after AS text) IS NULL OR name > :after ORDER BY name LIMIT :limit
""")
# A heartbeat is some seconds old: jobs that ended since are left out.
_RUNNING = text("""
    SELECT job.id, job.lane_id, pool.name AS pool, job.model, job.calls, job.started_at
    FROM job JOIN lane ON lane.id = job.lane_id JOIN pool ON pool.id = lane.pool_id
    WHERE job.id = ANY(:ids) AND job.status = 'running' ORDER BY job.started_at
""")


def list_workers(session: Transaction, *, limit: int, after: str | None, silent_s: float) -> list[JsonObject]:
    """Up to limit + 1 processes by name with their running jobs, as operators see them.

    silent_s: without a heartbeat for this long, a process is shown as silent.
    """
    rows = session.execute(_LIST, {"after": after, "limit": limit + 1, "silent_s": silent_s}).all()
    jobs: dict[UUID, Any] = {}
    if job_ids := [job_id for row in rows for job_id in row.jobs or ()]:
        jobs = {row.id: row for row in session.execute(_RUNNING, {"ids": job_ids})}
    return [_render(row, [jobs[job_id] for job_id in row.jobs or () if job_id in jobs]) for row in rows]


def _render(row: Any, jobs: Sequence[Any]) -> JsonObject:
    return {
        "id": row.name,
        "object": "worker",
        "state": "silent" if row.is_silent else "working" if row.slots else "draining",
        "slots": row.slots,
        "running": len(jobs),
        "started_at": epoch(row.started_at),
        "seen_at": epoch(row.seen_at),
        "jobs": [
            {
                "id": wire.public_id(job.id), "lane": job.lane_id, "pool": job.pool, "model": job.model, "attempt": job.calls,
                "started_at": epoch(job.started_at),
            }
            for job in jobs
        ],
    }  # fmt: skip
