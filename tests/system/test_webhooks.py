"""The whole way with real processes: jobs end, and whoever asked hears of it, at least once, however much dies in between.

HYPOTHESIS_PROFILE=nightly (`make chaos`) sends 10,000 events where everything is killed, else 150.
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
# How many jobs there are where everything is killed, and after how many of them it happens again.
JOBS, ROUND, PATIENCE_S = (10_000, 500, 900) if NIGHTLY else (150, 50, 120)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("receiver")) as started:
        yield started


@pytest.fixture
def stack(receiver: Receiver, tmp_path: Path, environment: dict[str, str], override: object) -> Iterator[Stack]:
    """A pacer, a worker for jobs and one for webhooks, that may reach the receiver."""
    ours = {**receiver.settings(), "webhook_timeout_s": 3, "lease_s": 3, "heartbeat_s": 0.5}
    override(**receiver.settings())  # type: ignore[operator]
    (receiver.folder / "received.jsonl").write_text("")
    with processes.running(tmp_path, **ours) as made:
        made.pacer()
        made.worker()
        made.sender()
        yield made


def settled(*statuses: str) -> bool:
    """Nothing is on its way any more: each delivery has come to one of these."""
    return not [one for one in deliveries() if one.status not in statuses]


def test_webhook_reports_the_end_of_each_job(stack: Stack, receiver: Receiver) -> None:
    who = caller("sk-hooks")
    _, secret = endpoint_and_secret(who, receiver.url("/endpoint"), kinds=[*ENDED, "job.started"])
    good = ask(who, "fine", webhook_url=receiver.url("/own"))
    bad = ask(who, "[[fake:status=400]]", webhook_url=receiver.url("/own"))
    late = ask(who, "too late", model="paused", expires_in_s=0.2)
    query("UPDATE lane SET paused_at = now() WHERE model = 'paused'")
    wait_ended([good, bad, late], stack=stack)
    own, endpoints = receiver.wait_got(2, "/own"), receiver.wait_got(5, "/endpoint")

    assert {("job.succeeded", good), ("job.failed", bad)} == {_said(one) for one in own}
    ended = {("job.succeeded", good), ("job.failed", bad), ("job.expired", late)}
    assert ended | {("job.started", good), ("job.started", bad)} == {_said(one) for one in endpoints}
    with db.begin() as session:
        key_secret = signing.default_secret(session, who.id)
    for one, used in [*((one, key_secret) for one in own), *((one, secret) for one in endpoints)]:
        _verify(one, used)


def test_a_delivery_comes_after_its_result_can_be_fetched(stack: Stack, receiver: Receiver) -> None:
    who = caller("sk-after")
    endpoint(who, receiver.url())
    jobs = [ask(who, f"job {n}") for n in range(30)]
    got = receiver.wait_got(30)

    ended = {row.id: row.ended_at.timestamp() for row in wait_ended(jobs)}
    assert set(jobs) == {_said(one)[1] for one in got}
    assert all(ended[_said(one)[1]] <= one.at for one in got)


def test_a_sample_and_a_second_delivery_reach_the_receiver_when_asked_for(stack: Stack, receiver: Receiver) -> None:
    who = caller("sk-again")
    row = endpoint(who, receiver.url())
    with db.begin() as session:
        made = sample_event.send_test(session, who.id, row.id, "job.failed")
    notify.deliveries_due([made.receiver])
    (first,) = receiver.wait_got(1)
    until(lambda: settled("delivered"), what="on record")
    with db.begin() as session:
        again = delivery_log.redeliver(session, who.id, DeliveryScope(endpoint_id=row.id), made.id)
    notify.deliveries_due([again.receiver])
    second = receiver.wait_got(2)[1]

    assert (first.id, first.body) == (second.id, second.body)


def test_hanging_receiver_delays_no_other_receiver(stack: Stack, receiver: Receiver) -> None:
    who, other = caller("sk-hangs"), caller("sk-other")
    endpoint(who, receiver.url("/hangs", hang=1))
    endpoint(other, receiver.url("/quick"))
    wait_ended([ask(who, f"slow {n}") for n in range(40)])
    hung = receiver.wait_got(K, "/hangs")
    jobs = [ask(other, f"quick {n}") for n in range(20)]
    wait_ended(jobs)
    arrived = receiver.wait_got(20, "/quick")

    assert set(jobs) == {_said(one)[1] for one in arrived}
    # By count, not by time: each hangs for 3 s, so this is as many as it may have had in its slots.
    began, ended = min(one.at for one in hung), max(one.at for one in arrived)
    tried = [one for one in receiver.got("/hangs") if one.at <= ended]
    assert len(tried) <= K * (1 + (ended - began) / 3)
    assert 40 - K <= len([one for one in deliveries() if one.status == "pending"])


@pytest.mark.slow
def test_every_event_arrives_though_receivers_fail_and_everything_is_killed(stack: Stack, receiver: Receiver) -> None:
    stack.stop()  # settings of its own: retries at once
    chance = random.Random(7)
    who = caller("sk-chaos", model="m")
    with db.begin() as session:
        _, secret = endpoints.create(session, who.id, name="c", url=receiver.url("/chaos", fail=0.3, hang=0.05), event_types=ENDED)
    stack.settings = {**stack.settings, "webhook_timeout_s": 0.5}
    pacer, worker, sender = stack.pacer(), stack.worker(), stack.sender()
    over = threading.Event()
    hurry = threading.Thread(target=_hurry, args=(over,), daemon=True)
    hurry.start()
    jobs: list[UUID] = []
    for n in range(JOBS):
        jobs.append(ask(who, f"chaos {n}"))
        if n % ROUND == 25:
            until(lambda: receiver.got("/chaos"), what="some arrived")
            sender.kill()
            sender = stack.sender(crash=f"webhook.after_send:exit:{chance.randint(2, 9)}")
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
    until(lambda: deliveries() and settled("delivered"), what=f"all delivered\n{stack.logs()}", within_s=PATIENCE_S, every_s=0.5)
    over.set()
    hurry.join(20)

    got = receiver.got("/chaos")
    good = [one for one in got if one.status == 200]
    assert {(f"job.{row.status}", row.id) for row in rows} == {_said(one) for one in good}
    ids: dict[UUID, set[str]] = {}
    for one in got:
        ids.setdefault(_said(one)[1], set()).add(one.id)
        _verify(one, secret)
    assert {1} == {len(each) for each in ids.values()}
    assert {1} == {len({one.body for one in got if one.id == number}) for number in {one.id for one in got}}
    ended = {row.id: row.ended_at.timestamp() for row in rows}
    assert all(ended[_said(one)[1]] <= one.at for one in got)
    doubled = sum(n - 1 for n in Counter(one.id for one in good).values())
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
def test_a_delivery_outlives_the_death_of_its_sender_anywhere(
    receiver: Receiver, tmp_path: Path, environment: dict[str, str], override: object, *, point: str, times: int, how: str
) -> None:
    override(**receiver.settings())  # type: ignore[operator]
    (receiver.folder / "received.jsonl").write_text("")
    over = threading.Event()
    with processes.running(tmp_path, **receiver.settings()) as stack:
        stack.pacer()
        stack.worker()
        dying = stack.sender(crash=f"webhook.{point}:{how}")
        who = caller("sk-dies")
        endpoint(who, receiver.url("/dies"))
        job_id = ask(who, "hello")
        until(lambda: not dying.is_alive() or "Crashed" in dying.said(), what=f"died\n{dying.said()[-2000:]}")
        dying.kill()
        stack.sender()
        hurry = threading.Thread(target=_hurry, args=(over,), daemon=True)
        hurry.start()
        until(lambda: settled("delivered"), what=f"delivered\n{stack.logs()}", every_s=0.2)
        over.set()
        hurry.join(20)

    assert [("job.succeeded", job_id)] * times == [_said(one) for one in receiver.got("/dies")]
    assert 1 == len({one.id for one in receiver.got("/dies")})


@pytest.mark.slow
def test_the_workers_program_sends_webhooks_too_and_starts_a_dead_sender_again(
    receiver: Receiver, tmp_path: Path, environment: dict[str, str], override: object
) -> None:
    override(**receiver.settings())  # type: ignore[operator]
    with processes.running(tmp_path, **receiver.settings()) as stack:
        stack.pacer()
        main = stack.workers(processes=1, threads=4, webhook_threads=4)
        main.wait_says("sending webhooks")
        _, sender = main.children()
        processes.os.kill(sender, processes.signal.SIGKILL)
        who = caller("sk-main")
        endpoint(who, receiver.url("/main"))
        (job_id,) = [ask(who, "hello")]
        (got,) = receiver.wait_got(1, "/main")

    assert ("job.succeeded", job_id) == _said(got)


def test_a_sender_whose_parent_was_killed_ends(receiver: Receiver, tmp_path: Path, environment: dict[str, str]) -> None:
    with processes.running(tmp_path) as stack:
        main = stack.workers(processes=1, threads=2, webhook_threads=2)
        main.wait_says("sending webhooks")
        children = [process.Process(f"child {pid}", pid, main.log) for pid in main.children()]
        processes.os.kill(main.pid, processes.signal.SIGKILL)
        for child in children:
            child.wait_gone()

    assert 2 == len(children)


def _said(one: object) -> tuple[str, UUID]:
    event = one.event  # type: ignore[attr-defined]
    return event["type"], wire.parse_id(event["data"]["id"])


def _verify(one: object, secret: str) -> None:
    SDK.webhooks.verify_signature(one.body, one.headers, secret=secret, tolerance=10**9)  # type: ignore[attr-defined]


def _hurry(over: threading.Event) -> None:
    """Until `over`: nobody waits for minutes, neither for a retry nor for a lease."""
    while not over.wait(0.3):
        with suppress(Unavailable):
            query("UPDATE delivery SET next_at = now(), retries_left = 9 WHERE status = 'pending' AND next_at > now() + interval '0.3 s'")
            query("UPDATE delivery SET held_until = now() WHERE status = 'sending' AND sent_at < now() - interval '5 s'")
            query("UPDATE delivery SET held_until = now() WHERE status = 'rung' AND held_until < now() + interval '7 s'")
