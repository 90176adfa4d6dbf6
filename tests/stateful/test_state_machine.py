"""The whole job API against a picture of what must be true: callers, operators, pacer, workers and time act in any order.

Hypothesis chooses who does what next (tests/picture/: callers, operators, service, tales); nothing waits for time to pass. PostgreSQL,
Valkey, the application, the pacer, the limiter and the way a worker writes its endings are the real ones; what the upstream says is the
test's. HYPOTHESIS_PROFILE=nightly plays many more, others each time.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from api.app import create_app
from models.platform import wire
from tests.stateful.refusing import MAX_THROTTLES
from tests.stateful.scenarios import Tales
from tests.stateful.service import LATER_S
from tests.stateful.state_machine import job_id
from tests.support.queue_tools import query

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# Who only wants to know whether something is wrong (tests/stateful/mutants.py) needs no shortest play of it.
PHASES = (Phase.generate,) if os.environ.get("NOWSERVING_PLAYS") == "unshrunk" else tuple(Phase)
# The same steps each time in the ordinary suite, others each night.
PLAYS = settings(
    phases=PHASES,
    max_examples=100 if NIGHTLY else 10, stateful_step_count=100 if NIGHTLY else 40, derandomize=not NIGHTLY, print_blob=True,
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.slow]


class JobApi(Tales):
    """What is always true."""

    @invariant()
    def callers_see_their_jobs_and_nobody_elses(self) -> None:
        for who, caller in zip(self.tenants, self.callers, strict=True):
            page, mine = caller.get("/v1/jobs?limit=100").json, self.picture.of(who)[:100]
            assert [one.id for one in mine] == [one["id"] for one in page["data"]]
            for one, shown in zip(mine, page["data"], strict=True):
                self.expect_shown(one, shown)

    @invariant()
    def the_books_agree(self) -> None:
        for who, caller in zip(self.tenants, self.callers, strict=True):
            told, spent = caller.get("/v1/balance").json, self.picture.spent(who)
            expected = [(who.granted or 0) - spent, self.picture.reserved(who), spent]
            assert expected == [round(1e6 * told[name]) for name in ("balance_usd", "reserved_usd", "spent_usd")]
        (sums,) = query(_SUMS)
        assert sums.used == sums.charged, "a call that was answered is charged with what it used"

    @invariant()
    def every_event_is_told_once_to_whom_it_concerns(self) -> None:
        events: dict[UUID, list[str]] = defaultdict(list)
        for row in query("SELECT job_id, type FROM job_event ORDER BY job_id, seq"):
            events[row.job_id].append(row.type.removeprefix("job."))
        assert {job_id(one): one.events for one in self.picture.tickets} == events
        told = Counter((row.endpoint or row.url, wire.public_id(row.job_id), row.event_type) for row in query(_DELIVERIES))
        assert self.picture.told == told

    @invariant()
    def no_place_in_flight_leaks(self) -> None:
        held = Counter(self.places.values())
        for meter in self.meters - self.forgotten:
            (room,) = self.limiter.peek_many([meter])
            assert room is not None
            assert held[meter] == room.in_flight

    @invariant()
    def time_in_a_lane_only_goes_on(self) -> None:
        for row in query("SELECT id, virtual_time FROM lane"):
            assert self.times.get(row.id, 0.0) <= row.virtual_time
            self.times[row.id] = row.virtual_time


def test_state_machine_matches_the_reference_model(redis_client: redis.Redis, override: Callable[..., None]) -> None:
    # Leases run out, and whatever waits goes on, when the test says so.
    override(
        lease_s=LATER_S, heartbeat_s=LATER_S / 4, pause_s=LATER_S, pause_most_s=LATER_S, retry_base_s=LATER_S, retry_most_s=LATER_S,
        probe_s=LATER_S, max_throttles=MAX_THROTTLES,
    )  # fmt: skip
    JobApi.client, JobApi.app = redis_client, create_app()

    run_state_machine_as_test(JobApi, settings=PLAYS)


_SUMS = """
    SELECT (SELECT coalesce(sum(cost_microusd), 0) FROM usage)::bigint AS used,
           (SELECT -coalesce(sum(amount_microusd), 0) FROM ledger JOIN usage USING (dispatch_id))::bigint AS charged
"""
_DELIVERIES = """
    SELECT 'whe_' || replace(endpoint_id::text, '-', '') AS endpoint, url, job_id, event_type FROM delivery
"""
