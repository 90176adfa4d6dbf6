"""The pacer's process, `python -m workers.pacer`: the steps, a listener for wake-ups, the sweep, due webhooks, Flower's announcer."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from functools import partial
from typing import Any
from uuid import UUID

import redis

from models.config.settings import settings
from models.platform.errors import LineUnavailable, Unavailable
from models.telemetry import logs, tracing
from workers.broker.publish import CeleryRing, WebhookRing
from workers.channels import notify
from workers.flower.events import Announcer
from workers.limiter.limiter import Limiter
from workers.observe import metrics_server
from workers.pacer.cleanup import Cleanup
from workers.pacer.gauges import Gauges
from workers.pacer.heartbeat import PacerHeartbeat
from workers.pacer.reaper import Reaper
from workers.pacer.step import Pacer
from workers.pacer.wakeups import Wakeups
from workers.pacer.webhook_dispatch import WebhookDispatcher

log = logging.getLogger(__name__)

# Without Postgres or Redis a step is tried all the same: then this process is well, and it is others that deep health names.
STUCK_S = 60.0
LANE_MAX = 2**63 - 1


def main() -> None:
    """Runs until SIGTERM or SIGINT; ends with 1 when one of its threads has died."""
    logs.configure(settings().log_level)
    tracing.start("nowserving-pacer")
    stop, wakeups, announcer = threading.Event(), Wakeups(), Announcer()
    limiter = Limiter(notify.client())
    pacer = Pacer(limiter=limiter, ring=CeleryRing(), wakeups=wakeups)
    sweep = Reaper(limiter=Limiter(notify.connect()), wakeups=wakeups)
    due = WebhookDispatcher(broker=notify.connect(), ring=WebhookRing())
    watch = PacerHeartbeat(notify.connect(), stepped_at=lambda: pacer.stepped_at, looks=Gauges().look)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    works = (pacer.run, sweep.run, due.run, announcer.run, watch.run, Cleanup().run, partial(listen, wakeups, announcer, due, sweep))
    threads = [threading.Thread(target=work, args=(stop,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    if settings().pacer_metrics_port:
        metrics_server.serve(settings().pacer_metrics_port, is_healthy=lambda: time.monotonic() - pacer.tried_at < STUCK_S)
    log.info("pacing")
    while not stop.wait(1.0):
        if not all(thread.is_alive() for thread in threads):
            log.critical("a thread of the pacer died; the process ends, to be started again whole")
            sys.exit(1)
    for thread in threads[:3]:
        thread.join(5)
    tracing.stop()


def listen(wakeups: Wakeups, announcer: Announcer, due: WebhookDispatcher, sweep: Reaper, stop: threading.Event) -> None:
    """Wake-ups reach the wakeups, and what they are about reaches Flower and webhooks. Without Redis each looks once a second by itself.

    Messages that this version cannot read are counted and ignored (wake.pass_on).
    """
    hear = partial(_hear, wakeups=wakeups, announcer=announcer, due=due, sweep=sweep)
    while not stop.is_set():
        try:
            notify.listen(notify.LINE, hear, until=stop.is_set)
        except (redis.RedisError, OSError):
            stop.wait(0.5)


def _hear(message: dict[str, Any], wakeups: Wakeups, announcer: Announcer, due: WebhookDispatcher, sweep: Reaper) -> None:
    if isinstance(receivers := message.get("receivers"), list):
        due.wake([str(name) for name in receivers])
        return
    if isinstance(lanes := message.get("limits"), list):
        _enforce(sweep, lanes, forget=bool(message.get("forget")))
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
    if isinstance(joined := message.get("joined"), list):
        wakeups.job_enqueued(lane_id)
        for job_id in joined:
            announcer.waits(UUID(job_id))
        return
    wakeups.wake(lane_id)
    if message.get("cancelled"):
        announcer.cancelled(UUID(str(message["cancelled"])))
        due.wake(None)


def _enforce(sweep: Reaper, lanes: list[int], *, forget: bool) -> None:
    """What fails here is found by the sweep within seconds."""
    try:
        sweep.enforce(lanes, forget=forget)
    except (Unavailable, LineUnavailable) as error:
        log.warning("changed limits wait for the sweep", extra={"why": str(error.__cause__ or error)})


if __name__ == "__main__":
    main()
