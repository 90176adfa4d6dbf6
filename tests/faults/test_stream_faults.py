"""Streams that break off, and workers and servers that fail under them: no client gets two beginnings, no call is repeated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis

from deploy.local.embedded_servers import Postgres, Valkey
from models.database import db
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, attempts, caller, cancel, row, violations, wait_ended
from tests.support.programs.process import Process, until
from tests.support.programs.processes import Stack
from tests.support.stream_tools import content, heard
from tests.upstream.chat import echo
from workers.channels import notify

MAX_BYTES = 200_000
LONG = "a question whose answer takes more than a few events"


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], postgres: Postgres, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    settings = {"lease_s": 3, "heartbeat_s": 0.8, "unclaimed_after_s": 1.5, "retry_base_s": 0.05, "max_answer_bytes": MAX_BYTES}
    with processes.running(folder, **settings) as stack:
        stack.pacer()
        yield stack
    for server in (postgres, valkey):
        if not server.is_running():
            server.start()
    _reconnect()


@pytest.fixture(autouse=True)
def worker(stack: Stack) -> Iterator[Process]:
    """A worker is alive; the upstream has no calls."""
    stack.upstream.reset()
    found = [process for process in stack.processes if process.name.startswith("worker") and process.is_alive()]
    yield found[0] if found else stack.worker(threads=8)
    notify.client().connection_pool.disconnect()


@pytest.fixture
def redis_of_run(valkey: Valkey) -> Iterator[redis.Redis]:
    """The stack's Redis, not emptied."""
    with redis.Redis.from_url(valkey.url, socket_timeout=2) as client:
        yield client


def stream(how: str = "", **options: Any) -> UUID:
    """Submit a streamed job with its own key, whose call misbehaves like this."""
    prompt = f"{LONG} [[fake:{how}]]" if how else LONG
    return ask(caller(f"sk-{time.monotonic_ns()}"), prompt, streamed=True, body={"stream": True}, **options)


def ended(stack: Stack, job_id: UUID) -> Any:
    (job,) = wait_ended([job_id], stack=stack)
    assert [] == violations([job_id], stack.upstream.calls())
    return job


def started_stream(how: str, *, events: int = 2, **options: Any) -> UUID:
    """Submit a streamed job and wait until this number of events can be read."""
    job_id = stream(how, **options)
    until(lambda: len(heard(job_id)) == events, what=f"{events} events")
    return job_id


def expect_complete(row: Any, how: str) -> None:
    text = echo(f"{LONG} [[fake:{how}]]")
    assert ("succeeded", ["succeeded"], text) == (row.status, attempts(row.id), content(row.transcript))


BREAKS = {
    "cut_after=3": "upstream_outcome_unknown",
    "end_after=3": "upstream_outcome_unknown",
    "reset=body": "upstream_outcome_unknown",
    "garble_after=3": "upstream_invalid_response",
    "error_after=3": None,
}


@pytest.mark.parametrize("how", BREAKS)
def test_broken_stream_fails_and_keeps_its_beginning(stack: Stack, how: str) -> None:
    job = ended(stack, stream(f"{how};chunk_delay=0.05"))

    assert ("failed", BREAKS[how], 1) == (job.status, job.error["code"], len(stack.upstream.calls()))
    assert bytes(job.transcript).startswith(b"".join(chunk.event for chunk in heard(job.id)))
    assert echo(LONG).startswith(content(job.transcript))
    assert heard(job.id)


@pytest.mark.parametrize("how", ["cut_after=0", "end_after=0", "reset", "garble_after=0", "error_after=0", "status=500", "garbage=html"])
def test_stream_broken_before_its_first_event_is_retried(stack: Stack, how: str) -> None:
    job = ended(stack, stream(f"{how};times=1", on_unreadable="retry"))

    assert ("succeeded", 2, 1) == (job.status, len(stack.upstream.calls()), job.failures)
    assert echo(f"{LONG} [[fake:{how};times=1]]") == content(job.transcript)


def test_error_event_in_a_stream_is_stored_unchanged(stack: Stack) -> None:
    job = ended(stack, stream("error_after=3;chunk_delay=0.05"))

    assert {"message": "The server had an error.", "type": "server_error", "param": None, "code": None} == job.error
    assert (500, b'{"error":{"message":"The server had an error.","type":"server_error","param":null,"code":null}}') == (
        job.http_status,
        bytes(job.response),
    )


def test_stream_waits_for_retry_after(stack: Stack) -> None:
    job = ended(stack, stream("status=429;kind=rate;retry_after=0.3;times=1"))

    assert ("succeeded", ["throttled", "succeeded"], 0) == (job.status, attempts(job.id), job.failures)


@pytest.mark.parametrize(("how", "has_begun"), [("hold_after=2", True), ("hang=headers", False), ("hang", False)])
def test_stream_ends_at_its_timeout(stack: Stack, how: str, has_begun: bool) -> None:
    job = ended(stack, stream(how, timeout_s=1, on_lost="fail"))

    assert ("failed", has_begun, 1) == (job.status, job.transcript is not None, len(stack.upstream.calls()))
    assert "timeout_s" in job.error["message"]
    # The upstream would hang forever.
    assert 1 <= (job.ended_at - job.started_at).total_seconds() < 20


def test_stream_over_the_size_limit_is_cut_and_not_retried(stack: Stack) -> None:
    job = ended(stack, stream("huge_mb=2"))

    assert ("failed", "upstream_answer_too_large", 1) == (job.status, job.error["code"], len(stack.upstream.calls()))


def test_a_worker_killed_within_a_stream_fails_the_job(stack: Stack, worker: Process) -> None:
    job_id = started_stream("hold_after=2")
    worker.kill()
    job = ended(stack, job_id)

    assert ("failed", ["unknown"], "upstream_outcome_unknown") == (job.status, attempts(job_id), job.error["code"])
    assert (1, 2) == (len(stack.upstream.calls()), len(heard(job_id)))


def test_a_worker_killed_before_the_first_event_is_replaced(stack: Stack, worker: Process) -> None:
    job_id = stream("hold_after=0;times=1")
    stack.upstream.wait_for_held(1)
    worker.kill()
    stack.worker(threads=8)
    job = ended(stack, job_id)

    assert ("succeeded", ["unknown", "succeeded"], 1) == (job.status, attempts(job_id), job.possible_duplicate_calls)
    assert {job.dispatch_id} == {chunk.dispatch_id for chunk in heard(job_id)} or not heard(job_id)


def test_worker_death_just_before_the_first_event_publishes_nothing_and_fails_the_job(stack: Stack, worker: Process) -> None:
    worker.stop()
    brittle = stack.worker(threads=8, crash="worker.after_relayed")
    job_id = stream("hold_after=1")
    brittle.wait_gone()
    job = ended(stack, job_id)

    assert ("failed", ["unknown"], []) == (job.status, attempts(job_id), heard(job_id))
    assert 1 == len(stack.upstream.calls())


def test_frozen_worker_cannot_store_the_rest_of_a_stream(stack: Stack, worker: Process) -> None:
    job_id = started_stream("hold_after=2")
    worker.freeze()
    before = ended(stack, job_id)
    stack.upstream.release()
    worker.go_on()
    worker.wait_says("too late")

    assert "failed" == before.status
    assert before == row(job_id)
    assert 1 == len(stack.upstream.calls())


def test_stream_lost_in_redis_is_still_stored_whole(stack: Stack, redis_of_run: redis.Redis) -> None:
    how = "hold_after=2"
    job_id = started_stream(how)
    redis_of_run.flushall()
    stack.upstream.release()
    expect_complete(ended(stack, job_id), how)

    assert [] == heard(job_id)


def test_full_redis_stops_only_the_relay_of_a_stream(stack: Stack, worker: Process, redis_of_run: redis.Redis) -> None:
    how = "hold_after=2;chunk_delay=0.01"
    job_id = started_stream(how)
    redis_of_run.config_set("maxmemory", 1)
    try:
        stack.upstream.release()
        stack.upstream.wait_for_calls(1, outcome="200")
        job = ended(stack, job_id)
    finally:
        redis_of_run.config_set("maxmemory", 0)
    expect_complete(job, how)

    assert 2 == len(heard(job_id))
    assert 1 == len([line for line in worker.log_text().splitlines() if "not published further" in line and job_id.hex in line])


def test_stopped_redis_does_not_slow_a_stream(stack: Stack, valkey: Valkey) -> None:
    how = "hold_after=2;chunk_delay=0.01"
    job_id = started_stream(how)
    valkey.kill()
    try:
        stack.upstream.release()
        stack.upstream.wait_for_calls(1, outcome="200")
        job = ended(stack, job_id)
    finally:
        valkey.start()
    expect_complete(job, how)


def test_stream_waits_once_for_an_unresponsive_redis(stack: Stack, redis_of_run: redis.Redis) -> None:
    how = "hold_after=2;chunk_delay=0.05"
    job_id = started_stream(how)
    redis_of_run.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
    try:
        stack.upstream.release()
        began = time.monotonic()
        stack.upstream.wait_for_calls(1, timeout_s=15, outcome="200")
        took_s = time.monotonic() - began
    finally:
        redis_of_run.execute_command("CLIENT", "UNPAUSE")
    expect_complete(ended(stack, job_id), how)

    # More than ten events follow: one second for each would take longer.
    assert took_s < 8


def test_stream_does_not_begin_while_postgres_cannot_record_it(stack: Stack, postgres: Postgres) -> None:
    how = "hold_after=0"
    job_id = stream(how)
    stack.upstream.wait_for_held(1)
    postgres.stop(immediate=True)
    stack.upstream.release()
    stack.upstream.wait_for_calls(1, outcome="200")
    postgres.start()
    _reconnect()
    expect_complete(ended(stack, job_id), how)

    assert [] == heard(job_id)
    assert "retry" == row(job_id).on_lost


def test_a_stream_that_was_cancelled_before_its_first_event_has_none(stack: Stack) -> None:
    job_id = stream("hold_after=0")
    stack.upstream.wait_for_held(1)
    cancel(job_id)
    job = ended(stack, job_id)
    stack.upstream.wait_for_calls(1, outcome="client_gone")

    assert ("cancelled", ["cancelled"], None) == (job.status, attempts(job_id), job.transcript)


def test_many_broken_streams_lose_no_job(stack: Stack) -> None:
    stack.upstream.behave("sk-storm", {"cut_after": 2, "probability": 0.2}, {"reset": "before", "probability": 0.1}, chunk_delay=0.005)
    key = caller("sk-storm", max_in_flight=8)
    jobs = [ask(key, f"storm {n} {LONG}", streamed=True, body={"stream": True}, max_attempts=20) for n in range(30)]
    found = wait_ended(jobs, stack=stack)

    assert {"succeeded", "failed"} == {row.status for row in found}
    assert [] == [row.id for row in found if not content(row.transcript)]
    assert all({row.dispatch_id} >= {chunk.dispatch_id for chunk in heard(row.id)} for row in found)
    assert [] == violations(jobs, stack.upstream.calls())


def _reconnect() -> None:
    """Drop this test process's connections to restarted servers."""
    db.engine().dispose()
    notify.client().connection_pool.disconnect()
