"""Wake-ups over Redis: said once, lost when nobody listens, never relied on. Who waits looks again by itself.

Three channels: `ns:line` tells the pacer which lane to look at (and Flower's announcer of which job), whose budget or which slot is
free, and for which receivers there are webhooks; `ns:jobs` tells waiting callers and workers that something happened to a job;
`ns:models` wakes the workers to refresh lists of models.
"""

from __future__ import annotations

import json
import logging
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
# What the pacer last said of itself; gone when it has said nothing for so long.
HEARTBEAT_KEY = "ns:pulse"
HEARTBEAT_TTL_MS = 10_000
# A channel and what is said there.
Message = tuple[str, str]
# Redis is never worth waiting for: after an error nobody tries again for this long.
TIMEOUT_S = 1.0


def connect(*, timeout_s: float = TIMEOUT_S, health_check_s: int = 10) -> redis.Redis:
    """A client that gives up quickly and never sends a command twice. health_check_s: after so long unused; 0: never.

    Behind Sentinels it asks them for the master whenever it connects anew.
    """
    patience = {"socket_timeout": timeout_s, "socket_connect_timeout": TIMEOUT_S, "retry": Retry(NoBackoff(), 0)}
    watched = redis_sentinel.parse_url(settings().redis_url)
    if watched is None:
        return redis.Redis.from_url(settings().redis_url, health_check_interval=health_check_s, **patience)
    asking = {**patience, "socket_timeout": TIMEOUT_S, "password": watched.sentinel_password}
    master: redis.Redis = Sentinel(watched.hosts, sentinel_kwargs=asking).master_for(  # type: ignore[no-untyped-call]
        watched.master, db=watched.database, username=watched.user, password=watched.password,
        health_check_interval=health_check_s, **patience,
    )  # fmt: skip
    return master


@cache
def client() -> redis.Redis:
    """This process's client."""
    return connect()


def lane_changed(lane_id: int, *, cancelled: UUID | None = None) -> None:
    """The pacer is told to look at this lane. cancelled: the job to announce to Flower."""
    _say(_lane(lane_id, cancelled=str(cancelled) if cancelled else None))


def jobs_enqueued(jobs: Mapping[int, Sequence[UUID]]) -> None:
    """The pacer is told which jobs have joined which lanes, to look there and to announce them to Flower."""
    _say(*(_lane(lane_id, joined=[str(job_id) for job_id in ids]) for lane_id, ids in jobs.items()))


def budget_freed(lane_id: int) -> Message:
    """To be said with what frees it (Limiter.release): this lane's budget is free again."""
    return _lane(lane_id, budget=True)


def limits_changed(lane_ids: Sequence[int], *, forget: bool = False) -> None:
    """The pacer enforces the limits of these lanes as they are now, and looks at them. forget: their limiter state is made again."""
    if lane_ids:
        _say((PACER_CHANNEL, json.dumps({"limits": list(lane_ids), "forget": forget})))


def deliveries_due(names: Sequence[str]) -> None:
    """The pacer is told that there are webhooks for these (delivery.receiver, webhook.test, delivery_log.redeliver say who)."""
    _say(_receivers(names))


def refresh_model_lists() -> None:
    """Wakes the workers: copies of lists of models are wanted (models/keys/model_lists.py)."""
    _say((MODELS_CHANNEL, "{}"))


def job_changed(job_id: UUID, event: str) -> None:
    """Whoever waits for this job, and the worker that runs it, are told."""
    _say(_job(job_id, event))


def call_ended(job_id: UUID, event: str, *, lane_id: int | None, receivers: Sequence[str]) -> None:
    """All that is to be told when a worker is done with a job, at once: its callers, and the pacer of its slot.

    lane_id: somebody else may go there now, or the job again. receivers: for whom there are webhooks now.
    """
    said = [_job(job_id, event), (PACER_CHANNEL, '{"slot": true}') if lane_id is None else _lane(lane_id)]
    _say(*said, *([_receivers(receivers)] if receivers else []))


def report_heartbeat(*, unanswered_s: float) -> None:
    """The pacer paces, and doorbells have lain unanswered for so long. Raises redis.RedisError."""
    client().set(HEARTBEAT_KEY, unanswered_s, px=HEARTBEAT_TTL_MS)


def pacer_heartbeat() -> float | None:
    """For how many seconds doorbells have lain unanswered; None: no pacer has said anything. Raises redis.RedisError."""
    said = client().get(HEARTBEAT_KEY)
    return None if said is None else float(said)


def subscribe(channel: str, handle: Callable[[dict[str, Any]], None], *, until: Callable[[], bool]) -> None:
    """Gives messages of this channel to `handle` until told to stop. Raises redis.RedisError when the connection breaks: call it again."""
    with connect(timeout_s=5).pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe(channel)
        while not until():
            message = subscription.get_message(timeout=1.0)
            if message is not None:
                handle_message(channel, message["data"], handle)


def handle_message(channel: str, data: bytes, handle: Callable[[dict[str, Any]], None]) -> None:
    """Handles one message. One that cannot be read, as a newer version may send it, is counted and logged once for each kind of error."""
    try:
        handle(json.loads(data))
    except Exception as error:
        # A border: wake-ups are never relied on, and none may end the thread that listens.
        metrics.ignored.labels(channel).inc()
        kind = (channel, type(error).__name__)
        if kind not in _logged:
            _logged.add(kind)
            log.warning("a message was ignored", extra={"channel": channel, "error": kind[1]})


_logged: set[tuple[str, str]] = set()


def _lane(lane_id: int, **more: object) -> Message:
    return PACER_CHANNEL, json.dumps({"lane": lane_id, **more})


def _job(job_id: UUID, event: str) -> Message:
    return JOBS_CHANNEL, json.dumps({"job": str(job_id), "event": event})


def _receivers(names: Sequence[str]) -> Message:
    return PACER_CHANNEL, json.dumps({"receivers": list(names)})


def _say(*said: Message) -> None:
    try:
        with client().pipeline(transaction=False) as pipeline:
            for channel, message in said:
                pipeline.publish(channel, message)
            pipeline.execute()
    except redis.RedisError as error:
        log.warning("wake-up lost", extra={"channel": said[0][0], "error": type(error).__name__})
