"""Workers, pacers and servers killed, frozen and emptied under load: every job ends, and each possible double charge is flagged."""

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
    with processes.running(folder, lease_s=3, heartbeat_s=0.8, unclaimed_after_s=1.5, retry_base_s=0.05) as stack:
        stack.pacer()
        yield stack
    for server in (postgres, valkey):
        if not server.is_running():
            server.start()
    _reconnect()


@pytest.fixture(autouse=True)
def healthy(stack: Stack) -> Iterator[None]:
    """Two workers and a pacer are alive; the upstream has no calls."""
    stack.upstream.reset()
    if not alive(stack, "pacer"):
        stack.pacer()
    while len(alive(stack, "worker-")) < 2:
        stack.worker(threads=THREADS)
    yield
    notify.client().connection_pool.disconnect()


def alive(stack: Stack, name: str) -> list[Process]:
    return [process for process in stack.processes if process.name.startswith(name) and process.is_alive()]


def load(stack: Stack, name: str, n: int, suffix: str = "", **limits: int) -> list[UUID]:
    key = caller(f"sk-{name}", **(limits or {"max_in_flight": IN_FLIGHT}))
    return [ask(key, f"{name} {number} {suffix}") for number in range(n)]


def calls_of(stack: Stack) -> Counter[str]:
    """The number of calls per text that the upstream did not refuse."""
    return Counter(call.text for call in stack.upstream.calls() if not call.is_refused)


def expect_all_served(stack: Stack, jobs: list[UUID]) -> None:
    ended = wait_ended(jobs, stack=stack, within_s=60)

    assert {"succeeded"} == {row.status for row in ended}
    assert [] == violations(jobs, stack.upstream.calls())


def expect_each_called_once(stack: Stack, jobs: list[UUID]) -> None:
    expect_all_served(stack, jobs)
    assert {1} == set(calls_of(stack).values())
    assert {(0, 0)} == {(row.possible_duplicate_calls, row.failures) for row in rows(jobs)}


def test_calls_of_a_killed_worker_are_flagged_and_repeated(stack: Stack) -> None:
    jobs = load(stack, "killed", IN_FLIGHT, "[[fake:hold;times=1]]")
    stack.upstream.wait_for_held(IN_FLIGHT)
    jobs += load(stack, "killed", 30, "behind")
    alive(stack, "worker-")[0].kill()
    stack.upstream.wait_for_calls(IN_FLIGHT - THREADS, outcome="client_gone")
    stack.upstream.release()
    stack.worker(threads=THREADS)
    expect_all_served(stack, jobs)

    cut = {call.text for call in stack.upstream.calls(outcome="client_gone")}
    flagged = [row for row in rows(jobs) if row.possible_duplicate_calls]
    assert IN_FLIGHT - THREADS <= len(cut) <= THREADS
    assert cut == {prompt_of(row) for row in flagged}
    assert cut == {text for text, n in calls_of(stack).items() if n > 1}
    assert all(["unknown", "succeeded"] == attempts(row.id) for row in flagged)


def test_calls_in_flight_at_a_killed_worker_follow_on_lost(stack: Stack) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    only = stack.worker(threads=IN_FLIGHT)
    key = caller("sk-on-lost", max_in_flight=IN_FLIGHT)
    jobs = {how: [ask(key, f"[[fake:hold;times=1]] {how} {n}", on_lost=how) for n in range(IN_FLIGHT // 2)] for how in ("retry", "fail")}
    stack.upstream.wait_for_held(IN_FLIGHT)
    only.kill()
    stack.worker(threads=IN_FLIGHT)
    repeated, failed = (wait_ended(jobs[how], stack=stack, within_s=60) for how in ("retry", "fail"))

    assert [] == violations([*jobs["retry"], *jobs["fail"]], stack.upstream.calls())
    assert {("succeeded", 1)} == {(row.status, row.possible_duplicate_calls) for row in repeated}
    assert {("failed", LOST["code"])} == {(row.status, row.error["code"]) for row in failed}
    assert {prompt_of(row): 2 for row in repeated} | {prompt_of(row): 1 for row in failed} == calls_of(stack)
    assert {"unknown"} == {attempts(row.id)[0] for row in (*repeated, *failed)}


def test_a_worker_process_that_dies_is_started_again(stack: Stack) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    main = stack.workers(processes=1, threads=THREADS)
    jobs = load(stack, "restarted", 6, "[[fake:hold;times=1]]")
    stack.upstream.wait_for_held(6)
    (child,) = main.children()
    os.kill(child, signal.SIGKILL)
    expect_all_served(stack, jobs)

    assert {1} == {row.possible_duplicate_calls for row in rows(jobs)}
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
    before = {process.pid for process in alive(stack, "worker-")}
    valkey.kill()
    time.sleep(0.5)
    valkey.start()
    stack.upstream.release()

    expect_each_called_once(stack, jobs)
    assert before == {process.pid for process in alive(stack, "worker-")}


def test_pause_survives_a_lost_redis_write(stack: Stack, valkey: Valkey) -> None:
    jobs = load(stack, "lost-write", 1, "[[fake:hold;status=429;kind=rate;retry_after=4;times=1]]")
    stack.upstream.wait_for_held(1)
    valkey.kill()
    stack.upstream.release()
    until(lambda: attempts(jobs[0]) == ["throttled"], what="put back")
    valkey.start()
    expect_all_served(stack, jobs)

    first, second = stack.upstream.calls()
    assert 4 <= second.at - (first.ended_at or 0)


@pytest.mark.parametrize("lost", ["everything", "state", "leases", "costs"])
def test_limits_hold_after_redis_loses_keys(stack: Stack, valkey: Valkey, lost: str) -> None:
    key = f"sk-lossy-{lost}"
    # 600 a minute for two seconds: the rate, the burst, and as much again for calls that arrive slightly late.
    stack.upstream.limit(key, rpm=30, in_flight=6, window_s=2, mode="window", hide_headers=True)
    stack.upstream.behave(key, delay=[0.2, 0.4])
    jobs = load(stack, f"lossy-{lost}", 30, rpm=600, max_in_flight=6)
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


def test_answers_are_spooled_while_postgres_is_down(stack: Stack, postgres: Postgres) -> None:
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


def test_frozen_worker_cannot_store_a_late_answer(stack: Stack) -> None:
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
    until(lambda: frozen.log_text().count("too late") >= 4, what="the late worker reported")

    assert before == rows(jobs)
    assert {("succeeded", 1)} == {(row.status, row.possible_duplicate_calls) for row in before}
    assert [] == violations(jobs, stack.upstream.calls())
    assert {2} == set(calls_of(stack).values())


def _drop_messages(client: redis.Redis) -> None:
    client.delete(JOB_QUEUE)


def _duplicate_messages(client: redis.Redis) -> None:
    messages = client.lrange(JOB_QUEUE, 0, -1)
    client.rpush(JOB_QUEUE, *messages, *messages)


@pytest.mark.parametrize("damage", [_drop_messages, _duplicate_messages])
def test_lost_and_repeated_broker_messages_lose_no_job(stack: Stack, valkey: Valkey, damage: Callable[[redis.Redis], None]) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    with pretended_slots(10), redis.Redis.from_url(valkey.url) as client:
        client.delete(JOB_QUEUE)
        jobs = load(stack, f"messages{damage.__name__}", 10)
        until(lambda: client.llen(JOB_QUEUE) >= 10, what="ten broker messages")
        damage(client)
    stack.worker(threads=THREADS)

    expect_each_called_once(stack, jobs)


def test_worker_start_waits_while_redis_is_full(stack: Stack, valkey: Valkey) -> None:
    for worker in alive(stack, "worker-"):
        worker.stop()
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", 1)
        try:
            starting = stack.coming_worker(threads=THREADS)
            until(lambda: starting.log_text().count("command not allowed when used memory") >= 3, what="a retrying worker")
        finally:
            client.config_set("maxmemory", 0)
    jobs = load(stack, "no-room", 3)

    expect_each_called_once(stack, jobs)
    assert [starting] == alive(stack, "worker-")


def _spooled(stack: Stack) -> list[Path]:
    return list((stack.folder / "data" / "spool").glob("*.ending"))


def _reconnect() -> None:
    """Drop this test process's connections to restarted servers."""
    db.engine().dispose()
    notify.client().connection_pool.disconnect()
