"""Publishing several messages to Celery at once: each is its own task. An unreachable broker is reported, not raised."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
import redis

from deploy.local.embedded_servers import Valkey, free_port
from models.platform.wire import public_id
from workers.broker import publish
from workers.broker.celery_app import IdOnlyCelery, app
from workers.broker.publish import JobPublisher, TaskMessage, WebhookPublisher
from workers.broker.queues import JOB_QUEUE, JOB_TASK, WEBHOOK_QUEUE

CALLS = [TaskMessage(uuid4(), uuid4(), f"chat {n}") for n in range(3)]


def publish_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends messages to this broker, with the configuration of the real app."""
    celery = IdOnlyCelery("elsewhere", broker=url)
    names = ("broker_transport_options", "broker_connection_timeout", "task_queues", "task_create_missing_queues", "task_publish_retry")
    celery.conf.update({name: app.conf[name] for name in names})
    monkeypatch.setattr(publish, "app", celery)


def queued_headers(client: redis.Redis, queue: str) -> list[dict[str, Any]]:
    """The headers of the messages in this queue, oldest first."""
    return [json.loads(message)["headers"] for message in reversed(client.lrange(queue, 0, -1))]


def test_each_is_a_task_under_its_own_id(valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_to(valkey.url, monkeypatch)

    assert JobPublisher().publish(CALLS)
    found = queued_headers(redis_client, JOB_QUEUE)
    assert [(JOB_TASK, public_id(one.number), one.title) for one in CALLS] == [(one["task"], one["id"], one["shadow"]) for one in found]
    assert [f"('{one.number}', '{one.ticket}')" for one in CALLS] == [one["argsrepr"] for one in found]


def test_deliveries_go_to_their_own_queue(valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_to(valkey.url, monkeypatch)

    assert WebhookPublisher().publish(CALLS[:2])
    assert [] == queued_headers(redis_client, JOB_QUEUE)
    assert ["webhook"] * 2 == [headers["shadow"] for headers in queued_headers(redis_client, WEBHOOK_QUEUE)]


def test_publish_without_jobs_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "app", None)  # fails if used

    assert JobPublisher().publish([])


def test_unreachable_broker_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    publish_to(f"redis://127.0.0.1:{free_port()}", monkeypatch)

    assert not JobPublisher().publish(CALLS)
    assert [public_id(one.number) for one in CALLS] == caplog.records[-1].__dict__["ids"]
