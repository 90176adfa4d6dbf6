"""Clients that disconnect: the API records the time, and the reaper cancels their jobs later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest
import redis

from api.waiting import disconnects
from deploy.local.embedded_servers import free_port
from models.database import db
from models.keys.keys import Key
from models.queue import lanes
from tests.support.programs.process import until
from tests.support.queue_tools import admit, event_types, known, pass_time, query, row, start, submit
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.pacer.reaper import Reaper
from workers.pacer.wakeups import Wakeups

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller(database: None) -> Key:
    return known()


@pytest.fixture
def sweep(redis_client: redis.Redis) -> Reaper:
    """One beside an API process that has been there for a long time."""
    pass_time(3600, "api")
    return Reaper(limiter=Limiter(redis_client), wakeups=Wakeups())


@pytest.fixture
def notifications(redis_client: redis.Redis) -> Iterator[Callable[[], list[bytes]]]:
    """Returns the messages on the wake-up channels since the last call."""
    with redis_client.pubsub() as subscription:
        subscription.subscribe(notify.JOBS_CHANNEL, notify.PACER_CHANNEL)

        def listen() -> list[bytes]:
            came = list(iter(lambda: subscription.get_message(timeout=0.3), None))
            return [message["data"] for message in came if message["type"] == "message"]

        until(lambda: 2 == len(subscription.channels) and not listen(), what="subscribed")
        yield listen


def left_ago(job_id: UUID, seconds: float) -> None:
    query("UPDATE job SET left_at = now() - make_interval(secs => :s) WHERE id = :id", s=seconds, id=job_id)


def test_leaving_is_on_record_soon(caller: Key) -> None:
    who = uuid4()
    job_id = submit(caller, reader=who)

    disconnects.record_later(job_id, who)

    until(lambda: row(job_id).left_at, what="left")


def test_leaving_now_is_on_record_when_it_returns(caller: Key) -> None:
    who = uuid4()
    job_id = submit(caller, reader=who)

    disconnects.record_now(job_id, who)

    assert row(job_id).left_at


def test_a_job_without_a_reader_is_not_left(caller: Key) -> None:
    job_id = submit(caller)

    disconnects.record_now(job_id, None)
    disconnects.record_now(job_id, uuid4())

    assert row(job_id).left_at is None


def test_disconnect_during_an_outage_is_recorded_later(caller: Key, override: Callable[..., None], environment: dict[str, str]) -> None:
    who = uuid4()
    job_id = submit(caller, reader=who)
    pending = disconnects.DisconnectQueue()
    engine = db.engine()
    override(database_url=f"postgresql+psycopg://x@127.0.0.1:{free_port()}/x")
    db.engine.cache_clear()
    assert not disconnects.try_write(disconnects.Disconnect(job_id, who))
    pending.add(disconnects.Disconnect(job_id, who))
    db.engine().dispose()
    override(database_url=environment["NOWSERVING_DATABASE_URL"])
    db.engine.cache_clear()
    engine.dispose()

    until(lambda: row(job_id).left_at, what="left")


@pytest.mark.parametrize("state", ["queued", "admitted", "running"])
def test_a_job_that_was_left_long_ago_is_cancelled(caller: Key, sweep: Reaper, state: str) -> None:
    job_id = submit(caller, reader=uuid4())
    {"queued": lambda *_: None, "admitted": admit, "running": start}[state](caller, job_id)
    left_ago(job_id, 16)

    sweep.step(now=0)

    ended = row(job_id)
    assert (True, "running" if state == "running" else "cancelled") == (ended.cancel_requested, ended.status)
    assert "cancelling" if state == "running" else "cancelled" in event_types(job_id)


def test_a_job_that_was_left_a_moment_ago_waits_for_its_caller_to_come_back(caller: Key, sweep: Reaper) -> None:
    job_id = submit(caller, reader=uuid4())
    left_ago(job_id, 10)

    sweep.step(now=0)

    assert not row(job_id).cancel_requested


def test_how_long_it_waits_is_a_setting(caller: Key, sweep: Reaper, override: Callable[..., None]) -> None:
    job_id = submit(caller, reader=uuid4())
    left_ago(job_id, 10)
    override(abandoned_after_s=9)

    sweep.step(now=0)

    assert row(job_id).cancel_requested


def test_an_operator_may_want_abandoned_jobs_answered(caller: Key, sweep: Reaper, override: Callable[..., None]) -> None:
    job_id = submit(caller, reader=uuid4())
    left_ago(job_id, 1000)
    override(cancel_abandoned="false")

    sweep.step(now=0)

    assert not row(job_id).cancel_requested


def test_job_without_a_waiter_is_never_cancelled_as_abandoned(caller: Key, sweep: Reaper, override: Callable[..., None]) -> None:
    job_id = submit(caller)
    disconnects.record_now(job_id, uuid4())
    override(abandoned_after_s=0)

    sweep.step(now=0)

    assert not row(job_id).cancel_requested


def test_many_abandoned_jobs_are_cancelled_in_one_pass(caller: Key, sweep: Reaper) -> None:
    jobs = [submit(caller, reader=uuid4()) for _ in range(20)]
    for job_id in jobs:
        left_ago(job_id, 16)

    sweep.step(now=0)

    assert {"cancelled"} == {row(job_id).status for job_id in jobs}


def test_worker_and_pacer_are_notified_of_abandoned_jobs(caller: Key, sweep: Reaper, notifications: Callable[[], list[bytes]]) -> None:
    waiting, running = submit(caller, reader=uuid4()), submit(caller, reader=uuid4())
    start(caller, running)
    left_ago(waiting, 16)
    left_ago(running, 17)
    notifications()

    sweep.step(now=0)

    result = b" ".join(notifications()).decode()
    assert f'{{"job": "{running}", "event": "cancelling"}}' in result
    assert f'{{"job": "{waiting}", "event": "cancelled"}}' in result
    assert f'{{"lane": {lanes.id_of(caller.pool_id, "m")}, "cancelled": "{waiting}"}}' in result
