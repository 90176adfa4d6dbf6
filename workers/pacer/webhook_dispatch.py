"""Webhooks that are due are rung for: a thread of the pacer's process, woken by name, and looking at everybody once a second."""

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
from workers.broker.publish import Call, Ring
from workers.broker.queues import WEBHOOKS

log = logging.getLogger(__name__)

EVERY_S = 1.0
# Wake-ups that come within this time are looked at together.
TOGETHER_S = 0.01
# No more doorbells than this stand in Celery's queue: what waits, waits in Postgres.
MAX_QUEUED = 64
# How soon to look again when the queue had no room for all.
FULL_QUEUE_RETRY_S = 0.05


class WebhookDispatcher:
    """Any number of processes may run one; they pick one after another."""

    def __init__(self, *, broker: redis.Redis, ring: Ring) -> None:
        self._broker = broker
        self._ring = ring
        self._named: set[str] = set()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._all_at = float("-inf")

    def wake(self, receivers: Sequence[str] | None) -> None:
        """These have something due; None: somebody has. Safe to call from any thread."""
        with self._lock:
            self._named.update(receivers or ())
            if receivers is None:
                self._all_at = float("-inf")
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        took_s = 0.0
        while not stop.is_set():
            self._woken.wait(max(0.0, min(EVERY_S, self._all_at - time.monotonic())))
            # With very many receivers a look takes a while; then it rests for as long.
            stop.wait(max(TOGETHER_S, took_s))
            self._woken.clear()
            began = time.monotonic()
            try:
                self.step(now=began)
            except (Unavailable, redis.RedisError) as error:
                log.warning("webhooks wait", extra={"why": type(error.__cause__ or error).__name__})
                stop.wait(EVERY_S)
            except Exception:
                # A border: the next look must come whatever this one found.
                log.exception("a look at webhooks failed")
                stop.wait(EVERY_S)
            took_s = time.monotonic() - began

    def step(self, *, now: float) -> int:
        """One look, at who was named, or at everybody when that is due; how many were rung for. now: monotonic seconds."""
        with self._lock:
            named, self._named = self._named, set()
            looks_at_all = now >= self._all_at
            if looks_at_all:
                self._all_at = now + EVERY_S
        if looks_at_all:
            with db.begin() as session:
                dispatch.put_right(session)
        elif not named:
            return 0
        return self._pick(None if looks_at_all else sorted(named), now=now)

    def _pick(self, receivers: Sequence[str] | None, *, now: float) -> int:
        room = MAX_QUEUED - int(self._broker.llen(WEBHOOKS))
        with db.begin() as session:
            picked = dispatch.pick(
                session,
                receivers=receivers,
                per_receiver=settings().webhook_per_receiver,
                per_host=settings().webhook_per_host,
                most=room,
            )
        if len(picked) >= room:
            with self._lock:
                self._all_at = now + FULL_QUEUE_RETRY_S
        # Those that were not rung for wait again when nobody has claimed them.
        return len(picked) if self._ring.ring([Call(one.id, one.ticket) for one in picked]) else 0
