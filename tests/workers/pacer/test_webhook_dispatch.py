"""Celery gets only due deliveries, up to its free slots: the others wait in Postgres, and the next step finds lost messages."""

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
class FakePublisher:
    """Records the published deliveries. is_unreachable: every publish fails."""

    published: list[UUID] = field(default_factory=list)
    is_unreachable: bool = False

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        if not self.is_unreachable:
            self.published += [message.number for message in messages]
        return not self.is_unreachable


@pytest.fixture
def caller(database: None) -> Key:
    return known()


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
def due(publisher: FakePublisher, redis_client: redis.Redis) -> WebhookDispatcher:
    """A dispatcher that has checked every receiver at 100.0."""
    dispatcher = WebhookDispatcher(broker=redis_client, publisher=publisher)
    dispatcher.step(now=100.0)
    return dispatcher


def happen(caller: Key, count: int = 1) -> None:
    """Lets this number of jobs succeed."""
    for _ in range(count):
        job_id = submit(caller)
        finish(job_id, start(caller, job_id))


def test_named_receiver_is_checked_at_once_and_no_other(caller: Key, due: WebhookDispatcher, publisher: FakePublisher) -> None:
    row, _ = endpoint(caller, "https://one.example.com/"), endpoint(caller, "https://two.example.com/")
    happen(caller)

    assert 0 == due.step(now=100.1)
    due.wake([f"whe_{row.id.hex}"])
    assert 1 == due.step(now=100.2)
    assert [delivery.id for delivery in deliveries() if delivery.endpoint_id == row.id] == publisher.published


def test_every_delivery_is_checked_once_a_second(caller: Key, due: WebhookDispatcher, publisher: FakePublisher) -> None:
    endpoint(caller)
    happen(caller)

    assert 0 == due.step(now=100.0 + EVERY_S - 0.1)
    assert 1 == due.step(now=100.0 + EVERY_S)
    assert 1 == len(publisher.published)


def test_wakeup_without_a_name_checks_every_receiver(caller: Key, due: WebhookDispatcher) -> None:
    endpoint(caller)
    happen(caller)
    due.wake(None)

    assert 1 == due.step(now=100.1)


def test_unanswered_publish_is_repeated(caller: Key, due: WebhookDispatcher, publisher: FakePublisher) -> None:
    endpoint(caller)
    happen(caller)
    publisher.is_unreachable = True
    assert 0 == due.step(now=102.0)
    publisher.is_unreachable = False
    assert 0 == due.step(now=104.0)
    query("UPDATE delivery SET held_until = now() - interval '1 s'")

    assert 1 == due.step(now=106.0)


def test_celery_queue_holds_no_more_messages_than_free_slots(
    caller: Key, due: WebhookDispatcher, publisher: FakePublisher, redis_client: redis.Redis
) -> None:
    for n in range(20):
        endpoint(caller, f"https://{n}.example.com/")
    happen(caller, 4)
    redis_client.rpush(WEBHOOK_QUEUE, *["x"] * (MAX_QUEUED - 3))

    assert 3 == due.step(now=102.0)
    redis_client.rpush(WEBHOOK_QUEUE, *["x"] * 10)
    assert 0 == due.step(now=104.0)
    redis_client.delete(WEBHOOK_QUEUE)
    assert MAX_QUEUED == due.step(now=104.0 + FULL_QUEUE_RETRY_S), "the dispatcher polls again as soon as slots may be free"
    assert 80 - 3 - MAX_QUEUED == len(query("SELECT FROM delivery WHERE status = 'pending'"))


def test_without_redis_nothing_is_picked_and_the_thread_lives(caller: Key, publisher: FakePublisher, override: Callable[..., None]) -> None:
    stop = threading.Event()
    away = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2)
    dispatcher = WebhookDispatcher(broker=away, publisher=publisher)
    endpoint(caller)
    happen(caller)
    thread = threading.Thread(target=dispatcher.run, args=(stop,), daemon=True)
    thread.start()
    until(lambda: dispatcher._poll_at > float("-inf"), what="first poll")
    stop.set()
    thread.join(20)

    assert not thread.is_alive()
    assert ["pending"] == [delivery.status for delivery in deliveries()]
