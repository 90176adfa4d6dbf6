"""The job routes: submit, read, list, cancel, retry."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from models.database import db
from models.jobs.states import Status
from models.platform import wire
from models.queue import lanes
from tests.support.http_tools import ANSWER, CHAT, IMAGE, Caller, end, error_of, finish, run, stored

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_submit_returns_position_and_location(caller: Caller) -> None:
    response = caller.post("/v1/jobs", {**CHAT, "metadata": {"order": "7"}})

    assert 202 == response.status_code
    assert f"/v1/jobs/{response.json['id']}" == response.headers["Location"]
    assert ("job", "queued", 1, {"order": "7"}) == (
        response.json["object"],
        response.json["status"],
        response.json["queue"]["position"],
        response.json["metadata"],
    )
    assert response.json == caller.get(response.headers["Location"]).json


@pytest.mark.parametrize(
    "params",
    [
        {"user": "ann", "priority": "high", "expires_in_s": 90.5, "timeout_s": 7, "metadata": {"a": "b"}},
        {"endpoint": IMAGE["endpoint"], "body": IMAGE["body"]},
        {"conversation": "c1"},
        {"conversation": "c2", "user": "ann"},
    ],
)
@pytest.mark.parametrize(
    "state", ["wake_at = wake_at", "paused_at = now()", "rpm = 3, blocked_by = 'rpm', wake_at = now() + interval '30 s'"]
)
def test_submit_response_equals_job(caller: Caller, params: dict[str, object], state: str) -> None:
    for _ in range(2):
        caller.submit()
        caller.submit(conversation="c2")
    with db.begin() as session:
        session.execute(text(f"UPDATE lane SET {state}"))
    response = caller.post("/v1/jobs", {**CHAT, **params})
    read = caller.get(response.headers["Location"])

    assert (202, read.json) == (response.status_code, response.json)


def test_upstream_body_keeps_unknown_fields(caller: Caller) -> None:
    body = {**CHAT["body"], "temperature": 0.2, "tools": [{"type": "x", "deep": {"ü": None}}], "new_field": [1, True]}

    name = caller.submit(body=body)

    with db.begin() as session:
        row = session.execute(text("SELECT request FROM job WHERE id = :id"), {"id": wire.parse_id(name)}).one()
    assert body == json.loads(bytes(row.request))


@pytest.mark.parametrize(
    ("fields", "flow"),
    [
        ({"user": "ann", "conversation": "c"}, "ann"),
        ({"body": {**CHAT["body"], "user": "ben", "safety_identifier": "saf"}}, "saf"),
        ({"body": {**CHAT["body"], "user": "ben"}, "conversation": "c"}, "ben"),
        ({"conversation": "c"}, "c"),
        ({}, "key"),
    ],
)
def test_user_comes_from_first_named_field(caller: Caller, fields: dict[str, object], flow: str) -> None:
    name = caller.submit(**fields)

    assert flow == caller.get(f"/v1/jobs/{name}").json["user"]


PARTS = [{"type": "text", "text": "two"}, {"type": "image_url", "image_url": {"url": "https://x.y"}}]


@pytest.mark.parametrize(
    ("content", "more", "tokens"),
    [
        ("one two", {"max_tokens": 10}, 2 + 4 + 10),
        (None, {"max_completion_tokens": 5, "max_tokens": 7, "n": 3}, 4 + 3 * 5),
        (PARTS, {}, 1 + 1105 + 4 + 1024),
    ],
)
def test_chat_reserves_estimated_tokens(caller: Caller, content: object, more: dict[str, int], tokens: int) -> None:
    caller.submit(body={"model": "m", "messages": [{"role": "user", "content": content}], **more})

    assert (tokens, 0) == reserved()


def test_image_job_reserves_images(caller: Caller) -> None:
    caller.post("/v1/jobs", IMAGE)

    assert (2, 2) == reserved()


def reserved() -> tuple[int, ...]:
    with db.begin() as session:
        return tuple(session.execute(text("SELECT tokens, images FROM job")).one())


def test_result_is_upstream_body(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)

    shown = caller.get(f"/v1/jobs/{name}").json

    assert ("succeeded", json.loads(ANSWER), None) == (shown["status"], shown["result"], shown["queue"])
    assert [(1, "succeeded", "req_up")] == [(item["n"], item["outcome"], item["upstream_request_id"]) for item in shown["attempts"]]


PAGE = b"<html>\xff</html>"


def test_raw_response_can_be_downloaded(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name, status=Status.FAILED, answer=PAGE, answer_type="text/html; charset=x")
    shown = caller.get(f"/v1/jobs/{name}").json
    response = caller.get(shown["result_raw"]["url"])

    assert (None, "text/html; charset=x", len(PAGE)) == (
        shown["result"], shown["result_raw"]["content_type"], shown["result_raw"]["bytes"],
    )  # fmt: skip
    assert (200, PAGE, "application/octet-stream") == (response.status_code, response.data, response.content_type)
    assert ("text/html; charset=x", "nosniff", f'attachment; filename="{name}.bin"') == (
        response.headers["X-Nowserving-Content-Type"], response.headers["X-Content-Type-Options"], response.headers["Content-Disposition"],
    )  # fmt: skip
    assert shown["result_raw"] == caller.get("/v1/jobs").json["data"][0]["result_raw"]
    assert 404 == Caller(token="sk-another").get(f"/v1/jobs/{name}/raw").status_code


def test_job_with_result_has_no_raw_response(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)

    assert caller.get(f"/v1/jobs/{name}").json["result_raw"] is None
    assert "result" in error_of(caller.get(f"/v1/jobs/{name}/raw"))["message"]


@pytest.mark.parametrize(
    "answer", [b"\xff<html>", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b'{"a": "\\ud800"}', b'{"n": ' + b"1" * 5000 + b"}"]
)
def test_job_with_unusual_response_can_be_read(caller: Caller, answer: bytes) -> None:
    name = caller.submit()
    end(caller, name, answer=answer)

    shown = caller.get(f"/v1/jobs/{name}")

    assert 200 == shown.status_code
    assert "succeeded" == json.loads(shown.text, parse_constant=pytest.fail)["status"]


def test_jobs_are_listed_newest_first_in_pages(caller: Caller) -> None:
    names = [caller.submit() for _ in range(5)][::-1]

    first = caller.get("/v1/jobs?limit=3").json
    rest = caller.get(f"/v1/jobs?limit=3&after={first['last_id']}").json

    assert names == [job["id"] for job in first["data"] + rest["data"]]
    assert ("list", True, False) == (first["object"], first["has_more"], rest["has_more"])
    assert (names[0], names[2]) == (first["first_id"], first["last_id"])


def test_job_list_filters_by_status(caller: Caller) -> None:
    waiting, ended = caller.submit(user="a"), caller.submit(user="b")
    caller.post(f"/v1/jobs/{ended}/cancel")

    assert [waiting] == [job["id"] for job in caller.get("/v1/jobs?status=queued").json["data"]]
    assert [ended] == [job["id"] for job in caller.get("/v1/jobs?status=cancelled").json["data"]]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=", "status=admitted", "status=", "limit=1e1"])
def test_invalid_list_parameters_are_refused(caller: Caller, query: str) -> None:
    answer = caller.get(f"/v1/jobs?{query}")

    assert 400 == answer.status_code
    assert query.split("=")[0] == error_of(answer)["param"]


def test_unchanged_job_returns_304(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)
    tag = caller.get(f"/v1/jobs/{name}").headers["ETag"]

    again = caller.get(f"/v1/jobs/{name}", headers={"If-None-Match": tag})

    assert tag.startswith('W/"')
    assert (304, b"") == (again.status_code, again.data)


def test_changed_job_is_returned(caller: Caller) -> None:
    name = caller.submit()
    tag = caller.get(f"/v1/jobs/{name}").headers["ETag"]
    caller.post(f"/v1/jobs/{name}/cancel")

    assert 200 == caller.get(f"/v1/jobs/{name}", headers={"If-None-Match": tag}).status_code


def test_queued_job_is_cancelled_once(caller: Caller) -> None:
    name = caller.submit()

    first, second = caller.post(f"/v1/jobs/{name}/cancel"), caller.post(f"/v1/jobs/{name}/cancel")

    assert (200, "cancelled") == (first.status_code, first.json["status"])
    assert (200, first.json) == (second.status_code, second.json)


def test_running_job_cancel_requests_stop(caller: Caller) -> None:
    name = caller.submit()
    run(caller, name)

    for _ in range(2):
        answer = caller.post(f"/v1/jobs/{name}/cancel")
        assert (202, "running", True) == (answer.status_code, answer.json["status"], answer.json["cancel_requested"])


def test_ended_job_cannot_be_cancelled(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)

    answer = caller.post(f"/v1/jobs/{name}/cancel")

    assert (409, "wrong_state", "false") == (answer.status_code, error_of(answer)["code"], answer.headers["x-should-retry"])


def test_failed_job_is_retried_as_new_job(caller: Caller) -> None:
    name = caller.submit(user="ann", priority="high", metadata={"a": "b"}, conversation="c", timeout_s=9, expires_in_s=60)
    end(caller, name, status=Status.FAILED)

    answer = caller.post(f"/v1/jobs/{name}/retry")

    job, old = answer.json, caller.get(f"/v1/jobs/{name}").json
    assert 202 == answer.status_code
    assert f"/v1/jobs/{job['id']}" == answer.headers["Location"]
    assert name == job["retry_of"] != job["id"]
    same = ("user", "priority", "metadata", "conversation", "timeout_s", "model", "endpoint")
    assert [old[field] for field in same] == [job[field] for field in same]
    assert 60 == pytest.approx(job["expires_at"] - job["created_at"], abs=0.1)


def test_queued_or_succeeded_job_cannot_be_retried(caller: Caller) -> None:
    name = caller.submit()
    waiting = caller.post(f"/v1/jobs/{name}/retry")
    dispatch = run(caller, name)
    finish(name, dispatch)

    assert "wrong_state" == error_of(waiting)["code"]
    assert 409 == caller.post(f"/v1/jobs/{name}/retry").status_code
    assert 1 == stored()


def test_full_queue_returns_retry_after(caller: Caller, override) -> None:
    override(max_queued_per_key=1)
    caller.submit()

    answer = caller.post("/v1/jobs", CHAT)

    assert (429, "rate_limit_error") == (answer.status_code, error_of(answer)["type"])
    assert ("60", "60000", "false") == tuple(answer.headers[name] for name in ("Retry-After", "retry-after-ms", "x-should-retry"))
    assert 1 == stored()


def test_unreachable_deadline_is_refused_with_eta(caller: Caller) -> None:
    caller.submit()
    with db.begin() as session:
        session.execute(text("UPDATE lane SET rpm = 1"))

    answer = caller.post("/v1/jobs", {**CHAT, "expires_in_s": 10})

    assert (429, "wait_exceeds_deadline", "50") == (answer.status_code, error_of(answer)["code"], answer.headers["Retry-After"])


def test_new_model_gets_its_own_lane(caller: Caller) -> None:
    caller.submit()
    other = caller.submit(body={**CHAT["body"], "model": "other"})

    assert 1 == caller.get(f"/v1/jobs/{other}").json["queue"]["position"]
    assert lanes.id_of(caller.key.pool_id, "m") != lanes.id_of(caller.key.pool_id, "other")
