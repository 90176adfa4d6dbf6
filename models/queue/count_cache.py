"""What this process remembers for a moment of keys and lanes, so that not every submit has to find it out."""

from __future__ import annotations

import threading
from dataclasses import dataclass

# What other processes may have let in since the last count, with room to spare: within it of the cap, every submit counts.
SLACK = 2_000
FRESH_S = 1.0
KEYS_MOST = LANES_MOST = 10_000


@dataclass(frozen=True)
class _Counted:
    jobs: int
    at: float


class CountCache:
    """How many open jobs each key has: whoever is far from a cap need not be counted at every submit. Safe from any thread."""

    def __init__(self) -> None:
        self._counted: dict[int, _Counted] = {}
        self._lock = threading.Lock()

    def has_room(self, key_id: int, *, most: int, now: float) -> bool:
        """Whether this key was counted a moment ago, and had SLACK jobs fewer than `most`. now: monotonic seconds."""
        counted = self._counted.get(key_id)
        return counted is not None and counted.jobs + SLACK <= most and now - counted.at < FRESH_S

    def note(self, key_id: int, jobs: int, *, now: float) -> None:
        """So many were counted now, in monotonic seconds."""
        with self._lock:
            if len(self._counted) >= KEYS_MOST:
                self._counted.clear()
            self._counted[key_id] = _Counted(jobs, now)


class SlowLanes:
    """Lanes in which a submit has needed a closer look (line.join_at_once): the next one takes it at once. Safe from any thread."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._lock = threading.Lock()

    def is_known(self, lane_id: int, *, now: float) -> bool:
        """Whether that was within FRESH_S. now: monotonic seconds."""
        since = self._since.get(lane_id)
        return since is not None and now - since < FRESH_S

    def note(self, lane_id: int, *, now: float) -> None:
        """It was now."""
        with self._lock:
            if len(self._since) >= LANES_MOST:
                self._since.clear()
            self._since[lane_id] = now
