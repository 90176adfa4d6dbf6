"""Celery bootstep that adds the lanes of a worker process to its `stats`, which Flower shows on the worker's page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from celery import bootsteps

from models.database import db
from models.jobs import task_names
from models.ops import worker_lanes
from models.platform.errors import ServingError
from workers.broker.celery_app import app

log = logging.getLogger(__name__)

MAX_LANES = 50


def register(job_ids: Callable[[], Sequence[UUID]]) -> None:
    """Adds the step to this process's consumer. job_ids: returns the jobs that the process holds."""
    LaneStats.job_ids = staticmethod(job_ids)
    app.steps["consumer"].add(LaneStats)


class LaneStats(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Step of the consumer: Celery calls `info` of each step for `stats`."""

    job_ids: Callable[[], Sequence[UUID]]

    def info(self, consumer: Any) -> dict[str, str]:
        """Returns an entry for each lane: `lane gpt-4o-mini [team-a]` → `2 running here, 40 waiting (rpm)`."""
        try:
            with db.begin() as session:
                rows = worker_lanes.lanes_of_jobs(session, type(self).job_ids(), limit=MAX_LANES)
        except ServingError as error:
            log.info("no lanes in the worker's stats: Postgres is away", extra={"error": type(error).__name__})
            return {}
        return {f"lane {_name(row)}": _figures(row) for row in rows}


def _name(row: Any) -> str:
    return row.model if row.pool.startswith(task_names.OWN) else f"{row.model} [{row.pool}]"


def _figures(row: Any) -> str:
    reason = f" ({row.blocked_by})" if row.blocked_by and row.queued else ""
    return f"{row.running} running here, {row.queued} waiting{reason}"
