"""Blocking responses on an open connection: the API in this process, its jobs finished by the test."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from api.http.errors import ConnectionAborted
from api.openai import keepalive_response
from api.waiting.registry import waiter_registry
from deploy.local.embedded_servers import free_port
from models.database import db
from models.jobs import waiters
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys import keys
from models.queue import submission
from tests.support.http_tools import CHAT, Caller, error_of
from tests.support.programs.process import until
from tests.support.queue_tools import cancel as cancel_job
from tests.support.queue_tools import expire as expire_job
from tests.support.queue_tools import finish, query, row, start
from workers.channels import notify

pytestmark = pytest.mark.usefixtures("database", "redis_client")

PYTHON = {"x-stainless-lang": "python"}
AGENTS = ["ai/6.0.326 ai-sdk/provider-utils/4.0.66 runtime/node.js/v20.20.2", "OpenAI/Python 1.3.9"]
REPLAY = f"{waiters.FAILURE_REPLAY_S} s"
BODY = b'{ "id": "chatcmpl-1",\n  "choices": [] }\n'
BUSY = JobResult(
    Status.FAILED, http_status=503, response=b'{"error":{"message":"busy","type":"t","param":null,"code":"c"}, "x": 1.0}',
    error={"message": "busy", "type": "t", "param": None, "code": "c"},
)  # fmt: skip


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def the_job() -> UUID:
    """Returns the only job, as soon as it exists."""
    (job,) = until(lambda: query("SELECT id FROM job"), what="a job")
    return UUID(str(job.id))


def end(caller: Caller, result: JobResult | None = None) -> UUID:
    """Runs and finishes the only job."""
    job_id = the_job()
    result = result or JobResult(Status.SUCCEEDED, http_status=200, response=BODY)
    finish(job_id, start(caller.key, job_id), result, AttemptResult(Outcome.SUCCEEDED, result.http_status))
    notify.job_changed(job_id, "ended")
    return job_id


def send(caller: Caller, *, headers: dict[str, str] | None = None, **more: Any) -> TestResponse:
    """Sends a chat request; returns the response as far as it has begun."""
    return caller.app.test_client().post(
        "/v1/chat/completions", json=CHAT["body"], headers={"Authorization": f"Bearer {caller.token}", **(headers or {})}, **more
    )


def send_waiting(threads: ThreadPoolExecutor, caller: Caller, **more: Any) -> Future[TestResponse]:
    """Sends a chat request that waits."""
    waiting = threads.submit(send, caller, **more)
    until(lambda: len(waiter_registry), what="waiting")
    return waiting


def read(threads: ThreadPoolExecutor, caller: Caller, *, begins: bool, **more: Any) -> Future[tuple[TestResponse, bytes]]:
    """Sends a chat request that waits, and reads it to the end. With begins, the response has begun on return."""
    begun = Event()

    def everything() -> tuple[TestResponse, bytes]:
        response = send(caller, **more)
        pieces = iter(response.response)
        first = next(pieces, b"")
        begun.set()
        return response, first + b"".join(pieces)

    reading = threads.submit(everything)
    until(lambda: len(waiter_registry), what="waiting")
    assert not begins or begun.wait(30)
    return reading


@pytest.fixture
def at_once(override: Callable[..., None]) -> None:
    """No grace time, and a short keep-alive interval."""
    override(status_grace_s=0, keepalive_every_s=0.05)


def begin(caller: Caller, **more: Any) -> tuple[TestResponse, Iterator[bytes]]:
    """Sends a chat request; returns the begun response and its remaining pieces."""
    response = send(caller, **more)
    assert 200 == response.status_code
    return response, iter(response.response)


def test_answer_within_grace_time_equals_upstream_bytes(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = send_waiting(threads, caller)
    job_id = end(caller)
    response = waiting.result(30)

    assert (200, BODY, "application/json") == (response.status_code, response.data, response.content_type)
    assert f"job_{job_id.hex}" == response.headers["X-Nowserving-Job-Id"]
    assert response.headers["X-Nowserving-Waited-Ms"].isdecimal()
    assert response.headers["openai-processing-ms"].isdecimal()
    assert str(len(BODY)) == response.headers["Content-Length"]


def test_failure_within_grace_time_keeps_its_status(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = send_waiting(threads, caller)
    end(caller, BUSY)
    response = waiting.result(30)

    assert (503, BUSY.response, "false") == (response.status_code, response.data, response.headers["x-should-retry"])


def test_expired_or_cancelled_job_returns_its_error(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = send_waiting(threads, caller)
    expire_job(the_job())
    notify.job_changed(the_job(), "ended")
    assert (504, "expired") == (waiting.result(30).status_code, error_of(waiting.result())["code"])

    query("DELETE FROM job")
    waiting = send_waiting(threads, caller)
    cancel_job(caller.key, the_job())
    notify.job_changed(the_job(), "cancelled")
    assert (409, "cancelled") == (waiting.result(30).status_code, error_of(waiting.result())["code"])


def test_delivered_answer_leaves_no_waiter(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = send_waiting(threads, caller)
    job_id = end(caller)
    with closing(waiting.result(30)) as response:
        assert response.data

    assert row(job_id).reader
    assert (None, 0) == (row(job_id).left_at, len(waiter_registry))


@pytest.mark.usefixtures("at_once")
def test_spaces_follow_the_grace_time_until_the_answer(caller: Caller) -> None:
    response, pieces = begin(caller)
    assert [b" ", b" ", b" "] == [next(pieces) for _ in range(3)]
    end(caller)
    rest = b"".join(pieces)

    assert BODY == rest.lstrip(b" ")
    assert json.loads(BODY) == json.loads(b"   " + rest)
    assert ("application/json", None) == (response.content_type, response.headers.get("Content-Length"))
    assert response.headers["X-Nowserving-Job-Id"]
    response.close()
    assert (None, 0) == (row(the_job()).left_at, len(waiter_registry))


@pytest.mark.usefixtures("at_once")
def test_begun_response_has_waited_header(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = threads.submit(send, caller, headers=PYTHON)
    job_id = the_job()
    waiting.result(30).close()
    start(caller.key, job_id)
    response, _ = begin(caller, headers={"x-stainless-retry-count": "1"})

    assert response.headers["X-Nowserving-Waited-Ms"].isdecimal()
    assert "openai-processing-ms" not in response.headers
    response.close()


@pytest.mark.usefixtures("at_once")
def test_response_waits_until_postgres_is_back(caller: Caller, override: Callable[..., None], environment: dict[str, str]) -> None:
    response, pieces = begin(caller)
    next(pieces)
    end(caller)
    engine = db.engine()
    override(database_url=f"postgresql+psycopg://x@127.0.0.1:{free_port()}/x", keepalive_every_s=0.05)
    db.engine.cache_clear()
    assert [b" "] * 3 == [next(pieces) for _ in range(3)]
    override(database_url=environment["NOWSERVING_DATABASE_URL"])
    db.engine.cache_clear()
    engine.dispose()

    assert BODY == b"".join(pieces).lstrip()
    response.close()


@pytest.mark.usefixtures("at_once")
def test_late_failure_is_the_body(caller: Caller) -> None:
    response, pieces = begin(caller, headers={"User-Agent": "curl/7.88.1"})
    next(pieces)
    end(caller, BUSY)

    assert BUSY.response == b"".join(pieces).lstrip()
    response.close()
    assert row(the_job()).left_at is None


@pytest.mark.usefixtures("at_once")
def test_late_failure_closes_connection_and_sdk_retry_gets_its_status(caller: Caller) -> None:
    response, pieces = begin(caller, headers=PYTHON)
    next(pieces)
    end(caller, BUSY)

    with pytest.raises(ConnectionAborted):
        list(pieces)
    assert row(the_job()).left_at
    response.close()
    again = send(caller, headers={**PYTHON, "x-stainless-retry-count": "1"})

    assert (503, BUSY.response, "false") == (again.status_code, again.data, again.headers["x-should-retry"])
    assert "true" == again.headers["X-Nowserving-Resumed"]
    again.close()
    assert 1 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("agent", AGENTS)
def test_unmarked_retries_receive_the_stored_failure_and_make_no_job(caller: Caller, agent: str) -> None:
    response, pieces = begin(caller, headers={"User-Agent": agent})
    end(caller, BUSY)
    with pytest.raises(ConnectionAborted):
        list(pieces)
    response.close()

    for _ in range(3):
        again = send(caller, headers={"User-Agent": agent})
        assert (503, BUSY.response, "true") == (again.status_code, again.data, again.headers["X-Nowserving-Resumed"])
        again.close()
    assert 1 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
def test_identical_request_after_the_replay_time_makes_a_new_job(caller: Caller) -> None:
    agent = {"User-Agent": AGENTS[0]}
    response, pieces = begin(caller, headers=agent)
    end(caller, BUSY)
    with pytest.raises(ConnectionAborted):
        list(pieces)
    response.close()
    query(f"UPDATE job SET ended_at = ended_at - interval '{REPLAY}', left_at = left_at - interval '{REPLAY}'")

    begin(caller, headers=agent)[0].close()
    assert 2 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
def test_unmarked_request_never_receives_a_stored_answer(caller: Caller) -> None:
    agent = {"User-Agent": AGENTS[0]}
    response, _ = begin(caller, headers=agent)
    end(caller)
    response.close()
    until(lambda: row(the_job()).left_at, what="left")

    begin(caller, headers=agent)[0].close()
    assert 2 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
def test_late_cancellation_closes_connection_and_is_delivered_once(caller: Caller) -> None:
    response, pieces = begin(caller, headers=PYTHON)
    cancel_job(caller.key, the_job())
    notify.job_changed(the_job(), "cancelled")
    with pytest.raises(ConnectionAborted):
        list(pieces)
    response.close()

    assert 409 == send(caller, headers={**PYTHON, "x-stainless-retry-count": "1"}).status_code


@pytest.mark.usefixtures("at_once")
def test_raw_response_client_gets_late_failure_as_body(caller: Caller) -> None:
    response, pieces = begin(caller, headers={**PYTHON, "x-stainless-raw-response": "stream"})
    end(caller, BUSY)

    assert BUSY.response == b"".join(pieces).lstrip()
    response.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("pieces_read", [0, 1, 3])
def test_disconnect_abandons_job(caller: Caller, pieces_read: int) -> None:
    response, pieces = begin(caller)
    for _ in range(pieces_read):
        next(pieces)
    response.close()

    until(lambda: row(the_job()).left_at, what="left")
    assert 0 == len(waiter_registry)


@pytest.mark.usefixtures("at_once")
def test_disconnect_during_answer_abandons_job(caller: Caller) -> None:
    response, pieces = begin(caller)
    end(caller, JobResult(Status.SUCCEEDED, http_status=200, response=b"[" + b" " * keepalive_response.PIECE_BYTES * 2 + b"]"))
    while len(next(pieces)) < keepalive_response.PIECE_BYTES:
        pass
    response.close()

    until(lambda: row(the_job()).left_at, what="left")


@pytest.mark.parametrize("grace_s", [60, 0])
def test_disconnect_is_detected_while_nothing_is_sent(
    caller: Caller, threads: ThreadPoolExecutor, override: Callable[..., None], grace_s: int
) -> None:
    override(status_grace_s=grace_s, keepalive_every_s=60)
    ours, theirs = socket.socketpair()
    reading = read(threads, caller, begins=not grace_s, environ_overrides={"gunicorn.socket": ours})
    theirs.close()

    until(lambda: row(the_job()).left_at, what="left")
    assert (b"", ConnectionAborted)[not grace_s] == (reading.result(30)[1] if grace_s else type(reading.exception(30)))
    ours.close()


def test_disconnected_client_can_fetch_answer_later(caller: Caller, threads: ThreadPoolExecutor) -> None:
    ours, theirs = socket.socketpair()
    waiting = send_waiting(threads, caller, environ_overrides={"gunicorn.socket": ours})
    theirs.close()
    end(caller)
    assert keepalive_response.CLIENT_CLOSED_REQUEST == waiting.result(30).status_code
    ours.close()

    again = send(caller, headers={"x-stainless-retry-count": "2"})

    assert (BODY, "true") == (again.data, again.headers["X-Nowserving-Resumed"])


@pytest.mark.parametrize("grace_s", [60, 0])
def test_revoked_key_gets_no_answer(caller: Caller, threads: ThreadPoolExecutor, override: Callable[..., None], grace_s: int) -> None:
    override(status_grace_s=grace_s)
    reading = read(threads, caller, begins=not grace_s)
    with db.begin() as session:
        keys.revoke(session, caller.key.id)
    notify.job_changed(the_job(), "queued")

    response, body = reading.result(30)
    assert (401, 200)[not grace_s] == response.status_code
    assert "invalid_api_key" == json.loads(body)["error"]["code"]


def test_too_many_waiters_are_refused_before_submit(caller: Caller, override: Callable[..., None]) -> None:
    override(max_waiting_per_process=1)
    with waiter_registry.wait_for(submission.new_job_id(), 1):
        refused = send(caller)

    assert (503, "unavailable") == (refused.status_code, error_of(refused)["code"])
    assert [] == query("SELECT FROM job")


def test_large_answer_is_sent_in_pieces(caller: Caller, threads: ThreadPoolExecutor) -> None:
    body = b"[" + b"7," * keepalive_response.PIECE_BYTES + b"7]"
    waiting = send_waiting(threads, caller)
    end(caller, JobResult(Status.SUCCEEDED, http_status=200, response=body))
    pieces = list(waiting.result(30).response)

    assert body == b"".join(pieces)
    assert keepalive_response.PIECE_BYTES == max(map(len, pieces))
