"""Options for nowserving, not for the upstream: in headers, or in the body's `nowserving` object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import request

from api.submit import openai_parse
from api.submit.openai_parse import ParsedRequest
from models.content.endpoints import CHAT
from models.keys.keys import Key
from models.platform.errors import Invalid
from tests.support.http_tools import CHAT as SUBMIT
from tests.support.http_tools import Caller, error_of, new_app, stored

CALLER = Key(id=1, pool_id=1, kind="own")
BODY: dict[str, Any] = {"model": "m", "temperature": 0.10, "messages": [{"role": "user", "content": "hi"}]}

pytestmark = pytest.mark.usefixtures("environment")


def read(headers: dict[str, str] | None = None, endpoint: str = CHAT, **fields: Any) -> ParsedRequest:
    content = json.dumps({**BODY, **fields})
    with new_app().test_request_context(endpoint, method="POST", headers=headers, data=content, content_type="application/json"):
        return openai_parse.parse(request, CALLER, endpoint)


def refusal(headers: dict[str, str] | None = None, **fields: Any) -> Invalid:
    with pytest.raises(Invalid) as refused:
        read(headers, **fields)
    return refused.value


HEADERS = {
    "X-Nowserving-Priority": "high",
    "X-Nowserving-Expires-In": "30",
    "X-Nowserving-Timeout": "2.5",
    "X-Nowserving-User": "ann",
    "X-Nowserving-Webhook-Url": "https://EXAMPLE.com",
    "Idempotency-Key": "k1",
}
INSIDE = {
    "priority": "high",
    "expires_in": 30,
    "timeout": 2.5,
    "user": "ann",
    "webhook_url": "https://example.com/",
    "idempotency_key": "k1",
}
FIELDS = {
    "priority": "high",
    "expires_in_s": 30,
    "timeout_s": 2.5,
    "user": "ann",
    "webhook_url": "https://example.com",
    "idempotency_key": "k1",
}


@pytest.mark.parametrize(("headers", "fields"), [(HEADERS, {}), ({}, {"nowserving": INSIDE}), ({}, {"nowserving": FIELDS})])
def test_headers_and_the_body_say_the_same(headers: dict[str, str], fields: dict[str, Any]) -> None:
    made = read(headers, **fields)

    submission = made.submission
    assert ("high", 30, 2.5, "ann", "k1") == (
        submission.priority,
        submission.expires_in_s,
        submission.timeout_s,
        submission.flow,
        made.token,
    )
    assert "https://example.com/" == submission.webhook_url


def test_request_without_options_gets_the_defaults() -> None:
    made = read()

    submission = made.submission
    assert ("normal", 86_400, 600, "key", None) == (
        submission.priority,
        submission.expires_in_s,
        submission.timeout_s,
        submission.flow,
        made.token,
    )


def test_all_options_can_be_set_in_the_body() -> None:
    submission = read(
        nowserving={"conversation": "c", "on_lost": "fail", "on_unreadable": "retry", "max_attempts": 2, "metadata": {"a": "b"}}
    ).submission

    assert ("c", "fail", "retry", 2, {"a": "b"}, "c") == (
        submission.conversation,
        submission.on_lost,
        submission.on_unreadable,
        submission.max_attempts,
        submission.metadata,
        submission.flow,
    )


def test_a_header_beats_the_body() -> None:
    made = read(HEADERS, nowserving={"priority": "low", "user": "bob", "idempotency_key": "k2"})

    assert ("high", "ann", "k1") == (made.submission.priority, made.submission.flow, made.token)


@pytest.mark.parametrize("result", [INSIDE, {}, None])
def test_upstream_never_receives_our_options(result: object) -> None:
    content = json.dumps({"temperature": 0.10, "nowserving": result, **BODY}).encode()
    with new_app().test_request_context(CHAT, method="POST", data=content, content_type="application/json"):
        submission = openai_parse.parse(request, CALLER, CHAT).submission

    assert b'{"temperature":0.1,"model":"m","messages":[{"role":"user","content":"hi"}]}' == submission.request


@pytest.mark.parametrize(
    ("headers", "fields", "flow"),
    [
        ({"X-Nowserving-User": "ann"}, {"user": "u", "safety_identifier": "s"}, "ann"),
        ({}, {"user": "u", "safety_identifier": "s"}, "s"),
        ({}, {"user": "u", "nowserving": {"conversation": "c"}}, "u"),
        ({}, {"nowserving": {"conversation": "c"}}, "c"),
        ({"X-Nowserving-User": "Zoë".encode().decode("latin-1")}, {}, "Zoë"),
    ],
)
def test_flow_is_the_first_user_field_that_is_set(headers: dict[str, str], fields: dict[str, Any], flow: str) -> None:
    assert flow == read(headers, **fields).submission.flow


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Nowserving-Priority", "urgent"),
        ("X-Nowserving-Priority", ""),
        ("X-Nowserving-Priority", "high, low"),
        ("X-Nowserving-Expires-In", "0"),
        ("X-Nowserving-Expires-In", "-1"),
        ("X-Nowserving-Expires-In", "1e3"),
        ("X-Nowserving-Expires-In", "nan"),
        ("X-Nowserving-Expires-In", "inf"),
        ("X-Nowserving-Expires-In", "1_000"),
        ("X-Nowserving-Expires-In", "٣٠".encode().decode("latin-1")),
        ("X-Nowserving-Expires-In", "9" * 400),
        ("X-Nowserving-Timeout", "3601"),
        ("X-Nowserving-Timeout", "30s"),
        ("X-Nowserving-User", ""),
        ("X-Nowserving-User", "x" * 257),
        ("X-Nowserving-User", "caf\xe9"),
        ("X-Nowserving-User", "a\tb"),
        ("X-Nowserving-Webhook-Url", "https://127.0.0.1"),
    ],
)
def test_a_wrong_header_is_named(header: str, value: str) -> None:
    assert header == refusal({header: value}).param


@pytest.mark.parametrize(
    ("result", "param"),
    [
        ("high", "nowserving"),
        ([], "nowserving"),
        ({"priority": "urgent"}, "nowserving.priority"),
        ({"expires_in": "30"}, "nowserving.expires_in"),
        ({"expires_in": True}, "nowserving.expires_in"),
        ({"expires_in_s": 0}, "nowserving.expires_in_s"),
        ({"expires_in_s": 30, "expires_in": 30}, "nowserving.expires_in"),
        ({"timeout": 1e300}, "nowserving.timeout"),
        ({"user": 7}, "nowserving.user"),
        ({"idempotency_key": 7}, "nowserving.idempotency_key"),
        ({"metadata": {"a": 1}}, "nowserving.metadata.a"),
        ({"webhook_url": "https://10.0.0.1/"}, "nowserving.webhook_url"),
        ({"prority": "high"}, "nowserving.prority"),
        ({"endpoint": CHAT}, "nowserving.endpoint"),
    ],
)
def test_a_wrong_field_of_ours_is_named(result: object, param: str) -> None:
    assert param == refusal(nowserving=result).param


@pytest.mark.usefixtures("database")
def test_headers_hold_for_jobs_too() -> None:
    caller = Caller()

    made = caller.post("/v1/jobs", {**SUBMIT, "priority": "low"}, headers={"X-Nowserving-Priority": "high"})
    wrong = caller.post("/v1/jobs", SUBMIT, headers={"X-Nowserving-Timeout": "soon"})

    assert (202, "high") == (made.status_code, made.json["priority"])
    assert ("X-Nowserving-Timeout", 1) == (error_of(wrong)["param"], stored())


@pytest.mark.usefixtures("database")
def test_job_request_has_our_options_beside_its_body() -> None:
    answer = Caller().post("/v1/jobs", {**SUBMIT, "body": {**SUBMIT["body"], "nowserving": {"priority": "high"}}})

    assert (400, "body.nowserving", 0) == (answer.status_code, error_of(answer)["param"], stored())
