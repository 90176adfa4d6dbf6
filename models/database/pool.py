"""Two additions to SQLAlchemy's connection pool: a FIFO semaphore for its callers, and the replacement of stale connections."""

from __future__ import annotations

import threading
import time
from collections import deque

from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection


class FifoSemaphore:
    """A semaphore that serves its waiters in the order of their arrival.

    SQLAlchemy's pool lets a caller that arrives at the right moment overtake the waiting callers. With more callers than connections on a
    busy machine, some callers waited for 2 s while others got five connections (measured with 64 callers).
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._served_at = 0.0
        self._waiters: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def acquire(self, stall_s: float, total_s: float) -> bool:
        """Whether a slot was acquired; `release` must follow then.

        Gives up after stall_s in which no slot was released as served, and after total_s in any case.
        """
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            waiter = threading.Event()
            self._waiters.append(waiter)
        arrived = time.monotonic()
        try:
            while not waiter.is_set() and (left_s := self._left_s(arrived, stall_s, total_s)) > 0:
                waiter.wait(left_s)
        except BaseException:
            if not self._withdraw(waiter):
                self.release()
            raise
        return not self._withdraw(waiter)

    def _left_s(self, arrived: float, stall_s: float, total_s: float) -> float:
        """How much longer to wait, if no slot is released meanwhile."""
        return min(max(arrived, self._served_at) + stall_s, arrived + total_s) - time.monotonic()

    def _withdraw(self, waiter: threading.Event) -> bool:
        """Removes a waiter from the queue; False: it had already been given a slot."""
        with self._lock:
            if is_waiting := not waiter.is_set():
                self._waiters.remove(waiter)
        return is_waiting

    def release(self, *, is_served: bool = False) -> None:
        """Gives the slot to the longest waiter. is_served: Postgres answered, with a result or an error, so the waiters go on waiting."""
        with self._lock:
            if is_served:
                self._served_at = time.monotonic()
            if self._waiters:
                self._waiters.popleft().set()
            else:
                self._free += 1


class StaleConnections:
    """When a connection breaks, all connections opened before are replaced: their server is very likely gone too."""

    def __init__(self) -> None:
        self._broken_at = 0.0

    def mark(self) -> None:
        """Marks all connections that are open now as stale."""
        self._broken_at = time.monotonic()

    def opened(self, _: object, entry: ConnectionPoolEntry) -> None:
        """Listens to the pool's event `connect`."""
        entry.info["opened"] = time.monotonic()

    def check(self, _: object, entry: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
        """Listens to the pool's event `checkout`. Raises DisconnectionError for a stale connection: the pool then opens another."""
        if entry.info["opened"] <= self._broken_at:
            raise DisconnectionError
