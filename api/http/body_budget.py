"""A process's memory budget for bodies: a large one waits for room before it is read. Few are moved to Postgres at once:
models/database/db.py.

One key holds at most KEY_SHARE of it, or a single body: who sends slowly, and much at a time, leaves room for others.
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

# Every request's first so many bytes are free: chats go on while pictures have to wait.
FREE_BYTES = 1024 * 1024
AGAIN_S = 5.0
# Most clients wait longer than this for their answer.
WAIT_MOST_S = 30.0
# Of the budget, what the bodies of one key may hold together.
KEY_SHARE = 0.5


@dataclass(eq=False)
class Ticket:
    """One body that waits for room. key: whose it is."""

    key: str
    size: int


class BodyBudget:
    """What is held for all requests of this process together.

    Large bodies of known length get room in the order in which they came; those whose key has its share are passed over. key: any text
    that is the same for all requests of one key.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._held_by: Counter[str] = Counter()
        self._clock = clock
        self.held_bytes = 0

    def take(self, size: int, *, key: str = "", held: int = 0) -> None:
        """So many bytes more are held. held: what this body has already. Raises Unavailable when that is too much."""
        with self._changed:
            if not (self._fits(size) and self._is_within_share(key, size, held=held)):
                raise _full()
            self._hold(size, key)

    def reserve(self, size: int, *, key: str = "", wait_s: float = WAIT_MOST_S) -> None:
        """As `take`, but waits for room, behind those that wait already. Raises Unavailable when there was none in time."""
        ticket, ends = Ticket(key, size), self._clock() + wait_s
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._next() is not ticket or not self._fits(size):
                    rest_s = ends - self._clock()
                    if size > settings().max_intake_bytes or rest_s <= 0:
                        raise _full()
                    self._changed.wait(rest_s)
                self._hold(size, key)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def give_back(self, size: int, *, key: str = "") -> None:
        """So many are no longer."""
        with self._changed:
            self._hold(-size, key)
            self._changed.notify_all()

    def _hold(self, size: int, key: str) -> None:
        self.held_bytes += size
        self._held_by[key] += size
        if not self._held_by[key]:
            del self._held_by[key]

    def _next(self) -> Ticket | None:
        """The first in line whose key has not its share yet."""
        return next((one for one in self._waiting if self._is_within_share(one.key, one.size)), None)

    def _is_within_share(self, key: str, size: int, *, held: int = 0) -> bool:
        """Whether the key may hold so many more. held: of the same body, of which there may always be one."""
        mine = self._held_by[key]
        return size <= 0 or mine == held or mine + size <= settings().max_intake_bytes * KEY_SHARE

    def _fits(self, size: int) -> bool:
        return self.held_bytes + size <= settings().max_intake_bytes


budget = BodyBudget()


def register(app: Flask) -> None:
    """Whatever becomes of a request, what it took is given back."""
    app.teardown_request(lambda _error: release())


def reserve(size: int) -> None:
    """This request will hold so many bytes. Waits for them; raises Unavailable."""
    if counted := _counted(size):
        budget.reserve(counted, key=_key())
    g.body_bytes = g.reserved_bytes = size


def acquire(size: int) -> None:
    """This request holds so many bytes more, if they were not reserved. Raises Unavailable."""
    if g.get("reserved_bytes"):
        return
    before = g.get("body_bytes", 0)
    held = _counted(before)
    budget.take(_counted(before + size) - held, key=_key(), held=held)
    g.body_bytes = before + size


def release() -> None:
    """This request's body is no longer held: it is stored, or refused."""
    g.pop("reserved_bytes", None)
    if held := _counted(g.pop("body_bytes", 0)):
        budget.give_back(held, key=_key())


def _key() -> str:
    """Whose request this is: of the chat page's visitors, who show no key, all are one."""
    if "intake_key" not in g:
        g.intake_key = auth.bearer_token(request)
    return str(g.intake_key)


def _counted(size: int) -> int:
    return max(0, size - FREE_BYTES)


def _full() -> Unavailable:
    return Unavailable("This server is taking in as much as it can bear. Send it again in a few seconds.", retry_after_s=AGAIN_S)
