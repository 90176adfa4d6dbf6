"""Which headers of a caller go on to the upstream, and requests as Azure's SDKs send them: what is stored of them for the call."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from models.config.settings import Settings
from models.database import db
from models.keys import keys
from models.platform import crypto
from tests.support.http_tools import CHAT, Caller, end, error_of
from tests.support.queue_tools import query
from tests.system.test_openai_routes import FORM
from workers.upstream import request as outgoing

ASYNC = {"Prefer": "respond-async"}
SENT = {
    "OpenAI-Organization": "org-1", "OpenAI-Project": "proj_1", "OpenAI-Beta": "assistants=v2", "HTTP-Referer": "https://app.example",
    "X-Title": "An app", "Idempotency-Key": "once-1", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "X-Nowserving-Priority": "high",
    "Connection": "keep-alive", "X-Other": "no",
}  # fmt: skip
GOING = {name.lower(): value for name, value in list(SENT.items())[:6]}


@pytest.fixture
def caller(database: None) -> Caller:
    return Caller()


def issued(pool: str) -> Caller:
    with db.begin() as session:
        keys.create_pool(session, pool)
        return Caller(keys.issue(session, name="someone", pool=pool)[1])


def stored() -> list[Any]:
    return query("SELECT * FROM job ORDER BY created_at")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs"])
def test_the_headers_that_are_listed_go_on_and_no_others(caller: Caller, path: str) -> None:
    made = caller.post(path, CHAT if path == "/v1/jobs" else CHAT["body"], headers={**ASYNC, **SENT})

    assert 202 == made.status_code
    assert [GOING] == [one.headers for one in stored()]


def test_of_a_request_without_such_headers_none_are_stored(caller: Caller) -> None:
    caller.submit()

    assert [None] == [one.headers for one in stored()]


def test_issued_keys_send_none_unless_the_operator_lists_them(caller: Caller, override: Callable[..., None]) -> None:
    other = issued("house")
    other.post("/v1/chat/completions", CHAT["body"], headers={**ASYNC, **SENT})
    override(forward_headers_issued="OpenAI-Project, X-Other")
    other.post("/v1/chat/completions", CHAT["body"], headers={**ASYNC, **SENT, "Idempotency-Key": "once-2"})

    assert [None, {"openai-project": "proj_1", "x-other": "no"}] == [one.headers for one in stored()]


@pytest.mark.parametrize("value", ["x" * 1025, "é"])
def test_a_header_that_cannot_go_on_is_refused(caller: Caller, value: str) -> None:
    refused = caller.post("/v1/chat/completions", CHAT["body"], headers={**ASYNC, "X-Title": value})

    assert (400, "X-Title") == (refused.status_code, error_of(refused)["param"])
    assert [] == stored()


@pytest.mark.parametrize(
    "name", ["Authorization", "cookie", "Host", "Content-Type", "X-Forwarded-For", "X-Nowserving-Priority", "a b", "TE"]
)
def test_headers_of_connections_and_of_ours_cannot_be_listed(name: str) -> None:
    with pytest.raises(ValidationError, match="never sent on"):
        Settings(forward_headers=f"X-Title,{name}")


def test_a_job_tried_again_sends_the_same_but_the_idempotency_key(caller: Caller) -> None:
    made = caller.post("/v1/jobs", CHAT, headers=SENT)
    caller.post(f"/v1/jobs/{made.json['id']}/cancel")
    again = caller.post(f"/v1/jobs/{made.json['id']}/retry")

    assert 202 == again.status_code
    assert {**GOING} == stored()[0].headers
    assert {name: value for name, value in GOING.items() if name != "idempotency-key"} == stored()[1].headers


def test_an_idempotency_key_with_other_headers_is_another_request(caller: Caller) -> None:
    first = caller.post("/v1/jobs", CHAT, headers=SENT)
    same = caller.post("/v1/jobs", CHAT, headers=SENT)
    other = caller.post("/v1/jobs", CHAT, headers={**SENT, "OpenAI-Project": "proj_2"})

    assert (202, first.json["id"]) == (same.status_code, same.json["id"])
    assert 409 == other.status_code or 422 == other.status_code


def row(**more: Any) -> SimpleNamespace:
    """A claimed job whose credential has the id 1."""
    given = {
        "dispatch_id": uuid4(), "endpoint": "/v1/chat/completions", "model": "gpt-4o", "content_type": None, "request": b"{}",
        "headers": None,
        "failures": 0, "credential_id": 1, "credential_kind": "openai", "api_version": None, "base_url": "https://up.example/v1",
        "secret": crypto.seal(b"the-key", bound_to="credential:1"),
    }  # fmt: skip
    return SimpleNamespace(**{**given, **more})


@pytest.mark.parametrize(
    ("endpoint", "version", "path"),
    [
        ("/v1/chat/completions", None, "/openai/v1/chat/completions"),
        ("/v1/models", None, "/openai/v1/models"),
        ("/v1/chat/completions", "2024-10-21", "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"),
        ("/v1/images/edits", "2025-04-01-preview", "/openai/deployments/gpt-4o/images/edits?api-version=2025-04-01-preview"),
        ("/v1/models/gpt-4o", "2024-10-21", "/openai/models/gpt-4o?api-version=2024-10-21"),
    ],
)
def test_azure_is_called_on_its_own_paths_with_its_own_header(environment: object, endpoint: str, version: str | None, path: str) -> None:
    made = outgoing.build(
        row(endpoint=endpoint, api_version=version, credential_kind="azure", base_url="https://house.openai.azure.com"), b"{}"
    )

    assert (f"https://house.openai.azure.com{path}", "api-key") == (made.url, made.key_header)


def test_headers_go_out_and_ours_beat_them(environment: object) -> None:
    one = row(headers={"x-title": "An app", "X-Client-Request-Id": "theirs"})
    made = outgoing.build(one, b"{}")

    assert ("An app", str(one.dispatch_id)) == (made.headers["x-title"], made.headers["X-Client-Request-Id"])
    assert ("https://up.example/v1/chat/completions", "Authorization") == (made.url, made.key_header)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs", "/openai/v1/chat/completions"])
def test_an_api_key_header_is_a_key_and_authorization_beats_it(caller: Caller, path: str) -> None:
    client = caller.app.test_client()
    payload = json.dumps(CHAT if path == "/v1/jobs" else CHAT["body"])
    send = lambda headers: client.post(path, data=payload, content_type="application/json", headers={**ASYNC, **headers})  # noqa: E731
    by_azure = send({"api-key": "sk-one"})
    by_both = send({"api-key": "sk-two", "Authorization": "Bearer sk-one"})

    assert [202, 202, 401] == [by_azure.status_code, by_both.status_code, send({"api-key": ""}).status_code]
    assert 1 == len({one.key_id for one in stored()})


@pytest.mark.parametrize("body", [{"messages": CHAT["body"]["messages"]}, {**CHAT["body"], "model": "another"}])
def test_the_deployment_in_the_path_is_the_model(caller: Caller, body: dict[str, Any]) -> None:
    made = caller.post("/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", body, headers=ASYNC)

    assert 202 == made.status_code
    (one,) = stored()
    assert ("gpt-4o", "gpt-4o", "/v1/chat/completions") == (one.model, json.loads(one.request)["model"], one.endpoint)


@pytest.mark.parametrize("kind", ["embeddings", "images/generations", "images/edits"])
def test_other_deployment_paths_are_served_too(caller: Caller, kind: str) -> None:
    path = f"/openai/deployments/d-1/{kind}?api-version=2024-10-21"
    if kind == "images/edits":
        made = caller.send("POST", path, headers={**ASYNC, "Content-Type": "multipart/form-data; boundary=b"}, data=FORM)
    else:
        made = caller.post(path, {"input": "text"} if kind == "embeddings" else {"prompt": "a cat"}, headers=ASYNC)

    assert 202 == made.status_code, made.text
    (one,) = stored()
    assert (f"/v1/{kind}", "d-1") == (one.endpoint, one.model)
    assert b"d-1" in one.request


def test_the_same_body_for_another_deployment_is_another_request(caller: Caller) -> None:
    asked = {**ASYNC, "Idempotency-Key": "once"}
    first = caller.post("/openai/deployments/one/chat/completions", CHAT["body"], headers=asked)
    second = caller.post("/openai/deployments/two/chat/completions", CHAT["body"], headers=asked)

    assert 202 == first.status_code
    assert second.status_code in (409, 422)


def test_an_unknown_path_of_azure_is_an_error_in_our_shape(caller: Caller) -> None:
    refused = caller.post("/openai/deployments/one/audio/speech", {})

    assert (404, True) == (refused.status_code, "error" in refused.json)


def test_erased_jobs_keep_no_headers(caller: Caller) -> None:
    made = caller.post("/v1/jobs", {**CHAT, "conversation": "talk"}, headers=SENT)
    end(caller, made.json["id"])
    caller.send("DELETE", "/v1/sessions/talk")

    assert [None] == [one.headers for one in stored()]
