"""Compares the whole job API with a reference model: callers, operators, pacer, workers and time act in any order.

Hypothesis chooses the steps (tests/stateful/: callers, operators, service, scenarios); no step waits for time to pass. PostgreSQL, Valkey,
the application, the pacer, the limiter and the code that stores results are real; the answers of the upstream are the test's.
HYPOTHESIS_PROFILE=nightly runs many more steps, different each time.
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
from tests.stateful.scenarios import Scenarios
from tests.stateful.service import LATER_S
from tests.stateful.state_machine import job_id
from tests.support.queue_tools import query

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# tests/stateful/mutants.py needs only the verdict, so Hypothesis does not shrink the failing run.
PHASES = (Phase.generate,) if os.environ.get("NOWSERVING_STATEFUL") == "unshrunk" else tuple(Phase)
# The same steps each time in the ordinary suite, different ones each night.
SETTINGS = settings(
    phases=PHASES,
    max_examples=100 if NIGHTLY else 10, stateful_step_count=100 if NIGHTLY else 40, derandomize=not NIGHTLY, print_blob=True,
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.slow]


class JobApi(Scenarios):
    """The invariants."""

    @invariant()
    def callers_see_only_their_jobs(self) -> None:
        for who, caller in zip(self.tenants, self.callers, strict=True):
            page, mine = caller.get("/v1/jobs?limit=100").json, self.model.of(who)[:100]
            assert [job.id for job in mine] == [job["id"] for job in page["data"]]
            for job, shown in zip(mine, page["data"], strict=True):
                self.check_shown(job, shown)

    @invariant()
    def balances_agree(self) -> None:
        for who, caller in zip(self.tenants, self.callers, strict=True):
            shown, spent = caller.get("/v1/balance").json, self.model.spent(who)
            expected = [(who.granted or 0) - spent, self.model.reserved(who), spent]
            assert expected == [round(1e6 * shown[name]) for name in ("balance_usd", "reserved_usd", "spent_usd")]
        (sums,) = query(_SUMS)
        assert sums.used == sums.charged, "an answered call is charged for its usage"

    @invariant()
    def each_event_is_delivered_once(self) -> None:
        events: dict[UUID, list[str]] = defaultdict(list)
        for row in query("SELECT job_id, type FROM job_event ORDER BY job_id, seq"):
            events[row.job_id].append(row.type.removeprefix("job."))
        assert {job_id(job): job.events for job in self.model.jobs} == events
        stored = Counter((row.endpoint or row.url, wire.public_id(row.job_id), row.event_type) for row in query(_DELIVERIES))
        assert self.model.deliveries == stored

    @invariant()
    def in_flight_leases_do_not_leak(self) -> None:
        held = Counter(self.leases.values())
        for meter in self.meters - self.lost_meters:
            (room,) = self.limiter.peek_many([meter])
            assert room is not None
            assert held[meter] == room.in_flight

    @invariant()
    def virtual_time_never_decreases(self) -> None:
        for row in query("SELECT id, virtual_time FROM lane"):
            assert self.times.get(row.id, 0.0) <= row.virtual_time
            self.times[row.id] = row.virtual_time


def test_api_agrees_with_reference_model_after_any_steps(redis_client: redis.Redis, override: Callable[..., None]) -> None:
    # Leases and delays end only when the test ends them.
    override(
        lease_s=LATER_S, heartbeat_s=LATER_S / 4, pause_s=LATER_S, pause_most_s=LATER_S, retry_base_s=LATER_S, retry_most_s=LATER_S,
        probe_s=LATER_S, max_throttles=MAX_THROTTLES,
    )  # fmt: skip
    JobApi.client, JobApi.app = redis_client, create_app()

    run_state_machine_as_test(JobApi, settings=SETTINGS)


_SUMS = """
    SELECT (SELECT coalesce(sum(cost_microusd), 0) FROM usage)::bigint AS used,
           (SELECT -coalesce(sum(amount_microusd), 0) FROM ledger JOIN usage USING (dispatch_id))::bigint AS charged
"""
_DELIVERIES = """
    SELECT 'whe_' || replace(endpoint_id::text, '-', '') AS endpoint, url, job_id, event_type FROM delivery
"""
