"""Coalesced wake-ups of the pacer: the set of lanes to examine, and a wait that ends when one is added.

Wake-ups that cannot change the result of a step are dropped: each costs one step, and every finished job sends two.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

# A job that enters a lane with waiting jobs can rarely go first. A burst of submits therefore costs one step in this time.
COALESCE_S = 0.02


class Wakeups:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lanes: dict[int, float] = {}
        self._idle: set[int] = set()
        self._waiting: set[int] = set()
        self._capped: set[int] = set()
        self._lacks_slots = False
        self._is_coalescing = False
        self._has_coalesced = False
        self._event = threading.Event()
        self._lock = threading.Lock()

    def wake(self, lane_id: int) -> None:
        """Requests a step for this lane: it has waiting jobs, or may have."""
        with self._lock:
            self._lanes[lane_id] = time.monotonic()
            self._idle.discard(lane_id)
        self._event.set()

    def job_enqueued(self, lane_id: int) -> None:
        """Wakes the pacer for a new job: at once, or COALESCE_S later where the last step left jobs waiting in this lane."""
        with self._lock:
            is_coalesced = self._is_coalescing and lane_id in self._waiting
            if is_coalesced:
                self._lanes[lane_id] = time.monotonic()
                self._has_coalesced = True
        if not is_coalesced:
            self.wake(lane_id)

    def budget_freed(self, lane_id: int) -> None:
        """Wakes the pacer for freed limit budget of this lane, unless the lane is known to be empty."""
        with self._lock:
            is_needed = lane_id not in self._idle
        if is_needed:
            self.wake(lane_id)

    def slot_freed(self) -> None:
        """Wakes the pacer for a free worker slot, if slots were lacking or lanes with caps wait: a key and a flow run one job less."""
        with self._lock:
            self._lanes.update(dict.fromkeys(self._capped, time.monotonic()))
            is_needed = self._lacks_slots or bool(self._capped)
        if is_needed:
            self._event.set()

    def take(self) -> dict[int, float]:
        """Removes and returns the lanes to examine, each with the time of its wake-up."""
        with self._lock:
            lanes, self._lanes = self._lanes, {}
            self._is_coalescing, self._has_coalesced = True, False
            self._event.clear()
        return lanes

    def keep_for_later(self, lanes: dict[int, float]) -> None:
        """Adds lanes that this step could not examine; they do not end the wait."""
        with self._lock:
            self._lanes = {**lanes, **self._lanes}
            self._waiting.update(lanes)

    def update(self, *, idle: Iterable[int], waiting: Iterable[int], capped: Iterable[int], lacks_slots: bool) -> None:
        """Records the result of a step.

        idle: lanes without waiting jobs. waiting: lanes with some. capped: those of them with caps. lacks_slots: more jobs could go.
        """
        with self._lock:
            self._capped.difference_update(waiting, idle)
            self._capped.update(capped)
            self._waiting.difference_update(idle)
            self._waiting.update(waiting)
            self._idle.difference_update(waiting)
            self._idle.update(lane_id for lane_id in idle if lane_id not in self._lanes)
        self._lacks_slots = lacks_slots

    def wait(self, timeout_s: float) -> None:
        """Waits for a wake-up. Coalesced wake-ups end the wait after COALESCE_S."""
        if self._event.wait(min(timeout_s, COALESCE_S)):
            return
        with self._lock:
            self._is_coalescing = False
            has_coalesced = self._has_coalesced
        if not has_coalesced:
            self._event.wait(max(0.0, timeout_s - COALESCE_S))
