"""Redis pub/sub notifications. Each is published once and lost without a subscriber, so every receiver also polls.

Three channels: `ns:line` wakes the pacer for a lane (and Flower's events for a job), a freed budget or slot, and receivers with due
webhooks. `ns:jobs` notifies waiting clients and workers of a job's changes. `ns:models` wakes the workers to refresh model lists.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from models.config import redis_sentinel
from models.config.settings import settings
from models.telemetry import metrics

log = logging.getLogger(__name__)

PACER_CHANNEL = "ns:line"
JOBS_CHANNEL = "ns:jobs"
MODELS_CHANNEL = "ns:models"
# Last heartbeat of the pacer; expires when no pacer runs.
HEARTBEAT_KEY = "ns:pulse"
HEARTBEAT_TTL_MS = 10_000
# A channel and a message for it.
Message = tuple[str, str]
# No caller waits long for Redis, and no command is sent twice.
TIMEOUT_S = 1.0
RECONNECT_S = 0.5


def connect(*, timeout_s: float = TIMEOUT_S, health_check_s: int = 10) -> redis.Redis:
    """Returns a client with short timeouts and no retries. health_check_s: after this time unused; 0: never.

    With Sentinels in NOWSERVING_REDIS_URL, each new connection asks them for the master.
    """
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": TIMEOUT_S, "retry": Retry(NoBackoff(), 0)}
    sentinels = redis_sentinel.parse_url(settings().redis_url)
    if sentinels is None:
        return redis.Redis.from_url(settings().redis_url, health_check_interval=health_check_s, **options)
    sentinel_options = {**options, "socket_timeout": TIMEOUT_S, "password": sentinels.sentinel_password}
    master: redis.Redis = Sentinel(sentinels.hosts, sentinel_kwargs=sentinel_options).master_for(  # type: ignore[no-untyped-call]
        sentinels.master, db=sentinels.database, username=sentinels.user, password=sentinels.password,
        health_check_interval=health_check_s, **options,
    )  # fmt: skip
    return master


@cache
def client() -> redis.Redis:
    """Returns this process's client."""
    return connect()


def lane_changed(lane_id: int, *, cancelled: UUID | None = None) -> None:
    """Wakes the pacer for this lane. cancelled: a job whose cancellation Flower shows."""
    _publish(_lane(lane_id, cancelled=str(cancelled) if cancelled else None))


def jobs_enqueued(jobs: Mapping[int, Sequence[UUID]]) -> None:
    """Wakes the pacer for the lanes of these jobs, which Flower then shows. jobs: job ids by lane id."""
    _publish(*(_lane(lane_id, joined=[str(job_id) for job_id in ids]) for lane_id, ids in jobs.items()))


def budget_freed(lane_id: int) -> Message:
    """Returns the message that this lane's budget is free again; Limiter.release publishes it in its own round trip."""
    return _lane(lane_id, budget=True)


def limits_changed(lane_ids: Sequence[int], *, forget: bool = False) -> None:
    """Makes the pacer enforce the current limits of these lanes. forget: it also rebuilds their limiter state."""
    if lane_ids:
        _publish((PACER_CHANNEL, json.dumps({"limits": list(lane_ids), "forget": forget})))


def deliveries_due(receivers: Sequence[str]) -> None:
    """Wakes the webhook scheduler for these receivers."""
    _publish(_receivers(receivers))


def refresh_model_lists() -> None:
    """Wakes the workers to refresh copies of model lists (models/keys/model_lists.py)."""
    _publish((MODELS_CHANNEL, "{}"))


def job_changed(job_id: UUID, event: str) -> None:
    """Notifies the clients that wait for this job, and the worker that runs it."""
    _publish(_job(job_id, event))


def call_ended(job_id: UUID, event: str, *, lane_id: int | None, receivers: Sequence[str]) -> None:
    """Publishes everything that follows from the end of a call, in one pipeline: to waiting clients and to the pacer.

    lane_id: a lane in which a job may go now; None: only a slot became free. receivers: receivers with due deliveries.
    """
    to_pacer = (PACER_CHANNEL, '{"slot": true}') if lane_id is None else _lane(lane_id)
    _publish(_job(job_id, event), to_pacer, *([_receivers(receivers)] if receivers else []))


def report_heartbeat(*, unanswered_s: float) -> None:
    """Stores the pacer's heartbeat with the age of the oldest unclaimed Celery message. Raises redis.RedisError."""
    client().set(HEARTBEAT_KEY, unanswered_s, px=HEARTBEAT_TTL_MS)


def pacer_heartbeat() -> float | None:
    """Returns the age of the oldest unclaimed Celery message in seconds; None if no pacer runs. Raises redis.RedisError."""
    raw = client().get(HEARTBEAT_KEY)
    return None if raw is None else float(raw)


def subscribe(channel: str, handle: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
    """Passes the messages of this channel to `handle` until `stop`; reconnects by itself. Messages during an outage are lost."""
    while not stop.is_set():
        try:
            with connect(timeout_s=5).pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
                subscription.subscribe(channel)
                while not stop.is_set():
                    message = subscription.get_message(timeout=1.0)
                    if message is not None:
                        handle_message(channel, message["data"], handle)
        except (redis.RedisError, OSError):
            stop.wait(RECONNECT_S)


_logged: set[tuple[str, str]] = set()


def handle_message(channel: str, data: bytes, handle: Callable[[dict[str, Any]], None]) -> None:
    """Passes one message to `handle`. A failure is counted, and logged once for each kind of error.

    A newer version may send messages that this one cannot read.
    """
    try:
        handle(json.loads(data))
    except Exception as error:
        # A border: notifications are best effort, and none may end the listener's thread.
        metrics.ignored.labels(channel).inc()
        kind = (channel, type(error).__name__)
        if kind not in _logged:
            _logged.add(kind)
            log.warning("a message was ignored", extra={"channel": channel, "error": kind[1]})


def _lane(lane_id: int, **more: object) -> Message:
    return PACER_CHANNEL, json.dumps({"lane": lane_id, **more})


def _job(job_id: UUID, event: str) -> Message:
    return JOBS_CHANNEL, json.dumps({"job": str(job_id), "event": event})


def _receivers(names: Sequence[str]) -> Message:
    return PACER_CHANNEL, json.dumps({"receivers": list(names)})


def _publish(*messages: Message) -> None:
    try:
        with client().pipeline(transaction=False) as pipeline:
            for channel, message in messages:
                pipeline.publish(channel, message)
            pipeline.execute()
    except redis.RedisError as error:
        log.warning("notification lost", extra={"channel": messages[0][0], "error": type(error).__name__})
