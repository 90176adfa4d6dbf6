"""Retry schedule of webhook deliveries: exponential backoff with jitter, nine retries in about three days."""

from __future__ import annotations

import random

# The schedule of Standard Webhooks: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h after the previous attempt.
SCHEDULE_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
RETRIES = len(SCHEDULE_S)
# Jitter spreads the retries of deliveries that failed at the same time.
JITTER = 0.1
MAX_RETRY_AFTER_S = 86_400


def delay_s(retries_left: int, *, rng: random.Random, retry_after_s: float | None = None) -> float:
    """Returns the seconds until the next attempt, at least retry_after_s (up to a day). retries_left: ≥ 1, includes the next attempt."""
    backoff_s = SCHEDULE_S[-min(retries_left, RETRIES)] * rng.uniform(1 - JITTER, 1 + JITTER)
    return max(backoff_s, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))
