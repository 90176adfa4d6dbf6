"""The pacer's heartbeat in Redis, read by deep health: that steps are taken, and how long messages have waited for a consumer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import redis

from models.database import db
from models.jobs import workers
from models.platform.errors import Unavailable
from workers.broker.consumer_watchdog import QueueHead
from workers.broker.queues import JOB_QUEUE
from workers.channels import notify

log = logging.getLogger(__name__)

EVERY_S = 2.0
FIRST_S = 0.05
# A step takes milliseconds, and there is at least one a second.
STALLED_STEP_S = 15.0


class PacerHeartbeat:
    """stepped_at: monotonic seconds of the pacer's last step. also: runs with each heartbeat, with the time of its begin."""

    def __init__(self, broker: redis.Redis, *, stepped_at: Callable[[], float], also: Callable[[float], None] = lambda _: None) -> None:
        self._job_queue = QueueHead(broker, JOB_QUEUE)
        self._stepped_at = stepped_at
        self._also = also

    def run(self, stop: threading.Event) -> None:
        """Sends heartbeats until `stop`."""
        self._wait_for_first_step(stop)
        while not stop.is_set():
            began = time.monotonic()
            try:
                self.step(now=began)
                self._also(began)
            except (Unavailable, redis.RedisError):
                pass  # deep health itself reports which server is unavailable
            except Exception:
                # A border: a failed heartbeat must not stop the next one.
                log.exception("a heartbeat of the pacer failed")
            stop.wait(max(EVERY_S, 10 * (time.monotonic() - began)))  # counting a long queue takes at most a tenth of the time

    def _wait_for_first_step(self, stop: threading.Event) -> None:
        """Waits for the pacer's first step, so that it is reported at once; at most EVERY_S."""
        until = time.monotonic() + EVERY_S
        while self._stepped_at() == float("-inf") and time.monotonic() < until:
            stop.wait(FIRST_S)

    def step(self, *, now: float) -> None:
        """Sends one heartbeat. Without recent steps it sends none, which deep health detects. now: monotonic seconds."""
        unanswered_s = self._job_queue.head_age_s(now=now) or 0.0
        if unanswered_s:
            with db.autocommit() as session:
                if workers.idle_slots(session) <= 0:
                    unanswered_s = 0.0  # every slot is busy: the message waits its turn
        if now - self._stepped_at() < STALLED_STEP_S:
            notify.report_heartbeat(unanswered_s=unanswered_s)
