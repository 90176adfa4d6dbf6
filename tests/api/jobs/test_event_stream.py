"""The job event stream sends each event once, in order, to the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import TestResponse

from api.jobs import event_stream
from api.waiting.registry import waiter_registry
from models.database import db
from models.jobs.states import Status
from models.keys import keys
from models.platform import wire
from models.queue.position import QueuePosition
from tests.support.http_tools import ANSWER, Caller, end, error_of, finish, run
from tests.support.time_limits import least, seconds
from workers.channels import notify

pytestmark = pytest.mark.usefixtures("database", "redis_client")


@pytest.fixture
def caller() -> Iterator[Caller]:
    yield Caller()
    assert (0, 0) == (waiter_registry.streams, len(waiter_registry))


def parse(content: str) -> list[dict[str, Any]]:
    """Returns the events of a stream as clients read them: id, event, data."""
    events = []
    for chunk in content.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in chunk.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            events.append({"id": fields.get("id"), "event": fields["event"], "data": json.loads(fields["data"])})
    return events


def names(answer: TestResponse) -> list[str]:
    return [event["event"] for event in parse(answer.text) if event["event"] != "queue"]


def later(seconds: float, *steps: Any) -> threading.Thread:
    def act() -> None:
        for step in steps:
            time.sleep(seconds)
            step()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_ended_job_streams_all_events(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)

    answer = caller.get(f"/v1/jobs/{name}/events")

    events = parse(answer.text)
    assert ["job.queued", "job.started", "job.succeeded"] == names(answer)
    assert ["1", "2", "3"] == [event["id"] for event in events]
    assert [None, None, json.loads(ANSWER)] == [event["data"]["job"]["result"] for event in events]
    assert ("text/event-stream", "no-cache", "no") == (
        answer.mimetype,
        answer.headers["Cache-Control"],
        answer.headers["X-Accel-Buffering"],
    )


@pytest.mark.parametrize("sent", [{"headers": {"Last-Event-ID": "2"}}, {"query_string": {"last_event_id": "2"}}])
def test_stream_resumes_after_last_event_id(caller: Caller, sent: dict[str, Any]) -> None:
    name = caller.submit()
    end(caller, name)

    assert ["job.succeeded"] == names(caller.get(f"/v1/jobs/{name}/events", **sent))


def test_stream_after_last_event_returns_204(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)

    assert 204 == caller.get(f"/v1/jobs/{name}/events", headers={"Last-Event-ID": "3"}).status_code


@pytest.mark.parametrize("value", ["x", "-1", "1" * 10, "1.0"])
def test_invalid_last_event_id_is_refused(caller: Caller, value: str) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}/events", headers={"Last-Event-ID": value})

    assert (400, "Last-Event-ID") == (answer.status_code, error_of(answer)["param"])


@pytest.mark.parametrize("status", [Status.FAILED, Status.SUCCEEDED])
def test_stream_shows_job_run_and_end(caller: Caller, status: Status) -> None:
    name = caller.submit()
    mover = later(0.2, lambda: end(caller, name, status=status), lambda: notify.job_changed(wire.parse_id(name), status))

    answer = caller.get(f"/v1/jobs/{name}/events")

    mover.join()
    assert ["job.queued", "job.started", f"job.{status}"] == names(answer)


def test_cancelled_job_ends_stream_at_once(caller: Caller) -> None:
    def follow() -> None:
        name = caller.submit()
        mover = later(0.3, lambda: caller.post(f"/v1/jobs/{name}/cancel"))
        answer = caller.get(f"/v1/jobs/{name}/events")
        mover.join()
        assert ["job.queued", "job.cancelled"] == names(answer)

    assert least(lambda: seconds(follow), below=1.5) < 1.5


def test_queue_move_sends_queue_event(caller: Caller) -> None:
    before, name = caller.submit(), caller.submit()
    mover = later(1.1, lambda: caller.post(f"/v1/jobs/{before}/cancel"), lambda: None, lambda: caller.post(f"/v1/jobs/{name}/cancel"))

    answer = caller.get(f"/v1/jobs/{name}/events")

    mover.join()
    moves = [event for event in parse(answer.text) if event["event"] == "queue"]
    assert [(None, 1)] == [(event["id"], event["data"]["queue"]["position"]) for event in moves]
    assert 2 == parse(answer.text)[0]["data"]["job"]["queue"]["position"]


def test_stopped_lane_sends_one_queue_event(caller: Caller) -> None:
    stream = event_stream.EventStream(SimpleNamespace(job_id=wire.parse_id(caller.submit()), place=None), caller.key, last_seq=0)  # type: ignore[arg-type]
    places = [
        QueuePosition(2, 2.0, "rpm", None),
        QueuePosition(2, 3.0, "tpm", None),
        QueuePosition(2, None, "parked", None),
        QueuePosition(2, None, "parked", None),
    ]
    queues = [parse(chunk)[0]["data"]["queue"] for place in places for chunk in stream._position_event(place)]

    assert [(2.0, "rpm"), (None, "parked")] == [(queue["eta_s"], queue["blocked_by"]) for queue in queues]


def test_idle_stream_sends_heartbeats_and_ends(caller: Caller) -> None:
    name = caller.submit()
    seconds = iter(range(0, 100_000, 9))
    with waiter_registry.wait_for(wire.parse_id(name), caller.key.id, places=True) as waiter:
        chunks = list(event_stream.EventStream(waiter, caller.key, last_seq=0, clock=lambda: float(next(seconds)), pause_s=0).chunks())

    assert ": waiting\n\n" in chunks
    assert chunks[0].startswith("retry:") and chunks[-1].startswith("retry:")


def test_revoked_key_ends_stream() -> None:
    with db.begin() as session:
        pool = keys.create_pool(session, "p")
        keys.add_credential(session, pool_id=pool, upstream_key="sk-up")
        made, token = keys.issue(session, name="n", pool="p")
    caller = Caller(token)
    name = caller.submit()

    def revoke() -> None:
        with db.begin() as session:
            keys.revoke(session, made.id)
        caller.app.extensions["key_cache"]._cached.clear()

    mover = later(0.2, revoke)
    answer = caller.get(f"/v1/jobs/{name}/events")

    mover.join()
    last = parse(answer.text)[-1]
    assert ("error", "invalid_api_key") == (last["event"], last["data"]["error"]["code"])


def test_streams_per_key_are_limited(caller: Caller, override: Callable[..., None]) -> None:
    override(max_streams_per_key=1)
    name = caller.submit()
    with waiter_registry.wait_for(wire.parse_id(name), caller.key.id, is_stream=True):
        answer = caller.get(f"/v1/jobs/{name}/events")

    assert (429, "too_many_streams") == (answer.status_code, error_of(answer)["code"])


def test_unread_stream_releases_its_slot(caller: Caller) -> None:
    assert 200 == caller.send("HEAD", f"/v1/jobs/{caller.submit()}/events").status_code


def test_succeeded_job_sends_final_event(caller: Caller) -> None:
    name = caller.submit()
    dispatch = run(caller, name)
    finish(name, dispatch)

    last = parse(caller.get(f"/v1/jobs/{name}/events").text)[-1]["data"]

    assert ("job.succeeded", None, "succeeded") == (last["type"], last["detail"], last["job"]["status"])
