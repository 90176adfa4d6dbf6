"""Refuses jobs that do not fit in the queue: a full lane, a full key, a cap, or a wait longer than expires_in_s.

Two caches spare most submits the counting: how many open jobs each key has, and in which lanes the fast path failed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction
from models.platform.errors import Draining, QueueFull, TooLate
from models.queue.caps import APPLIES
from models.queue.position import estimate_s
from models.queue.position_index import MAX_COUNTED
from models.queue.submission import Submission

# Other processes may enqueue this many jobs of a key within FRESH_S: closer to the limit than this, every submit counts.
SLACK = 2_000
FRESH_S = 1.0
MAX_KEYS = MAX_LANES = 10_000


@dataclass(frozen=True)
class _Count:
    jobs: int
    counted_at: float


class CountCache:
    """Open jobs of each key, as last counted. A key far from its limit is not counted at every submit. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[int, _Count] = {}
        self._lock = threading.Lock()

    def is_far_below(self, key_id: int, *, limit: int, now: float) -> bool:
        """Whether this key had, within FRESH_S, at least SLACK jobs fewer than `limit`. now: monotonic seconds."""
        count = self._counts.get(key_id)
        return count is not None and count.jobs + SLACK <= limit and now - count.counted_at < FRESH_S

    def store(self, key_id: int, jobs: int, *, now: float) -> None:
        """Stores a count. now: monotonic seconds."""
        with self._lock:
            if len(self._counts) >= MAX_KEYS:
                self._counts.clear()
            self._counts[key_id] = _Count(jobs, now)


class SlowLanes:
    """Lanes in which `enqueue_fast` failed within FRESH_S; the next submits skip it. Thread-safe."""

    def __init__(self) -> None:
        self._failed_at: dict[int, float] = {}
        self._lock = threading.Lock()

    def is_slow(self, lane_id: int, *, now: float) -> bool:
        """Whether the fast path failed in this lane within FRESH_S. now: monotonic seconds."""
        failed_at = self._failed_at.get(lane_id)
        return failed_at is not None and now - failed_at < FRESH_S

    def mark(self, lane_id: int, *, now: float) -> None:
        """Marks this lane as slow. now: monotonic seconds."""
        with self._lock:
            if len(self._failed_at) >= MAX_LANES:
                self._failed_at.clear()
            self._failed_at[lane_id] = now


open_jobs = CountCache()
slow_lanes = SlowLanes()


def limit_params(key_id: int) -> dict[str, int]:
    """Returns LIMITs for the enqueue statement, which counts waiting jobs of the key and lane only up to their caps; 0: no count."""
    limit = settings().max_queued_per_key
    is_far_below = open_jobs.is_far_below(key_id, limit=limit, now=time.monotonic())
    return {
        "key_count_limit": 0 if is_far_below else limit, "lane_count_limit": _counted_lane_limit() or 0,
        "max_per_lane": settings().max_queued_per_lane,
    }  # fmt: skip


def _counted_lane_limit() -> int | None:
    """The lane's limit if it is small enough to count. None: the pacer's last count is used, which may lag by a second."""
    limit = settings().max_queued_per_lane
    return limit if limit <= MAX_COUNTED else None


def remember_count(key_id: int, row: Any) -> None:
    """Caches the number of the key's open jobs, if the enqueue statement counted them. row: of that statement."""
    if row.of_key is not None:
        open_jobs.store(key_id, row.of_key, now=time.monotonic())


def check_fits(submission: Submission, row: Any) -> None:
    """Raises Draining or QueueFull if the job that was just inserted exceeds a limit. row: of the enqueue statement."""
    if row.is_draining:
        raise Draining(retry_after_s=60)
    limit = settings().max_queued_per_lane
    if (row.in_lane if _counted_lane_limit() is not None else row.queued) >= limit:
        raise QueueFull(f"{limit} jobs already wait in this line, as many as it holds. Come back later.", retry_after_s=60)
    remember_count(submission.key.id, row)
    limit = settings().max_queued_per_key
    if row.of_key is not None and row.of_key >= limit:
        raise QueueFull(
            f"This key already has {limit} jobs waiting or running, as many as it may. Wait for some to end.",
            retry_after_s=60,
            code="too_many_jobs",
        )


def check_wait(submission: Submission, row: Any) -> None:
    """Raises TooLate if the estimated wait exceeds expires_in_s. row: of the enqueue statement."""
    eta_s = estimate_s(row, row) if not row.is_paused else 0.0
    if eta_s > submission.expires_in_s:
        raise TooLate(
            f"About {eta_s:.0f} s of work stand before this job, more than the {submission.expires_in_s:g} s it may wait (expires_in_s). "
            "Allow more time, or come back later.",
            param="expires_in_s",
            retry_after_s=max(1.0, eta_s - submission.expires_in_s),
        )


_QUEUED = text(f"""
    SELECT scope, max_queued, draining_at, CASE WHEN max_queued IS NOT NULL THEN (
        SELECT count(*) FROM job WHERE status = 'queued' AND {APPLIES}
    ) END AS queued
    FROM cap WHERE ((scope = 'key' AND owner_id = :key_id) OR (
        scope = 'flow' AND owner_id = :lane_id AND cap.key_id IN (0, :key_id)
        AND flow = CASE WHEN cap.key_id = 0 THEN :flow ELSE CAST(:key_id AS bigint)::text || ':' || :flow END
    ))
    AND endpoint IN ('', :endpoint)
""")


def check_caps(session: Transaction, *, key_id: int, lane_id: int, flow: str, endpoint: str) -> None:
    """Raises Draining, or QueueFull when more jobs are queued than a cap allows. The new job is already counted."""
    for row in session.execute(_QUEUED, {"key_id": key_id, "lane_id": lane_id, "flow": flow, "endpoint": endpoint}):
        owner = "key" if row.scope == "key" else "user"
        if row.draining_at is not None:
            raise Draining(f"New jobs of this {owner} are not accepted: the operator is draining its queue.", retry_after_s=60)
        if row.max_queued is not None and row.queued > row.max_queued:
            raise QueueFull(
                f"This {owner} already has {row.max_queued} jobs waiting, as many as it may. Wait for some to go.",
                retry_after_s=60, code=f"{row.scope}_max_queued",
            )  # fmt: skip
