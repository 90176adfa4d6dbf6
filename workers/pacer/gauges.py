"""The gauges of the pacer's process: waiting and running jobs, used limits, parked keys, counted in Postgres every few seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from models.config.settings import settings
from models.database import db
from models.ops import queue_metrics
from models.platform.errors import Unavailable
from models.telemetry import metrics
from workers.channels import notify

BACKLOG_EVERY_S = 30.0
BACKLOG_MAX = 10_000


class Gauges:
    """Labels that no longer exist are removed with each refresh."""

    def __init__(self) -> None:
        self._refreshed_at: float | None = None
        self._backlog_at = float("-inf")

    def refresh(self, now: float) -> None:
        """Sets all gauges. now: monotonic seconds. Raises Unavailable, redis.RedisError after marking that server as down."""
        since_s = now - self._refreshed_at if self._refreshed_at is not None else 0.0
        self._refreshed_at = now
        metrics.up.labels("postgres").set(0)
        metrics.up.labels("redis").set(0)
        try:
            with db.begin() as session:
                self._set_lanes(queue_metrics.lane_counts(session), since_s)
                used, parked = queue_metrics.limit_use(session), queue_metrics.parked_credentials(session)
                totals = queue_metrics.totals(session, seen_within_s=settings().heartbeat_s * 3)
            metrics.up.labels("postgres").set(1)
        except Unavailable:
            self._check_redis()
            raise
        self._set_used_limits(used)
        metrics.parked.clear()
        for row in parked:
            metrics.parked.labels(row.pool).set(row.parked)
        metrics.slots.set(totals.slots)
        metrics.unsent.set(totals.unsent)
        if now >= self._backlog_at + BACKLOG_EVERY_S:
            self._backlog_at = now
            self._count_backlog()
        self._check_redis()

    def _set_lanes(self, rows: Sequence[Any], since_s: float) -> None:
        sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
        for row in rows:
            labels = (row.pool, metrics.model_label(row.model))
            sums[labels][0] += row.waiting
            sums[labels][1] += row.running
            sums[labels][2] = max(sums[labels][2], row.oldest_s)
            if row.waiting and row.blocked_by:
                metrics.blocked.labels(*labels, row.blocked_by).inc(since_s)
        for n, gauge in enumerate((metrics.waiting, metrics.running, metrics.oldest)):
            gauge.clear()
            for labels, values in sums.items():
                gauge.labels(*labels).set(values[n])

    def _set_used_limits(self, rows: Sequence[Any]) -> None:
        metrics.used.clear()
        for row in rows:
            for limit in ("rpm", "tpm", "in_flight"):
                if (share := getattr(row, limit)) is not None:
                    metrics.used.labels(row.pool, metrics.model_label(row.model), limit).set(share)

    def _count_backlog(self) -> None:
        with db.begin() as session:
            backlog = queue_metrics.retention_backlog(session, days=settings().retention_days, limit=BACKLOG_MAX)
        metrics.overdue.set(backlog.jobs)
        metrics.overdue_age.set(backlog.age_s)

    def _check_redis(self) -> None:
        unanswered_s = notify.pacer_heartbeat()
        metrics.up.labels("redis").set(1)
        metrics.unanswered.set(unanswered_s or 0.0)
