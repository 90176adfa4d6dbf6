"""The pacer's process says once in a while that it paces, and for how long doorbells have lain unanswered: what deep health reads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import redis

from models.database import db
from models.jobs import workers
from models.platform.errors import Unavailable
from workers.broker.consumer_watchdog import Doorbells
from workers.broker.queues import QUEUE
from workers.channels import notify

log = logging.getLogger(__name__)

EVERY_S = 2.0
FIRST_S = 0.05
# A step takes milliseconds, and there is one a second at least.
STALLED_STEP_S = 15.0


class PacerHeartbeat:
    """stepped_at: when the pacer last took a step, in monotonic seconds. looks: what else is to be done at each turn."""

    def __init__(self, broker: redis.Redis, *, stepped_at: Callable[[], float], looks: Callable[[float], None] = lambda _: None) -> None:
        self._doorbells = Doorbells(broker, QUEUE)
        self._stepped_at = stepped_at
        self._looks = looks

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        self._wait_for_first_step(stop)
        while not stop.is_set():
            began = time.monotonic()
            try:
                self.step(now=began)
                self._looks(began)
            except (Unavailable, redis.RedisError):
                pass  # deep health says itself which of them is gone
            except Exception:
                # A border: the next look must come whatever this one found.
                log.exception("a look at the parts failed")
            stop.wait(max(EVERY_S, 10 * (time.monotonic() - began)))  # a long line takes a while to count: at most a tenth of the time

    def _wait_for_first_step(self, stop: threading.Event) -> None:
        """Returns at the pacer's first step, so that it is reported at once; or after EVERY_S."""
        until = time.monotonic() + EVERY_S
        while self._stepped_at() == float("-inf") and time.monotonic() < until:
            stop.wait(FIRST_S)

    def step(self, *, now: float) -> None:
        """One look. Without steps of the pacer nothing is said, and silence is what deep health finds. now: monotonic seconds."""
        unanswered_s = self._doorbells.unanswered_s(now=now) or 0.0
        if unanswered_s:
            with db.autocommit() as session:
                if workers.idle_slots(session) <= 0:
                    unanswered_s = 0.0  # everybody is busy: it waits its turn
        if now - self._stepped_at() < STALLED_STEP_S:
            notify.paces(unanswered_s=unanswered_s)
