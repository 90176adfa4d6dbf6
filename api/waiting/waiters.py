"""The waiters of this process, indexed by job and counted by key, with the limits on their number."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from api.waiting.waiter import Waiter
from models.config.settings import settings
from models.platform.errors import QueueFull, TooManyWaiting, Unavailable

# While this share of all waiters is free, a key may hold NOWSERVING_WAITING_SHARE of them.
SPARE_SHARE = 0.1
# When a client that got no waiter may ask again.
RETRY_AFTER_S = 5


class Waiters:
    """All waiters of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_job: dict[UUID, list[Waiter]] = {}
        self._count = 0
        self._by_key: Counter[int] = Counter()
        self._streams: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._count

    @property
    def streams(self) -> int:
        """The number of event streams."""
        return self._streams.total()

    def check_capacity(self, key_id: int, *, is_stream: bool = False) -> None:
        """Raises Unavailable when the process has no free waiter, TooManyWaiting or QueueFull at the key's limit of waiters or streams."""
        limits = settings()
        free = limits.max_waiting_per_process - len(self)
        if free <= 0:
            raise Unavailable("Too many callers wait here. Ask again in a few seconds, without waiting.", retry_after_s=RETRY_AFTER_S)
        if self._by_key[key_id] >= key_limit(free, capacity=limits.max_waiting_per_process, share=limits.waiting_share):
            raise TooManyWaiting(retry_after_s=RETRY_AFTER_S)
        if is_stream and self._streams[key_id] >= limits.max_streams_per_key:
            raise QueueFull(
                f"This key has {limits.max_streams_per_key} streams open, as many as it may. Close one, or look with GET /v1/jobs/{{id}}.",
                code="too_many_streams", retry_after_s=2 * RETRY_AFTER_S,
            )  # fmt: skip

    def add(self, waiter: Waiter) -> None:
        """Adds the waiter."""
        with self._lock:
            self._by_job[waiter.job_id] = [*self._by_job.get(waiter.job_id, ()), waiter]
            self._change_counts(waiter, 1)

    def remove(self, waiter: Waiter) -> None:
        """Removes the waiter, if it is present."""
        with self._lock:
            before = self._by_job.get(waiter.job_id, [])
            after = [other for other in before if other is not waiter]
            if len(after) < len(before):
                self._change_counts(waiter, -1)
            if after:
                self._by_job[waiter.job_id] = after
            else:
                self._by_job.pop(waiter.job_id, None)

    def of_job(self, job_id: UUID) -> Sequence[Waiter]:
        """The waiters of this job. The returned list never changes."""
        return self._by_job.get(job_id, ())

    def job_ids(self) -> list[UUID]:
        """The jobs that have waiters."""
        with self._lock:
            return list(self._by_job)

    def all(self) -> list[Waiter]:
        """All waiters."""
        with self._lock:
            return [waiter for waiters in self._by_job.values() for waiter in waiters]

    def _change_counts(self, waiter: Waiter, change: int) -> None:
        self._count += change
        for counts in (self._by_key, self._streams) if waiter.is_stream else (self._by_key,):
            counts[waiter.key_id] += change
            if not counts[waiter.key_id]:
                del counts[waiter.key_id]


def key_limit(free: int, *, capacity: int, share: float) -> float:
    """The number of waiters that one key may hold while `free` of `capacity` are free. share: NOWSERVING_WAITING_SHARE.

    With a tenth free the limit is `share` of the capacity; it grows and shrinks with the square of the free part. So one key alone gets
    most waiters, two greedy keys get less than half each, and the last ones stay for keys that hold none. No waiter is ever evicted.
    Source: dynamic queue length thresholds (Choudhury, Hahne 1998). The square stops a handful of keys from taking all, one after another.
    """
    return float(capacity * share * (free / (capacity * SPARE_SHARE)) ** 2)
