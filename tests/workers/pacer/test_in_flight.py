"""A running call keeps its in-flight lease while its worker, or every process, cannot reach Redis for longer than a lease."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.embedded_servers import Valkey
from models.database import db
from models.jobs import claims
from models.keys.keys import Key
from tests.chaos.tcp_proxy import TcpProxy
from tests.support.queue_tools import finish, known, query, row, submit
from tests.workers.pacer.test_step import FakePublisher, make_lanes_due, report_slots, set_limits
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.pacer.in_flight import InFlightLeases
from workers.pacer.step import Pacer
from workers.pacer.wakeups import Wakeups
from workers.runner.leases import Leases, RunningJob
from workers.upstream.call import CallControl

pytestmark = pytest.mark.usefixtures("database")

LEASE_S, HEARTBEAT_S = 30, 7


class Clock:
    """The limiter's clock. It starts one hour in the past, so that it can advance and never pass the clock of Postgres."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000 - 3_600_000_000

    def __call__(self) -> int:
        return self.us

    def goes_on(self, seconds: float) -> None:
        self.us += int(seconds * 1e6)

    def is_now(self) -> None:
        self.us = time.time_ns() // 1000


class Machine:
    """A pacer with its own clock, and a worker with its own connection to Redis."""

    def __init__(self, client: redis.Redis, wire: redis.Redis) -> None:
        self.clock = Clock()
        self.limiter = Limiter(client, self.clock)
        self.leases = Leases(Limiter(wire, self.clock))

    def started(self, who: Key) -> CredentialModel:
        """Starts the only call that the limit allows; another job waits."""
        job_id, _ = submit(who), submit(who)
        assert [job_id] == self.paces()
        dispatch = UUID(str(row(job_id).dispatch_id))
        with db.begin() as session:
            claimed: Any = claims.claim(session, job_id, dispatch, lease_s=LEASE_S)
        meter = CredentialModel(claimed.credential_id, claimed.model)
        self.leases.add(dispatch, RunningJob(job_id, meter, CallControl(deadline=time.monotonic() + 600)))
        return meter

    def paces(self) -> list[UUID]:
        """Starts a pacer and steps until no more jobs are admitted; returns the published jobs."""
        report_slots(100)
        publisher = FakePublisher()
        pacer = Pacer(limiter=self.limiter, publisher=publisher, wakeups=Wakeups())
        make_lanes_due()
        for _ in range(8):
            if pacer.step() > 0:
                break
        return publisher.take()

    def in_flight(self, meter: CredentialModel) -> int | None:
        (room,) = self.limiter.peek_many([meter])
        return None if room is None else room.in_flight


@pytest.fixture
def link(valkey: Valkey) -> Iterator[TcpProxy]:
    made = TcpProxy(valkey.port)
    yield made
    made.close()


@pytest.fixture
def machine(redis_client: redis.Redis, valkey: Valkey, link: TcpProxy) -> Iterator[Machine]:
    with redis.Redis(port=link.port, password=valkey.password, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as wire:
        yield Machine(redis_client, wire)


@pytest.fixture
def caller() -> Key:
    made = known()
    set_limits(made, max_in_flight=1)
    return made


def test_worker_cut_off_from_redis_keeps_the_leases_of_running_calls(machine: Machine, caller: Key, link: TcpProxy) -> None:
    meter, places = machine.started(caller), InFlightLeases(machine.limiter)
    link.set("reset")
    for beat in range(10):
        machine.leases.renew()  # reaches Postgres, and not Redis
        places.renew(now=beat * HEARTBEAT_S)
        machine.clock.goes_on(HEARTBEAT_S)

        assert 1 == machine.in_flight(meter)
    assert [] == machine.paces()
    (running,) = query("SELECT id, dispatch_id FROM job WHERE status = 'running'")
    assert finish(running.id, running.dispatch_id)
    for beat in range(10, 15):
        places.renew(now=beat * HEARTBEAT_S)
        machine.clock.goes_on(HEARTBEAT_S)
    assert 0 == machine.in_flight(meter), "an ended call keeps no lease"


def test_leases_expired_while_redis_was_away_are_restored_before_any_admission(machine: Machine, caller: Key) -> None:
    meter = machine.started(caller)
    machine.clock.is_now()

    assert 0 == machine.in_flight(meter), "an hour is longer than a lease"
    assert [] == machine.paces()
    assert 1 == machine.in_flight(meter)


def test_leases_are_restored_when_postgres_could_not_renew_them_either(machine: Machine, caller: Key) -> None:
    """Postgres was unavailable as well: until the reaper reports these calls lost, they count as running."""
    meter = machine.started(caller)
    query("UPDATE job SET lease_until = now() - interval '10 s' WHERE status = 'running'")
    machine.clock.is_now()

    assert [] == machine.paces()
    assert 1 == machine.in_flight(meter)


def test_an_answer_that_is_not_in_its_row_yet_frees_its_place(machine: Machine, caller: Key) -> None:
    meter, places = machine.started(caller), InFlightLeases(machine.limiter)
    places.renew(now=0)
    (running,) = query("SELECT dispatch_id FROM job WHERE status = 'running'")
    machine.limiter.release(meter, str(running.dispatch_id), Report(good=True))
    places.renew(now=HEARTBEAT_S)

    assert 0 == machine.in_flight(meter)
