"""Leases of a worker process's calls in flight while Redis or Postgres is unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

import redis

from models.database import db
from models.keys.keys import Limits
from workers.limiter.limiter import Limiter
from workers.limiter.requests import AdmitRequest, CredentialModel
from workers.runner.leases import Leases, RunningJob
from workers.upstream.call import CallControl

METER = CredentialModel(1, "m")


def test_calls_keep_their_places_in_flight_while_postgres_is_away(redis_client: redis.Redis, override: Callable[..., None]) -> None:
    now_us = int(time.time() * 1_000_000)
    limiter = Limiter(redis_client, lambda: now_us)
    limiter.init(METER, Limits(max_in_flight=1))
    dispatch_id = uuid4()
    limiter.admit(METER, [AdmitRequest(str(dispatch_id), 1)], lease_ms=10_000)
    leases = Leases(limiter)
    leases.add(dispatch_id, RunningJob(uuid4(), METER, CallControl(deadline=time.monotonic() + 600)))
    override(database_url="postgresql+psycopg://unused@127.0.0.1:1/none", lease_s=30)
    db.engine.cache_clear()
    now_us += 9_000_000
    leases.renew()
    now_us += 20_000_000  # past the first lease, within the second
    (room,) = limiter.peek_many([METER])

    assert room is not None
    assert (1, 0) == (room.in_flight, room.free)
