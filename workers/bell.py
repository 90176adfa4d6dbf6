"""What wakes the pacer: lanes that somebody wants looked at, and a sleep that ends when there is one.

A wake-up that can change nothing is not heard: each costs a step of the pacer, and every job that ends says two.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable


class Bell:
    """Safe to ring from any thread."""

    def __init__(self) -> None:
        self._lanes: dict[int, float] = {}
        self._at_rest: set[int] = set()
        self._capped: set[int] = set()
        self._is_short = False
        self._rung = threading.Event()
        self._lock = threading.Lock()

    def ring(self, lane_id: int) -> None:
        """Somebody waits in this lane, or may."""
        with self._lock:
            self._lanes[lane_id] = time.monotonic()
            self._at_rest.discard(lane_id)
        self._rung.set()

    def budget(self, lane_id: int) -> None:
        """Budget of this lane is free again. Heard unless nobody waits there as far as the pacer knows."""
        with self._lock:
            is_needed = lane_id not in self._at_rest
        if is_needed:
            self.ring(lane_id)

    def slot(self) -> None:
        """A worker has a slot free, and a key and a flow one job less under way. Heard when there were too few, and where caps hold."""
        with self._lock:
            self._lanes.update(dict.fromkeys(self._capped, time.monotonic()))
            is_needed = self._is_short or bool(self._capped)
        if is_needed:
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

    def conclude(self, *, at_rest: Iterable[int], waiting: Iterable[int], capped: Iterable[int], is_short: bool) -> None:
        """What the pacer's step found: where nobody waits, where somebody does, of those where there are caps, and whether more could
        go than there are slots."""
        with self._lock:
            self._capped.difference_update(waiting, at_rest)
            self._capped.update(capped)
            self._at_rest.difference_update(waiting)
            self._at_rest.update(lane_id for lane_id in at_rest if lane_id not in self._lanes)
        self._is_short = is_short

    def sleep(self, seconds: float) -> None:
        self._rung.wait(seconds)
