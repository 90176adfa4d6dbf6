"""What a worker process says of its lanes when it is asked for its `stats`: Flower's page of the worker shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from celery import bootsteps
from sqlalchemy import text

from models.database import db
from models.jobs import task_names
from models.platform.errors import ServingError
from workers.broker.celery_app import app

log = logging.getLogger(__name__)

MAX_LANES = 50


def register(jobs: Callable[[], Sequence[UUID]]) -> None:
    """From now on this process tells of the lanes of these, the jobs that it holds."""
    LaneStats.jobs = staticmethod(jobs)
    app.steps["consumer"].add(LaneStats)


class LaneStats(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Celery asks each step of its consumer what there is to say."""

    jobs: Callable[[], Sequence[UUID]]

    def info(self, consumer: Any) -> dict[str, str]:
        """A line for each lane: `lane gpt-4o-mini [team-a]` → `2 running here, 40 waiting (rpm)`."""
        try:
            with db.begin() as session:
                rows = session.execute(_LANES, {"ids": list(type(self).jobs()), "most": MAX_LANES}).all()
        except ServingError as error:
            log.info("lanes not told: Postgres is away", extra={"error": type(error).__name__})
            return {}
        return {f"lane {_name(row)}": _said(row) for row in rows}


def _name(row: Any) -> str:
    return row.model if row.pool.startswith(task_names.OWN) else f"{row.model} [{row.pool}]"


def _said(row: Any) -> str:
    why = f" ({row.blocked_by})" if row.blocked_by and row.queued else ""
    return f"{row.running} running here, {row.queued} waiting{why}"


_LANES = text("""
    SELECT lane.model, min(pool.name) AS pool, count(*) AS running, min(lane.queued) AS queued, min(lane.blocked_by) AS blocked_by
    FROM job JOIN lane ON lane.id = job.lane_id JOIN pool ON pool.id = lane.pool_id
    WHERE job.id = ANY(:ids) AND job.status = 'running' GROUP BY lane.id ORDER BY count(*) DESC, lane.id LIMIT :most
""")
