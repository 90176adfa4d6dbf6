"""The gauges of the pacer's process: who waits and why, counted in Postgres every few seconds."""

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
    """`look` brings them up to date. A label that is no more is taken away."""

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._backlog_at = float("-inf")

    def look(self, now: float) -> None:
        """One look. now: monotonic seconds. Raises Unavailable, redis.RedisError: that server is marked as down."""
        since_s = now - self._looked_at if self._looked_at is not None else 0.0
        self._looked_at = now
        metrics.up.labels("postgres").set(0)
        metrics.up.labels("redis").set(0)
        try:
            with db.begin() as session:
                self._lanes(queue_metrics.lanes(session), since_s)
                used, parked = queue_metrics.use(session), queue_metrics.parked(session)
                totals = queue_metrics.totals(session, seen_within_s=settings().heartbeat_s * 3)
            metrics.up.labels("postgres").set(1)
        except Unavailable:
            self._ask_redis()
            raise
        metrics.used.clear()
        for row in used:
            for limit in ("rpm", "tpm", "in_flight"):
                if (share := getattr(row, limit)) is not None:
                    metrics.used.labels(row.pool, metrics.model_label(row.model), limit).set(share)
        metrics.parked.clear()
        for row in parked:
            metrics.parked.labels(row.pool).set(row.parked)
        metrics.slots.set(totals.slots)
        metrics.unsent.set(totals.unsent)
        if now >= self._backlog_at + BACKLOG_EVERY_S:
            self._backlog_at = now
            self._count_backlog()
        self._ask_redis()

    def _count_backlog(self) -> None:
        with db.begin() as session:
            backlog = queue_metrics.retention_backlog(session, days=settings().retention_days, limit=BACKLOG_MAX)
        metrics.overdue.set(backlog.jobs)
        metrics.overdue_age.set(backlog.age_s)

    def _ask_redis(self) -> None:
        unanswered_s = notify.pulse()
        metrics.up.labels("redis").set(1)
        metrics.unanswered.set(unanswered_s or 0.0)

    def _lanes(self, rows: Sequence[Any], since_s: float) -> None:
        sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
        for row in rows:
            labels = (row.pool, metrics.model_label(row.model))
            sums[labels][0] += row.waiting
            sums[labels][1] += row.running
            sums[labels][2] = max(sums[labels][2], row.oldest_s)
            if row.waiting and row.blocked_by:
                metrics.blocked.labels(*labels, row.blocked_by).inc(since_s)
        gauges = (metrics.waiting, metrics.running, metrics.oldest)
        for n, gauge in enumerate(gauges):
            gauge.clear()
            for labels, found in sums.items():
                gauge.labels(*labels).set(found[n])
