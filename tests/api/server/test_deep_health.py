"""/healthz/deep and /readyz when jobs stop moving, and the watchdog of workers that receive no Celery messages."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import text

from api.server import health
from deploy.local.server_process import free_port
from models.database import db
from models.jobs import workers
from tests.support.http_tools import Caller
from tests.support.programs.forks import ROOT
from tests.support.programs.live_jobs import ask, caller, wait_ended
from tests.support.programs.process import until
from tests.support.programs.processes import Stack, running
from tests.support.queue_tools import query
from workers.broker.consumer_watchdog import STALLED_S, ConsumerWatchdog, QueueHead
from workers.broker.queues import JOB_QUEUE
from workers.channels import notify
from workers.pacer.heartbeat import EVERY_S, PacerHeartbeat

pytestmark = pytest.mark.usefixtures("database")


def gone() -> list[str]:
    """The missing parts in the response of /healthz/deep."""
    result = Caller().get("/healthz/deep")
    assert (200 if result.json["status"] == "ok" else 503) == result.status_code
    return list(result.json["gone"])


def missing(who: Caller) -> list[str]:
    """The missing parts in the response of /readyz of this process."""
    result = who.get("/readyz")
    assert (200 if result.json["status"] == "ok" else 503) == result.status_code
    return list(result.json["gone"])


@pytest.fixture
def broker(redis_client: redis.Redis) -> redis.Redis:
    return redis_client


def watchdog_of(broker: redis.Redis, *, running: int = 0) -> ConsumerWatchdog:
    return ConsumerWatchdog(QueueHead(broker, JOB_QUEUE), slots=2, running=lambda: running)


def test_without_pacer_and_workers_deep_health_names_both(broker: redis.Redis) -> None:
    assert ["workers", "pacer"] == gone()


def test_readyz_names_pacer_and_workers_until_both_have_reported(broker: redis.Redis) -> None:
    api = Caller()
    assert ["workers", "pacer"] == missing(api)
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=1)
    assert ["pacer"] == missing(api)
    PacerHeartbeat(broker, stepped_at=lambda: 0.0).step(now=0.0)

    assert [] == missing(api)


def test_readyz_stays_ready_while_pacer_and_workers_are_away(broker: redis.Redis) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=1)
    PacerHeartbeat(broker, stepped_at=lambda: 0.0).step(now=0.0)
    api = Caller()
    assert [] == missing(api)
    broker.delete(notify.HEARTBEAT_KEY)
    with db.begin() as session:
        workers.remove_worker(session, "w")

    assert [] == missing(api)
    assert ["workers", "pacer"] == gone()


def test_an_api_without_workers_takes_submits_after_a_while(broker: redis.Redis) -> None:
    latch = health.Latch(health.PARTS, now=0.0)

    assert ["workers", "pacer"] == latch.missing(now=health.ALONE_AFTER_S - 1)
    assert [] == latch.missing(now=health.ALONE_AFTER_S)


def test_a_report_from_before_postgres_started_does_not_count(broker: redis.Redis) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=1)
        session.execute(text("UPDATE worker SET seen_at = pg_postmaster_start_time() - interval '1 ms'"))

        assert not workers.is_any_alive(session, within_s=10**9)


def test_the_pacer_reports_its_first_step_at_once(broker: redis.Redis) -> None:
    stop = threading.Event()
    began = time.monotonic()
    watching = threading.Thread(target=PacerHeartbeat(broker, stepped_at=time.monotonic).run, args=(stop,))
    watching.start()
    until(lambda: notify.pacer_heartbeat() is not None, what="reported")
    took_s = time.monotonic() - began
    stop.set()
    watching.join()

    assert took_s < EVERY_S


def test_a_pacer_that_takes_no_steps_is_not_pacing(broker: redis.Redis) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=1)
    PacerHeartbeat(broker, stepped_at=lambda: 0.0).step(now=60.0)

    assert ["pacer"] == gone()


def test_unconsumed_messages_are_reported_while_a_slot_is_free(broker: redis.Redis) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=1)
    broker.lpush(JOB_QUEUE, "one")
    now = 100.0
    watch = PacerHeartbeat(broker, stepped_at=lambda: now)
    watch.step(now=now)
    assert [] == gone()
    now = 111.0
    watch.step(now=now)

    assert ["consumption"] == gone()


def test_waiting_messages_raise_no_alarm_while_all_slots_are_busy(broker: redis.Redis) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=0)
    broker.lpush(JOB_QUEUE, "one")
    watch = PacerHeartbeat(broker, stepped_at=lambda: 200.0)
    watch.step(now=200.0)
    watch.step(now=211.0)

    assert 0.0 == notify.pacer_heartbeat()


def test_watchdog_reports_a_message_that_waits_too_long(broker: redis.Redis) -> None:
    watchdog = watchdog_of(broker)
    broker.lpush(JOB_QUEUE, "one")

    assert [False, False, True] == [watchdog.is_stalled(now=now) for now in (0.0, STALLED_S - 1, STALLED_S)]


def test_watchdog_accepts_a_consuming_worker(broker: redis.Redis) -> None:
    watchdog = watchdog_of(broker)
    broker.lpush(JOB_QUEUE, "one")
    watchdog.is_stalled(now=0.0)
    watchdog.message_received()

    assert not watchdog.is_stalled(now=STALLED_S)
    assert not watchdog.is_stalled(now=2 * STALLED_S - 1)


def test_a_busy_worker_is_not_stalled(broker: redis.Redis) -> None:
    watchdog = watchdog_of(broker, running=2)
    broker.lpush(JOB_QUEUE, "one")

    assert [False] * 3 == [watchdog.is_stalled(now=now) for now in (0.0, STALLED_S, 10 * STALLED_S)]


def test_a_worker_with_nothing_to_do_is_not_stalled(broker: redis.Redis) -> None:
    watchdog = watchdog_of(broker)

    assert [False] * 3 == [watchdog.is_stalled(now=now) for now in (0.0, STALLED_S, 10 * STALLED_S)]


def test_a_worker_without_redis_is_not_stalled() -> None:
    away = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    watchdog = watchdog_of(away)

    assert [False] * 2 == [watchdog.is_stalled(now=now) for now in (0.0, STALLED_S)]


def test_a_queue_that_moves_is_not_stalled(broker: redis.Redis) -> None:
    watchdog = watchdog_of(broker)
    broker.rpush(JOB_QUEUE, "one")
    watchdog.is_stalled(now=0.0)
    broker.rpush(JOB_QUEUE, "an older one, say")  # the head of the queue changed: a worker took a message

    assert not watchdog.is_stalled(now=STALLED_S)


@pytest.fixture
def stack(tmp_path: Path, environment: dict[str, str]) -> Iterator[Stack]:
    with running(tmp_path, pacer_metrics_port=free_port(), worker_metrics_port=free_port()) as made:
        yield made


@pytest.mark.slow
def test_worker_that_stopped_consuming_is_reported_exits_and_its_backlog_is_served(stack: Stack, broker: redis.Redis) -> None:
    stack.pacer()
    workers = stack.workers(processes=1, threads=4)
    until(lambda: gone() == [], what="healthy")
    before = workers.children()
    (node,) = query("SELECT name FROM worker WHERE slots > 0")
    # With a destination celery returns after that worker's reply; without one it waits for the whole timeout.
    control = ["control", "--destination", node.name, "--timeout", "60", "cancel_consumer", JOB_QUEUE]
    command = [sys.executable, "-m", "celery", "--app", "workers.tasks", *control]
    shown = subprocess.run(command, cwd=ROOT, env=stack.environment(), capture_output=True, text=True, check=False)
    assert "no longer consuming" in shown.stdout, shown.stderr
    who = caller("sk-stalled")
    job_ids = [ask(who, f"q{n}") for n in range(8)]

    until(lambda: "consumption" in gone(), what="reported", within_s=30)
    wait_ended(job_ids, within_s=60, stack=stack)
    until(lambda: gone() == [], what="healthy again")
    assert "the consumer receives no messages" in workers.log_text()
    assert before != workers.children()
    assert 'nowserving_attempts_total{model="m",outcome="succeeded",pool="own"} 8.0' in exposed(stack, "worker")
    assert 'nowserving_wait_seconds_count{model="m",pool="own"} 8.0' in exposed(stack, "worker")
    assert 'nowserving_server_up{server="redis"} 1.0' in exposed(stack, "pacer")
    assert 'nowserving_admitted_total{model="m",pool="own"}' in exposed(stack, "pacer")


def exposed(stack: Stack, program: str) -> str:
    """Returns the /metrics response of this program of the stack."""
    with urlopen(f"http://127.0.0.1:{stack.settings[f'{program}_metrics_port']}/metrics", timeout=20) as answer:
        return str(answer.read().decode())
