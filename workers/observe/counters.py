"""What workers and the pacer count, one line at each place where it happens."""

from __future__ import annotations

import time
from typing import Any

from models.telemetry import metrics


def claimed(row: Any) -> None:
    """A call is about to go out: how long the job waited for its first."""
    if row.calls == 1:
        # Ids are UUIDv7: they begin with the milliseconds of the submit.
        metrics.wait.labels(*_labels(row)).observe(max(0.0, time.time() - (row.id.int >> 80) / 1000))


def served(row: Any, *, seconds: float) -> None:
    """The attempt is over."""
    metrics.service.labels(*_labels(row)).observe(seconds)


def answered(row: Any, status: int) -> None:
    """The upstream answered."""
    metrics.answers.labels(*_labels(row), str(status)).inc()


def ended(ending: Any) -> None:
    """What the attempt came to is on record."""
    metrics.attempts.labels(*_labels(ending), str(ending.finding.outcome)).inc()


def sent(*, has_arrived: bool, http_status: int | None) -> None:
    """A webhook was sent."""
    metrics.webhooks.labels("arrived" if has_arrived else f"{http_status // 100}xx" if http_status else "unreachable").inc()


def admitted(lane_id: int, model: str) -> None:
    """A job of this lane may go."""
    metrics.admitted.labels(*metrics.lane_labels(lane_id, model)).inc()


def _labels(row: Any) -> tuple[str, str]:
    return metrics.lane_labels(row.lane_id, row.model)
