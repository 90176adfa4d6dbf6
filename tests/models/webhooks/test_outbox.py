"""Outbox: each end of a job stores its webhook deliveries in the same transaction, and nothing else stores any."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text

from models.database import db
from models.jobs import claims, completion
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from tests.support.queue_tools import ANSWER, GOOD, LOST, admit, cancel, expire, finish, known, put_back, reap, row, start, submit
from tests.support.webhook_tools import ENDED, deliveries, endpoint, payloads

URL = "https://example.com:8443/hook?a=b"


@pytest.fixture
def caller(database: None) -> Key:
    return known()


def refuse(caller: Key, job_id: UUID) -> None:
    with db.begin() as session:
        completion.fail_queued(session, job_id, error={"message": "no"})


def fail(caller: Key, job_id: UUID) -> None:
    finish(job_id, start(caller, job_id), JobResult(Status.FAILED, error={"message": "no"}), AttemptResult(Outcome.REFUSED, 400))


def cancel_running(caller: Key, job_id: UUID) -> None:
    dispatch_id = start(caller, job_id)
    cancel(caller, job_id)
    assert [] == deliveries()
    put_back(job_id, dispatch_id)


def reap_last(caller: Key, job_id: UUID) -> None:
    start(caller, job_id)
    reap()


def adopt_late(caller: Key, job_id: UUID) -> None:
    dispatch_id = start(caller, job_id)
    reap()
    finish(job_id, dispatch_id, ANSWER, GOOD)


Way = Callable[[Key, UUID], object]
WAYS: dict[str, tuple[Way, dict[str, object]]] = {
    "job.succeeded": (lambda caller, job_id: finish(job_id, start(caller, job_id)), {}),
    "job.failed": (fail, {}),
    "job.failed, uncalled": (refuse, {}),
    "job.failed, lost": (reap_last, {"on_lost": "fail"}),
    "job.succeeded, late": (adopt_late, {}),
    "job.cancelled, waiting": (cancel, {}),
    "job.cancelled, running": (cancel_running, {}),
    "job.expired": (lambda _, job_id: expire(job_id), {}),
}


@pytest.mark.parametrize("name", WAYS)
def test_each_end_of_a_job_tells_its_url_and_every_endpoint_once(caller: Key, name: str) -> None:
    way, wanted = WAYS[name]
    first, second = endpoint(caller), endpoint(caller)
    job_id = submit(caller, webhook_url=URL, **wanted)

    way(caller, job_id)

    kind = name.split(",")[0]
    assert kind == f"job.{row(job_id).status}"
    assert {first.id, second.id, None} == {one.endpoint_id for one in deliveries()}
    assert [(kind, job_id)] * 3 == [(one.event_type, one.job_id) for one in deliveries()]
    assert 1 == len({one.event_id for one in deliveries()})
    assert 3 == len({one.id for one in deliveries()})


def test_event_names_its_job_and_type_only(caller: Key) -> None:
    endpoint(caller)
    job_id = submit(caller)
    finish(job_id, start(caller, job_id))

    (one,) = deliveries()
    expected = {
        "object": "event",
        "id": f"evt_{one.event_id.hex}",
        "type": "job.succeeded",
        "created_at": int(row(job_id).ended_at.timestamp()),
        "data": {"id": f"job_{job_id.hex}"},
    }
    assert [expected] == payloads()
    assert json.dumps(expected, separators=(",", ":")).encode() == bytes(one.payload)


@pytest.mark.parametrize("way", [put_back, lambda job_id, dispatch_id: reap()])
def test_requeued_job_notifies_no_receiver(caller: Key, way: Callable[[UUID, UUID], object]) -> None:
    endpoint(caller)
    job_id = submit(caller, webhook_url=URL)

    way(job_id, start(caller, job_id))

    assert "queued" == row(job_id).status
    assert [] == deliveries()


def test_job_started_is_sent_for_each_call_and_only_when_subscribed(caller: Key) -> None:
    endpoint(caller)
    asked = endpoint(caller, kinds=["job.started"])
    job_id = submit(caller, webhook_url=URL)

    put_back(job_id, start(caller, job_id), LOST)
    start(caller, job_id)

    assert [("job.started", asked.id)] * 2 == [(one.event_type, one.endpoint_id) for one in deliveries()]
    assert 2 == len({one.event_id for one in deliveries()})


def test_endpoint_gets_no_event_of_another_keys_jobs(caller: Key) -> None:
    endpoint(known("sk-other"))
    job_id = submit(caller)

    finish(job_id, start(caller, job_id))

    assert [] == deliveries()


@pytest.mark.parametrize("change", ["disabled_at = now()", "deleted_at = now()", "event_types = '{job.failed}'"])
def test_disabled_or_unsubscribed_endpoint_gets_no_delivery(caller: Key, change: str) -> None:
    endpoint(caller)
    with db.begin() as session:
        session.execute(text(f"UPDATE webhook_endpoint SET {change}"))
    job_id = submit(caller)

    finish(job_id, start(caller, job_id))

    assert [] == deliveries()


def test_rolled_back_transition_sends_no_event(caller: Key) -> None:
    endpoint(caller)
    job_id = submit(caller)
    dispatch_id = start(caller, job_id)

    with pytest.raises(RuntimeError), db.begin() as session:
        completion.finish(session, job_id, dispatch_id, ANSWER, GOOD)
        raise RuntimeError("before the commit")

    assert [] == deliveries()


def test_late_finish_notifies_no_receiver(caller: Key) -> None:
    endpoint(caller)
    job_id = submit(caller)
    dispatch_id = start(caller, job_id)

    assert finish(job_id, dispatch_id)
    assert not finish(job_id, dispatch_id)

    assert 1 == len(deliveries())


def test_transition_returns_the_receivers_to_wake(caller: Key) -> None:
    hook = endpoint(caller, kinds=[*ENDED, "job.started"])
    job_id = submit(caller, webhook_url=URL)
    dispatch_id = admit(caller, job_id)
    with db.begin() as session:
        claimed = claims.claim(session, job_id, dispatch_id, lease_s=30)
        done = completion.finish(session, job_id, dispatch_id, ANSWER, GOOD)

    assert claimed is not None and done is not None
    assert [f"whe_{hook.id.hex}"] == claimed.due
    assert {f"whe_{hook.id.hex}", f"key_{caller.id}@example.com:8443"} == set(done.due)


def test_job_without_receivers_wakes_no_sender(caller: Key) -> None:
    job_id = submit(caller)
    dispatch_id = start(caller, job_id)

    with db.begin() as session:
        done = completion.finish(session, job_id, dispatch_id, ANSWER, GOOD)

    assert done is not None and done.due is None
