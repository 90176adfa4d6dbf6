"""A token bucket for each client address, in the memory of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MAX_ADDRESSES = 100_000


class AddressLimit:
    """Each bucket refills evenly in period_s seconds. Safe to use from any thread. clock: monotonic seconds."""

    def __init__(self, *, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        self._lock = threading.Lock()
        # When the bucket of each address is full again.
        self._full_at: dict[str, float] = {}

    def wait_s(self, address: str, *, limit: int) -> float:
        """Seconds until the next token; 0.0: there is one now. limit: tokens of a full bucket."""
        with self._lock:
            return self._wait_s(address, limit)[0]

    def take(self, address: str, *, limit: int) -> float:
        """Takes one token and returns 0.0; the seconds until the next token if there is none."""
        with self._lock:
            wait_s, full_at = self._wait_s(address, limit)
            if wait_s == 0.0:
                if len(self._full_at) >= MAX_ADDRESSES:
                    now = self._clock()
                    self._full_at = {name: at for name, at in self._full_at.items() if at > now}
                self._full_at[address] = full_at
            return wait_s

    def is_full(self, address: str) -> bool:
        """Whether no token was taken for a whole period."""
        with self._lock:
            return self._full_at.get(address, 0.0) <= self._clock()

    def _wait_s(self, address: str, limit: int) -> tuple[float, float]:
        now = self._clock()
        full_at = max(now, self._full_at.get(address, 0.0)) + self._period_s / limit
        return max(0.0, full_at - now - self._period_s), full_at
