"""Workers, pacers and servers killed, frozen and emptied under load: every job ends, and nothing is paid for twice in silence."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
import redis

from deploy.local.embedded_servers import Postgres, Valkey
from models.database import db
from models.jobs.requeue import LOST
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, attempts, caller, prompt_of, rows, violations, wait_ended
from tests.support.programs.process import Process, until
from tests.support.programs.processes import JOB_QUEUE, Stack, pretended_slots
from workers.channels import notify

THREADS = 8
IN_FLIGHT = 12


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], postgres: Postgres, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with processes.running(folder, lease_s=3, heartbeat_s=0.8, unclaimed_after_s=1.5, retry_base_s=0.05) as made:
        made.pacer()
        yield made
    for server in (postgres, valkey):
        if not server.is_running():
            server.start()
    _reconnect()


@pytest.fixture(autouse=True)
def healthy(stack: Stack) -> Iterator[None]:
    """Two workers and a pacer, an upstream that has seen nothing."""
    stack.upstream.reset()
    if not alive(stack, "pacer"):
        stack.pacer()
    while len(alive(stack, "worker-")) < 2:
        stack.worker(threads=THREADS)
    yield
    notify.client().connection_pool.disconnect()


def alive(stack: Stack, name: str) -> list[Process]:
    return [one for one in stack.processes if one.name.startswith(name) and one.is_alive()]


def load(stack: Stack, name: str, n: int, said: str = "", **limits: int) -> list[UUID]:
    who = caller(f"sk-{name}", **(limits or {"max_in_flight": IN_FLIGHT}))
    return [ask(who, f"{name} {number} {said}") for number in range(n)]


def calls_of(stack: Stack) -> Counter[str]:
    """How often each text reached the upstream and was not turned away."""
    return Counter(call.text for call in stack.upstream.calls() if not call.is_refused)


def expect_all_served(stack: Stack, jobs: list[UUID]) -> None:
    ended = wait_ended(jobs, stack=stack, within_s=60)

    assert {"succeeded"} == {one.status for one in ended}
    assert [] == violations(jobs, stack.upstream.calls())


def expect_each_called_once(stack: Stack, jobs: list[UUID]) -> None:
    expect_all_served(stack, jobs)
    assert {1} == set(calls_of(stack).values())
    assert {(0, 0)} == {(one.possible_duplicate_calls, one.failures) for one in rows(jobs)}


def test_exactly_the_calls_of_a_killed_worker_are_flagged_and_made_again(stack: Stack) -> None:
    jobs = load(stack, "killed", IN_FLIGHT, "[[fake:hold;times=1]]")
    stack.upstream.wait_for_held(IN_FLIGHT)
    jobs += load(stack, "killed", 30, "behind")
    alive(stack, "worker-")[0].kill()
    stack.upstream.wait_for_calls(IN_FLIGHT - THREADS, outcome="client_gone")
    stack.upstream.release()
    stack.worker(threads=THREADS)
    expect_all_served(stack, jobs)

    cut = {call.text for call in stack.upstream.calls(outcome="client_gone")}
    flagged = [one for one in rows(jobs) if one.possible_duplicate_calls]
    assert IN_FLIGHT - THREADS <= len(cut) <= THREADS
    assert cut == {prompt_of(one) for one in flagged}
    assert cut == {said for said, n in calls_of(stack).items() if n > 1}
    assert all(["unknown", "succeeded"] == attempts(one.id) for one in flagged)


def test_calls_in_flight_at_a_killed_worker_follow_on_lost(stack: Stack) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    only = stack.worker(threads=IN_FLIGHT)
    who = caller("sk-on-lost", max_in_flight=IN_FLIGHT)
    jobs = {how: [ask(who, f"[[fake:hold;times=1]] {how} {n}", on_lost=how) for n in range(IN_FLIGHT // 2)] for how in ("retry", "fail")}
    stack.upstream.wait_for_held(IN_FLIGHT)
    only.kill()
    stack.worker(threads=IN_FLIGHT)
    again, failed = (wait_ended(jobs[how], stack=stack, within_s=60) for how in ("retry", "fail"))

    assert [] == violations([*jobs["retry"], *jobs["fail"]], stack.upstream.calls())
    assert {("succeeded", 1)} == {(one.status, one.possible_duplicate_calls) for one in again}
    assert {("failed", LOST["code"])} == {(one.status, one.error["code"]) for one in failed}
    assert {prompt_of(one): 2 for one in again} | {prompt_of(one): 1 for one in failed} == calls_of(stack)
    assert {"unknown"} == {attempts(one.id)[0] for one in (*again, *failed)}


def test_a_worker_process_that_dies_is_started_again(stack: Stack) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    main = stack.workers(processes=1, threads=THREADS)
    jobs = load(stack, "again", 6, "[[fake:hold;times=1]]")
    stack.upstream.wait_for_held(6)
    (child,) = main.children()
    os.kill(child, signal.SIGKILL)
    expect_all_served(stack, jobs)

    assert {1} == {one.possible_duplicate_calls for one in rows(jobs)}
    main.stop()


def test_a_second_pacer_takes_over_from_a_killed_one(stack: Stack) -> None:
    first = alive(stack, "pacer")[0]
    stack.pacer()
    stack.upstream.behave("sk-pacers", delay=[0.05, 0.15])
    jobs = load(stack, "pacers", 60)
    stack.upstream.wait_for_calls(20)
    first.kill()

    expect_each_called_once(stack, jobs)


def test_an_emptied_redis_loses_no_call_in_flight(stack: Stack, valkey: Valkey) -> None:
    jobs = load(stack, "emptied", IN_FLIGHT, "[[fake:hold]]")
    stack.upstream.wait_for_held(IN_FLIGHT)
    jobs += load(stack, "emptied", 10)
    before = {one.pid for one in alive(stack, "worker-")}
    valkey.kill()
    time.sleep(0.5)
    valkey.start()
    stack.upstream.release()

    expect_each_called_once(stack, jobs)
    assert before == {one.pid for one in alive(stack, "worker-")}


def test_pause_survives_a_lost_redis_write(stack: Stack, valkey: Valkey) -> None:
    jobs = load(stack, "unheard", 1, "[[fake:hold;status=429;kind=rate;retry_after=4;times=1]]")
    stack.upstream.wait_for_held(1)
    valkey.kill()
    stack.upstream.release()
    until(lambda: attempts(jobs[0]) == ["throttled"], what="put back")
    valkey.start()
    expect_all_served(stack, jobs)

    first, second = stack.upstream.calls()
    assert 4 <= second.at - (first.ended_at or 0)


@pytest.mark.parametrize("lost", ["everything", "state", "leases", "costs"])
def test_limits_hold_when_redis_forgets(stack: Stack, valkey: Valkey, lost: str) -> None:
    key = f"sk-forgets-{lost}"
    # What 600 a minute may send in two seconds: the rate, the burst, and as much again of calls that were a little late.
    stack.upstream.limit(key, rpm=30, in_flight=6, window_s=2, mode="window", hide_headers=True)
    stack.upstream.behave(key, delay=[0.2, 0.4])
    jobs = load(stack, f"forgets-{lost}", 30, rpm=600, max_in_flight=6)
    with redis.Redis.from_url(valkey.url) as client:
        for n in (6, 14, 22):
            stack.upstream.wait_for_calls(n)
            names = list(client.scan_iter(f"*:{lost}")) if lost != "everything" else []
            client.delete(*names) if names else client.flushall()

    expect_each_called_once(stack, jobs)
    assert 0 == stack.upstream.stats(key)["refused"]


def test_a_restart_of_postgres_loses_no_answer(stack: Stack, postgres: Postgres) -> None:
    jobs = load(stack, "restart", IN_FLIGHT, "[[fake:hold]]")
    stack.upstream.wait_for_held(IN_FLIGHT)
    jobs += load(stack, "restart", 10)
    postgres.stop(immediate=True)
    stack.upstream.release()
    stack.upstream.wait_for_calls(IN_FLIGHT, outcome="200")
    postgres.start()
    _reconnect()

    expect_each_called_once(stack, jobs)


def test_answers_outlast_a_long_absence_of_postgres_on_disk(stack: Stack, postgres: Postgres) -> None:
    jobs = load(stack, "absence", 6, "[[fake:hold]]")
    stack.upstream.wait_for_held(6)
    postgres.stop(immediate=True)
    stack.upstream.release()
    until(lambda: 6 == len(_spooled(stack)), what="six answers on disk")
    kept = b"".join(file.read_bytes() for file in _spooled(stack))
    postgres.start()
    _reconnect()

    expect_each_called_once(stack, jobs)
    until(lambda: not _spooled(stack), what="an empty spool")
    assert b"absence" not in kept


def test_a_frozen_worker_comes_too_late(stack: Stack) -> None:
    frozen, other = alive(stack, "worker-")
    other.stop()
    jobs = load(stack, "frozen", 4, "[[fake:hold]]")
    stack.upstream.wait_for_held(4)
    frozen.freeze()
    stack.worker(threads=THREADS)
    stack.upstream.wait_for_calls(8)
    stack.upstream.release()
    wait_ended(jobs, stack=stack)
    before = rows(jobs)
    frozen.go_on()
    until(lambda: frozen.said().count("too late") >= 4, what="the late worker heard")

    assert before == rows(jobs)
    assert {("succeeded", 1)} == {(one.status, one.possible_duplicate_calls) for one in before}
    assert [] == violations(jobs, stack.upstream.calls())
    assert {2} == set(calls_of(stack).values())


def _lose(client: redis.Redis) -> None:
    client.delete(JOB_QUEUE)


def _repeat(client: redis.Redis) -> None:
    messages = client.lrange(JOB_QUEUE, 0, -1)
    client.rpush(JOB_QUEUE, *messages, *messages)


@pytest.mark.parametrize("happens", [_lose, _repeat])
def test_lost_and_repeated_broker_messages_lose_no_job(stack: Stack, valkey: Valkey, happens: Callable[[redis.Redis], None]) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    with pretended_slots(10), redis.Redis.from_url(valkey.url) as client:
        client.delete(JOB_QUEUE)
        jobs = load(stack, f"doorbells{happens.__name__}", 10)
        until(lambda: client.llen(JOB_QUEUE) >= 10, what="ten doorbells")
        happens(client)
    stack.worker(threads=THREADS)

    expect_each_called_once(stack, jobs)


def test_a_worker_that_starts_while_redis_is_full_waits_for_room(stack: Stack, valkey: Valkey) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", 1)
        try:
            coming = stack.coming_worker(threads=THREADS)
            until(lambda: coming.said().count("command not allowed when used memory") >= 3, what="a worker that tries again and again")
        finally:
            client.config_set("maxmemory", 0)
    jobs = load(stack, "no-room", 3)

    expect_each_called_once(stack, jobs)
    assert [coming] == alive(stack, "worker-")


def _spooled(stack: Stack) -> list[Path]:
    return list((stack.folder / "data" / "spool").glob("*.ending"))


def _reconnect() -> None:
    """This test process has no connection left to a server that was restarted."""
    db.engine().dispose()
    notify.client().connection_pool.disconnect()
