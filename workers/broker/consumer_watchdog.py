"""Watchdog for a Celery consumer that receives nothing: the oldest message stays in its queue although a slot is free.

Celery's consumer can stop receiving after a reconnect to Redis: connected and alive, but without messages. The process then ends
after its calls, and its supervisor starts another. A worker that is busy, idle or without Redis never counts as stalled.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import redis

from models.config.settings import settings

log = logging.getLogger(__name__)

POLL_S = 1.0
# Longer than Celery takes to poll, to reconnect and to hand over a message; well below the 30 s in which operators are to know.
STALLED_S = 12.0
STALLED_EXIT = 70


class QueueHead:
    """Age of the next message in a Celery queue, measured from outside."""

    def __init__(self, broker: redis.Redis, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._oldest: bytes | None = None
        self._since = 0.0

    def head_age_s(self, *, now: float) -> float | None:
        """Returns how long the same message has been the next one; None if the queue is empty. now: monotonic seconds.

        Raises redis.RedisError, and then restarts the measurement.
        """
        try:
            oldest = self._broker.lindex(self._queue, -1)
        except redis.RedisError:
            self._oldest = None
            raise
        if oldest != self._oldest:
            self._oldest, self._since = oldest, now  # type: ignore[assignment]  # redis-py types every answer for asyncio too
        return now - self._since if oldest is not None else None


class ConsumerWatchdog:
    """Detects that this process receives no messages. The task calls `message_received` for each message."""

    def __init__(self, head: QueueHead, *, slots: int, running: Callable[[], int]) -> None:
        self._head = head
        self._slots = slots
        self._running = running
        self._idle_since: float | None = None
        self._received = 0
        self._received_before = 0

    def message_received(self) -> None:
        """Counts a message."""
        self._received += 1

    def is_stalled(self, *, now: float) -> bool:
        """Whether a message waited for STALLED_S while this process had a free slot and received none. now: monotonic seconds."""
        try:
            head_age_s = self._head.head_age_s(now=now)
        except redis.RedisError:
            self._idle_since = None
            return False
        if head_age_s is None or self._received != self._received_before or self._running() >= self._slots:
            self._idle_since, self._received_before = None, self._received
            return False
        if self._idle_since is None:
            self._idle_since = now
        return min(head_age_s, now - self._idle_since) >= STALLED_S


def exit_when_stalled(
    watchdog: ConsumerWatchdog, stop: threading.Event, *, draining: threading.Event, running: Callable[[], int]
) -> None:  # fmt: skip
    """Polls the watchdog until `stop`. A stalled process takes nothing new, finishes its calls and exits with STALLED_EXIT."""
    while not stop.wait(POLL_S):
        if draining.is_set() or not watchdog.is_stalled(now=time.monotonic()):
            continue
        log.critical("the consumer receives no messages: the process ends after its calls", extra={"running": running()})
        draining.set()
        deadline = time.monotonic() + settings().shutdown_grace_s
        while running() and time.monotonic() < deadline:
            stop.wait(POLL_S)
        # Celery's own shutdown goes through the event loop that hangs.
        os._exit(STALLED_EXIT)
