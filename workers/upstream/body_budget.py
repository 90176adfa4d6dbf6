"""The memory budget of a worker process for large bodies: a byte semaphore, first come, first served.

A call takes a `Room` for as long as it lives. Before a large request is loaded, room for it is reserved, and it is given back when the
request was written to the upstream. An answer takes room as it arrives: without any, the worker reads on later, and TCP holds the
upstream up. Two copies of what is counted may be alive (a body's pieces, and the body that is joined of them).
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

# Of each body; 64 calls with short bodies are 32 MiB at most.
FREE_BYTES = 256 * 1024
# An answer of unknown length takes room in steps of so many bytes.
STEP_BYTES = 1024 * 1024
# How long a job waits for room before it goes back to its line: less than NOWSERVING_UNCLAIMED_AFTER_S.
WAIT_S = 5.0
# An answer was paid for. When nobody has given anything back for so long, it is read on all the same.
STALLED_S = 20.0
# Of bodies held at once, after which memory is given back.
TRIM_FROM_BYTES = 4 * 1024 * 1024
LOOK_S = 0.5


class BodyBudget:
    """limit: bytes of all rooms together. Thread-safe."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        # most_bytes: held at once, since `trim_after_peak`
        self.held_bytes = self.most_bytes = 0
        self._clock = clock
        self._changed = threading.Condition()
        self._tickets = count()
        self._holders: set[BodyReservation] = set()
        self._waiting: list[BodyReservation] = []  # the oldest call first
        self._given_back_at = clock()

    def room(self) -> BodyReservation:
        """Nothing yet, for one call."""
        return BodyReservation(self, next(self._tickets))

    def waiting(self) -> int:
        """How many calls wait for room."""
        return len(self._waiting)

    def is_short(self, size: int) -> bool:
        """Whether a call that came now could not have so many bytes at once."""
        return bool(self._waiting) or self.held_bytes + size > self.limit

    def _try(self, room: BodyReservation, size: int) -> bool:
        with self._changed:
            if self._waiting or self.held_bytes + size > self.limit:
                return False
            self._add(room, size)
            return True

    def _wait(self, room: BodyReservation, size: int, *, wait_s: float, is_over: Callable[[], bool]) -> bool:
        """Whether the room has so many bytes more, in the end. The oldest call is served first, so that large ones are not overtaken."""
        ends = self._clock() + wait_s
        with self._changed:
            insort(self._waiting, room)
            try:
                while not self._may(room, size):
                    rest_s = ends - self._clock()
                    if rest_s <= 0 or is_over():
                        return False
                    self._changed.wait(min(rest_s, LOOK_S))
                self._add(room, size)
                return True
            finally:
                self._waiting.remove(room)
                self._changed.notify_all()

    def _wait_for_answer(self, room: BodyReservation, size: int, *, is_over: Callable[[], bool]) -> float:
        """The seconds until the room had so many bytes more; see STALLED_S."""
        began = self._clock()
        while not self._wait(room, size, wait_s=LOOK_S, is_over=is_over):
            if is_over() or self._clock() - max(began, self._given_back_at) > STALLED_S:
                self._change(room, size)
                break
        return self._clock() - began

    def _may(self, room: BodyReservation, size: int) -> bool:
        if self._waiting[0] is not room:
            return False
        # Where every holder waits for more, nobody would ever give anything back.
        return self.held_bytes + size <= self.limit or self._holders <= set(self._waiting)

    def _add(self, room: BodyReservation, size: int) -> None:
        room.held_bytes += size
        self.held_bytes += size
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        (self._holders.add if room.held_bytes else self._holders.discard)(room)
        if size < 0:
            self._given_back_at = self._clock()
            self._changed.notify_all()

    def _change(self, room: BodyReservation, size: int) -> None:
        with self._changed:
            self._add(room, size)


class BodyReservation:
    """What one call holds of the budget. A context manager: at its end all is given back."""

    def __init__(self, budget: BodyBudget, ticket: int) -> None:
        self._budget, self._ticket = budget, ticket
        self.held_bytes = 0
        self._arrived = self._of_answer = 0

    def __lt__(self, other: BodyReservation) -> bool:
        return self._ticket < other._ticket

    def __enter__(self) -> BodyReservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.settle(0)

    def is_short(self) -> bool:
        """Whether a job that came now might have to wait for room, however large it is."""
        return self._budget.is_short(settings().max_body_bytes)

    def may_wait(self, most: int) -> bool:
        """Whether fewer than so many calls wait: those that do hold threads, which small jobs need."""
        return self._budget.waiting() < max(1, most)

    def take_at_once(self, size: int) -> bool:
        """Whether there was room for so many bytes more, and nobody waited for it."""
        return self._budget._try(self, size)

    def reserve(self, size: int, *, wait_s: float = WAIT_S, is_over: Callable[[], bool] = bool) -> bool:
        """Waits for so many bytes more. False: there was no room in time, or `is_over`."""
        return self._budget._wait(self, size, wait_s=wait_s, is_over=is_over)

    def settle(self, size: int) -> None:
        """It holds so many bytes from now on, whatever it held: known at last, or freed. Never waits."""
        self._budget._change(self, size - self.held_bytes)

    def arrive(self, size: int, *, expected: int = 0, is_over: Callable[[], bool] = bool) -> float:
        """So many bytes more of an answer are here; expected: how long all of it is, where that is known. Returns the seconds waited."""
        self._arrived += size
        if max(self._arrived, expected) - FREE_BYTES <= self._of_answer:
            return 0.0
        lacking = (expected if self._arrived <= expected else self._arrived + STEP_BYTES) - FREE_BYTES - self._of_answer
        self._of_answer += lacking
        if self.take_at_once(lacking):
            return 0.0
        return self._budget._wait_for_answer(self, lacking, is_over=is_over)


@cache
def budget() -> BodyBudget:
    """That of this process."""
    return BodyBudget(settings().worker_body_bytes)


def trim_after_peak() -> None:
    """Gives free memory back to the system once large bodies are gone. Called with each heartbeat."""
    known = budget()
    if known.most_bytes > TRIM_FROM_BYTES and not known.held_bytes:
        known.most_bytes = 0
        allocator.trim()
