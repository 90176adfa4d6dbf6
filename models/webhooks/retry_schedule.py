"""When a delivery that did not arrive is sent again: nine times in about three days, each a little off its time."""

from __future__ import annotations

import random

# Standard Webhooks' own: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h after the attempt before.
SCHEDULE_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
RETRIES = len(SCHEDULE_S)
# What failed together must not come back together.
JITTER = 0.1
MAX_RETRY_AFTER_S = 86_400


def delay_s(retries_left: int, *, rng: random.Random, retry_after_s: float | None = None) -> float:
    """Seconds until the next attempt, of which so many are left, ≥ 1; no sooner than the receiver asked for."""
    planned = SCHEDULE_S[-min(retries_left, RETRIES)] * rng.uniform(1 - JITTER, 1 + JITTER)
    return max(planned, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))
