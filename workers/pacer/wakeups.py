"""What wakes the pacer: lanes that somebody wants looked at, and a sleep that ends when there is one.

A wake-up that can change nothing is not heard: each costs a step of the pacer, and every job that ends says two.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

# Who joins where others wait already has them ahead in all but rare cases: a flood of submits costs the pacer one look in this time.
TOGETHER_S = 0.02


class Wakeups:
    """Safe to ring from any thread."""

    def __init__(self) -> None:
        self._lanes: dict[int, float] = {}
        self._at_rest: set[int] = set()
        self._waiting: set[int] = set()
        self._capped: set[int] = set()
        self._is_short = False
        self._is_soon = False
        self._has_joined = False
        self._rung = threading.Event()
        self._lock = threading.Lock()

    def wake(self, lane_id: int) -> None:
        """Somebody waits in this lane, or may."""
        with self._lock:
            self._lanes[lane_id] = time.monotonic()
            self._at_rest.discard(lane_id)
        self._rung.set()

    def job_enqueued(self, lane_id: int) -> None:
        """A job has joined this lane. Heard at once, but where somebody waited at the last look: then TOGETHER_S after it."""
        with self._lock:
            is_late = self._is_soon and lane_id in self._waiting
            if is_late:
                self._lanes[lane_id] = time.monotonic()
                self._has_joined = True
        if not is_late:
            self.wake(lane_id)

    def budget_freed(self, lane_id: int) -> None:
        """Budget of this lane is free again. Heard unless nobody waits there as far as the pacer knows."""
        with self._lock:
            is_needed = lane_id not in self._at_rest
        if is_needed:
            self.wake(lane_id)

    def slot_freed(self) -> None:
        """A worker has a slot free, and a key and a flow one job less under way. Heard when there were too few, and where caps hold."""
        with self._lock:
            self._lanes.update(dict.fromkeys(self._capped, time.monotonic()))
            is_needed = self._is_short or bool(self._capped)
        if is_needed:
            self._rung.set()

    def take(self) -> dict[int, float]:
        with self._lock:
            taken, self._lanes = self._lanes, {}
            self._is_soon, self._has_joined = True, False
            self._rung.clear()
        return taken

    def keep_for_later(self, lanes: dict[int, float]) -> None:
        """Lanes that were not ours to look at this time; they do not wake anybody by themselves."""
        with self._lock:
            self._lanes = {**lanes, **self._lanes}
            self._waiting.update(lanes)

    def update(self, *, at_rest: Iterable[int], waiting: Iterable[int], capped: Iterable[int], is_short: bool) -> None:
        """What the pacer's step found: where nobody waits, where somebody does, of those where there are caps, and whether more could
        go than there are slots."""
        with self._lock:
            self._capped.difference_update(waiting, at_rest)
            self._capped.update(capped)
            self._waiting.difference_update(at_rest)
            self._waiting.update(waiting)
            self._at_rest.difference_update(waiting)
            self._at_rest.update(lane_id for lane_id in at_rest if lane_id not in self._lanes)
        self._is_short = is_short

    def wait(self, seconds: float) -> None:
        """Until somebody rings, or so long; it ends after TOGETHER_S when somebody has joined meanwhile where others wait."""
        if self._rung.wait(min(seconds, TOGETHER_S)):
            return
        with self._lock:
            self._is_soon = False
            has_joined = self._has_joined
        if not has_joined:
            self._rung.wait(max(0.0, seconds - TOGETHER_S))
