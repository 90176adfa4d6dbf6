"""Lanes of the jobs that one worker process runs, for its page in Flower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction

_LANES = text("""
    SELECT lane.model, min(pool.name) AS pool, count(*) AS running, min(lane.queued) AS queued, min(lane.blocked_by) AS blocked_by
    FROM job JOIN lane ON lane.id = job.lane_id JOIN pool ON pool.id = lane.pool_id
    WHERE job.id = ANY(:ids) AND job.status = 'running' GROUP BY lane.id ORDER BY count(*) DESC, lane.id LIMIT :limit
""")


def lanes_of_jobs(session: Transaction, job_ids: Sequence[UUID], *, limit: int) -> Sequence[Any]:
    """Returns the lanes of these running jobs, most jobs first. Rows: model, pool, running (of these jobs), queued, blocked_by."""
    return session.execute(_LANES, {"ids": list(job_ids), "limit": limit}).all()
