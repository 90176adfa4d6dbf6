"""Prometheus counters and histograms of workers and pacer, one function for each event."""

from __future__ import annotations

import time
from typing import Any

from models.telemetry import metrics


def claimed(row: Any) -> None:
    """Observes how long a job waited for its first call."""
    if row.calls == 1:
        # Ids are UUIDv7 and begin with the milliseconds of the submit.
        metrics.wait.labels(*_labels(row)).observe(max(0.0, time.time() - (row.id.int >> 80) / 1000))


def served(row: Any, *, seconds: float) -> None:
    """Observes the duration of an attempt."""
    metrics.service.labels(*_labels(row)).observe(seconds)


def answered(row: Any, status: int) -> None:
    """Counts an answer of the upstream."""
    metrics.answers.labels(*_labels(row), str(status)).inc()


def ended(ending: Any) -> None:
    """Counts a recorded outcome of an attempt."""
    metrics.attempts.labels(*_labels(ending), str(ending.finding.outcome)).inc()


def sent(*, has_arrived: bool, http_status: int | None) -> None:
    """Counts a webhook that was sent."""
    metrics.webhooks.labels("arrived" if has_arrived else f"{http_status // 100}xx" if http_status else "unreachable").inc()


def admitted(lane_id: int, model: str) -> None:
    """Counts an admitted job of this lane."""
    metrics.admitted.labels(*metrics.lane_labels(lane_id, model)).inc()


def _labels(row: Any) -> tuple[str, str]:
    return metrics.lane_labels(row.lane_id, row.model)
