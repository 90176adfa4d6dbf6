"""How much of what is being sent this process holds in memory: beyond a limit large bodies are refused, small ones never."""

from __future__ import annotations

import threading

from flask import Flask, g

from models.errors import Unavailable
from models.settings import settings

# Every request's first so many bytes are free: chats go on while pictures have to wait.
FREE_BYTES = 1024 * 1024
AGAIN_S = 5.0


class Intake:
    """What is held for all requests of this process together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """So many bytes more are held. Raises Unavailable when that is too much."""
        with self._lock:
            if self.held_bytes + size > settings().max_intake_bytes:
                raise Unavailable("This server is taking in as much as it can bear. Send it again in a few seconds.", retry_after_s=AGAIN_S)
            self.held_bytes += size

    def give_back(self, size: int) -> None:
        """So many are no longer."""
        with self._lock:
            self.held_bytes -= size


intake = Intake()


def register(app: Flask) -> None:
    """Whatever becomes of a request, what it took is given back."""
    app.teardown_request(lambda _error: release())


def take(size: int) -> None:
    """This request holds so many bytes more. Raises Unavailable."""
    before = g.get("body_bytes", 0)
    intake.take(_counted(before + size) - _counted(before))
    g.body_bytes = before + size


def release() -> None:
    """This request's body is no longer held: it is stored, or refused."""
    intake.give_back(_counted(g.pop("body_bytes", 0)))


def _counted(size: int) -> int:
    return max(0, size - FREE_BYTES)
