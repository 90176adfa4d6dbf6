"""Streams that break off, and workers and servers that go away under them: nobody is told two beginnings, nothing is called twice."""

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

MOST_BYTES = 200_000
LONG = "a question whose answer takes more than a few events"


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], postgres: Postgres, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    wanted = {"lease_s": 3, "heartbeat_s": 0.8, "unclaimed_after_s": 1.5, "retry_base_s": 0.05, "max_answer_bytes": MOST_BYTES}
    with processes.running(folder, **wanted) as made:
        made.pacer()
        yield made
    for server in (postgres, valkey):
        if not server.is_running():
            server.start()
    _reconnect()


@pytest.fixture(autouse=True)
def worker(stack: Stack) -> Iterator[Process]:
    """A worker, and an upstream that has seen nothing."""
    stack.upstream.reset()
    found = [one for one in stack.processes if one.name.startswith("worker") and one.is_alive()]
    yield found[0] if found else stack.worker(threads=8)
    notify.client().connection_pool.disconnect()


@pytest.fixture
def redis_of_run(valkey: Valkey) -> Iterator[redis.Redis]:
    """The stack's Redis as it is, not emptied."""
    with redis.Redis.from_url(valkey.url, socket_timeout=2) as client:
        yield client


def stream(how: str = "", **wanted: Any) -> UUID:
    """A streamed job of a key that nobody else uses, whose call is mistreated like this."""
    said = f"{LONG} [[fake:{how}]]" if how else LONG
    return ask(caller(f"sk-{time.monotonic_ns()}"), said, streamed=True, body={"stream": True}, **wanted)


def ended(stack: Stack, job_id: UUID) -> Any:
    (found,) = wait_ended([job_id], stack=stack)
    assert [] == violations([job_id], stack.upstream.calls())
    return found


def begun(how: str, *, events: int = 2, **wanted: Any) -> UUID:
    """A streamed job of which so many events can be read."""
    job_id = stream(how, **wanted)
    until(lambda: len(heard(job_id)) == events, what=f"{events} events")
    return job_id


def expect_whole(found: Any, how: str) -> None:
    said = echo(f"{LONG} [[fake:{how}]]")
    assert ("succeeded", ["succeeded"], said) == (found.status, attempts(found.id), content(found.transcript))


BREAKS = {
    "cut_after=3": "upstream_outcome_unknown",
    "end_after=3": "upstream_outcome_unknown",
    "reset=body": "upstream_outcome_unknown",
    "garble_after=3": "upstream_invalid_response",
    "error_after=3": None,
}


@pytest.mark.parametrize("how", BREAKS)
def test_broken_stream_fails_and_keeps_its_beginning(stack: Stack, how: str) -> None:
    found = ended(stack, stream(f"{how};chunk_delay=0.05"))

    assert ("failed", BREAKS[how], 1) == (found.status, found.error["code"], len(stack.upstream.calls()))
    assert bytes(found.transcript).startswith(b"".join(chunk.event for chunk in heard(found.id)))
    assert echo(LONG).startswith(content(found.transcript))
    assert heard(found.id)


@pytest.mark.parametrize("how", ["cut_after=0", "end_after=0", "reset", "garble_after=0", "error_after=0", "status=500", "garbage=html"])
def test_stream_broken_before_its_first_event_is_retried(stack: Stack, how: str) -> None:
    found = ended(stack, stream(f"{how};times=1", on_unreadable="retry"))

    assert ("succeeded", 2, 1) == (found.status, len(stack.upstream.calls()), found.failures)
    assert echo(f"{LONG} [[fake:{how};times=1]]") == content(found.transcript)


def test_error_in_a_stream_keeps_the_upstreams_words(stack: Stack) -> None:
    found = ended(stack, stream("error_after=3;chunk_delay=0.05"))

    assert {"message": "The server had an error.", "type": "server_error", "param": None, "code": None} == found.error
    assert (500, b'{"error":{"message":"The server had an error.","type":"server_error","param":null,"code":null}}') == (
        found.http_status,
        bytes(found.response),
    )


def test_a_pause_is_a_pause_for_a_stream_too(stack: Stack) -> None:
    found = ended(stack, stream("status=429;kind=rate;retry_after=0.3;times=1"))

    assert ("succeeded", ["throttled", "succeeded"], 0) == (found.status, attempts(found.id), found.failures)


@pytest.mark.parametrize(("how", "has_begun"), [("hold_after=2", True), ("hang=headers", False), ("hang", False)])
def test_no_stream_is_longer_than_its_timeout(stack: Stack, how: str, has_begun: bool) -> None:
    found = ended(stack, stream(how, timeout_s=1, on_lost="fail"))

    assert ("failed", has_begun, 1) == (found.status, found.transcript is not None, len(stack.upstream.calls()))
    assert "timeout_s" in found.error["message"]
    # The upstream would hang for ever.
    assert 1 <= (found.ended_at - found.started_at).total_seconds() < 20


def test_a_stream_that_is_too_large_is_cut_and_not_paid_for_again(stack: Stack) -> None:
    found = ended(stack, stream("huge_mb=2"))

    assert ("failed", "upstream_answer_too_large", 1) == (found.status, found.error["code"], len(stack.upstream.calls()))


def test_a_worker_killed_within_a_stream_fails_the_job(stack: Stack, worker: Process) -> None:
    job_id = begun("hold_after=2")
    worker.kill()
    found = ended(stack, job_id)

    assert ("failed", ["unknown"], "upstream_outcome_unknown") == (found.status, attempts(job_id), found.error["code"])
    assert (1, 2) == (len(stack.upstream.calls()), len(heard(job_id)))


def test_a_worker_killed_before_the_first_event_is_replaced(stack: Stack, worker: Process) -> None:
    job_id = stream("hold_after=0;times=1")
    stack.upstream.wait_for_held(1)
    worker.kill()
    stack.worker(threads=8)
    found = ended(stack, job_id)

    assert ("succeeded", ["unknown", "succeeded"], 1) == (found.status, attempts(job_id), found.possible_duplicate_calls)
    assert {found.dispatch_id} == {chunk.dispatch_id for chunk in heard(job_id)} or not heard(job_id)


def test_worker_death_just_before_the_first_event_publishes_nothing_and_fails_the_job(stack: Stack, worker: Process) -> None:
    worker.stop()
    brittle = stack.worker(threads=8, crash="worker.after_relayed")
    job_id = stream("hold_after=1")
    brittle.wait_gone()
    found = ended(stack, job_id)

    assert ("failed", ["unknown"], []) == (found.status, attempts(job_id), heard(job_id))
    assert 1 == len(stack.upstream.calls())


def test_a_frozen_worker_comes_too_late_with_the_rest(stack: Stack, worker: Process) -> None:
    job_id = begun("hold_after=2")
    worker.freeze()
    before = ended(stack, job_id)
    stack.upstream.release()
    worker.go_on()
    worker.wait_says("too late")

    assert "failed" == before.status
    assert before == row(job_id)
    assert 1 == len(stack.upstream.calls())


def test_a_stream_that_redis_forgot_goes_on_to_its_transcript(stack: Stack, redis_of_run: redis.Redis) -> None:
    how = "hold_after=2"
    job_id = begun(how)
    redis_of_run.flushall()
    stack.upstream.release()
    expect_whole(ended(stack, job_id), how)

    assert [] == heard(job_id)


def test_a_redis_that_takes_no_more_costs_nothing_but_the_relay(stack: Stack, worker: Process, redis_of_run: redis.Redis) -> None:
    how = "hold_after=2;chunk_delay=0.01"
    job_id = begun(how)
    redis_of_run.config_set("maxmemory", 1)
    try:
        stack.upstream.release()
        stack.upstream.wait_for_calls(1, outcome="200")
        found = ended(stack, job_id)
    finally:
        redis_of_run.config_set("maxmemory", 0)
    expect_whole(found, how)

    assert 2 == len(heard(job_id))
    assert 1 == len([line for line in worker.said().splitlines() if "not relayed further" in line and job_id.hex in line])


def test_a_redis_that_is_gone_slows_no_stream_down(stack: Stack, valkey: Valkey) -> None:
    how = "hold_after=2;chunk_delay=0.01"
    job_id = begun(how)
    valkey.kill()
    try:
        stack.upstream.release()
        stack.upstream.wait_for_calls(1, outcome="200")
        found = ended(stack, job_id)
    finally:
        valkey.start()
    expect_whole(found, how)


def test_a_redis_that_does_not_answer_is_waited_for_once(stack: Stack, redis_of_run: redis.Redis) -> None:
    how = "hold_after=2;chunk_delay=0.05"
    job_id = begun(how)
    redis_of_run.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
    try:
        stack.upstream.release()
        began = time.monotonic()
        stack.upstream.wait_for_calls(1, timeout_s=15, outcome="200")
        took_s = time.monotonic() - began
    finally:
        redis_of_run.execute_command("CLIENT", "UNPAUSE")
    expect_whole(ended(stack, job_id), how)

    # More than ten events were to come: a second for each would be longer.
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
    expect_whole(ended(stack, job_id), how)

    assert [] == heard(job_id)
    assert "retry" == row(job_id).on_lost


def test_a_stream_that_was_cancelled_before_its_first_event_has_none(stack: Stack) -> None:
    job_id = stream("hold_after=0")
    stack.upstream.wait_for_held(1)
    cancel(job_id)
    found = ended(stack, job_id)
    stack.upstream.wait_for_calls(1, outcome="client_gone")

    assert ("cancelled", ["cancelled"], None) == (found.status, attempts(job_id), found.transcript)


def test_a_storm_of_broken_streams_loses_none(stack: Stack) -> None:
    stack.upstream.behave("sk-storm", {"cut_after": 2, "probability": 0.2}, {"reset": "before", "probability": 0.1}, chunk_delay=0.005)
    who = caller("sk-storm", max_in_flight=8)
    jobs = [ask(who, f"storm {n} {LONG}", streamed=True, body={"stream": True}, max_attempts=20) for n in range(30)]
    found = wait_ended(jobs, stack=stack)

    assert {"succeeded", "failed"} == {one.status for one in found}
    assert [] == [one.id for one in found if not content(one.transcript)]
    assert all({one.dispatch_id} >= {chunk.dispatch_id for chunk in heard(one.id)} for one in found)
    assert [] == violations(jobs, stack.upstream.calls())


def _reconnect() -> None:
    """This test process has no connection left to a server that was restarted."""
    db.engine().dispose()
    notify.client().connection_pool.disconnect()
