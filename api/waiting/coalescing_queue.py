"""A queue that holds each item once, however often it was put: many producers, one consumer."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class CoalescingQueue(Generic[Item]):
    """A set of pending items with an event that wakes the consumer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: set[Item] = set()
        self._changed = threading.Event()

    def put(self, items: Iterable[Item]) -> None:
        """Adds the items and wakes the consumer, also when there are no items."""
        with self._lock:
            self._items.update(items)
        self._changed.set()

    def take(self, timeout_s: float) -> set[Item]:
        """Removes and returns all items as soon as `put` is called; an empty set after the timeout."""
        self._changed.wait(timeout_s)
        self._changed.clear()
        with self._lock:
            items, self._items = self._items, set()
        return items
