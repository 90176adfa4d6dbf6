"""Where one thread is told what to see to: each thing once, however often it was put in."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Inbox(Generic[Thing]):
    """Many put in, one takes out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: set[Thing] = set()
        self._bell = threading.Event()

    def put(self, things: Iterable[Thing]) -> None:
        """Whoever takes is woken, also by no things at all."""
        with self._lock:
            self._things.update(things)
        self._bell.set()

    def take(self, timeout_s: float) -> set[Thing]:
        """Everything that is in, as soon as there is something or somebody rings; nothing when the time is up."""
        self._bell.wait(timeout_s)
        self._bell.clear()
        with self._lock:
            taken, self._things = self._things, set()
        return taken
