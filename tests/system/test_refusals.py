"""Refused jobs: a job that is always throttled, credentials that cannot serve a job, and outdated learned limits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from uuid import uuid4

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings

from models.database import db
from models.jobs import job_rows, job_view
from models.jobs.states import Outcome, Status
from tests.support.programs.in_process import InProcessStack, ask, mark_issued, pool_of
from tests.support.queue_tools import query, row
from tests.upstream.client import FakeUpstream, upstream
from workers.answers import retry_policy
from workers.limiter.requests import CredentialModel
from workers.runner import feedback

__all__ = ["upstream"]
pytestmark = pytest.mark.usefixtures("database")

RETRY_AFTER_MARKER = "[[fake:status=429;retry_after=0.05]]"
NO_RETRY_AFTER_MARKER = "[[fake:status=429;kind=rate_no_retry_after]]"


@pytest.fixture
def workshop(redis_client: redis.Redis, upstream: FakeUpstream, override: Callable[..., None]) -> InProcessStack:
    override(pause_s=0.05, pause_most_s=0.5, retry_base_s=0.02, max_throttles=5, probe_s=0.3)
    return InProcessStack(redis_client, upstream)


def ended(*jobs: object) -> Callable[[], bool]:
    return lambda: all(row(job_id).status in ("succeeded", "failed") for job_id in jobs)  # type: ignore[arg-type]  # ids


# A job that is throttled repeatedly


def test_always_throttled_job_lets_others_pass_and_finally_fails(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-poison")
    poisoned = ask(caller, f"never {NO_RETRY_AFTER_MARKER}")
    healthy = [ask(caller, f"fine {n}") for n in range(4)]
    workshop.run(ended(poisoned, *healthy))

    assert ["succeeded"] * 4 == [row(job_id).status for job_id in healthy]
    failed = row(poisoned)
    assert ("failed", 429, 5, 0) == (failed.status, failed.http_status, failed.calls, failed.failures)
    assert "Rate limit reached" in failed.error["message"]
    assert 5 == sum("never" in text for text in workshop.calls())


def test_throttled_jobs_block_no_key_of_a_pool(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-two-a", "sk-two-b")
    poisoned = [ask(caller, f"never {n} {RETRY_AFTER_MARKER}") for n in range(3)]
    healthy = [ask(caller, f"fine {n}", priority="low") for n in range(6)]
    workshop.run(ended(*healthy))

    assert ["succeeded"] * 6 == [row(job_id).status for job_id in healthy]
    assert all(row(job_id).status == Status.QUEUED or row(job_id).throttles for job_id in poisoned)


@settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda line: not all(line) and sum(line) <= 6),
    st.sampled_from([RETRY_AFTER_MARKER, NO_RETRY_AFTER_MARKER]),
)
def test_throttled_jobs_delay_others_by_at_most_two_pauses(
    workshop: InProcessStack, upstream: FakeUpstream, poisoned: list[bool], marker: str
) -> None:
    upstream.reset()
    workshop.client.flushall()
    query("DELETE FROM job")
    caller, (credential,) = pool_of(upstream, "sk-sets")
    jobs = [ask(caller, f"job {n} {marker if is_poisoned else ''}") for n, is_poisoned in enumerate(poisoned)]
    healthy = [job_id for job_id, is_poisoned in zip(jobs, poisoned, strict=True) if not is_poisoned]
    max_streak = 0

    def watch() -> None:
        nonlocal max_streak
        if not all(row(job_id).calls for job_id in healthy):
            max_streak = max(max_streak, workshop.streak(CredentialModel(credential, "m")))

    workshop.run(ended(*healthy), after_step=watch)

    assert ["succeeded"] * len(healthy) == [row(job_id).status for job_id in healthy]
    assert max_streak <= 2


def test_refusing_credential_is_probed_ever_less_often(
    workshop: InProcessStack, upstream: FakeUpstream, override: Callable[..., None]
) -> None:
    override(pause_s=0.02, pause_most_s=2, max_throttles=50)
    caller, (credential,) = pool_of(upstream, "sk-all")
    upstream.behave("sk-all", status=429, kind="rate_no_retry_after")
    jobs = [ask(caller, f"any {n}") for n in range(20)]
    workshop.run(lambda: workshop.streak(CredentialModel(credential, "m")) > 2)

    at = [call.at for call in upstream.calls()]
    assert max(later - before for before, later in itertools.pairwise(at)) >= 2 * 0.02
    upstream.behave("sk-all")
    workshop.run(ended(*jobs))
    assert ["succeeded"] * 20 == [row(job_id).status for job_id in jobs]
    assert 0 == workshop.streak(CredentialModel(credential, "m"))


def test_job_shows_its_first_and_last_attempts_and_their_number(
    workshop: InProcessStack, upstream: FakeUpstream, override: Callable[..., None]
) -> None:
    override(pause_s=0.005, pause_most_s=0.005, max_throttles=31)
    caller, _ = pool_of(upstream, "sk-many")
    poisoned = ask(caller, f"never {NO_RETRY_AFTER_MARKER}")
    workshop.run(ended(poisoned))
    with db.begin() as session:
        shown = job_view.render_job(session, job_rows.find_job(session, poisoned, caller.id))

    assert 31 == shown["attempt_count"]
    assert [*range(1, 11), *range(22, 32)] == [attempt["n"] for attempt in shown["attempts"]]


# Credentials that cannot serve a job, beside one that can

REFUSALS = [
    {"status": 402, "code": "payment_required"}, {"status": 403}, {"status": 404},
    {"status": 400, "code": "budget_exceeded"}, {"status": 401}, {"status": 429, "kind": "quota"},
]  # fmt: skip


@pytest.mark.parametrize("how", REFUSALS, ids=lambda how: str(how["status"]))
def test_pool_serves_with_its_good_key_the_jobs_that_a_bad_key_refuses(
    workshop: InProcessStack, upstream: FakeUpstream, override: Callable[..., None], how: dict[str, object]
) -> None:
    override(probe_s=60)
    caller, _ = pool_of(upstream, "sk-bad", "sk-good")
    mark_issued(caller)
    upstream.behave("sk-bad", **how)
    jobs = [ask(caller, f"job {n}") for n in range(8)]
    workshop.run(ended(*jobs))

    assert ["succeeded"] * 8 == [row(job_id).status for job_id in jobs]
    assert [0] * 8 == [row(job_id).failures for job_id in jobs]
    assert 1 <= len(upstream.calls(key="sk-bad")) <= 2
    (result,) = query("SELECT count(*) AS n FROM parked_model") if how["status"] not in (401, 429) else query("SELECT 1 AS n")
    assert 1 == result.n


def test_job_refused_by_every_key_fails_with_the_most_specific_error(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-none-a", "sk-none-b", "sk-none-c", rpm=600)
    mark_issued(caller)
    upstream.behave("sk-none-a", status=403)
    upstream.behave("sk-none-b", status=404)
    upstream.behave("sk-none-c", status=402)
    job_id = ask(caller, "any")
    workshop.run(ended(job_id))

    failed = row(job_id)
    assert ("failed", 404, "model_not_found", 3) == (failed.status, failed.http_status, failed.error["code"], failed.calls)
    assert [] == list(query("SELECT * FROM parked_model")), "what this one job parked is open again"


@pytest.mark.parametrize("how", [{"unserved": "404: no such model"}, {"park": "no money"}], ids=["for one model", "for everything"])
def test_refusal_while_postgres_is_down_does_not_fail_the_job(override: Callable[..., None], how: dict[str, str]) -> None:
    override(database_url="postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
    db.engine.cache_clear()
    refused = retry_policy.Verdict(retry_policy.NextStep.FAIL, Outcome.REFUSED, status=404, **how)
    fields = {"model": "m", "endpoint": "/v1/chat/completions", "refusals": None, "headers": None, "is_probe": False}
    claimed = SimpleNamespace(id=uuid4(), credential_id=1, **fields)

    assert retry_policy.NextStep.WAIT == feedback.store_feedback(claimed, None, refused).next


def test_job_of_a_single_key_fails_at_once(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-alone")
    upstream.behave("sk-alone", status=404)
    job_id = ask(caller, "any")
    workshop.run(ended(job_id))

    assert (404, 1) == (row(job_id).http_status, row(job_id).calls)


def test_parked_credential_serves_again_after_a_successful_probe(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, (bad, _) = pool_of(upstream, "sk-mend", "sk-good", rpm=600)
    mark_issued(caller)
    upstream.behave("sk-mend", {"status": 403, "times": 1})
    jobs = [ask(caller, f"job {n}") for n in range(2)]
    workshop.run(ended(*jobs))
    query("UPDATE parked_model SET probe_at = now()")
    late = ask(caller, "late")
    workshop.run(ended(late))

    assert [] == list(query("SELECT * FROM parked_model WHERE credential_id = :id", id=bad))
    assert 2 == len(upstream.calls(key="sk-mend"))


# Learned limits


def test_job_over_a_learned_limit_is_sent_before_it_is_refused(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, (credential,) = pool_of(upstream, "sk-raised")
    upstream.limit("sk-raised", rpm=600, tpm=30_000)
    first = ask(caller, "small")
    workshop.run(ended(first))
    upstream.limit("sk-raised", rpm=600, tpm=300_000)
    large = ask(caller, "large", tokens=50_000)
    workshop.run(ended(large))

    assert "succeeded" == row(large).status
    (known,) = query("SELECT learned_tpm FROM meter WHERE credential_id = :id AND model = 'm'", id=credential)
    assert 300_000 == known.learned_tpm


def test_jobs_over_a_confirmed_limit_are_refused_after_one_try(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-low")
    upstream.limit("sk-low", rpm=600, tpm=2_000)
    first = ask(caller, "small")
    workshop.run(ended(first))
    body = "word " * 9_000
    large = [ask(caller, body, tokens=50_000) for _ in range(3)]
    workshop.run(ended(*large))

    assert ["failed"] * 3 == [row(job_id).status for job_id in large]
    assert 2 == len(upstream.calls())
    assert {"rate_limit_exceeded", "request_exceeds_limit"} == {row(job_id).error["code"] for job_id in large}


@pytest.mark.parametrize("status", [429, 500])
def test_only_successful_answers_state_limits(workshop: InProcessStack, upstream: FakeUpstream, status: int) -> None:
    caller, (credential,) = pool_of(upstream, "sk-liar")
    upstream.limit("sk-liar", rpm=7, tpm=9)
    job_id = ask(caller, f"refused [[fake:status={status};times=1;kind=rate_no_retry_after]]")
    workshop.run(lambda: bool(upstream.calls()))
    found = query("SELECT learned_rpm, learned_tpm FROM meter WHERE credential_id = :id", id=credential)

    assert [] == [row for row in found if row.learned_rpm or row.learned_tpm]
    assert json.loads(row(job_id).request)["model"] == "m"


# The running time of a job


def test_timeout_s_bounds_all_calls_of_a_job_together(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-hung")
    job_id = ask(caller, "hung [[fake:hang=before]]", timeout_s=1.2)
    workshop.run(ended(job_id))

    failed = row(job_id)
    assert ("failed", "upstream_timeout", 1) == (failed.status, failed.error["code"], failed.calls)


def test_retry_has_only_the_remaining_time(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-slow")
    upstream.behave("sk-slow", {"status": 500, "delay": 2.5}, {"hang": "before", "times": 9})
    job_id = ask(caller, "twice", timeout_s=4.5)
    workshop.run(ended(job_id))

    failed = row(job_id)
    assert ("failed", "upstream_timeout", 2) == (failed.status, failed.error["code"], failed.calls)
    assert (failed.ended_at - failed.started_at).total_seconds() < 4
