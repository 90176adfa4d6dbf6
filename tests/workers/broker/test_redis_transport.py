"""Celery's Redis transport: a consumed message is gone; no message is kept for acknowledgement."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from deploy.local.embedded_servers import Valkey
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, caller, wait_ended
from tests.support.programs.processes import JOB_QUEUE, Stack


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack")) as made:
        made.pacer()
        made.worker(threads=4)
        yield made


def test_broker_messages_are_never_kept_for_acknowledgement(stack: Stack, redis_of_run: redis.Redis) -> None:
    who = caller("sk-broker")
    with redis_of_run.monitor() as monitor:
        wait_ended([ask(who, f"broker {n}") for n in range(5)], stack=stack)
        redis_of_run.echo("enough")
        commands = [entry["command"].split()[:2] for entry in _until_echo(monitor)]

    # More when a worker claimed late and the message was published again.
    assert 5 <= commands.count(["LPUSH", JOB_QUEUE])
    assert [] == [command for command in commands if command[0] in ("HSET", "HDEL", "ZADD", "ZREM") and command[1].startswith("unacked")]


def test_messages_beyond_the_slots_wait_in_the_queue(stack: Stack, redis_of_run: redis.Redis) -> None:
    who = caller("sk-slots", max_in_flight=10)
    jobs = [ask(who, f"[[fake:hold]] {n}") for n in range(6)]
    stack.upstream.wait_for_held(4)

    assert 0 == redis_of_run.llen(JOB_QUEUE)  # the pacer publishes for free slots only
    stack.upstream.release()
    stack.upstream.wait_for_held(2)
    stack.upstream.release()
    assert {"succeeded"} == {one.status for one in wait_ended(jobs, stack=stack)}


@pytest.fixture
def redis_of_run(valkey: Valkey) -> Iterator[redis.Redis]:
    """The stack's Redis as it is, not emptied."""
    with redis.Redis.from_url(valkey.url, socket_timeout=5) as client:
        yield client


def _until_echo(monitor: redis.client.Monitor) -> Iterator[dict[str, str]]:
    while "ECHO enough" != (result := monitor.next_command())["command"]:
        yield result
