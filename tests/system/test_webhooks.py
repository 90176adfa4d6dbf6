"""Webhooks end to end with real processes: every end of a job arrives at least once, whichever processes die.

With HYPOTHESIS_PROFILE=nightly (`make chaos`) the kill test sends 10,000 events, otherwise 150.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import openai
import pytest

from models.database import db
from models.platform import wire
from models.platform.errors import Unavailable
from models.webhooks import delivery_log, endpoints, sample_event, signing
from models.webhooks.delivery_log import DeliveryScope
from tests.support.programs import process, processes
from tests.support.programs.live_jobs import ask, caller, wait_ended
from tests.support.programs.process import until
from tests.support.programs.processes import Stack
from tests.support.queue_tools import query
from tests.support.servers.webhook_receiver import Receiver
from tests.support.webhook_tools import ENDED, deliveries, endpoint, endpoint_and_secret
from workers.channels import notify

K = 8  # webhook_per_receiver
SDK = openai.OpenAI(api_key="none")
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# The number of jobs of the kill test, and the number of jobs between two rounds of kills.
JOBS, ROUND, PATIENCE_S = (10_000, 500, 900) if NIGHTLY else (150, 50, 120)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("receiver")) as started:
        yield started


@pytest.fixture
def stack(receiver: Receiver, tmp_path: Path, environment: dict[str, str], override: object) -> Iterator[Stack]:
    """A pacer, a worker and a webhook sender that may reach the receiver."""
    settings = {**receiver.settings(), "webhook_timeout_s": 3, "lease_s": 3, "heartbeat_s": 0.5}
    override(**receiver.settings())  # type: ignore[operator]
    (receiver.folder / "received.jsonl").write_text("")
    with processes.running(tmp_path, **settings) as stack:
        stack.pacer()
        stack.worker()
        stack.sender()
        yield stack


def all_deliveries_are(*statuses: str) -> bool:
    """Whether every delivery has one of these statuses."""
    return not [delivery for delivery in deliveries() if delivery.status not in statuses]


def test_webhook_reports_the_end_of_each_job(stack: Stack, receiver: Receiver) -> None:
    key = caller("sk-hooks")
    _, secret = endpoint_and_secret(key, receiver.url("/endpoint"), kinds=[*ENDED, "job.started"])
    good = ask(key, "fine", webhook_url=receiver.url("/own"))
    bad = ask(key, "[[fake:status=400]]", webhook_url=receiver.url("/own"))
    late = ask(key, "too late", model="paused", expires_in_s=0.2)
    query("UPDATE lane SET paused_at = now() WHERE model = 'paused'")
    wait_ended([good, bad, late], stack=stack)
    own, endpoints = receiver.wait_got(2, "/own"), receiver.wait_got(5, "/endpoint")

    assert {("job.succeeded", good), ("job.failed", bad)} == {_event_of(delivery) for delivery in own}
    ended = {("job.succeeded", good), ("job.failed", bad), ("job.expired", late)}
    assert ended | {("job.started", good), ("job.started", bad)} == {_event_of(delivery) for delivery in endpoints}
    with db.begin() as session:
        key_secret = signing.default_secret(session, key.id)
    for delivery, used in [*((delivery, key_secret) for delivery in own), *((delivery, secret) for delivery in endpoints)]:
        _verify(delivery, used)


def test_delivery_arrives_after_its_result_can_be_fetched(stack: Stack, receiver: Receiver) -> None:
    key = caller("sk-after")
    endpoint(key, receiver.url())
    jobs = [ask(key, f"job {n}") for n in range(30)]
    got = receiver.wait_got(30)

    ended = {row.id: row.ended_at.timestamp() for row in wait_ended(jobs)}
    assert set(jobs) == {_event_of(delivery)[1] for delivery in got}
    assert all(ended[_event_of(delivery)[1]] <= delivery.at for delivery in got)


def test_sample_event_and_redelivery_reach_the_receiver(stack: Stack, receiver: Receiver) -> None:
    key = caller("sk-again")
    row = endpoint(key, receiver.url())
    with db.begin() as session:
        delivery = sample_event.send_test(session, key.id, row.id, "job.failed")
    notify.deliveries_due([delivery.receiver])
    (first,) = receiver.wait_got(1)
    until(lambda: all_deliveries_are("delivered"), what="on record")
    with db.begin() as session:
        redelivery = delivery_log.redeliver(session, key.id, DeliveryScope(endpoint_id=row.id), delivery.id)
    notify.deliveries_due([redelivery.receiver])
    second = receiver.wait_got(2)[1]

    assert (first.id, first.body) == (second.id, second.body)


def test_hanging_receiver_delays_no_other_receiver(stack: Stack, receiver: Receiver) -> None:
    key, other = caller("sk-hangs"), caller("sk-other")
    endpoint(key, receiver.url("/hangs", hang=1))
    endpoint(other, receiver.url("/quick"))
    wait_ended([ask(key, f"slow {n}") for n in range(40)])
    hung = receiver.wait_got(K, "/hangs")
    jobs = [ask(other, f"quick {n}") for n in range(20)]
    wait_ended(jobs)
    arrived = receiver.wait_got(20, "/quick")

    assert set(jobs) == {_event_of(delivery)[1] for delivery in arrived}
    # Count, do not time: each request hangs for 3 s, which bounds the number that its slots can have started.
    began, ended = min(delivery.at for delivery in hung), max(delivery.at for delivery in arrived)
    tried = [delivery for delivery in receiver.got("/hangs") if delivery.at <= ended]
    assert len(tried) <= K * (1 + (ended - began) / 3)
    assert 40 - K <= len([delivery for delivery in deliveries() if delivery.status == "pending"])


@pytest.mark.slow
def test_every_event_arrives_while_processes_and_receivers_fail(stack: Stack, receiver: Receiver) -> None:
    stack.stop()  # different settings: retry at once
    rng = random.Random(7)
    key = caller("sk-chaos", model="m")
    with db.begin() as session:
        _, secret = endpoints.create(session, key.id, name="c", url=receiver.url("/chaos", fail=0.3, hang=0.05), event_types=ENDED)
    stack.settings = {**stack.settings, "webhook_timeout_s": 0.5}
    pacer, worker, sender = stack.pacer(), stack.worker(), stack.sender()
    done = threading.Event()
    shortener = threading.Thread(target=_shorten_waits, args=(done,), daemon=True)
    shortener.start()
    jobs: list[UUID] = []
    for n in range(JOBS):
        jobs.append(ask(key, f"chaos {n}"))
        if n % ROUND == 25:
            until(lambda: receiver.got("/chaos"), what="the first delivery")
            sender.kill()
            sender = stack.sender(crash=f"webhook.after_send:exit:{rng.randint(2, 9)}")
        if n % ROUND == 30:
            receiver.kill()
            worker.kill()
            worker = stack.worker()
            receiver.start()
        if n % ROUND == 40:
            pacer.kill()
            pacer = stack.pacer()
            sender = stack.sender()
    rows = wait_ended(jobs, within_s=PATIENCE_S, stack=stack)
    until(lambda: deliveries() and all_deliveries_are("delivered"), what=f"all delivered\n{stack.logs()}", within_s=PATIENCE_S, every_s=0.5)
    done.set()
    shortener.join(20)

    got = receiver.got("/chaos")
    good = [delivery for delivery in got if delivery.status == 200]
    assert {(f"job.{row.status}", row.id) for row in rows} == {_event_of(delivery) for delivery in good}
    ids: dict[UUID, set[str]] = {}
    for delivery in got:
        ids.setdefault(_event_of(delivery)[1], set()).add(delivery.id)
        _verify(delivery, secret)
    assert {1} == {len(each) for each in ids.values()}
    assert {1} == {len({delivery.body for delivery in got if delivery.id == number}) for number in {delivery.id for delivery in got}}
    ended = {row.id: row.ended_at.timestamp() for row in rows}
    assert all(ended[_event_of(delivery)[1]] <= delivery.at for delivery in got)
    doubled = sum(n - 1 for n in Counter(delivery.id for delivery in good).values())
    print(f"{len(rows)} events, {len(got)} attempts, {doubled} arrived more than once")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "times", "how"),
    [
        ("before_claim", 1, "exit"),
        ("after_claim", 1, "raise"),
        ("after_claim", 1, "exit"),
        ("after_send", 2, "exit"),
        ("after_finish", 1, "exit"),
    ],
)
def test_delivery_survives_each_crash_point_of_its_sender(
    receiver: Receiver, tmp_path: Path, environment: dict[str, str], override: object, *, point: str, times: int, how: str
) -> None:
    override(**receiver.settings())  # type: ignore[operator]
    (receiver.folder / "received.jsonl").write_text("")
    done = threading.Event()
    with processes.running(tmp_path, **receiver.settings()) as stack:
        stack.pacer()
        stack.worker()
        crashing = stack.sender(crash=f"webhook.{point}:{how}")
        key = caller("sk-crash")
        endpoint(key, receiver.url("/crash"))
        job_id = ask(key, "hello")
        until(lambda: not crashing.is_alive() or "Crashed" in crashing.log_text(), what=f"crashed\n{crashing.log_text()[-2000:]}")
        crashing.kill()
        stack.sender()
        shortener = threading.Thread(target=_shorten_waits, args=(done,), daemon=True)
        shortener.start()
        until(lambda: all_deliveries_are("delivered"), what=f"delivered\n{stack.logs()}", every_s=0.2)
        done.set()
        shortener.join(20)

    assert [("job.succeeded", job_id)] * times == [_event_of(delivery) for delivery in receiver.got("/crash")]
    assert 1 == len({delivery.id for delivery in receiver.got("/crash")})


@pytest.mark.slow
def test_workers_main_sends_webhooks_and_restarts_a_dead_sender(
    receiver: Receiver, tmp_path: Path, environment: dict[str, str], override: object
) -> None:
    override(**receiver.settings())  # type: ignore[operator]
    with processes.running(tmp_path, **receiver.settings()) as stack:
        stack.pacer()
        main = stack.workers(processes=1, threads=4, webhook_threads=4)
        main.wait_says("sending webhooks")
        _, sender = main.children()
        processes.os.kill(sender, processes.signal.SIGKILL)
        key = caller("sk-main")
        endpoint(key, receiver.url("/main"))
        (job_id,) = [ask(key, "hello")]
        (got,) = receiver.wait_got(1, "/main")

    assert ("job.succeeded", job_id) == _event_of(got)


def test_sender_ends_when_its_parent_is_killed(receiver: Receiver, tmp_path: Path, environment: dict[str, str]) -> None:
    with processes.running(tmp_path) as stack:
        main = stack.workers(processes=1, threads=2, webhook_threads=2)
        main.wait_says("sending webhooks")
        children = [process.Process(f"child {pid}", pid, main.log) for pid in main.children()]
        processes.os.kill(main.pid, processes.signal.SIGKILL)
        for child in children:
            child.wait_gone()

    assert 2 == len(children)


def _event_of(delivery: object) -> tuple[str, UUID]:
    event = delivery.event  # type: ignore[attr-defined]
    return event["type"], wire.parse_id(event["data"]["id"])


def _verify(delivery: object, secret: str) -> None:
    SDK.webhooks.verify_signature(delivery.body, delivery.headers, secret=secret, tolerance=10**9)  # type: ignore[attr-defined]


def _shorten_waits(done: threading.Event) -> None:
    """Until `done`, shorten the waits for retries and leases."""
    while not done.wait(0.3):
        with suppress(Unavailable):
            query("UPDATE delivery SET next_at = now(), retries_left = 9 WHERE status = 'pending' AND next_at > now() + interval '0.3 s'")
            query("UPDATE delivery SET held_until = now() WHERE status = 'sending' AND sent_at < now() - interval '5 s'")
            query("UPDATE delivery SET held_until = now() WHERE status = 'rung' AND held_until < now() + interval '7 s'")
