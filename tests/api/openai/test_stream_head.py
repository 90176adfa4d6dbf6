"""A stream's head: an early failure keeps its real status, and the first event ends the wait."""

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
from tests.api.openai.test_stream_response import DONE, event, publish
from tests.support.http_tools import Caller, error_of
from tests.support.programs.process import until
from tests.support.queue_tools import cancel, expire, known, query, row, start
from workers.channels import notify

pytestmark = pytest.mark.usefixtures("database", "redis_client")

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
PATHS = ["/v1/chat/completions", "/openai/deployments/m/chat/completions"]
PICTURE = {"model": "p", "prompt": "a cat", "stream": True}
ERROR = {"message": "Not with that prompt.", "type": "invalid_request_error", "param": "messages", "code": "content_policy"}


@pytest.fixture
def caller(override: Callable[..., None]) -> Iterator[Caller]:
    """A caller whose streams hold back the head longer than any test runs."""
    override(stream_head_s=600)
    yield Caller()
    assert (0, 0) == (waiter_registry.streams, len(waiter_registry))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def submit(threads: ThreadPoolExecutor, caller: Caller, path: str = PATHS[0], body: object = BODY) -> tuple[Future[TestResponse], UUID]:
    """Requests a stream; returns the waiting response and its job."""
    params = {"data": json.dumps(body), "content_type": "application/json", "headers": {"Authorization": f"Bearer {caller.token}"}}
    waiting = threads.submit(caller.app.test_client().open, path, method="POST", **params)
    until(lambda: len(waiter_registry) and query("SELECT FROM job"), what="a waiter")
    (job,) = query("SELECT id FROM job ORDER BY id DESC LIMIT 1")
    return waiting, job.id


def fail(job_id: UUID, caller: Caller, *, status: int, body: bytes | None = None, transcript: bytes | None = None) -> None:
    """Finishes the job with an upstream refusal."""
    dispatch_id = start(caller.key, job_id)
    error = {**ERROR, "code": f"code_{status}"}
    response = json.dumps({"error": error}).encode() if body is None else body
    result = JobResult(Status.FAILED, http_status=status, response=response, error=error, transcript=transcript)
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.REFUSED, status, "req_1"))
    notify.job_changed(job_id, "ended")


def text_of(answer: TestResponse) -> str:
    """Reads the whole stream and releases its waiter."""
    try:
        return b"".join(answer.iter_encoded()).decode()
    finally:
        answer.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [400, 401, 404, 429])
def test_early_stream_failure_has_upstream_status(caller: Caller, threads: ThreadPoolExecutor, path: str, status: int) -> None:
    waiting, job_id = submit(threads, caller, path)
    fail(job_id, caller, status=status)
    answer = waiting.result(30)

    assert (status, "application/json", "false") == (answer.status_code, answer.mimetype, answer.headers["x-should-retry"])
    assert f"code_{status}" == error_of(answer)["code"]
    assert answer.headers["X-Nowserving-Job-Id"]
    assert row(job_id).left_at is None


def test_early_image_stream_failure_has_upstream_status(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting, job_id = submit(threads, caller, "/v1/images/generations", PICTURE)
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
def test_job_ended_without_call_has_our_status(
    caller: Caller, threads: ThreadPoolExecutor, end: Callable[[Caller, UUID], object], status: int
) -> None:
    waiting, job_id = submit(threads, caller)
    end(caller, job_id)
    notify.job_changed(job_id, "ended")

    assert status == waiting.result(30).status_code


def test_revoked_key_gets_401(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting, job_id = submit(threads, caller)
    query("UPDATE key SET revoked_at = now()")
    notify.job_changed(job_id, "moved")

    assert 401 == waiting.result(30).status_code


def test_first_event_sends_head_and_later_failure_is_in_stream(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting, job_id = submit(threads, caller)
    dispatch_id = start(caller.key, job_id)
    publish(job_id, dispatch_id, 0)
    answer = waiting.result(30)
    result = JobResult(Status.FAILED, http_status=400, response=b"{}", error=ERROR, transcript=event(0))
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.UNKNOWN, 200, "req_1"))
    notify.job_changed(job_id, "ended")
    text = text_of(answer)

    assert (200, "text/event-stream") == (answer.status_code, answer.mimetype)
    assert event(0).decode() in text and "Not with that prompt." in text and text.endswith(DONE)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_end_with_events_lost_by_redis_is_a_stream(caller: Caller, threads: ThreadPoolExecutor, status: Status) -> None:
    waiting, job_id = submit(threads, caller)
    dispatch_id = start(caller.key, job_id)
    result = JobResult(status, http_status=200, response=b"{}", error=None if status == Status.SUCCEEDED else ERROR, transcript=event(0))
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.SUCCEEDED, 200, "req_1"))
    notify.job_changed(job_id, "ended")
    answer = waiting.result(30)

    assert 200 == answer.status_code
    assert event(0).decode() in text_of(answer)


def test_head_timeout_starts_comments(caller: Caller, threads: ThreadPoolExecutor, override: Callable[..., None]) -> None:
    override(stream_head_s=0.01)
    waiting, job_id = submit(threads, caller)
    answer = waiting.result(30)
    fail(job_id, caller, status=400)

    assert 200 == answer.status_code
    assert ": waiting\n" == text_of(answer)[: len(": waiting\n")]


def test_idempotency_key_returns_stored_failure_status(caller: Caller, threads: ThreadPoolExecutor) -> None:
    first = threads.submit(caller.post, PATHS[0], BODY, headers={"Idempotency-Key": "once"})
    until(lambda: len(waiter_registry) and query("SELECT FROM job"), what="a waiter")
    (job,) = query("SELECT id FROM job")
    fail(job.id, caller, status=404)
    again = caller.post(PATHS[0], BODY, headers={"Idempotency-Key": "once"})

    assert [404, 404] == [first.result(30).status_code, again.status_code]
    assert "true" == again.headers["Idempotent-Replayed"]


def test_stopping_server_returns_503(caller: Caller, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, job_id = submit(threads, caller)
    monkeypatch.setattr(waiter_registry, "is_closing", True)
    notify.job_changed(job_id, "moved")
    for waiter in waiter_registry._waiters.all():
        waiter.wake()
    answer = waiting.result(30)

    assert (503, "unavailable") == (answer.status_code, error_of(answer)["code"])
    assert row(job_id).left_at is not None


def test_job_stream_route_always_streams(caller: Caller) -> None:
    key: Any = known(caller.token)
    submitted = caller.post("/v1/jobs", {"endpoint": "/v1/chat/completions", "body": BODY}).json
    (job,) = query("SELECT id FROM job WHERE key_id = :id", id=key.id)
    fail(job.id, caller, status=400)
    answer = caller.get(f"/v1/jobs/{submitted['id']}/stream")

    assert (200, "text/event-stream") == (answer.status_code, answer.mimetype)
