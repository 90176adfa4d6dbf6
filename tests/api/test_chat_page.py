"""The chat page's files, and its visitors without a key: let to what the page needs, and to their own conversations."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from api import chat_page
from api.access import visitors
from api.app import create_app
from api.submit.schemas import Controls
from models.billing import budgets
from models.billing.money import MICRO_PER_USD
from models.database import db
from models.keys import keys
from tests.support.http_tools import CHAT, Caller, error_of
from tests.support.queue_tools import query
from tests.support.session_tools import SESSION, assistant, say, talk, user

pytestmark = pytest.mark.usefixtures("database")
ASK = {"X-Nowserving-Page": "1"}


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page of three small files."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<meta name="nowserving-key" content="own" />')
    (tmp_path / "assets" / "a-1.js").write_text("plain")
    (tmp_path / "assets" / "a-1.js.gz").write_bytes(b"packed")
    monkeypatch.setattr(chat_page, "BUILT", tmp_path)


@pytest.fixture
def visit(override: Callable[..., None]) -> Callable[[], tuple[FlaskClient, str]]:
    """visit(): a browser that has opened the page of an operator's shared key, and its visitor's name."""
    with db.begin() as session:
        keys.create_pool(session, "team")
        _, token = keys.issue(session, name="page", pool="team")
    override(page_key=token)
    app = create_app()

    def go() -> tuple[FlaskClient, str]:
        browser = app.test_client()
        shown = browser.get("/")
        found = re.search(r'content="shared (v[0-9a-f]{20})"', shown.text)
        assert found and token not in shown.text + str(shown.headers)
        return browser, found[1]

    return go


def order(name: str) -> dict[str, Any]:
    return {**CHAT, "conversation": f"{name}.chat-1"}


def test_the_page_runs_nothing_from_elsewhere_and_nothing_inline() -> None:
    shown = create_app().test_client().get("/")

    assert 200 == shown.status_code
    assert "script-src 'self';" in shown.headers["Content-Security-Policy"] and "unsafe" not in shown.headers["Content-Security-Policy"]
    assert ("nosniff", "no-referrer", "no-cache") == tuple(
        shown.headers[name] for name in ("X-Content-Type-Options", "Referrer-Policy", "Cache-Control")
    )
    assert "Set-Cookie" not in shown.headers


def test_its_files_are_kept_for_ever_and_sent_packed_where_that_is_understood() -> None:
    browser = create_app().test_client()
    plain, packed = browser.get("/assets/a-1.js"), browser.get("/assets/a-1.js", headers={"Accept-Encoding": "gzip"})

    assert (b"plain", None) == (plain.data, plain.headers.get("Content-Encoding"))
    assert (b"packed", "gzip") == (packed.data, packed.headers["Content-Encoding"])
    assert "immutable" in packed.headers["Cache-Control"] and packed.mimetype == "text/javascript"
    assert 404 == browser.get("/assets/..%2findex.html").status_code


def test_a_visitor_needs_no_key_and_waits_under_a_name_of_their_own(visit: Callable[[], tuple[FlaskClient, str]]) -> None:
    browser, name = visit()
    made = browser.post("/v1/jobs", json=order(name), headers=ASK)

    assert (202, name) == (made.status_code, made.json["user"])
    assert [f"{name}.chat-1"] == [one["id"] for one in browser.get("/v1/sessions", headers=ASK).json["data"]]
    assert f"shared {name}" in browser.get("/").text


@pytest.mark.parametrize("result", ["header", "field"])
def test_a_visitor_cannot_wait_under_anothers_name(visit: Callable[[], tuple[FlaskClient, str]], result: str) -> None:
    (browser, name), (_, them) = visit(), visit()
    headers = {**ASK, "X-Nowserving-User": them} if result == "header" else ASK
    made = browser.post("/v1/jobs", json={**order(name), **({"user": them} if result == "field" else {})}, headers=headers)

    assert (202, name) == (made.status_code, made.json["user"])


CONTROLS = {
    "X-Nowserving-Priority": ("priority", "high"), "X-Nowserving-Webhook-Url": ("webhook_url", "https://attacker.example/"),
    "X-Nowserving-Expires-In": ("expires_in_s", 1_000), "X-Nowserving-Timeout": ("timeout_s", 100),
    None: ("max_attempts", 9), "": ("on_lost", "fail"), 0: ("on_unreadable", "retry"),
}  # fmt: skip


@pytest.mark.parametrize("header", CONTROLS)
def test_a_visitor_cannot_set_controls_in_headers_or_fields(visit: Callable[[], tuple[FlaskClient, str]], header: str | None) -> None:
    field, value = CONTROLS[header]
    browser, name = visit()
    refused = [browser.post("/v1/jobs", json={**order(name), field: value}, headers=ASK)]
    if header:
        headers = {**ASK, header: str(value)}
        refused += [browser.post("/v1/jobs", json=order(name), headers=headers)]

    assert {(400, field)} == {(answer.status_code, error_of(answer)["param"]) for answer in refused}
    assert [] == query("SELECT id FROM job")


def test_every_control_is_allowed_or_refused_on_purpose() -> None:
    assert {field for field, _ in CONTROLS.values()} == Controls.model_fields.keys() - visitors.FIELDS


def test_visitors_only_have_routes_that_exist() -> None:
    assert visitors.ROUTES <= create_app().view_functions.keys()


def test_two_visitors_with_one_idempotency_key_have_a_job_each(visit: Callable[[], tuple[FlaskClient, str]]) -> None:
    (mine, me), (theirs, them) = visit(), visit()
    headers = {**ASK, "Idempotency-Key": "guessed"}
    first = mine.post("/v1/jobs", json=order(me), headers=headers)
    second = theirs.post("/v1/jobs", json=order(them), headers=headers)

    assert (202, 422) == (first.status_code, second.status_code)
    assert first.json["id"] not in second.text


def test_a_visitor_sees_its_own_usage_only(visit: Callable[[], tuple[FlaskClient, str]]) -> None:
    (mine, me), (theirs, them) = visit(), visit()
    (page_key,) = query("SELECT id FROM key WHERE name = 'page'")
    with db.begin() as session:
        budgets.grant(session, page_key.id, 50 * MICRO_PER_USD)
    for name, tokens in ((me, 1), (them, 700)):
        query(
            "INSERT INTO usage (dispatch_id, job_id, key_id, model, flow, input_tokens, output_tokens, images, cost_microusd) "
            "VALUES (:id, :id, :key, 'm', :flow, :n, 0, 0, :n)",
            id=uuid4(), key=page_key.id, flow=name, n=tokens,
        )  # fmt: skip
    query(
        "INSERT INTO ledger (key_id, kind, amount_microusd, job_id, dispatch_id, model, flow) "
        "SELECT key_id, 'charge', -cost_microusd, job_id, dispatch_id, model, flow FROM usage"
    )
    shown = mine.get("/v1/usage", headers=ASK)
    balance = mine.get("/v1/balance", headers=ASK).json

    assert [(me, 1)] == [(row["user"], row["input_tokens"]) for row in shown.json["data"]]
    assert them not in shown.text
    assert (0.000001, 49.999299) == (balance["spent_usd"], balance["available_usd"])
    assert {None} == {balance[name] for name in ("balance_usd", "reserved_usd", "granted_usd", "corrected_usd")}
    assert [(them, 700)] == [(row["user"], row["input_tokens"]) for row in theirs.get("/v1/usage", headers=ASK).json["data"]]


def test_visitors_see_nothing_of_each_other(visit: Callable[[], tuple[FlaskClient, str]]) -> None:
    (mine, me), (theirs, them) = visit(), visit()
    assert 202 == mine.post("/v1/jobs", json=order(me), headers=ASK).status_code

    assert me != them
    assert [] == theirs.get("/v1/sessions", headers=ASK).json["data"]
    for path in (f"/v1/sessions/{me}.chat-1", f"/v1/sessions/{me}.chat-1/messages"):
        assert 404 == theirs.get(path, headers=ASK).status_code
    assert 404 == theirs.post("/v1/jobs", json=order(me), headers=ASK).status_code
    assert 404 == theirs.post("/v1/jobs", json=CHAT, headers=ASK).status_code
    assert 404 == theirs.post("/v1/sessions", json={"id": f"{me}.x"}, headers=ASK).status_code


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/webhook_secret", "/v1/webhook_endpoints", "/v1/dashboard/billing/usage"])
def test_the_shared_key_opens_nothing_that_the_page_does_not_need(visit: Callable[[], tuple[FlaskClient, str]], path: str) -> None:
    browser, _ = visit()

    assert 401 == browser.get(path, headers=ASK).status_code


def test_another_site_can_use_neither_the_cookie_nor_a_forged_one(visit: Callable[[], tuple[FlaskClient, str]]) -> None:
    browser, name = visit()
    stranger = create_app().test_client()
    stranger.set_cookie("nowserving_visitor", f"{name}.forged")
    cookie = next(iter(browser._cookies.values()))

    assert cookie.http_only and cookie.same_site == "Strict"
    for client, headers in ((browser, {}), (browser, {**ASK, "Sec-Fetch-Site": "cross-site"}), (stranger, ASK)):
        assert "invalid_api_key" == error_of(client.get("/v1/sessions", headers=headers))["code"]


def test_without_a_shared_key_the_cookie_is_worth_nothing(
    visit: Callable[[], tuple[FlaskClient, str]], override: Callable[..., None]
) -> None:
    browser, _ = visit()
    override(page_key="")

    assert 401 == browser.get("/v1/sessions", headers=ASK).status_code


def test_a_deleted_turn_is_neither_read_nor_remembered() -> None:
    caller = Caller()
    talk(caller, "one", reply="first")
    talk(caller, "two", reply="second")
    shown = caller.send("DELETE", f"/v1/sessions/{SESSION}/messages/msg_2")

    assert {"id": "msg_2", "object": "session.turn.deleted", "turn": 1, "deleted": True} == shown.json
    assert ["msg_4", "msg_3"] == [one["id"] for one in caller.get(f"/v1/sessions/{SESSION}/messages").json["data"]]
    assert [user("two"), assistant("second"), user("three")] == talk(caller, "three")
    assert 404 == caller.send("DELETE", f"/v1/sessions/{SESSION}/messages/msg_1").status_code
    assert 404 == Caller("sk-two", caller.app).send("DELETE", f"/v1/sessions/{SESSION}/messages/msg_3").status_code


def test_a_turn_that_waits_cannot_be_deleted() -> None:
    caller = Caller()
    say(caller, "one")

    assert 409 == caller.send("DELETE", f"/v1/sessions/{SESSION}/messages/msg_1").status_code
