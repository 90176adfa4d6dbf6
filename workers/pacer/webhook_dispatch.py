"""Publishes webhooks that are due to Celery: a thread of the pacer, woken for single receivers, that polls all of them once a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import redis

from models.config.settings import settings
from models.database import db
from models.platform.errors import Unavailable
from models.webhooks import dispatch
from workers.broker.publish import Publisher, TaskMessage
from workers.broker.queues import WEBHOOK_QUEUE

log = logging.getLogger(__name__)

EVERY_S = 1.0
# Wake-ups within this time are handled in one step.
COALESCE_S = 0.01
# Limit of messages in Celery's queue; other deliveries wait in Postgres.
MAX_QUEUED = 64
# The next step follows after this time when the queue had no room for all deliveries.
FULL_QUEUE_RETRY_S = 0.05


class WebhookDispatcher:
    """Any number of processes may run one; their selections exclude each other."""

    def __init__(self, *, broker: redis.Redis, publisher: Publisher) -> None:
        self._broker = broker
        self._publisher = publisher
        self._receivers: set[str] = set()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._poll_at = float("-inf")

    def wake(self, receivers: Sequence[str] | None) -> None:
        """Requests a step for these receivers; None: for all of them. Thread-safe."""
        with self._lock:
            self._receivers.update(receivers or ())
            if receivers is None:
                self._poll_at = float("-inf")
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Runs steps until `stop`."""
        took_s = 0.0
        while not stop.is_set():
            self._woken.wait(max(0.0, min(EVERY_S, self._poll_at - time.monotonic())))
            # A step over very many receivers takes a while. The thread then rests for as long.
            stop.wait(max(COALESCE_S, took_s))
            self._woken.clear()
            began = time.monotonic()
            try:
                self.step(now=began)
            except (Unavailable, redis.RedisError) as error:
                log.warning("webhooks wait", extra={"why": type(error.__cause__ or error).__name__})
                stop.wait(EVERY_S)
            except Exception:
                # A border: a failed step must not stop the next one.
                log.exception("a step of the webhook dispatcher failed")
                stop.wait(EVERY_S)
            took_s = time.monotonic() - began

    def step(self, *, now: float) -> int:
        """Publishes deliveries of the woken receivers, or of all when a poll is due; returns their number. now: monotonic seconds."""
        with self._lock:
            receivers, self._receivers = self._receivers, set()
            is_poll = now >= self._poll_at
            if is_poll:
                self._poll_at = now + EVERY_S
        if is_poll:
            with db.begin() as session:
                dispatch.recover(session)
        elif not receivers:
            return 0
        return self._publish(None if is_poll else sorted(receivers), now=now)

    def _publish(self, receivers: Sequence[str] | None, *, now: float) -> int:
        limit = MAX_QUEUED - int(self._broker.llen(WEBHOOK_QUEUE))
        with db.begin() as session:
            deliveries = dispatch.take_due(
                session,
                receivers=receivers,
                per_receiver=settings().webhook_per_receiver,
                per_host=settings().webhook_per_host,
                limit=limit,
            )
        if len(deliveries) >= limit:
            with self._lock:
                self._poll_at = now + FULL_QUEUE_RETRY_S
        # A delivery whose message was lost becomes pending again, because no sender claims it.
        return len(deliveries) if self._publisher.publish([TaskMessage(delivery.id, delivery.ticket) for delivery in deliveries]) else 0
