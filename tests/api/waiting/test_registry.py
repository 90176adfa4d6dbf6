"""Waiting for a job: answered when it ends, without holding anything meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from uuid import uuid4

import pytest
import redis
from sqlalchemy import text

from api.waiting.disconnect_poller import is_closed
from api.waiting.registry import Registry
from api.waiting.waiter import Waiter
from deploy.local.embedded_servers import Postgres, Valkey
from models.database import db
from models.jobs.states import Status
from models.platform import wire
from models.platform.errors import QueueFull, TooManyWaiting, Unavailable
from models.queue import submission
from tests.api.server.test_api_server import subscribers, transactions
from tests.support.http_tools import Caller, end, error_of, together
from tests.support.programs.process import until
from tests.support.queue_tools import query, submit
from tests.support.time_limits import least, seconds
from workers.channels import notify, token_stream
from workers.channels.token_stream import Chunk

pytestmark = pytest.mark.usefixtures("database", "redis_client")


# A key that waits.
KEY = 1


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.mark.parametrize("wait", ["-1", "x", "nan", "inf", "61", "1e1", "", "0x1", "1_0"])
def test_a_wait_is_a_number_in_range(caller: Caller, wait: str) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}?wait={wait}")

    assert (400, "wait") == (answer.status_code, error_of(answer)["param"])


def test_an_ended_job_is_not_waited_for(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)

    assert "succeeded" == caller.get(f"/v1/jobs/{name}?wait=30").json["status"]
    assert least(lambda: seconds(lambda: caller.get(f"/v1/jobs/{name}?wait=30")), below=1) < 1


def test_a_wait_ends_with_its_time(caller: Caller) -> None:
    name = caller.submit()

    def wait() -> None:
        assert "queued" == caller.get(f"/v1/jobs/{name}?wait=0.3").json["status"]

    assert 0.3 <= least(lambda: seconds(wait), below=1) < 1


def test_a_wait_ends_soon_after_the_job(caller: Caller) -> None:
    def delay_s() -> float:
        name = caller.submit()

        def wait() -> tuple[str, float]:
            return caller.get(f"/v1/jobs/{name}?wait=20").json["status"], time.monotonic()

        def finish() -> float:
            time.sleep(0.5)
            end(caller, name)
            notify.job_changed(wire.parse_id(name), "succeeded")
            return time.monotonic()

        (status, at), ended_at = together(wait, finish)
        assert "succeeded" == status
        return float(at - ended_at)

    assert least(delay_s, below=0.5) < 0.5


def test_nothing_of_the_database_is_held_while_waiting(caller: Caller) -> None:
    name = caller.submit()
    waiter = threading.Thread(target=lambda: caller.get(f"/v1/jobs/{name}?wait=1"))
    waiter.start()
    time.sleep(0.4)

    with db.begin() as session:
        held = session.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nowserving' AND xact_start IS NOT NULL "
                "AND pid <> pg_backend_pid()"
            )
        ).scalar_one()
    out = db.engine().pool.checkedout()  # type: ignore[attr-defined]  # the queue pool's
    waiter.join()
    assert (0, 0) == (held, out)


def test_notification_reaches_every_waiter_of_the_job(caller: Caller) -> None:
    registry, mine, other = Registry(), wire.parse_id(caller.submit()), submission.new_job_id()

    with registry.wait_for(mine, KEY) as first, registry.wait_for(mine, KEY) as second, registry.wait_for(other, KEY) as third:
        assert first.wait(5) and second.wait(5)
        end(caller, wire.public_id(mine))
        notify.job_changed(mine, "ended")
        assert first.wait(5) and second.wait(5)
        assert not third.wait(0)
    registry.close()


def test_many_waiters_share_four_threads(override: Callable[..., None]) -> None:
    override(max_waiting_per_process=300)
    registry, before = Registry(), set(threading.enumerate())
    rooms = [registry.wait_for(submission.new_job_id(), n) for n in range(300)]
    for room in rooms:
        room.__enter__()

    assert 4 == len(set(threading.enumerate()) - before)
    with pytest.raises(Unavailable), registry.wait_for(submission.new_job_id(), KEY):
        pass
    for room in rooms:
        room.__exit__(None, None, None)
    assert 0 == len(registry)
    registry.close()


# What one key may hold


def fill(registry: Registry, rooms: ExitStack, key_id: int, *, most: int = 10_000, **how: bool) -> int:
    """How many waiters this key gets until it is refused."""
    for taken in range(most):
        try:
            rooms.enter_context(registry.wait_for(submission.new_job_id(), key_id, **how))
        except (TooManyWaiting, Unavailable):
            return taken
    return most


def test_single_key_gets_most_waiters_and_never_all(override: Callable[..., None], own: Registry, rooms: ExitStack) -> None:
    override(max_waiting_per_process=1000)

    assert 869 == fill(own, rooms, 1)


def test_two_greedy_keys_get_less_than_half_each(override: Callable[..., None], own: Registry, rooms: ExitStack) -> None:
    override(max_waiting_per_process=1000)
    taken = [0, 0]
    for _ in range(1000):
        for n in (0, 1):
            taken[n] += fill(own, rooms, n, most=1)

    assert [453, 452] == taken


@pytest.mark.parametrize("greedy", [1, 2, 10])
def test_key_without_waiters_is_accepted_at_once(override: Callable[..., None], own: Registry, rooms: ExitStack, greedy: int) -> None:
    override(max_waiting_per_process=1000)
    for key_id in range(greedy):
        fill(own, rooms, key_id)

    assert 1 <= fill(own, rooms, greedy + 1)


def test_slot_of_a_disconnected_waiter_returns_to_its_key(override: Callable[..., None], own: Registry, rooms: ExitStack) -> None:
    override(max_waiting_per_process=100)
    with own.wait_for(submission.new_job_id(), KEY):
        fill(own, rooms, KEY)
        with pytest.raises(TooManyWaiting):
            own.check_capacity(KEY)

    own.check_capacity(KEY)


def test_the_share_is_a_setting(override: Callable[..., None], own: Registry, rooms: ExitStack) -> None:
    override(max_waiting_per_process=1000, waiting_share=0.1)

    assert 730 == fill(own, rooms, 1)


def test_a_key_has_only_so_many_streams(override: Callable[..., None], own: Registry, rooms: ExitStack) -> None:
    override(max_streams_per_key=5)
    for _ in range(5):
        rooms.enter_context(own.wait_for(submission.new_job_id(), KEY, is_stream=True))

    with pytest.raises(QueueFull):
        own.check_capacity(KEY, is_stream=True)
    own.check_capacity(KEY)
    own.check_capacity(KEY + 1, is_stream=True)
    assert 5 == own.streams


def test_process_end_releases_waiters() -> None:
    registry = Registry()

    with registry.wait_for(submission.new_job_id(), KEY) as waiter:
        registry.close()
        assert waiter.wait(0)


# The registry over time


@pytest.fixture
def rooms() -> Iterator[ExitStack]:
    """Keeps waiters and registries open until the end of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def own(rooms: ExitStack) -> Registry:
    """A registry of the test's own."""
    made = Registry()
    rooms.callback(made.close)
    return made


def seen(waiter: Waiter, status: Status, *, within_s: float = 20) -> None:
    until(lambda: waiter.status == status, what=f"seen {status}", within_s=within_s)


def test_500_waiters_cost_a_handful_of_transactions(caller: Caller, own: Registry, rooms: ExitStack) -> None:
    jobs = [submit(caller.key, flow=str(n)) for n in range(50)]
    waiters = [rooms.enter_context(own.wait_for(jobs[n % 50], KEY, places=True)) for n in range(500)]
    until(lambda: all(waiter.place for waiter in waiters), what="every place known")
    committed = transactions()
    time.sleep(6)

    # One a second for the places, two for everybody; the submits above may be counted late. Each for itself would make 600.
    assert transactions() - committed < 250
    assert set(range(1, 51)) == {waiter.place.position for waiter in waiters if waiter.place}


def test_one_redis_connection_serves_all_waiters(redis_client: redis.Redis, caller: Caller, own: Registry, rooms: ExitStack) -> None:
    jobs = [submit(caller.key, streamed=True) for _ in range(100)]
    before = subscribers(redis_client)
    for job_id in jobs:
        rooms.enter_context(own.wait_for(job_id, KEY, chunks=True))
    until(lambda: followed(redis_client) == 100, what="all streams followed")

    # What a test before this one has left may go meanwhile.
    assert 1 == len(subscribers(redis_client) - before)
    rooms.close()
    assert 0 == len(own)


def test_streams_without_readers_are_not_read(redis_client: redis.Redis, caller: Caller, own: Registry) -> None:
    job_id = submit(caller.key, streamed=True)
    with own.wait_for(job_id, KEY, chunks=True), own.wait_for(job_id, KEY, chunks=True):
        until(lambda: followed(redis_client) == 1, what="followed")

    until(lambda: followed(redis_client) == 0, what="followed no more")


def test_chunks_reach_every_reader_once_and_in_order(caller: Caller, own: Registry, rooms: ExitStack) -> None:
    job_id, dispatch_id = submit(caller.key, streamed=True), uuid4()
    heard: list[list[int]] = [[] for _ in range(5)]
    waiters = [rooms.enter_context(own.wait_for(job_id, KEY, chunks=True)) for _ in range(3)]
    for n in range(200):
        if n in (50, 120):
            waiters.append(rooms.enter_context(own.wait_for(job_id, KEY, chunks=True)))
        token_stream.append([Chunk(dispatch_id, n, b"data: x\n\n")], job_id=job_id)
        for waiter, numbers in zip(waiters, heard, strict=False):
            numbers += [chunk.n for chunk in waiter.take_chunks()]

    def take() -> bool:
        for waiter, numbers in zip(waiters, heard, strict=True):
            numbers += [chunk.n for chunk in waiter.take_chunks()]
        return all(len(numbers) >= 200 for numbers in heard)

    until(take, what="everything heard")
    assert [list(range(200))] * 5 == heard


def test_a_slow_reader_holds_only_so_much_and_loses_nothing(caller: Caller, own: Registry) -> None:
    job_id, dispatch_id, numbers = submit(caller.key, streamed=True), uuid4(), []
    with own.wait_for(job_id, KEY, chunks=True) as waiter:
        for start in range(0, 6_000, 500):
            token_stream.append([Chunk(dispatch_id, n, b"data: x\n\n") for n in range(start, start + 500)], job_id=job_id)
            until(lambda: waiter.is_full or waiter.read_to, what="fed")
        assert len(waiter._chunks) < 6_000

        def take() -> bool:
            numbers.extend(chunk.n for chunk in waiter.take_chunks())
            return len(numbers) >= 6_000

        until(take, what="everything taken")
    assert list(range(6_000)) == numbers


def test_redis_may_be_away_and_forget_everything(caller: Caller, valkey: Valkey, own: Registry) -> None:
    job_id, dispatch_id = submit(caller.key, streamed=True), uuid4()
    with own.wait_for(job_id, KEY, chunks=True) as waiter:
        token_stream.append([Chunk(dispatch_id, 0, b"data: 0\n\n")], job_id=job_id)
        until(lambda: [0] == [chunk.n for chunk in waiter.take_chunks()], what="the first chunk")
        valkey.stop()
        time.sleep(0.3)
        valkey.start()
        token_stream.append([Chunk(dispatch_id, 0, b"data: 0\n\n"), Chunk(dispatch_id, 1, b"data: 1\n\n")], job_id=job_id)

        until(lambda: 1 in [chunk.n for chunk in waiter.take_chunks()], what="the next chunk")
        end(caller, wire.public_id(job_id))
        seen(waiter, Status.SUCCEEDED)


def test_postgres_may_be_away_and_come_back(caller: Caller, postgres: Postgres, own: Registry) -> None:
    name = caller.submit()
    with own.wait_for(wire.parse_id(name), KEY, places=True) as waiter:
        seen(waiter, Status.QUEUED)
        postgres.stop(immediate=True)
        notify.job_changed(wire.parse_id(name), "started")
        time.sleep(0.5)
        postgres.start()
        until(lambda: not failed(partial(query, "SELECT 1")), what="served again")
        end(caller, name)

        seen(waiter, Status.SUCCEEDED)


def failed(act: Callable[[], object]) -> bool:
    """Whether Postgres was still away, or has closed connections that were kept."""
    try:
        act()
    except Unavailable:
        return True
    return False


def test_a_client_that_hangs_up_is_noticed_and_one_that_speaks_is_there(caller: Caller, own: Registry) -> None:
    job_id = wire.parse_id(caller.submit())
    (here, client), (there, other) = socket.socketpair(), socket.socketpair()
    with here, there, other, own.wait_for(job_id, KEY, connection=here) as gone, own.wait_for(job_id, KEY, connection=there) as stays:
        other.sendall(b"GET")
        client.close()
        until(lambda: gone.is_disconnected, what="gone")

        assert not stays.is_disconnected
        assert b"GET" == there.recv(10)


def test_a_connection_that_was_reset_or_closed_here_is_gone() -> None:
    here, client = socket.socketpair()
    assert not is_closed(here)
    here.close()
    assert is_closed(here)
    client.close()


def followed(client: redis.Redis) -> int:
    return len(client.pubsub_channels("ns:chunks:*"))
