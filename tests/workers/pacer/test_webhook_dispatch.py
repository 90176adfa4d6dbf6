"""Celery gets only what is due and has room: the rest waits in Postgres, and what was lost is found by the next look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import pytest
import redis

from models.keys.keys import Key
from tests.support.programs.process import until
from tests.support.queue_tools import finish, known, query, start, submit
from tests.support.webhook_tools import deliveries, endpoint
from workers.broker.publish import TaskMessage
from workers.broker.queues import WEBHOOK_QUEUE
from workers.pacer.webhook_dispatch import EVERY_S, FULL_QUEUE_RETRY_S, MAX_QUEUED, WebhookDispatcher


@dataclass
class Bells:
    """Notes who was rung for; deaf: nobody can be rung for."""

    rung: list[UUID] = field(default_factory=list)
    is_deaf: bool = False

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        if not self.is_deaf:
            self.rung += [one.number for one in messages]
        return not self.is_deaf


@pytest.fixture
def caller(database: None) -> Key:
    return known()


@pytest.fixture
def bells() -> Bells:
    return Bells()


@pytest.fixture
def due(bells: Bells, redis_client: redis.Redis) -> WebhookDispatcher:
    """One that has looked at everybody at 100.0."""
    made = WebhookDispatcher(broker=redis_client, publisher=bells)
    made.step(now=100.0)
    return made


def happen(caller: Key, many: int = 1) -> None:
    """So many jobs have succeeded."""
    for _ in range(many):
        job_id = submit(caller)
        finish(job_id, start(caller, job_id))


def test_named_receiver_is_checked_at_once_and_no_other(caller: Key, due: WebhookDispatcher, bells: Bells) -> None:
    row, _ = endpoint(caller, "https://one.example.com/"), endpoint(caller, "https://two.example.com/")
    happen(caller)

    assert 0 == due.step(now=100.1)
    due.wake([f"whe_{row.id.hex}"])
    assert 1 == due.step(now=100.2)
    assert [one.id for one in deliveries() if one.endpoint_id == row.id] == bells.rung


def test_every_delivery_is_checked_once_a_second(caller: Key, due: WebhookDispatcher, bells: Bells) -> None:
    endpoint(caller)
    happen(caller)

    assert 0 == due.step(now=100.0 + EVERY_S - 0.1)
    assert 1 == due.step(now=100.0 + EVERY_S)
    assert 1 == len(bells.rung)


def test_wakeup_without_a_name_checks_every_receiver(caller: Key, due: WebhookDispatcher) -> None:
    endpoint(caller)
    happen(caller)
    due.wake(None)

    assert 1 == due.step(now=100.1)


def test_unanswered_publish_is_repeated(caller: Key, due: WebhookDispatcher, bells: Bells) -> None:
    endpoint(caller)
    happen(caller)
    bells.is_deaf = True
    assert 0 == due.step(now=102.0)
    bells.is_deaf = False
    assert 0 == due.step(now=104.0)
    query("UPDATE delivery SET held_until = now() - interval '1 s'")

    assert 1 == due.step(now=106.0)


def test_celery_queue_holds_no_more_messages_than_free_slots(
    caller: Key, due: WebhookDispatcher, bells: Bells, redis_client: redis.Redis
) -> None:
    for n in range(20):
        endpoint(caller, f"https://{n}.example.com/")
    happen(caller, 4)
    redis_client.rpush(WEBHOOK_QUEUE, *["x"] * (MAX_QUEUED - 3))

    assert 3 == due.step(now=102.0)
    redis_client.rpush(WEBHOOK_QUEUE, *["x"] * 10)
    assert 0 == due.step(now=104.0)
    redis_client.delete(WEBHOOK_QUEUE)
    assert MAX_QUEUED == due.step(now=104.0 + FULL_QUEUE_RETRY_S), "it looks again as soon as there may be room"
    assert 80 - 3 - MAX_QUEUED == len(query("SELECT FROM delivery WHERE status = 'pending'"))


def test_without_redis_nothing_is_picked_and_the_thread_lives(caller: Key, bells: Bells, override: Callable[..., None]) -> None:
    stop = threading.Event()
    away = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2)
    made = WebhookDispatcher(broker=away, publisher=bells)
    endpoint(caller)
    happen(caller)
    thread = threading.Thread(target=made.run, args=(stop,), daemon=True)
    thread.start()
    until(lambda: made._poll_at > float("-inf"), what="looked")
    stop.set()
    thread.join(20)

    assert not thread.is_alive()
    assert ["pending"] == [one.status for one in deliveries()]
