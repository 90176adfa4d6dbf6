"""How many open jobs each key has, as far as this process knows: whoever is far from a cap need not be counted at every submit."""

from __future__ import annotations

import threading
from dataclasses import dataclass

# What other processes may have let in since the last count, with room to spare: within it of the cap, every submit counts.
SLACK = 2_000
FRESH_S = 1.0
KEYS_MOST = 10_000


@dataclass(frozen=True)
class _Counted:
    jobs: int
    at: float


class Tally:
    """Safe from any thread."""

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
