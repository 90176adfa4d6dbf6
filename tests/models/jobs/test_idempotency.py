"""Idempotency keys: one key makes one job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from models.database import db
from models.jobs import idempotency
from models.queue import submission
from tests.support.http_tools import CHAT, Caller, error_of, stored, together

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_repeated_idempotency_key_returns_the_same_job(caller: Caller) -> None:
    first = caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})
    # The same JSON in another order.
    second = caller.post("/v1/jobs", dict(reversed(CHAT.items())), headers={"Idempotency-Key": "k"})

    assert (202, 202, first.json["id"]) == (first.status_code, second.status_code, second.json["id"])
    assert (None, "true") == (first.headers.get("Idempotent-Replayed"), second.headers.get("Idempotent-Replayed"))
    assert 1 == stored()


def test_idempotency_key_with_another_body_is_refused(caller: Caller) -> None:
    caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})

    answer = caller.post("/v1/jobs", {**CHAT, "priority": "high"}, headers={"Idempotency-Key": "k"})

    assert (422, "idempotency_mismatch", 1) == (answer.status_code, error_of(answer)["code"], stored())


def test_twenty_concurrent_requests_make_one_job(caller: Caller) -> None:
    post = partial(caller.post, "/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})

    answers = together(*[post] * 20)

    assert {202} == {answer.status_code for answer in answers}
    assert 1 == len({answer.json["id"] for answer in answers}) == stored()
    assert 19 == sum(answer.headers.get("Idempotent-Replayed") == "true" for answer in answers)


def test_more_concurrent_requests_than_connections_do_not_deadlock(caller: Caller, override: Callable[..., None]) -> None:
    """A submit that opened a second connection inside its transaction held up all others of the process for two seconds, and failed."""
    override(database_pool=3)
    db.engine().dispose()
    db.engine.cache_clear()
    posts = [partial(caller.post, "/v1/jobs", CHAT, headers={"Idempotency-Key": f"k{n}"}) for n in range(24)]

    assert {202} == {answer.status_code for answer in together(*posts)}
    assert 24 == stored()


def test_request_that_waits_too_long_for_another_gets_a_conflict(caller: Caller) -> None:
    number = caller.key.id
    with db.begin() as session:
        idempotency.claim_token(session, number, "k", digest=b"", job_id=submission.new_job_id())
        answer = caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})

    assert (409, "conflict", "1", 0) == (answer.status_code, error_of(answer)["code"], answer.headers["Retry-After"], stored())
    assert "x-should-retry" not in answer.headers


def test_refused_submit_does_not_use_the_idempotency_key(caller: Caller, override) -> None:
    override(max_queued_per_key=1)
    name = caller.submit()
    refused = caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})
    caller.post(f"/v1/jobs/{name}/cancel")

    answer = caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})

    assert (429, 202) == (refused.status_code, answer.status_code)
    assert "Idempotent-Replayed" not in answer.headers


def test_job_retry_accepts_an_idempotency_key(caller: Caller) -> None:
    name = caller.submit()
    caller.post(f"/v1/jobs/{name}/cancel")

    first, second = (caller.post(f"/v1/jobs/{name}/retry", headers={"Idempotency-Key": "k"}) for _ in range(2))
    other = caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"})

    assert first.json["id"] == second.json["id"]
    assert (422, 2) == (other.status_code, stored())


def test_idempotency_keys_of_two_callers_are_separate(caller: Caller) -> None:
    answers = [one.post("/v1/jobs", CHAT, headers={"Idempotency-Key": "k"}) for one in (caller, Caller("sk-two", caller.app))]

    assert 2 == len({answer.json["id"] for answer in answers})


@pytest.mark.parametrize("token", ["", "a b", "é", "x" * 256])
def test_idempotency_key_must_be_visible_ascii(caller: Caller, token: str) -> None:
    answer = caller.post("/v1/jobs", CHAT, headers={"Idempotency-Key": token})

    assert (400, "Idempotency-Key", 0) == (answer.status_code, error_of(answer)["param"], stored())
