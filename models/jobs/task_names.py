"""Display names of jobs as Celery tasks: the kind of the endpoint, and the pool if an operator named it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from models.content import endpoints
from models.database.db import Transaction

KINDS = {
    endpoints.CHAT: "chat",
    endpoints.IMAGES: "images",
    endpoints.EDITS: "image edits",
    endpoints.EMBEDDINGS: "embeddings",
    endpoints.MODERATIONS: "moderations",
}
#: Prefix of the pools of keys that callers bring themselves.
OWN = "own:"


def task_name(route: str, pool: str) -> str:
    """`chat`, or `chat [team-a]` for an operator's pool. Never the model: callers can name any number of models."""
    kind = KINDS.get(route, "models")
    return kind if pool.startswith(OWN) else f"{kind} [{pool}]"


_JOBS = text("""
    SELECT job.id, job.endpoint, pool.name AS pool FROM job
    JOIN lane ON lane.id = job.lane_id JOIN pool ON pool.id = lane.pool_id WHERE job.id = ANY(:ids)
""")


def names_by_job(session: Transaction, job_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The task names of these jobs."""
    return {row.id: task_name(row.endpoint, row.pool) for row in session.execute(_JOBS, {"ids": list(job_ids)})}
