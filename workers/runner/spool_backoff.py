"""Backoff for spooled answers that could not be stored: each waits by itself, the others go on."""

from __future__ import annotations

FIRST_S, LONGEST_S = 60.0, 3_600.0


class SpoolBackoff:
    """Of one process. Files are known by their names; `now` is in monotonic seconds."""

    def __init__(self) -> None:
        #: when each is tried again, and how long it waits if it fails once more
        self._waiting: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def is_due(self, name: str, *, now: float) -> bool:
        """Whether the file may be tried now."""
        return name not in self._waiting or now >= self._waiting[name][0]

    def note_failure(self, name: str, *, now: float) -> float:
        """The file could not be stored; returns the seconds until it is tried again."""
        delay_s = self._waiting[name][1] if name in self._waiting else FIRST_S
        self._waiting[name] = (now + delay_s, min(LONGEST_S, delay_s * 2))
        return delay_s

    def keep_only(self, names: set[str]) -> None:
        """Forgets files that are gone: stored, or taken away by the operator."""
        self._waiting = {name: times for name, times in self._waiting.items() if name in names}
