"""Redis pub/sub: a subscription survives a lost connection."""

from __future__ import annotations

import json
import threading

import pytest
import redis

from tests.support.programs.process import until
from workers.channels import notify


@pytest.mark.usefixtures("environment")
def test_subscription_reconnects_after_its_connection_is_lost(redis_client: redis.Redis) -> None:
    stop, received = threading.Event(), []
    thread = threading.Thread(target=notify.subscribe, args=(notify.MODELS_CHANNEL, received.append, stop), daemon=True)
    thread.start()

    def publish(n: int) -> bool:
        return bool(redis_client.publish(notify.MODELS_CHANNEL, json.dumps({"n": n})))

    until(lambda: publish(1), what="the first subscription", every_s=0.01)
    redis_client.client_kill_filter(_type="pubsub")
    until(lambda: publish(2), what="the second subscription", every_s=0.01)
    until(lambda: {"n": 2} in received, what="the message after the outage", every_s=0.01)
    stop.set()
    thread.join(10)

    assert not thread.is_alive()


@pytest.mark.parametrize("message", [b"", b"null", b"not json"])
def test_unreadable_message_is_counted_and_not_raised(message: bytes) -> None:
    handled: list[object] = []
    notify.handle_message("ns:test", message, lambda parsed: handled.append(parsed["lane"]))

    assert [] == handled
