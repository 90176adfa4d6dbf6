"""The pacer's process, `python -m workers.pacer`: threads for steps, wake-ups, reaper, webhooks, cleanup, heartbeat and Flower events."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from functools import partial
from typing import Any
from uuid import UUID

from models.config.settings import settings
from models.platform.errors import LimiterUnavailable, Unavailable
from models.telemetry import logs, tracing
from workers.broker.publish import JobPublisher, WebhookPublisher
from workers.channels import notify
from workers.flower.events import FlowerEvents
from workers.limiter.limiter import Limiter
from workers.observe import metrics_server
from workers.pacer.cleanup import Cleanup
from workers.pacer.gauges import Gauges
from workers.pacer.heartbeat import PacerHeartbeat
from workers.pacer.limit_enforcer import LimitEnforcer
from workers.pacer.reaper import Reaper
from workers.pacer.step import Pacer
from workers.pacer.wakeups import Wakeups
from workers.pacer.webhook_dispatch import WebhookDispatcher

log = logging.getLogger(__name__)

# During an outage of Postgres or Redis, steps are still tried: this process is healthy, and deep health reports the outage.
STUCK_S = 60.0
LANE_MAX = 2**63 - 1


def main() -> None:
    """Runs until SIGTERM or SIGINT; exits with 1 when one of its threads has died."""
    logs.configure(settings().log_level)
    tracing.start("nowserving-pacer")
    stop, wakeups, announcer = threading.Event(), Wakeups(), FlowerEvents()
    limiter = Limiter(notify.client())
    pacer = Pacer(limiter=limiter, publisher=JobPublisher(), wakeups=wakeups)
    reaper = Reaper(limiter=Limiter(notify.connect()), wakeups=wakeups)
    webhooks = WebhookDispatcher(broker=notify.connect(), publisher=WebhookPublisher())
    heartbeat = PacerHeartbeat(notify.connect(), stepped_at=lambda: pacer.stepped_at, also=Gauges().refresh)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    listener = partial(listen, wakeups, announcer, webhooks, reaper.limits)
    loops = (pacer.run, reaper.run, webhooks.run, announcer.run, heartbeat.run, Cleanup().run, listener)
    threads = [threading.Thread(target=loop, args=(stop,), daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    if settings().pacer_metrics_port:
        metrics_server.serve(settings().pacer_metrics_port, is_healthy=lambda: time.monotonic() - pacer.tried_at < STUCK_S)
    log.info("pacing")
    while not stop.wait(1.0):
        if not all(thread.is_alive() for thread in threads):
            log.critical("a thread of the pacer died; the process exits to be restarted")
            sys.exit(1)
    for thread in threads[:3]:
        thread.join(5)
    tracing.stop()


def listen(wakeups: Wakeups, announcer: FlowerEvents, webhooks: WebhookDispatcher, limits: LimitEnforcer, stop: threading.Event) -> None:
    """Subscribes to the pacer's channel and hands its messages to the other threads. Without Redis, each thread polls once a second.

    Messages that this version cannot read are counted and ignored (notify.handle_message).
    """
    handle = partial(_handle, wakeups=wakeups, announcer=announcer, webhooks=webhooks, limits=limits)
    notify.subscribe(notify.PACER_CHANNEL, handle, stop)


def _handle(message: dict[str, Any], wakeups: Wakeups, announcer: FlowerEvents, webhooks: WebhookDispatcher, limits: LimitEnforcer) -> None:
    if isinstance(receivers := message.get("receivers"), list):
        webhooks.wake([str(name) for name in receivers])
        return
    if isinstance(lanes := message.get("limits"), list):
        _enforce_limits(limits, lanes, forget=bool(message.get("forget")))
        return
    if "slot" in message:
        wakeups.slot_freed()
        return
    lane_id = int(message["lane"])
    if not 0 < lane_id <= LANE_MAX:
        raise ValueError("no lane has this number")
    if message.get("budget"):
        wakeups.budget_freed(lane_id)
        return
    if isinstance(job_ids := message.get("joined"), list):
        wakeups.job_enqueued(lane_id)
        for job_id in job_ids:
            announcer.job_enqueued(UUID(job_id))
        return
    wakeups.wake(lane_id)
    if message.get("cancelled"):
        announcer.job_cancelled(UUID(str(message["cancelled"])))
        webhooks.wake(None)


def _enforce_limits(limits: LimitEnforcer, lanes: list[int], *, forget: bool) -> None:
    """The reaper enforces the limits within seconds where this fails."""
    try:
        limits.enforce_lanes(lanes, forget=forget)
    except (Unavailable, LimiterUnavailable) as error:
        log.warning("changed limits wait for the reaper", extra={"why": str(error.__cause__ or error)})


if __name__ == "__main__":
    main()
