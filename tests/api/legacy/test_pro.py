"""The legacy `/pro` API: a question and its answer in an envelope over HTTP 200."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import TestResponse

from models.billing import budgets
from models.database import db
from models.jobs import states
from tests.support.http_tools import ANSWER, Caller, end, finish, run, stored
from tests.support.queue_tools import query

ASK: dict[str, Any] = {"apiKey": "sk-one", "sessionId": "ana", "content": "你好"}
PATH = "/pro/chat/completions"

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def hurried(override: Callable[..., None]) -> None:
    override(pro_wait_s=0)


@pytest.fixture
def caller() -> Caller:
    return Caller()


def ask(caller: Caller, **more: Any) -> TestResponse:
    """Sends a question with its key in the body."""
    return caller.post(PATH, {**ASK, **more}, headers={"Authorization": ""})


def envelope(answer: TestResponse) -> dict[str, Any]:
    """Returns the envelope; its HTTP status is always 200."""
    assert 200 == answer.status_code
    assert answer.headers["Deprecation"].startswith("@") and 'rel="deprecation"' in answer.headers["Link"]
    return dict(answer.json)


def fetch(caller: Caller, name: str, key: str = "sk-one") -> dict[str, Any]:
    return envelope(caller.get(f"{PATH}/{name}?apiKey={key}", headers={"Authorization": ""}))


def test_question_becomes_job_in_session(caller: Caller, override: Callable[..., None]) -> None:
    override(pro_wait_s=0, pro_model="gpt-9")
    name = envelope(ask(caller))["jobId"]

    shown = caller.get(f"/v1/jobs/{name}").json
    (row,) = query("SELECT request FROM job")
    assert ("ana", "gpt-9", "/v1/chat/completions") == (shown["conversation"], shown["model"], shown["endpoint"])
    assert [{"role": "user", "content": "你好"}] == json.loads(bytes(row.request))["messages"]


def test_late_answer_is_fetched_by_job_id(caller: Caller) -> None:
    late = envelope(ask(caller))
    assert (202, None) == (late["code"], late["data"]) and late["message"]
    assert 202 == fetch(caller, late["jobId"])["code"]
    end(caller, late["jobId"])

    done = fetch(caller, late["jobId"])
    assert (200, "执行成功", "hello") == (done["code"], done["message"], done["data"])
    assert abs(done["timestamp"] / 1000 - time.time()) < 60


def test_answer_in_time_is_returned_at_once(caller: Caller, override: Callable[..., None]) -> None:
    override(pro_wait_s=20)
    seen: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: seen.append(envelope(ask(caller))))
    asking.start()
    while not stored():
        time.sleep(0.02)
    (row,) = query("SELECT id FROM job")
    end(caller, f"job_{row.id.hex}")
    asking.join(20)

    assert [(200, "hello")] == [(one["code"], one["data"]) for one in seen]


@pytest.mark.parametrize("name", ["apiKey", "sessionId", "content"])
@pytest.mark.parametrize("value", [None, "", 7, ["x"]])
def test_missing_field_is_named(caller: Caller, name: str, value: object) -> None:
    refused = envelope(ask(caller, **{name: value}))

    assert (400, True) == (refused["code"], name in refused["message"])
    assert "data" not in refused and 0 == stored()


@pytest.mark.parametrize(("name", "most"), [("apiKey", 64), ("sessionId", 64), ("content", 1_000)])
@pytest.mark.parametrize("letter", ["x", "汉", "😀"])
def test_lengths_are_in_characters(caller: Caller, name: str, most: int, letter: str) -> None:
    # A key is ASCII, as every bearer token.
    taken = 401 if name == "apiKey" and letter != "x" else 202
    assert taken == envelope(ask(caller, **{name: letter * most}))["code"]
    refused = envelope(ask(caller, **{name: letter * (most + 1)}))
    assert (400, True) == (refused["code"], str(most) in refused["message"])


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a\nb", ".."])
def test_invalid_session_id_is_refused(caller: Caller, name: str) -> None:
    refused = envelope(ask(caller, sessionId=name))

    assert (400, True, 0) == (refused["code"], "sessionId" in refused["message"], stored())


def test_session_can_be_read(caller: Caller) -> None:
    end(caller, envelope(ask(caller))["jobId"])

    messages = caller.get("/v1/sessions/ana/messages").json["data"]
    assert "你好" in json.dumps(messages, ensure_ascii=False) and "hello" in json.dumps(messages)


def test_invalid_json_is_refused_in_envelope(caller: Caller) -> None:
    for content, media in ((b"{", "application/json"), (b"x=1", "application/x-www-form-urlencoded"), (b'{"a":1e999}', "application/json")):
        refused = envelope(caller.send("POST", PATH, data=content, content_type=media))
        assert 400 == refused["code"] and "data" not in refused


def test_unknown_key_returns_401(caller: Caller, override: Callable[..., None]) -> None:
    override(open_keys=False)

    assert 401 == envelope(ask(caller, apiKey="sk-unknown"))["code"]
    assert 401 == fetch(caller, "job_" + "0" * 32, key="sk-unknown")["code"]


def test_full_queue_returns_429(caller: Caller, override: Callable[..., None]) -> None:
    override(pro_wait_s=0, max_queued_per_key=1)
    ask(caller)

    assert 429 == envelope(ask(caller, content="还有一个"))["code"]


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [(429, "insufficient_quota", 402), (401, "invalid_api_key", 401), (400, "x", 400), (404, "x", 502), (500, "x", 500), (503, "x", 500)],
)
def test_upstream_refusal_has_its_code(caller: Caller, status: int, code: str, shown: int) -> None:
    name = envelope(ask(caller))["jobId"]
    finish(name, run(caller, name), status=states.Status.FAILED, answer=None)
    query("UPDATE job SET http_status = :status, error = CAST(:error AS jsonb)", status=status, error=json.dumps({"code": code}))

    refused = fetch(caller, name)
    assert shown == refused["code"] and "data" not in refused and refused["message"]


def test_cancelled_question_returns_error(caller: Caller) -> None:
    name = envelope(ask(caller))["jobId"]
    caller.post(f"/v1/jobs/{name}/cancel")

    assert 500 == fetch(caller, name)["code"]


def test_answer_of_another_key_is_not_found(caller: Caller) -> None:
    name = envelope(ask(caller))["jobId"]
    end(caller, name)

    assert fetch(caller, name, key="sk-other") == fetch(caller, "job_" + "0" * 32, key="sk-other") == fetch(caller, "nonsense")
    assert 400 == fetch(caller, name, key="sk-other")["code"]


def test_bearer_token_is_accepted(caller: Caller) -> None:
    name = envelope(ask(caller))["jobId"]

    assert 202 == envelope(caller.get(f"{PATH}/{name}"))["code"]
    assert 400 == envelope(caller.get(f"{PATH}/{name}", headers={"Authorization": ""}))["code"]


def test_key_is_never_logged(caller: Caller, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("api.waiting.wait.until_ended", lambda *_, **__: 1 / 0)
    failed = envelope(ask(caller, apiKey="sk-very-secret"))
    fetch(caller, "job_" + "0" * 32, key="sk-very-secret")

    assert 500 == failed["code"]
    assert "unexpected error" in caplog.text and "very-secret" not in caplog.text


def test_balance_subtracts_spending_of_100_days(caller: Caller, override: Callable[..., None]) -> None:
    override(pro_wait_s=0, budgets="all")
    with db.begin() as session:
        budgets.grant(session, caller.key.id, 18_000_000)
    query(
        "INSERT INTO ledger (key_id, kind, amount_microusd, dispatch_id, at) VALUES "
        "(:id, 'charge', -80000, gen_random_uuid(), now() - interval '3 days'), "
        "(:id, 'charge', -500000, gen_random_uuid(), now() - interval '102 days')",
        id=caller.key.id,
    )
    by_query = envelope(caller.get("/pro/balance?apiKey=sk-one", headers={"Authorization": ""}))

    assert {"total": 18.0, "balance": 17.92, "used": 0.08} == by_query["data"]
    assert by_query["data"] == envelope(caller.get("/pro/balance"))["data"]
    assert 400 == envelope(caller.get("/pro/balance", headers={"Authorization": ""}))["code"]


def test_used_up_budget_returns_402(caller: Caller, override: Callable[..., None]) -> None:
    override(pro_wait_s=0, budgets="all", default_grant_usd="0.000001")

    assert 402 == envelope(ask(caller, content="贵" * 1_000))["code"]
    assert 0 == stored()


def test_answer_without_content_is_empty(caller: Caller) -> None:
    name = envelope(ask(caller))["jobId"]
    end(caller, name, answer=ANSWER.replace(b'"hello"', b"null"))

    assert (200, "") == (fetch(caller, name)["code"], fetch(caller, name)["data"])
