"""Threads that listen on Redis go on after any message, and count those that this version cannot read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import redis
from prometheus_client import REGISTRY

from api.waiting.redis_listener import RedisListener
from api.waiting.waiter import Waiter
from api.waiting.waiters import Waiters
from tests.api.server.test_api_server import subscribers
from tests.support.programs.process import until
from workers.channels import notify, token_stream
from workers.channels.token_stream import Chunk
from workers.pacer import __main__ as pacer_main
from workers.pacer.wakeups import Wakeups
from workers.runner import leases

pytestmark = pytest.mark.usefixtures("environment")
STRANGE = (
    b"", b"not json", b"\xff\xfe", b"7", b"null", b"[]", b'"text"', b"{}", b'{"event": "ended"}', b'{"job": 7, "event": "cancelling"}',
    b'{"job": "x", "event": "cancelling"}', b'{"lane": null}', b'{"lane": "x"}', b'{"lane": {"id": 7}}', b'{"lane": 1e400}',
    b'{"lane": 99999999999999999999}', b'{"lane": 7, "joined": ["x"]}', b'{"version": 9, "moved": []}',
)  # fmt: skip


def ignored(channel: str) -> float:
    return REGISTRY.get_sample_value("nowserving_messages_ignored_total", {"channel": channel}) or 0


@contextmanager
def listening(work: Callable[[threading.Event], None], channel: str, client: redis.Redis) -> Iterator[threading.Thread]:
    """The thread listens when this begins, and has ended afterwards."""
    stop, others = threading.Event(), subscribers(client)  # of the API in this process too, if a test before has started one
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    until(lambda: subscribers(client) - others and client.pubsub_numsub(channel)[0][1], what="subscribed", every_s=0.01)
    yield thread
    stop.set()
    thread.join(10)


def test_pacer_receives_messages_after_any_other(redis_client: redis.Redis) -> None:
    wakeups, due, announced = Wakeups(), SimpleNamespace(wake=lambda _: None), SimpleNamespace(job_enqueued=lambda _: None)
    before = ignored(notify.PACER_CHANNEL)

    def work(stop: threading.Event) -> None:
        pacer_main.listen(wakeups, cast(Any, announced), cast(Any, due), cast(Any, None), stop)

    with listening(work, notify.PACER_CHANNEL, redis_client) as thread:
        for message in STRANGE:
            redis_client.publish(notify.PACER_CHANNEL, message)
        redis_client.publish(notify.PACER_CHANNEL, json.dumps({"lane": 8, "colour": "a newer version's"}))
        until(lambda: 8 in wakeups.take(), what="the lane heard", every_s=0.01)
        assert thread.is_alive()

    assert len(STRANGE) == ignored(notify.PACER_CHANNEL) - before


def test_worker_receives_a_cancel_after_any_other_message(redis_client: redis.Redis) -> None:
    cancelled: list[UUID] = []
    job_id, before = uuid4(), ignored(notify.JOBS_CHANNEL)

    def work(stop: threading.Event) -> None:
        leases.listen_for_cancels(cast(Any, SimpleNamespace(cancel=cancelled.append)), stop)

    with listening(work, notify.JOBS_CHANNEL, redis_client) as thread:
        for message in STRANGE:
            redis_client.publish(notify.JOBS_CHANNEL, message)
        redis_client.publish(notify.JOBS_CHANNEL, json.dumps({"job": str(job_id), "event": "cancelling"}))
        until(lambda: cancelled, what="the cancel heard", every_s=0.01)
        assert thread.is_alive()

    assert [job_id] == cancelled
    assert ignored(notify.JOBS_CHANNEL) - before >= len(STRANGE) - 1


def test_the_api_keeps_its_subscription_after_any_message(redis_client: redis.Redis) -> None:
    job_id, woken, waiters = uuid4(), threading.Event(), Waiters()
    waiters.add(Waiter(job_id, 1, chunks=False, places=False, polls_itself=False, connection=None, read_stream=lambda _: None))
    listener = RedisListener(waiters, poll_soon=lambda _: woken.set())
    others = subscribers(redis_client)
    with listening(lambda _: listener.listen(), notify.JOBS_CHANNEL, redis_client):
        own = subscribers(redis_client) - others
        until(woken.is_set, what="the look at the beginning", every_s=0.01)
        woken.clear()
        for message in STRANGE:
            redis_client.publish(notify.JOBS_CHANNEL, message)
        redis_client.publish(notify.JOBS_CHANNEL, json.dumps({"job": str(job_id), "event": "queued"}))
        assert woken.wait(40)
        assert own <= subscribers(redis_client), "no new subscription"
        listener.close()


def test_a_stream_entry_of_a_newer_version_holds_up_no_other_stream(redis_client: redis.Redis) -> None:
    strange, plain, before = uuid4(), uuid4(), ignored("ns:stream")
    redis_client.xadd(f"ns:stream:{strange}", {"version": 9})
    token_stream.append([Chunk(uuid4(), 0, b"data: 1\n\n")], job_id=plain)
    found = token_stream.read_after({strange: "", plain: ""})

    assert [b"data: 1\n\n"] == [chunk.event for chunk in found[plain][1]]
    assert (False, 1) == (strange in found, ignored("ns:stream") - before)
