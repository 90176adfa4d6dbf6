"""Usage of one limit, as OpenAI measures it (Bucket) or exactly (Window). All times are seconds on the caller's clock."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Meter(Protocol):
    limit: int

    def used(self, now: float) -> float: ...
    def take(self, amount: int, now: float) -> None: ...
    def wait_s(self, amount: int, now: float) -> float: ...
    def reset_s(self, now: float) -> float: ...


class Bucket:
    """A token bucket, as measured at OpenAI. Up to twice the limit fits in one minute."""

    def __init__(self, limit: int, period_s: float) -> None:
        self.limit = limit
        self._per_s = limit / period_s
        self._used = 0.0
        self._at = 0.0

    def used(self, now: float) -> float:
        self._used = max(0.0, self._used - (now - self._at) * self._per_s)
        self._at = now
        return self._used

    def take(self, amount: int, now: float) -> None:
        self._used = min(float(self.limit), self.used(now) + amount)

    def wait_s(self, amount: int, now: float) -> float:
        # The tolerance is for floats: a caller that waits exactly retry_after_s must be admitted.
        over = self.used(now) + amount - self.limit
        return over / self._per_s if over > 1e-6 * self.limit else 0.0

    def reset_s(self, now: float) -> float:
        return self.used(now) / self._per_s


class Window:
    """A sliding window: no interval of `period_s` ever admits more than the limit."""

    def __init__(self, limit: int, period_s: float) -> None:
        self.limit = limit
        self._period_s = period_s
        self._taken: deque[tuple[float, int]] = deque()
        self._sum = 0

    def used(self, now: float) -> float:
        while self._taken and now - self._taken[0][0] >= self._period_s:
            self._sum -= self._taken.popleft()[1]
        return self._sum

    def take(self, amount: int, now: float) -> None:
        self._taken.append((now, amount))
        self._sum += amount

    def wait_s(self, amount: int, now: float) -> float:
        over = self.used(now) + amount - self.limit
        for at, taken in self._taken:
            if over <= 0:
                break
            over -= taken
            wait_s = at + self._period_s - now
            if over <= 0:
                return max(wait_s, 1e-6)
        return 0.0

    def reset_s(self, now: float) -> float:
        return self._taken[-1][0] + self._period_s - now if self.used(now) else 0.0
