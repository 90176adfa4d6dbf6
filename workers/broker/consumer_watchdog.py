"""Whether doorbells lie unanswered: the oldest one in Celery's queue is the same for too long, though a slot is free for it.

Celery's consumer can fall silent after a reconnect to Redis: connected, alive, and deaf. The process then ends itself once its
calls are over, and its supervisor starts another. A worker that is busy, without work or without Redis is never taken for deaf.
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
    """One queue of Celery, watched from outside."""

    def __init__(self, broker: redis.Redis, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._oldest: bytes | None = None
        self._since = 0.0

    def head_age_s(self, *, now: float) -> float | None:
        """How long the same doorbell has been the next in the queue; None when there is none. now: monotonic seconds.

        Raises redis.RedisError; what was seen before that is forgotten.
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
    """Whether this process still message_received its queue. `message_received` is called with each doorbell."""

    def __init__(self, doorbells: QueueHead, *, slots: int, running: Callable[[], int]) -> None:
        self._doorbells = doorbells
        self._slots = slots
        self._running = running
        self._idle_since: float | None = None
        self._heard = 0
        self._heard_then = 0

    def message_received(self) -> None:
        """A doorbell arrived."""
        self._heard += 1

    def is_stalled(self, *, now: float) -> bool:
        """A doorbell lay there for DEAF_S, while this process had a free slot all that time and took nothing. now: monotonic seconds."""
        try:
            unanswered_s = self._doorbells.head_age_s(now=now)
        except redis.RedisError:
            self._idle_since = None
            return False
        if unanswered_s is None or self._heard != self._heard_then or self._running() >= self._slots:
            self._idle_since, self._heard_then = None, self._heard
            return False
        if self._idle_since is None:
            self._idle_since = now
        return min(unanswered_s, now - self._idle_since) >= STALLED_S


def exit_when_stalled(ear: ConsumerWatchdog, stop: threading.Event, *, draining: threading.Event, running: Callable[[], int]) -> None:
    """Until `stop`: a process that has gone deaf takes nothing new, lets the calls under way end, and exits with DEAF_EXIT."""
    while not stop.wait(POLL_S):
        if draining.is_set() or not ear.is_stalled(now=time.monotonic()):
            continue
        log.critical("doorbells are not heard any more: ending when the calls under way are over", extra={"running": running()})
        draining.set()
        until = time.monotonic() + settings().shutdown_grace_s
        while running() and time.monotonic() < until:
            stop.wait(POLL_S)
        # Celery's own way out goes through the loop that hangs.
        os._exit(STALLED_EXIT)
