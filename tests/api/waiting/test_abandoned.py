"""Abandoned jobs that nowserving cancelled: a repeated request gets a new job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID, uuid4

import pytest
from werkzeug.test import TestResponse

from models.database import db
from models.jobs import waiters
from tests.support.http_tools import CHAT, Caller, error_of, together
from tests.support.programs.process import until
from tests.support.queue_tools import event_types, finish, pass_time, query, report, row, start

pytestmark = pytest.mark.usefixtures("database", "redis_client", "at_once")
KEY = {"Idempotency-Key": "k"}
NO_WAIT = {**KEY, "Prefer": "respond-async"}


@pytest.fixture
def at_once(override: Callable[..., None]) -> None:
    """The API sends status 200 at once."""
    override(status_grace_s=0)


@pytest.fixture
def caller() -> Caller:
    return Caller()


def ask(caller: Caller, **headers: str) -> TestResponse:
    """The answer to a chat call, as far as it has begun."""
    return caller.app.test_client().post(
        "/v1/chat/completions", json=CHAT["body"], headers={"Authorization": f"Bearer {caller.token}", **headers}
    )


def left(caller: Caller) -> UUID:
    """A job under the Idempotency-Key whose reader has left."""
    made = ask(caller, **KEY)
    assert 200 == made.status_code
    made.close()
    return UUID(str(until(lambda: query("SELECT id FROM job WHERE left_at IS NOT NULL"), what="left")[0].id))


def abandon(job_id: UUID) -> None:
    """The sweep gives the job up."""
    report("api")
    pass_time(20, "api")
    with db.begin() as session:
        done = waiters.cancel_abandoned(session, longer_than_s=15)
    assert done and done.id == job_id


def id_of(answer: TestResponse) -> UUID:
    return UUID(answer.headers["X-Nowserving-Job-Id"].removeprefix("job_"))


def test_an_abandoned_job_gives_its_idempotency_key_back(caller: Caller) -> None:
    job_id = left(caller)
    abandon(job_id)

    again, more = ask(caller, **NO_WAIT), ask(caller, **NO_WAIT)

    assert (202, None, "true") == (again.status_code, again.headers.get("Idempotent-Replayed"), more.headers.get("Idempotent-Replayed"))
    assert job_id != id_of(again) == id_of(more)
    assert ["cancelled", "queued"] == [row(job_id).status, row(id_of(again)).status]


def test_so_does_one_whose_call_is_still_being_ended(caller: Caller) -> None:
    job_id = left(caller)
    start(caller.key, job_id)
    abandon(job_id)
    assert "running" == row(job_id).status

    assert job_id != id_of(ask(caller, **NO_WAIT))


def test_one_that_was_answered_all_the_same_is_not_paid_for_again(caller: Caller) -> None:
    job_id = left(caller)
    dispatch_id = start(caller.key, job_id)
    abandon(job_id)
    assert finish(job_id, dispatch_id)

    again = ask(caller, **KEY)

    assert (200, job_id, b'{"id": "answer"}') == (again.status_code, id_of(again), again.data)
    assert 1 == len(query("SELECT FROM job"))


@pytest.mark.parametrize("is_running", [False, True])
def test_a_job_that_its_user_cancelled_stays_so(caller: Caller, is_running: bool) -> None:
    job_id = left(caller)
    if is_running:
        start(caller.key, job_id)
    caller.post(f"/v1/jobs/job_{job_id.hex}/cancel")
    report("api")
    pass_time(20, "api")
    with db.begin() as session:
        assert waiters.cancel_abandoned(session, longer_than_s=15) is None
    again = ask(caller, **NO_WAIT)

    assert ("true", job_id) == (again.headers["Idempotent-Replayed"], id_of(again))
    assert "cancelling" if is_running else "cancelled" in event_types(job_id)
    assert 1 == len(query("SELECT FROM job"))


def test_a_waiting_client_of_a_job_that_its_user_cancelled_gets_409(caller: Caller, override: Callable[..., None]) -> None:
    job_id = left(caller)
    caller.post(f"/v1/jobs/job_{job_id.hex}/cancel")
    override(status_grace_s=30)
    again = ask(caller, **KEY)

    assert (409, "cancelled") == (again.status_code, error_of(again)["code"])


def test_another_body_is_refused_all_the_same(caller: Caller) -> None:
    abandon(left(caller))

    again = caller.post("/v1/chat/completions", {"model": "other", "messages": []}, headers=NO_WAIT)

    assert (422, "idempotency_mismatch") == (again.status_code, error_of(again)["code"])


def test_twenty_that_come_back_at_once_make_one_new_job(caller: Caller) -> None:
    job_id = left(caller)
    abandon(job_id)

    answers = together(*[partial(ask, caller, **NO_WAIT)] * 20)

    assert {202} == {answer.status_code for answer in answers}
    (found,) = {id_of(answer) for answer in answers}
    assert found != job_id
    assert 19 == sum(answer.headers.get("Idempotent-Replayed") == "true" for answer in answers)
    assert 2 == len(query("SELECT FROM job"))


def test_an_abandoned_job_takes_no_other_reader(caller: Caller) -> None:
    job_id = left(caller)
    abandon(job_id)

    with db.begin() as session:
        assert not waiters.take_over(session, job_id, reader=uuid4())
    assert row(job_id).left_at


def test_a_marked_retry_without_a_key_gets_a_new_job_too(caller: Caller) -> None:
    made = ask(caller, **{"x-stainless-retry-count": "0"})
    made.close()
    job_id = UUID(str(until(lambda: query("SELECT id FROM job WHERE left_at IS NOT NULL"), what="left")[0].id))
    abandon(job_id)

    again = ask(caller, **{"x-stainless-retry-count": "1"})
    again.close()

    assert job_id != id_of(again)
    assert "X-Nowserving-Resumed" not in again.headers


def test_a_job_taken_over_in_time_is_not_abandoned(caller: Caller) -> None:
    job_id = left(caller)
    with db.begin() as session:
        assert waiters.take_over(session, job_id, reader=uuid4())
    report("api")
    pass_time(20, "api")

    with db.begin() as session:
        assert waiters.cancel_abandoned(session, longer_than_s=15) is None
