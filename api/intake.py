"""A process's memory budget for bodies: a large one waits for room before it is read. Few are moved to Postgres at once: models/db.py."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from flask import Flask, g

from models.errors import Unavailable
from models.settings import settings

# Every request's first so many bytes are free: chats go on while pictures have to wait.
FREE_BYTES = 1024 * 1024
AGAIN_S = 5.0
# Most clients wait longer than this for their answer.
WAIT_MOST_S = 30.0


class Intake:
    """What is held for all requests of this process together. Large bodies of known length get room in the order in which they came."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._clock = clock
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """So many bytes more are held. Raises Unavailable when that is too much."""
        with self._changed:
            if not self._fits(size):
                raise _full()
            self.held_bytes += size

    def reserve(self, size: int, *, wait_s: float = WAIT_MOST_S) -> None:
        """As `take`, but waits for room, behind those that wait already. Raises Unavailable when there was none in time."""
        ticket, ends = object(), self._clock() + wait_s
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or not self._fits(size):
                    rest_s = ends - self._clock()
                    if size > settings().max_intake_bytes or rest_s <= 0:
                        raise _full()
                    self._changed.wait(rest_s)
                self.held_bytes += size
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def give_back(self, size: int) -> None:
        """So many are no longer."""
        with self._changed:
            self.held_bytes -= size
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self.held_bytes + size <= settings().max_intake_bytes


intake = Intake()


def register(app: Flask) -> None:
    """Whatever becomes of a request, what it took is given back."""
    app.teardown_request(lambda _error: release())


def reserve(size: int) -> None:
    """This request will hold so many bytes. Waits for them; raises Unavailable."""
    if counted := _counted(size):
        intake.reserve(counted)
    g.body_bytes = g.reserved_bytes = size


def take(size: int) -> None:
    """This request holds so many bytes more, if they were not reserved. Raises Unavailable."""
    if g.get("reserved_bytes"):
        return
    before = g.get("body_bytes", 0)
    intake.take(_counted(before + size) - _counted(before))
    g.body_bytes = before + size


def release() -> None:
    """This request's body is no longer held: it is stored, or refused."""
    g.pop("reserved_bytes", None)
    intake.give_back(_counted(g.pop("body_bytes", 0)))


def _counted(size: int) -> int:
    return max(0, size - FREE_BYTES)


def _full() -> Unavailable:
    return Unavailable("This server is taking in as much as it can bear. Send it again in a few seconds.", retry_after_s=AGAIN_S)
