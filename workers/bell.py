"""What wakes the pacer: lanes that somebody wants looked at, and a sleep that ends when there is one."""

from __future__ import annotations

import threading
import time


class Bell:
    """Safe to ring from any thread."""

    def __init__(self) -> None:
        self._lanes: dict[int, float] = {}
        self._rung = threading.Event()
        self._lock = threading.Lock()

    def ring(self, lane_id: int) -> None:
        with self._lock:
            self._lanes[lane_id] = time.monotonic()
        self._rung.set()

    def take(self) -> dict[int, float]:
        with self._lock:
            taken, self._lanes = self._lanes, {}
        self._rung.clear()
        return taken

    def keep(self, lanes: dict[int, float]) -> None:
        """Lanes that were not ours to look at this time; they do not wake anybody by themselves."""
        with self._lock:
            self._lanes = {**lanes, **self._lanes}

    def sleep(self, seconds: float) -> None:
        self._rung.wait(seconds)
