"""The memory budget of a process for request bodies: a large body waits for free memory before it is read.

One key holds at most KEY_SHARE of the budget, or a single body, so that a slow sender of large bodies leaves memory for others.
models/database/large_values.py limits how many bodies are written to Postgres at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask, g, request

from api.access import auth
from models.config.settings import settings
from models.platform.errors import Unavailable

# The first bytes of each request are free, so that chats go on while images wait.
FREE_BYTES = 1024 * 1024
RETRY_AFTER_S = 5.0
# Shorter than the read timeout of most clients.
MAX_WAIT_S = 30.0
# The part of the budget that the bodies of one key may hold together.
KEY_SHARE = 0.5


@dataclass(eq=False)
class Ticket:
    """A body that waits for memory. key: of its sender."""

    key: str
    size: int


class BodyBudget:
    """The bytes that all requests of this process hold together.

    Large bodies of known length get memory in the order of their arrival; a body whose key has used its share is skipped. key: any string
    that identifies the caller's key.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._held_by: Counter[str] = Counter()
        self._clock = clock
        self.held_bytes = 0

    def acquire(self, size: int, *, key: str = "", held: int = 0) -> None:
        """Acquires bytes without waiting. held: the bytes that this body already holds. Raises Unavailable when the budget is used up."""
        with self._changed:
            if not (self._fits(size) and self._is_within_share(key, size, held=held)):
                raise _full()
            self._hold(size, key)

    def reserve(self, size: int, *, key: str = "", wait_s: float = MAX_WAIT_S) -> None:
        """Acquires bytes; waits behind earlier bodies until there is memory. Raises Unavailable after `wait_s`."""
        ticket, deadline = Ticket(key, size), self._clock() + wait_s
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._next() is not ticket or not self._fits(size):
                    rest_s = deadline - self._clock()
                    if size > settings().max_intake_bytes or rest_s <= 0:
                        raise _full()
                    self._changed.wait(rest_s)
                self._hold(size, key)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def release(self, size: int, *, key: str = "") -> None:
        """Releases bytes."""
        with self._changed:
            self._hold(-size, key)
            self._changed.notify_all()

    def _hold(self, size: int, key: str) -> None:
        self.held_bytes += size
        self._held_by[key] += size
        if not self._held_by[key]:
            del self._held_by[key]

    def _next(self) -> Ticket | None:
        """The first waiting body whose key has not used its share."""
        return next((ticket for ticket in self._waiting if self._is_within_share(ticket.key, ticket.size)), None)

    def _is_within_share(self, key: str, size: int, *, held: int = 0) -> bool:
        """Whether the key may hold these bytes. held: bytes of the same body. A key may always hold one body."""
        held_by_key = self._held_by[key]
        return size <= 0 or held_by_key == held or held_by_key + size <= settings().max_intake_bytes * KEY_SHARE

    def _fits(self, size: int) -> bool:
        return self.held_bytes + size <= settings().max_intake_bytes


budget = BodyBudget()


def register(app: Flask) -> None:
    """Releases the memory of each request at its end, also after an error."""
    app.teardown_request(lambda _error: release())


def reserve(size: int) -> None:
    """Waits until this request may hold the bytes of its body. Raises Unavailable."""
    if counted := _counted(size):
        budget.reserve(counted, key=_key())
    g.body_bytes = g.reserved_bytes = size


def acquire(size: int) -> None:
    """Acquires bytes for this request, unless it has reserved them. Raises Unavailable."""
    if g.get("reserved_bytes"):
        return
    before = g.get("body_bytes", 0)
    held = _counted(before)
    budget.acquire(_counted(before + size) - held, key=_key(), held=held)
    g.body_bytes = before + size


def release() -> None:
    """Releases the memory of this request's body, after it was stored or refused."""
    g.pop("reserved_bytes", None)
    if held := _counted(g.pop("body_bytes", 0)):
        budget.release(held, key=_key())


def _key() -> str:
    """The bearer token of this request. Visitors of the chat page send none and count as one key."""
    if "budget_key" not in g:
        g.budget_key = auth.bearer_token(request)
    return str(g.budget_key)


def _counted(size: int) -> int:
    return max(0, size - FREE_BYTES)


def _full() -> Unavailable:
    return Unavailable("This server is taking in as much as it can bear. Send it again in a few seconds.", retry_after_s=RETRY_AFTER_S)
