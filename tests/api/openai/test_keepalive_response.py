"""Calls without a stream, waiting on their open connection: in this process, their jobs moved on by hand."""

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
from models.queue import enqueue
from tests.support.http_tools import CHAT, Caller, error_of
from tests.support.programs.processes import until
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
    with ThreadPoolExecutor(4) as made:
        yield made


def the_job() -> UUID:
    """The only job there is, as soon as there is one."""
    (found,) = until(lambda: query("SELECT id FROM job"), what="a job")
    return UUID(str(found.id))


def end(caller: Caller, result: JobResult | None = None) -> UUID:
    """The only job has run and ended like this."""
    job_id = the_job()
    wanted = result or JobResult(Status.SUCCEEDED, http_status=200, response=BODY)
    finish(job_id, start(caller.key, job_id), wanted, AttemptResult(Outcome.SUCCEEDED, wanted.http_status))
    notify.job(job_id, "ended")
    return job_id


def ask(caller: Caller, *, headers: dict[str, str] | None = None, **more: Any) -> TestResponse:
    """The answer to a chat call, as far as it has begun."""
    return caller.app.test_client().post(
        "/v1/chat/completions", json=CHAT["body"], headers={"Authorization": f"Bearer {caller.token}", **(headers or {})}, **more
    )


def asked(threads: ThreadPoolExecutor, caller: Caller, **more: Any) -> Future[TestResponse]:
    """Somebody asks and waits."""
    made = threads.submit(ask, caller, **more)
    until(lambda: len(waiter_registry), what="waiting")
    return made


def read(threads: ThreadPoolExecutor, caller: Caller, *, begins: bool, **more: Any) -> Future[tuple[TestResponse, bytes]]:
    """Somebody asks, waits and reads to the end; by now they sit there, and when an answer begins before its end it has begun."""
    begun = Event()

    def everything() -> tuple[TestResponse, bytes]:
        made = ask(caller, **more)
        pieces = iter(made.response)
        first = next(pieces, b"")
        begun.set()
        return made, first + b"".join(pieces)

    reading = threads.submit(everything)
    until(lambda: len(waiter_registry), what="waiting")
    assert not begins or begun.wait(30)
    return reading


@pytest.fixture
def at_once(override: Callable[..., None]) -> None:
    """200 is said at once, and spaces come quickly."""
    override(status_grace_s=0, keepalive_every_s=0.05)


def begin(caller: Caller, **more: Any) -> tuple[TestResponse, Iterator[bytes]]:
    """An answer that has begun, and what comes of it."""
    made = ask(caller, **more)
    assert 200 == made.status_code
    return made, iter(made.response)


def test_an_answer_within_the_grace_time_is_the_upstreams_byte_for_byte(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = asked(threads, caller)
    job_id = end(caller)
    made = waiting.result(30)

    assert (200, BODY, "application/json") == (made.status_code, made.data, made.content_type)
    assert f"job_{job_id.hex}" == made.headers["X-Nowserving-Job-Id"]
    assert made.headers["X-Nowserving-Waited-Ms"].isdecimal()
    assert made.headers["openai-processing-ms"].isdecimal()
    assert str(len(BODY)) == made.headers["Content-Length"]


def test_a_failure_within_the_grace_time_has_its_real_status(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = asked(threads, caller)
    end(caller, BUSY)
    made = waiting.result(30)

    assert (503, BUSY.response, "false") == (made.status_code, made.data, made.headers["x-should-retry"])


def test_a_job_that_expires_or_is_cancelled_is_told_so(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = asked(threads, caller)
    expire_job(the_job())
    notify.job(the_job(), "ended")
    assert (504, "expired") == (waiting.result(30).status_code, error_of(waiting.result())["code"])

    query("DELETE FROM job")
    waiting = asked(threads, caller)
    cancel_job(caller.key, the_job())
    notify.job(the_job(), "cancelled")
    assert (409, "cancelled") == (waiting.result(30).status_code, error_of(waiting.result())["code"])


def test_an_answer_that_was_taken_leaves_nobody_behind(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = asked(threads, caller)
    job_id = end(caller)
    with closing(waiting.result(30)) as made:
        assert made.data

    assert row(job_id).reader
    assert (None, 0) == (row(job_id).left_at, len(waiter_registry))


@pytest.mark.usefixtures("at_once")
def test_after_the_grace_time_spaces_come_until_the_answer(caller: Caller) -> None:
    made, pieces = begin(caller)
    assert [b" ", b" ", b" "] == [next(pieces) for _ in range(3)]
    end(caller)
    rest = b"".join(pieces)

    assert BODY == rest.lstrip(b" ")
    assert json.loads(BODY) == json.loads(b"   " + rest)
    assert ("application/json", None) == (made.content_type, made.headers.get("Content-Length"))
    assert made.headers["X-Nowserving-Job-Id"]
    made.close()
    assert (None, 0) == (row(the_job()).left_at, len(waiter_registry))


@pytest.mark.usefixtures("at_once")
def test_how_long_a_running_job_waited_is_told_when_its_answer_begins(caller: Caller, threads: ThreadPoolExecutor) -> None:
    waiting = threads.submit(ask, caller, headers=PYTHON)
    job_id = the_job()
    waiting.result(30).close()
    start(caller.key, job_id)
    made, _ = begin(caller, headers={"x-stainless-retry-count": "1"})

    assert made.headers["X-Nowserving-Waited-Ms"].isdecimal()
    assert "openai-processing-ms" not in made.headers
    made.close()


@pytest.mark.usefixtures("at_once")
def test_an_answer_is_waited_for_until_postgres_is_back(caller: Caller, override: Callable[..., None], environment: dict[str, str]) -> None:
    made, pieces = begin(caller)
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
    made.close()


@pytest.mark.usefixtures("at_once")
def test_a_late_failure_is_told_in_the_body(caller: Caller) -> None:
    made, pieces = begin(caller, headers={"User-Agent": "curl/7.88.1"})
    next(pieces)
    end(caller, BUSY)

    assert BUSY.response == b"".join(pieces).lstrip()
    made.close()
    assert row(the_job()).left_at is None


@pytest.mark.usefixtures("at_once")
def test_a_late_failure_breaks_off_for_who_comes_back_and_is_told_then_with_its_status(caller: Caller) -> None:
    made, pieces = begin(caller, headers=PYTHON)
    next(pieces)
    end(caller, BUSY)

    with pytest.raises(ConnectionAborted):
        list(pieces)
    assert row(the_job()).left_at
    made.close()
    again = ask(caller, headers={**PYTHON, "x-stainless-retry-count": "1"})

    assert (503, BUSY.response, "false") == (again.status_code, again.data, again.headers["x-should-retry"])
    assert "true" == again.headers["X-Nowserving-Resumed"]
    again.close()
    assert 1 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("agent", AGENTS)
def test_unmarked_retries_receive_the_stored_failure_and_make_no_job(caller: Caller, agent: str) -> None:
    made, pieces = begin(caller, headers={"User-Agent": agent})
    end(caller, BUSY)
    with pytest.raises(ConnectionAborted):
        list(pieces)
    made.close()

    for _ in range(3):
        again = ask(caller, headers={"User-Agent": agent})
        assert (503, BUSY.response, "true") == (again.status_code, again.data, again.headers["X-Nowserving-Resumed"])
        again.close()
    assert 1 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
def test_identical_request_after_the_replay_time_makes_a_new_job(caller: Caller) -> None:
    agent = {"User-Agent": AGENTS[0]}
    made, pieces = begin(caller, headers=agent)
    end(caller, BUSY)
    with pytest.raises(ConnectionAborted):
        list(pieces)
    made.close()
    query(f"UPDATE job SET ended_at = ended_at - interval '{REPLAY}', left_at = left_at - interval '{REPLAY}'")

    begin(caller, headers=agent)[0].close()
    assert 2 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
def test_unmarked_request_never_receives_a_stored_answer(caller: Caller) -> None:
    agent = {"User-Agent": AGENTS[0]}
    made, _ = begin(caller, headers=agent)
    end(caller)
    made.close()
    until(lambda: row(the_job()).left_at, what="left")

    begin(caller, headers=agent)[0].close()
    assert 2 == len(query("SELECT FROM job"))


@pytest.mark.usefixtures("at_once")
def test_a_late_cancellation_breaks_off_and_is_told_once(caller: Caller) -> None:
    made, pieces = begin(caller, headers=PYTHON)
    cancel_job(caller.key, the_job())
    notify.job(the_job(), "cancelled")
    with pytest.raises(ConnectionAborted):
        list(pieces)
    made.close()

    assert 409 == ask(caller, headers={**PYTHON, "x-stainless-retry-count": "1"}).status_code


@pytest.mark.usefixtures("at_once")
def test_who_reads_a_raw_stream_of_bytes_does_not_come_back_and_is_told(caller: Caller) -> None:
    made, pieces = begin(caller, headers={**PYTHON, "x-stainless-raw-response": "stream"})
    end(caller, BUSY)

    assert BUSY.response == b"".join(pieces).lstrip()
    made.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("pieces_read", [0, 1, 3])
def test_a_client_that_goes_away_leaves_its_job(caller: Caller, pieces_read: int) -> None:
    made, pieces = begin(caller)
    for _ in range(pieces_read):
        next(pieces)
    made.close()

    until(lambda: row(the_job()).left_at, what="left")
    assert 0 == len(waiter_registry)


@pytest.mark.usefixtures("at_once")
def test_a_client_that_goes_away_in_the_middle_of_its_answer_leaves_its_job(caller: Caller) -> None:
    made, pieces = begin(caller)
    end(caller, JobResult(Status.SUCCEEDED, http_status=200, response=b"[" + b" " * keepalive_response.PIECE_BYTES * 2 + b"]"))
    while len(next(pieces)) < keepalive_response.PIECE_BYTES:
        pass
    made.close()

    until(lambda: row(the_job()).left_at, what="left")


@pytest.mark.parametrize("grace_s", [60, 0])
def test_a_connection_that_is_closed_is_noticed_while_nothing_is_sent(
    caller: Caller, threads: ThreadPoolExecutor, override: Callable[..., None], grace_s: int
) -> None:
    override(status_grace_s=grace_s, keepalive_every_s=60)
    ours, theirs = socket.socketpair()
    reading = read(threads, caller, begins=not grace_s, environ_overrides={"gunicorn.socket": ours})
    theirs.close()

    until(lambda: row(the_job()).left_at, what="left")
    assert (b"", ConnectionAborted)[not grace_s] == (reading.result(30)[1] if grace_s else type(reading.exception(30)))
    ours.close()


def test_a_client_that_has_gone_when_its_answer_comes_can_fetch_it_later(caller: Caller, threads: ThreadPoolExecutor) -> None:
    ours, theirs = socket.socketpair()
    waiting = asked(threads, caller, environ_overrides={"gunicorn.socket": ours})
    theirs.close()
    end(caller)
    assert keepalive_response.CLIENT_CLOSED_REQUEST == waiting.result(30).status_code
    ours.close()

    again = ask(caller, headers={"x-stainless-retry-count": "2"})

    assert (BODY, "true") == (again.data, again.headers["X-Nowserving-Resumed"])


@pytest.mark.parametrize("grace_s", [60, 0])
def test_a_revoked_key_is_told_nothing_more(
    caller: Caller, threads: ThreadPoolExecutor, override: Callable[..., None], grace_s: int
) -> None:
    override(status_grace_s=grace_s)
    reading = read(threads, caller, begins=not grace_s)
    with db.begin() as session:
        keys.revoke(session, caller.key.id)
    notify.job(the_job(), "queued")

    made, said = reading.result(30)
    assert (401, 200)[not grace_s] == made.status_code
    assert "invalid_api_key" == json.loads(said)["error"]["code"]


def test_a_full_hall_refuses_before_there_is_a_job(caller: Caller, override: Callable[..., None]) -> None:
    override(max_waiting_per_process=1)
    with waiter_registry.wait_for(enqueue.new_job_id(), 1):
        refused = ask(caller)

    assert (503, "unavailable") == (refused.status_code, error_of(refused)["code"])
    assert [] == query("SELECT FROM job")


def test_the_answer_of_a_big_job_goes_out_in_pieces(caller: Caller, threads: ThreadPoolExecutor) -> None:
    body = b"[" + b"7," * keepalive_response.PIECE_BYTES + b"7]"
    waiting = asked(threads, caller)
    end(caller, JobResult(Status.SUCCEEDED, http_status=200, response=body))
    pieces = list(waiting.result(30).response)

    assert body == b"".join(pieces)
    assert keepalive_response.PIECE_BYTES == max(map(len, pieces))
