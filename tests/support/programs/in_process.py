"""A pacer and a worker in this process, one step and one call at a time, against the fake upstream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

import redis

from models.database import db
from models.jobs import workers
from models.keys import keys
from models.keys.keys import Key, Limits
from tests.support.queue_tools import known, query, store_limits, submit
from tests.upstream.client import FakeUpstream
from workers.broker.publish import TaskMessage
from workers.limiter.limiter import Limiter
from workers.limiter.limiter import keys as redis_keys
from workers.limiter.requests import CredentialModel
from workers.pacer.step import Pacer
from workers.pacer.wakeups import Wakeups
from workers.runner.leases import Leases
from workers.runner.run_job import JobRunner

SLOTS = 64


class HasAddress(Protocol):
    """An upstream with an address."""

    base_url: str


class InProcessStack:
    """Runs jobs in the calling thread, so that calls go out in the order of their dispatch."""

    def __init__(self, client: redis.Redis, upstream: FakeUpstream) -> None:
        self.client = client
        self.upstream = upstream
        self.limiter = Limiter(client)
        self._dispatched: list[TaskMessage] = []
        self._wakeups = Wakeups()
        self._pacer = Pacer(limiter=self.limiter, publisher=self, wakeups=self._wakeups)
        self._processor = JobRunner(self.limiter, Leases(self.limiter))

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        """Takes the messages that the pacer publishes to Celery."""
        self._dispatched += messages
        return True

    def run(self, is_over: Callable[[], bool], *, within_s: float = 18.0, after_step: Callable[[], None] = lambda: None) -> None:
        """Runs steps and calls until `is_over`. Raises TimeoutError."""
        until = time.monotonic() + within_s
        with db.begin() as session:
            workers.record_heartbeat(session, "workshop", slots=SLOTS)
        while not is_over():
            if time.monotonic() > until:
                raise TimeoutError(f"not over: {query('SELECT id, status, throttles, failures, error FROM job')}")
            for lane in query("SELECT id FROM lane"):
                self._wakeups.wake(lane.id)
            rest_s = self._pacer.step()
            after_step()
            for one in self._dispatched:
                self._processor.run(one.number, one.ticket)
                after_step()
            if not self._dispatched:
                time.sleep(min(max(rest_s, 0.001), 0.01))
            self._dispatched.clear()

    def streak(self, bound: CredentialModel) -> int:
        """The number of consecutive pauses of this credential and model."""
        found = self.client.hget(redis_keys(bound)[0], "streak")
        return int(float(found)) if found else 0

    def calls(self) -> list[str]:
        """The prompts in the order of the upstream's calls."""
        return [call.text for call in self.upstream.calls()]


def pool_of(upstream: HasAddress, *tokens: str, **limits: int) -> tuple[Key, list[int]]:
    """Creates a caller whose pool has a credential for each of these upstream keys; returns it with their ids."""
    caller = known(tokens[0])
    (first,) = query("SELECT id FROM credential WHERE pool_id = :id", id=caller.pool_id)
    numbers = [int(first.id)]
    with db.begin() as session:
        numbers += [keys.add_credential(session, pool_id=caller.pool_id, upstream_key=token) for token in tokens[1:]]
        for number in numbers:
            store_limits(session, number, Limits(**limits))
    query("UPDATE credential SET base_url = :url WHERE pool_id = :id", url=upstream.base_url, id=caller.pool_id)
    return caller, numbers


def mark_issued(caller: Key) -> None:
    """Marks the caller's key as issued by the operator, so that its pool is shared."""
    query("UPDATE key SET kind = 'issued' WHERE id = :id", id=caller.id)


def ask(caller: Key, prompt: str, **order: Any) -> UUID:
    """Submits a chat job with this prompt for model `m`; returns its id."""
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return submit(caller, request=json.dumps(body).encode(), **order)
