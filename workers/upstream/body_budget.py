"""The memory budget of a worker process for large bodies: a byte semaphore, first come, first served.

Each call has a `BodyReservation` while it runs. Bytes are reserved before a large request is loaded, and released when it has been written
to the upstream. An answer reserves bytes as it arrives; without free ones the worker pauses reading, and TCP slows down the upstream.
Two copies of the counted bytes may exist (a body's parts, and the body joined from them).
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable
from functools import cache
from itertools import count
from types import TracebackType

from models.config.settings import settings
from models.platform import allocator

# This much of each body is not counted; 64 calls with short bodies take 32 MiB at most.
FREE_BYTES = 256 * 1024
# An answer of unknown length reserves in steps of this size.
STEP_BYTES = 1024 * 1024
# A job waits this long for memory before it is requeued. Less than NOWSERVING_UNCLAIMED_AFTER_S.
WAIT_S = 5.0
# An answer was paid for. After this long without any release, it is read on over the limit.
STALLED_S = 20.0
# Free memory is returned to the system after this many bytes were held at once.
TRIM_FROM_BYTES = 4 * 1024 * 1024
RECHECK_S = 0.5


class BodyBudget:
    """limit: bytes of all reservations together. Thread-safe."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        # peak_bytes: since the last `trim_after_peak`
        self.held_bytes = self.peak_bytes = 0
        self._clock = clock
        self._changed = threading.Condition()
        self._tickets = count()
        self._holders: set[BodyReservation] = set()
        self._waiting: list[BodyReservation] = []  # the oldest call comes first
        self._released_at = clock()

    def room(self) -> BodyReservation:
        """An empty reservation for one call."""
        return BodyReservation(self, next(self._tickets))

    def waiting(self) -> int:
        """The number of calls that wait for bytes."""
        return len(self._waiting)

    def is_short(self, size: int) -> bool:
        """Whether a new call would have to wait for this many bytes."""
        return bool(self._waiting) or self.held_bytes + size > self.limit

    def _try(self, room: BodyReservation, size: int) -> bool:
        with self._changed:
            if self._waiting or self.held_bytes + size > self.limit:
                return False
            self._add(room, size)
            return True

    def _wait(self, room: BodyReservation, size: int, *, wait_s: float, is_over: Callable[[], bool]) -> bool:
        """Waits for this many bytes more; returns whether they were reserved. The oldest call goes first, so large ones do not starve."""
        deadline = self._clock() + wait_s
        with self._changed:
            insort(self._waiting, room)
            try:
                while not self._may(room, size):
                    left_s = deadline - self._clock()
                    if left_s <= 0 or is_over():
                        return False
                    self._changed.wait(min(left_s, RECHECK_S))
                self._add(room, size)
                return True
            finally:
                self._waiting.remove(room)
                self._changed.notify_all()

    def _wait_for_answer(self, room: BodyReservation, size: int, *, is_over: Callable[[], bool]) -> float:
        """Waits for this many bytes more, at most STALLED_S after the last release; returns the seconds waited."""
        began = self._clock()
        while not self._wait(room, size, wait_s=RECHECK_S, is_over=is_over):
            if is_over() or self._clock() - max(began, self._released_at) > STALLED_S:
                self._change(room, size)
                break
        return self._clock() - began

    def _may(self, room: BodyReservation, size: int) -> bool:
        if self._waiting[0] is not room:
            return False
        # When every holder waits for more, no bytes would ever be released.
        return self.held_bytes + size <= self.limit or self._holders <= set(self._waiting)

    def _add(self, room: BodyReservation, size: int) -> None:
        room.held_bytes += size
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        (self._holders.add if room.held_bytes else self._holders.discard)(room)
        if size < 0:
            self._released_at = self._clock()
            self._changed.notify_all()

    def _change(self, room: BodyReservation, size: int) -> None:
        with self._changed:
            self._add(room, size)


class BodyReservation:
    """The bytes that one call holds of the budget. A context manager that releases them at its end."""

    def __init__(self, budget: BodyBudget, ticket: int) -> None:
        self._budget, self._ticket = budget, ticket
        self.held_bytes = 0
        self._arrived = self._answer_bytes = 0

    def __lt__(self, other: BodyReservation) -> bool:
        return self._ticket < other._ticket

    def __enter__(self) -> BodyReservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.resize(0)

    def is_short(self) -> bool:
        """Whether a new job of the largest size would have to wait."""
        return self._budget.is_short(settings().max_body_bytes)

    def may_wait(self, limit: int) -> bool:
        """Whether fewer calls than the limit wait: waiting calls hold threads that small jobs need."""
        return self._budget.waiting() < max(1, limit)

    def try_reserve(self, size: int) -> bool:
        """Reserves this many bytes more if they are free and no other call waits for them."""
        return self._budget._try(self, size)

    def reserve(self, size: int, *, wait_s: float = WAIT_S, is_over: Callable[[], bool] = bool) -> bool:
        """Waits for this many bytes more. False: they were not free in time, or `is_over`."""
        return self._budget._wait(self, size, wait_s=wait_s, is_over=is_over)

    def resize(self, size: int) -> None:
        """Sets the number of bytes held, once it is known or after a release. Never waits."""
        self._budget._change(self, size - self.held_bytes)

    def arrive(self, size: int, *, expected: int = 0, is_over: Callable[[], bool] = bool) -> float:
        """Reserves arrived bytes of an answer; returns the seconds waited. expected: the length of the whole answer, where it is known."""
        self._arrived += size
        if max(self._arrived, expected) - FREE_BYTES <= self._answer_bytes:
            return 0.0
        missing = (expected if self._arrived <= expected else self._arrived + STEP_BYTES) - FREE_BYTES - self._answer_bytes
        self._answer_bytes += missing
        if self.try_reserve(missing):
            return 0.0
        return self._budget._wait_for_answer(self, missing, is_over=is_over)


@cache
def budget() -> BodyBudget:
    """The budget of this process."""
    return BodyBudget(settings().worker_body_bytes)


def trim_after_peak() -> None:
    """Returns free memory to the system once large bodies are gone. Runs with each heartbeat."""
    bodies = budget()
    if bodies.peak_bytes > TRIM_FROM_BYTES and not bodies.held_bytes:
        bodies.peak_bytes = 0
        allocator.trim()
