"""The head of a stream: a failure before the first event is answered with its real status, and the first event ends the wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from api.waiting.registry import waiter_registry
from models.database import db
from models.jobs import completion
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from tests.api.openai.test_stream_response import DONE, event, say
from tests.support.http_tools import Caller, error_of
from tests.support.programs.processes import until
from tests.support.queue_tools import cancel, expire, known, query, row, start
from workers.channels import notify

pytestmark = pytest.mark.usefixtures("database", "redis_client")

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
PATHS = ["/v1/chat/completions", "/openai/deployments/m/chat/completions"]
PICTURE = {"model": "p", "prompt": "a cat", "stream": True}
ERROR = {"message": "Not with that prompt.", "type": "invalid_request_error", "param": "messages", "code": "content_policy"}


@pytest.fixture
def caller(override: Callable[..., None]) -> Iterator[Caller]:
    """Somebody for whose streams the head waits longer than any test."""
    override(stream_head_s=600)
    yield Caller()
    assert (0, 0) == (waiter_registry.streams, len(waiter_registry))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def asked(threads: ThreadPoolExecutor, caller: Caller, path: str = PATHS[0], body: object = BODY) -> tuple[Future[TestResponse], UUID]:
    """A stream that was asked for, and its job, whose caller waits for the head."""
    wanted = {"data": json.dumps(body), "content_type": "application/json", "headers": {"Authorization": f"Bearer {caller.token}"}}
    waiting = threads.submit(caller.app.test_client().open, path, method="POST", **wanted)
    until(lambda: len(waiter_registry) and query("SELECT FROM job"), what="a waiter")
    (found,) = query("SELECT id FROM job ORDER BY id DESC LIMIT 1")
    return waiting, found.id


def fail(job_id: UUID, caller: Caller, *, status: int, body: bytes | None = None, transcript: bytes | None = None) -> None:
    """The upstream refused the call so."""
    dispatch_id = start(caller.key, job_id)
    error = {**ERROR, "code": f"code_{status}"}
    answered = json.dumps({"error": error}).encode() if body is None else body
    result = JobResult(Status.FAILED, http_status=status, response=answered, error=error, transcript=transcript)
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.REFUSED, status, "req_1"))
    notify.job(job_id, "ended")


def text_of(answer: TestResponse) -> str:
    """The whole stream; its waiter is free afterwards."""
    try:
        return b"".join(answer.iter_encoded()).decode()
    finally:
        answer.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [400, 401, 404, 429])
def test_a_stream_that_is_refused_at_once_has_the_upstreams_status_and_bytes(
    caller: Caller, threads: ThreadPoolExecutor, path: str, status: int
) -> None:
    waiting, job_id = asked(threads, caller, path)
    fail(job_id, caller, status=status)
    answer = waiting.result(30)

    assert (status, "application/json", "false") == (answer.status_code, answer.mimetype, answer.headers["x-should-retry"])
    assert f"code_{status}" == error_of(answer)["code"]
    assert answer.headers["X-Nowserving-Job-Id"]
    assert row(job_id).left_at is None


def test_so_has_a_stream_of_pictures(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting, job_id = asked(threads, caller, "/v1/images/generations", PICTURE)
    fail(job_id, caller, status=400)

    assert 400 == waiting.result(30).status_code


def _cancelled(caller: Caller, job_id: UUID) -> None:
    cancel(caller.key, job_id)


def _expired(_: Caller, job_id: UUID) -> None:
    expire(job_id)


def _refused_by_us(_: Caller, job_id: UUID) -> None:
    with db.begin() as session:
        assert completion.fail_queued(session, job_id, error={**ERROR, "code": "request_exceeds_limit"})


@pytest.mark.parametrize(("end", "status"), [(_cancelled, 409), (_expired, 504), (_refused_by_us, 400)])
def test_a_job_that_ends_without_a_call_has_our_status(
    caller: Caller, threads: ThreadPoolExecutor, end: Callable[[Caller, UUID], object], status: int
) -> None:
    waiting, job_id = asked(threads, caller)
    end(caller, job_id)
    notify.job(job_id, "ended")

    assert status == waiting.result(30).status_code


def test_a_revoked_key_is_a_401(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting, job_id = asked(threads, caller)
    query("UPDATE key SET revoked_at = now()")
    notify.job(job_id, "moved")

    assert 401 == waiting.result(30).status_code


def test_the_first_event_ends_the_wait_and_a_later_failure_is_in_the_stream(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting, job_id = asked(threads, caller)
    dispatch_id = start(caller.key, job_id)
    say(job_id, dispatch_id, 0)
    answer = waiting.result(30)
    result = JobResult(Status.FAILED, http_status=400, response=b"{}", error=ERROR, transcript=event(0))
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.UNKNOWN, 200, "req_1"))
    notify.job(job_id, "ended")
    told = text_of(answer)

    assert (200, "text/event-stream") == (answer.status_code, answer.mimetype)
    assert event(0).decode() in told and "Not with that prompt." in told and told.endswith(DONE)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_an_end_with_events_that_redis_lost_is_a_stream(caller: Caller, threads: ThreadPoolExecutor, status: Status) -> None:
    waiting, job_id = asked(threads, caller)
    dispatch_id = start(caller.key, job_id)
    result = JobResult(status, http_status=200, response=b"{}", error=None if status == Status.SUCCEEDED else ERROR, transcript=event(0))
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.SUCCEEDED, 200, "req_1"))
    notify.job(job_id, "ended")
    answer = waiting.result(30)

    assert 200 == answer.status_code
    assert event(0).decode() in text_of(answer)


def test_after_the_time_comments_begin_and_a_failure_is_in_the_stream(
    caller: Caller, threads: ThreadPoolExecutor, override: Callable[..., None]
) -> None:
    override(stream_head_s=0.01)
    waiting, job_id = asked(threads, caller)
    answer = waiting.result(30)
    fail(job_id, caller, status=400)

    assert 200 == answer.status_code
    assert ": waiting\n" == text_of(answer)[: len(": waiting\n")]


def test_who_comes_again_with_its_idempotency_key_gets_the_stored_status(caller: Caller, threads: ThreadPoolExecutor) -> None:
    first = threads.submit(caller.post, PATHS[0], BODY, headers={"Idempotency-Key": "once"})
    until(lambda: len(waiter_registry) and query("SELECT FROM job"), what="a waiter")
    (found,) = query("SELECT id FROM job")
    fail(found.id, caller, status=404)
    again = caller.post(PATHS[0], BODY, headers={"Idempotency-Key": "once"})

    assert [404, 404] == [first.result(30).status_code, again.status_code]
    assert "true" == again.headers["Idempotent-Replayed"]


def test_a_server_that_stops_meanwhile_says_when_to_come_back(
    caller: Caller, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, job_id = asked(threads, caller)
    monkeypatch.setattr(waiter_registry, "is_closing", True)
    notify.job(job_id, "moved")
    for waiter in waiter_registry._waiters.all():
        waiter.wake()
    answer = waiting.result(30)

    assert (503, "unavailable") == (answer.status_code, error_of(answer)["code"])
    assert row(job_id).left_at is not None


def test_a_jobs_own_stream_is_a_stream_whatever_became_of_it(caller: Caller) -> None:
    own: Any = known(caller.token)
    made = caller.post("/v1/jobs", {"endpoint": "/v1/chat/completions", "body": BODY}).json
    (found,) = query("SELECT id FROM job WHERE key_id = :id", id=own.id)
    fail(found.id, caller, status=400)
    answer = caller.get(f"/v1/jobs/{made['id']}/stream")

    assert (200, "text/event-stream") == (answer.status_code, answer.mimetype)
