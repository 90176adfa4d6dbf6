"""Invalid requests: the API refuses them in the error envelope and stores nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from api.app import create_app
from api.http import json_text
from models.config.settings import settings
from models.database import db
from models.platform.errors import Invalid
from tests.support.http_tools import CHAT, IMAGE, Caller, error_of, stored
from tests.support.time_limits import least, seconds

pytestmark = pytest.mark.usefixtures("database")

GOOD = json.dumps(CHAT).encode()
CHAT_BODY, IMAGE_BODY = CHAT["body"], IMAGE["body"]


@pytest.fixture
def caller() -> Caller:
    return Caller()


def inside(fragment: bytes) -> bytes:
    """A submit whose upstream body holds this JSON."""
    return GOOD.replace(b'"model": "m"', b'"model": "m", "x": ' + fragment)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"   ", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'"text"', 400, "invalid_json"),
        (b"null", 400, "invalid_json"),
        (GOOD + b"x", 400, "invalid_json"),
        (GOOD.replace(b"hi", b"h\xff"), 400, "invalid_json"),
        (GOOD.replace(b"hi", b"h\x00i"), 400, "invalid_json"),
        (GOOD.decode().encode("utf-16"), 415, "unsupported_media_type"),
        (GOOD.decode().encode("utf-16-le"), 415, "unsupported_media_type"),
        (b"[" * 100_000, 400, "too_deep"),
        (b'{"a":' * 50_000, 400, "too_deep"),
        (inside(b"[" * 127 + b"]" * 127), 400, "too_deep"),
        (inside(b"9" * 401), 400, "number_out_of_range"),
        (inside(b"9" * 5_000), 400, "number_out_of_range"),
        (inside(b"0." + b"9" * 401), 400, "number_out_of_range"),
        (inside(b"[" + b"18446744073709551616," * 10_001 + b"1]"), 400, "number_out_of_range"),
        (inside(b"NaN"), 400, "number_out_of_range"),
        (inside(b"-Infinity"), 400, "number_out_of_range"),
        (inside(b"1e400"), 400, "number_out_of_range"),
        (inside(b'{"a": 1, "a": 2}'), 400, "duplicate_key"),
        (GOOD[:-1] + b', "endpoint": "/v1/chat/completions"}', 400, "duplicate_key"),
        (inside(b"[" + b"1," * 500_000 + b"1]"), 400, "too_many_values"),
        (GOOD + b" " * 2**21, 413, "request_too_large"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_a_body_that_is_not_plain_json_is_refused(
    caller: Caller, content: bytes, status: int, code: str, override: Callable[..., None]
) -> None:
    override(max_body_bytes=2**21)

    answer = caller.post("/v1/jobs", data=content, content_type="application/json")

    assert (status, code) == (answer.status_code, error_of(answer)["code"])
    assert "false" == answer.headers["x-should-retry"]
    assert 0 == stored()


@pytest.mark.parametrize("content", [
    inside(b"[" * 126 + b"]" * 126), inside(b"-" + b"9" * 400), inside(b"0." + b"9" * 400),
    inside(rb'"\ud83d\ude00 \\u0000 \\ud800 [[[{{{"'), b"\xef\xbb\xbf" + GOOD,
])  # fmt: skip
def test_a_body_at_the_edge_is_accepted(caller: Caller, content: bytes) -> None:
    assert 202 == caller.post("/v1/jobs", data=content, content_type="application/json; charset=UTF-8").status_code


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "x"]
)
def test_only_json_is_taken_for_json(caller: Caller, content_type: str | None) -> None:
    answer = caller.post("/v1/jobs", data=GOOD, content_type=content_type)

    assert (415, "unsupported_media_type", 0) == (answer.status_code, error_of(answer)["code"], stored())


@pytest.mark.parametrize(
    "piece", [b'\\"', b"[]", b'"', b"[", b"1,", b'"",', b'{"":1},', b"{},", b"1e999999,", b"\\u0000"], ids=lambda piece: piece.decode()
)
@pytest.mark.parametrize("before", [b'"', b'{"a":['], ids=["text", "list"])
def test_a_hostile_body_costs_little_time(before: bytes, piece: bytes) -> None:
    content = (before + piece * (settings().max_body_bytes // len(piece)))[: settings().max_body_bytes]

    def parse() -> None:
        with pytest.raises(Invalid):
            json_text.parse(content)

    assert least(lambda: seconds(parse, clock=time.thread_time), below=1) < 1  # 0.2 on a quiet machine; without the guard up to 2


def chat(**fields: Any) -> dict[str, Any]:
    return {**CHAT, "body": {**CHAT_BODY, **fields}}


def image(**fields: Any) -> dict[str, Any]:
    return {**IMAGE, "body": {**IMAGE_BODY, **fields}}


def embedding(result: object) -> dict[str, Any]:
    return {"endpoint": "/v1/embeddings", "body": {"model": "e", "input": result}}


def without(submit: dict[str, Any], name: str) -> dict[str, Any]:
    return {**submit, "body": {key: value for key, value in submit["body"].items() if key != name}}


@pytest.mark.parametrize(
    ("submit", "param"),
    [
        ({}, "endpoint"),
        ({**CHAT, "endpoint": "/v1/images/edits"}, "endpoint"),
        ({**CHAT, "endpoint": "/v1/models"}, "endpoint"),
        ({**CHAT, "endpoint": ["x"]}, "endpoint"),
        ({"endpoint": CHAT["endpoint"]}, "body"),
        ({**CHAT, "body": "text"}, "body"),
        ({**CHAT, "surprise": 1}, "surprise"),
        ({**CHAT, "user": ""}, "user"),
        ({**CHAT, "user": "a\nb"}, "user"),
        ({**CHAT, "user": "x" * 257}, "user"),
        ({**CHAT, "user": 7}, "user"),
        ({**CHAT, "conversation": ""}, "conversation"),
        ({**CHAT, "priority": "urgent"}, "priority"),
        ({**CHAT, "expires_in_s": 0}, "expires_in_s"),
        ({**CHAT, "expires_in_s": "60"}, "expires_in_s"),
        ({**CHAT, "expires_in_s": True}, "expires_in_s"),
        ({**CHAT, "timeout_s": -1}, "timeout_s"),
        ({**CHAT, "timeout_s": 1e300}, "timeout_s"),
        ({**CHAT, "on_lost": "ignore"}, "on_lost"),
        ({**CHAT, "on_unreadable": "ignore"}, "on_unreadable"),
        ({**CHAT, "max_attempts": 0}, "max_attempts"),
        ({**CHAT, "max_attempts": 11}, "max_attempts"),
        ({**CHAT, "max_attempts": 1.5}, "max_attempts"),
        ({**CHAT, "metadata": {"a": 1}}, "metadata.a"),
        ({**CHAT, "metadata": {"a": "x" * 513}}, "metadata.a"),
        ({**CHAT, "metadata": {"k" * 65: "x"}}, "metadata." + "k" * 64),
        ({**CHAT, "metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({**CHAT, "webhook_url": "http://example.com"}, "webhook_url"),
        ({**CHAT, "metadata": {"a": "\0"}}, "metadata.a"),
        ({**CHAT, "metadata": {"\ud800": "a"}}, "metadata"),
        ({**CHAT, "user": "\ud800"}, "user"),
        (chat(model="x" * 201), "body.model"),
        (chat(model="a\0"), "body.model"),
        (chat(model=7), "body.model"),
        (without(CHAT, "messages"), "body.messages"),
        (chat(messages=None), "body.messages"),
        (chat(messages={}), "body.messages"),
        (chat(messages=["hi"]), "body.messages"),
        (chat(stream="yes"), "body.stream"),
        (chat(stream=1), "body.stream"),
        (chat(user=7), "body.user"),
        (image(model="\n"), "body.model"),
        (without(IMAGE, "prompt"), "body.prompt"),
        (image(prompt=["a cat"]), "body.prompt"),
        (image(stream="true"), "body.stream"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_named(caller: Caller, submit: dict[str, Any], param: str) -> None:
    answer = caller.post("/v1/jobs", submit)

    error = error_of(answer)
    assert (400, param, "invalid_request_error") == (answer.status_code, error["param"], error["type"])
    assert 0 == stored()


# A request that the API accepts gets its response at once.
ASYNC = {"Prefer": "respond-async"}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT_BODY,
    "/v1/images/generations": IMAGE_BODY,
    "/v1/images/edits": {"prompt": "a cat", "images": [{"image_url": "data:,"}]},
    "/v1/embeddings": {"model": "e", "input": "x"},
    "/v1/moderations": {"input": "x"},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"{}", 400, "invalid_request"),
        (b'{"model":7}', 400, "invalid_request"),
        (b'{"model":"m","model":"n"}', 400, "duplicate_key"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, "too_deep"),
        (b'{"user":"caf\xe9"}', 400, "invalid_json"),
        (b'{"nowserving":{"priority":"urgent"}}', 400, "invalid_request"),
        (b'{"a":[' + b"1," * 600_000 + b"1]}", 400, "too_many_values"),
        (b" " * 2**21 + b"{}", 413, "request_too_large"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else str(value),
)
def test_every_route_of_the_upstream_is_guarded(
    caller: Caller, route: str, content: bytes, status: int, code: str, override: Callable[..., None]
) -> None:
    override(max_body_bytes=2**21)

    answer = caller.post(route, data=content, content_type="application/json", headers=ASYNC)

    assert (status, code) == (answer.status_code, error_of(answer)["code"])
    assert ("false", 0) == (answer.headers["x-should-retry"], stored())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"])
def test_every_route_of_the_upstream_wants_its_media_type(caller: Caller, route: str, content_type: str | None) -> None:
    answer = caller.post(route, data=json.dumps(ROUTES[route]).encode(), content_type=content_type, headers=ASYNC)

    assert (415, "unsupported_media_type", 0) == (answer.status_code, error_of(answer)["code"], stored())


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"--b\r\n" + b'Content-Disposition: form-data; name="prompt"\r\n\r\nhi\r\n--b--\r\n', 400, "invalid_request"),
        (b'--b\r\nContent-Disposition: form-data; name="p"\r\n\r\n\r\n' * 100_000 + b"--b--\r\n", 400, "too_many_parts"),
        (b"--b\r\n", 400, "invalid_form"),
        (b" " * 6_000_000, 413, "request_too_large"),
    ],
    ids=["no file", "bomb", "cut", "large"],
)
def test_a_bad_form_is_refused(caller: Caller, content: bytes, status: int, code: str, override: Callable[..., None]) -> None:
    override(max_upload_bytes=5_900_000)

    answer = caller.post("/v1/images/edits", data=content, content_type="multipart/form-data; boundary=b", headers=ASYNC)

    assert (status, code) == (answer.status_code, error_of(answer)["code"])
    assert ("false", 0) == (answer.headers["x-should-retry"], stored())


@pytest.mark.parametrize("name", ["..", "../files", "%2e%2e", "..%2ffiles", "a%00b", "%ff", "x" * 201])
def test_a_models_name_is_no_way_to_other_addresses(caller: Caller, name: str) -> None:
    answer = caller.get(f"/v1/models/{name}", headers=ASYNC)

    assert (404, 0) == (answer.status_code, stored())


# Only the upstream can judge these. tokens (as models/content/token_estimate.py estimates them) and images: what is reserved.
@pytest.mark.parametrize(
    ("submit", "tokens", "images"),
    [
        (chat(max_tokens=0), 1_029, 0),
        (chat(max_tokens=-1), 1_029, 0),
        (chat(max_tokens="many"), 1_029, 0),
        (chat(max_tokens=True), 1_029, 0),
        (chat(max_completion_tokens=2**70, max_tokens=5), 10_000_005, 0),
        (chat(n=0), 1_029, 0),
        (chat(n="2"), 1_029, 0),
        (chat(n=2, max_tokens=10), 25, 0),
        (chat(n=10**30, max_tokens=1), 133, 0),
        (chat(temperature="hot", seed=2**64, logit_bias=[]), 1_029, 0),
        (chat(messages=[]), 1_024, 0),
        (chat(messages=[{}, {"role": 7, "content": 7}, {"content": ["abcd", None, {"text": 9}]}], max_tokens=1), 19, 0),
        (chat(messages=CHAT_BODY["messages"] * 10_001, max_tokens=1), 49_906, 0),
        (chat(model=""), 1_029, 0),
        (without(CHAT, "model"), 1_029, 0),
        (chat(user="x" * 300), 1_029, 0),
        (chat(user="\ud800"), 1_029, 0),
        (chat(tools=[{"maximum": 2**63 - 1, "x": "\0\ud800"}]), 1_048, 0),
        (image(prompt=""), 0, 2),
        (image(prompt="x" * 400_000), 271_502, 2),
        (image(n=11), 2, 11),
        (image(n=0), 2, 1),
        (image(n=10**30), 2, 1_000),
        (image(response_format="png"), 2, 2),
        (embedding(""), 0, 0),
        (embedding([]), 0, 0),
        (embedding([1, 2, 3]), 3, 0),
        (embedding([1, "abcdefgh"]), 3, 0),
        (embedding([[1, 2], [3]]), 3, 0),
        (embedding([{"image": "abcd"}, None, 1.5]), 10, 0),
    ],
    ids=lambda value: repr(value)[80:160],
)
def test_other_values_pass_to_the_upstream(caller: Caller, submit: dict[str, Any], tokens: int, images: int) -> None:
    made = caller.post("/v1/jobs", submit)

    assert 202 == made.status_code, made.text
    with db.begin() as session:
        row = session.execute(text("SELECT request, tokens, images FROM job")).one()
    assert (submit["body"], tokens, images) == (json.loads(bytes(row.request)), row.tokens, row.images)


def test_refusal_does_not_quote_the_request(caller: Caller) -> None:
    answer = caller.post("/v1/jobs", chat(messages=[7, {"secret": "my prompt"}], model={"my": "prompt"}))

    assert "my prompt" not in answer.text


def test_refusal_names_the_next_step(caller: Caller) -> None:
    assert "must be an https URL" in error_of(caller.post("/v1/jobs", {**CHAT, "webhook_url": "http://x.y"}))["message"]


@pytest.mark.parametrize(
    "accepted",
    [
        chat(stream=False),
        chat(stream=None),
        chat(model=None),
        image(model=None),
        image(n=None),
        chat(n=None),
        {**CHAT, "metadata": {}},
        {**CHAT, "webhook_url": None},
        chat(user=""),
    ],
)
def test_meaningless_preferences_are_ignored(caller: Caller, accepted: dict[str, Any]) -> None:
    assert 202 == caller.post("/v1/jobs", accepted).status_code


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/docs/", 404),
        ("GET", "/v1//nothing/", 404),
        ("DELETE", "/v1/jobs", 405),
        ("PUT", "/healthz", 405),
    ],
)
def test_a_wrong_address_is_refused_in_the_same_shape(caller: Caller, method: str, path: str, status: int) -> None:
    answer = caller.send(method, path)

    assert status == answer.status_code
    assert "invalid_request_error" == error_of(answer)["type"]
    assert (status == 405) == ("Allow" in answer.headers)


def test_a_fault_of_ours_shows_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    caller = Caller(app=create_app())  # with a route of its own

    def fail() -> str:
        raise RuntimeError("the prompt was: secret")

    caller.app.add_url_rule("/fault", view_func=fail)

    answer = caller.get("/fault")

    assert (500, "server_error") == (answer.status_code, error_of(answer)["type"])
    assert "secret" not in answer.text + caplog.text
    assert ["RuntimeError"] == caplog.records[-1].kinds  # type: ignore[attr-defined]  # a field of ours


def test_a_clients_own_request_id_is_given_back_if_it_is_sane(caller: Caller) -> None:
    good, bad = (caller.get("/healthz", headers={"X-Client-Request-Id": value}) for value in ("mine-1", "x" * 513))

    assert "mine-1" == good.headers["X-Client-Request-Id"]
    assert "X-Client-Request-Id" not in bad.headers
    assert good.headers["X-Request-Id"].startswith("req_")
