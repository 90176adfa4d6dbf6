"""The webhook routes: endpoints, secrets, samples, the delivery log, redelivery, and the URL of one job."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from models.platform import ids
from models.webhooks import delivery_log, endpoints, outbox, signing
from tests.api.http.test_multipart import BOUNDARY, form, part
from tests.support.http_tools import CHAT, IMAGE, Caller, end, error_of
from tests.support.queue_tools import query
from tests.support.webhook_tools import ARRIVED, REFUSED, claim, claim_one, deliveries, make_due, pick, settle

URL = "https://example.com/hook"
ENDPOINT: dict[str, Any] = {"name": "answers", "url": URL, "event_types": ["job.succeeded", "job.failed"]}
BODY = CHAT["body"]

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Caller:
    return Caller()


def make(caller: Caller, **more: Any) -> dict[str, Any]:
    """Creates an endpoint."""
    made = caller.post("/v1/webhook_endpoints", {**ENDPOINT, **more})
    assert 200 == made.status_code, made.text
    return dict(made.json)


def happen(caller: Caller, **more: Any) -> str:
    """Stores a succeeded job."""
    name = caller.submit(**more)
    end(caller, name)
    return name


def test_created_endpoint_shows_secret_once(caller: Caller) -> None:
    made = make(caller, include=["result"])
    path = f"/v1/webhook_endpoints/{made['id']}"

    assert made.pop("signing_secret").startswith("whsec_")
    assert made == caller.get(path).json == caller.get("/v1/webhook_endpoints").json["data"][0]
    assert (True, ["result"], URL) == (made["enabled"], made["include"], made["url"])


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/v1"])
def test_endpoint_routes_exist_at_every_base_path(caller: Caller, prefix: str) -> None:
    assert 200 == caller.post(f"{prefix}/webhook_endpoints", ENDPOINT).status_code
    assert list(outbox.EventType) == caller.get(f"{prefix}/webhook_event_types").json["data"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"url": 1}, "url"),
        ({"url": "http://example.com"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://example.com:22/"}, "url"),
        ({"url": "https://user:password@example.com/"}, "url"),
        ({"url": "https://example.com/" + "x" * 3_000}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["response.completed"]}, "event_types"),
        ({"event_types": "job.failed"}, "event_types"),
        ({"include": ["everything"]}, "include[0]"),
        ({"color": "red"}, "color"),
    ],
)
def test_invalid_endpoint_is_refused(caller: Caller, wrong: dict[str, Any], param: str) -> None:
    refused = caller.post("/v1/webhook_endpoints", {**ENDPOINT, **wrong})

    assert (400, param) == (refused.status_code, error_of(refused)["param"])
    assert 0 == len(query("SELECT id FROM webhook_endpoint"))
    mine = make(caller)
    changed = caller.post(f"/v1/webhook_endpoints/{mine['id']}", wrong)
    assert (400, param) == (changed.status_code, error_of(changed)["param"])


def test_missing_body_names_required_fields(caller: Caller) -> None:
    assert "is required" in error_of(caller.post("/v1/webhook_endpoints"))["message"]
    assert 415 == caller.post("/v1/webhook_endpoints", data="{}", content_type="text/plain").status_code


def test_update_changes_only_named_fields(caller: Caller) -> None:
    made = make(caller)
    changed = caller.post(f"/v1/webhook_endpoints/{made['id']}", {"include": ["result"], "enabled": False}).json

    assert (made["name"], URL, ["result"], False) == tuple(changed[name] for name in ("name", "url", "include", "enabled"))
    assert "by its owner" == changed["disabled_reason"]
    assert True is caller.post(f"/v1/webhook_endpoints/{made['id']}", {"enabled": True}).json["enabled"]
    assert 200 == caller.post(f"/v1/webhook_endpoints/{made['id']}").status_code


def test_deleted_endpoint_is_not_found(caller: Caller) -> None:
    made = make(caller)
    gone = caller.send("DELETE", f"/v1/webhook_endpoints/{made['id']}")

    assert {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True} == gone.json
    assert 404 == caller.get(f"/v1/webhook_endpoints/{made['id']}").status_code
    assert [] == caller.get("/v1/webhook_endpoints").json["data"]


def test_rotated_secret_keeps_old_one_on_request(caller: Caller) -> None:
    made = make(caller)
    path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
    second = caller.post(path, {"keep_old_secret_active_for_24_hours": True}).json["signing_secret"]
    happen(caller)
    assert [second, made["signing_secret"]] == claim_one().secrets

    third = caller.post(path).json["signing_secret"]
    happen(caller)
    assert [third] == claim_one().secrets


@pytest.mark.parametrize("endpoint", ["/v1/jobs", "/v1/chat/completions", "/v1/images/generations", "/v1/embeddings"])
@pytest.mark.parametrize("how", ["header", "body"])
def test_webhook_url_is_accepted_on_every_submit_route(caller: Caller, endpoint: str, how: str) -> None:
    bodies = {"/v1/jobs": CHAT, "/v1/images/generations": IMAGE["body"], "/v1/embeddings": {"model": "m", "input": "hi"}}
    payload = bodies.get(endpoint, BODY)
    result = {"webhook_url": URL} if endpoint == "/v1/jobs" else {"nowserving": {"webhook_url": URL}}
    headers = {"Prefer": "respond-async"} | ({"X-Nowserving-Webhook-Url": URL} if how == "header" else {})
    made = caller.post(endpoint, payload if how == "header" else {**payload, **result}, headers=headers)
    assert 202 == made.status_code, made.text
    end(caller, made.json["id"])

    claimed = claim_one()
    assert (URL, "job.succeeded") == (claimed.url, claimed.event_type)
    assert [caller.get("/v1/webhook_secret").json["signing_secret"]] == claimed.secrets


def test_image_edit_accepts_webhook_url(caller: Caller) -> None:
    content = form(part("prompt", "a cat"), part("nowserving[webhook_url]", URL), part("image", b"png", filename="a.png"))
    media = f"multipart/form-data; boundary={BOUNDARY}"
    edit = caller.send("POST", "/v1/images/edits", data=content, content_type=media, headers={"Prefer": "respond-async"})

    assert 202 == edit.status_code, edit.text
    assert [URL] == [row.webhook_url for row in query("SELECT webhook_url FROM job")]


@pytest.mark.parametrize("url", ["http://example.com", "https://10.0.0.1/", "ftp://example.com", "https://[::ffff:127.0.0.1]/", "nonsense"])
def test_forbidden_webhook_url_names_its_field(caller: Caller, url: str) -> None:
    at_jobs = caller.post("/v1/jobs", {**CHAT, "webhook_url": url})
    in_header = caller.post("/v1/chat/completions", BODY, headers={"X-Nowserving-Webhook-Url": url})
    inside = caller.post("/v1/chat/completions", {**BODY, "nowserving": {"webhook_url": url}})

    assert [400] * 3 == [one.status_code for one in (at_jobs, in_header, inside)]
    assert ["webhook_url", "X-Nowserving-Webhook-Url", "nowserving.webhook_url"] == [
        error_of(one)["param"] for one in (at_jobs, in_header, inside)
    ]
    assert all("must be an https URL on the public internet" in error_of(one)["message"] for one in (at_jobs, in_header, inside))
    assert [] == query("SELECT id FROM job")


def test_retried_job_keeps_webhook_url(caller: Caller) -> None:
    name = caller.submit(webhook_url=URL)
    caller.post(f"/v1/jobs/{name}/cancel")
    again = caller.post(f"/v1/jobs/{name}/retry").json["id"]
    end(caller, again)

    assert ["job.cancelled", "job.succeeded"] == [row.event_type for row in deliveries()]


def test_default_secret_is_rotated(caller: Caller) -> None:
    first = caller.get("/v1/webhook_secret").json
    second = caller.post("/v1/webhook_secret/rotate", {"keep_old_secret_active_for_24_hours": True}).json

    assert signing.hint(first["signing_secret"]) == first["signing_secret_hint"]
    assert second == caller.get("/v1/webhook_secret").json != first
    happen(caller, webhook_url=URL)
    assert [second["signing_secret"], first["signing_secret"]] == claim_one().secrets


def test_log_shows_result_of_each_delivery(caller: Caller) -> None:
    made = make(caller)
    first, second = happen(caller), happen(caller)
    good, bad = (claim(one) for one in pick())
    assert good and bad
    settle(good)
    settle(bad, REFUSED, retry_in_s=60)
    page = caller.get(f"/v1/webhook_endpoints/{made['id']}/deliveries").json

    assert (False, [second, first]) == (page["has_more"], [one["job_id"] for one in page["data"]])
    delivered = next(one for one in page["data"] if one["status"] == "delivered")
    waiting = next(one for one in page["data"] if one["status"] == "pending")
    assert (1, 200, "ok", 12, None) == tuple(
        delivered[name] for name in ("attempts", "response_code", "response_body", "duration_ms", "error")
    )
    assert (1, 500, "no", "HTTP 500") == tuple(waiting[name] for name in ("attempts", "response_code", "response_body", "error"))
    assert waiting["next_attempt_at"] > time.time() + 30


def test_log_is_paged(caller: Caller) -> None:
    made = make(caller)
    names = [happen(caller) for _ in range(3)]
    path = f"/v1/webhook_endpoints/{made['id']}/deliveries"
    first = caller.get(f"{path}?limit=2").json
    rest = caller.get(f"{path}?limit=2&after={first['last_id']}").json

    assert names[::-1] == [one["job_id"] for one in (*first["data"], *rest["data"])]
    assert [True, False] == [first["has_more"], rest["has_more"]]
    assert 400 == caller.get(f"{path}?limit=0").status_code


def test_redelivery_keeps_its_id(caller: Caller) -> None:
    made = make(caller)
    happen(caller)
    one = claim_one()
    settle(one)
    again = caller.post(f"/v1/webhook_endpoints/{made['id']}/deliveries/{ids.format_id('wh_', one.id)}/redeliver")

    assert (202, "pending") == (again.status_code, again.json["status"])
    second = claim_one()
    assert (one.id, one.payload) == (second.id, second.payload)
    refused = caller.post(f"/v1/webhook_endpoints/{made['id']}/deliveries/{ids.format_id('wh_', one.id)}/redeliver")
    assert (409, "wrong_state") == (refused.status_code, error_of(refused)["code"])


def test_deliveries_failed_since_a_time_are_sent_again(caller: Caller) -> None:
    made = make(caller)
    for _ in range(3):
        happen(caller)
    query("UPDATE delivery SET retries_left = 0")
    for one in pick():
        settle(claim(one), REFUSED)  # type: ignore[arg-type]
    query("UPDATE delivery SET event_at = event_at - interval '1 h' WHERE id = (SELECT min(id::text)::uuid FROM delivery)")
    path = f"/v1/webhook_endpoints/{made['id']}/redeliver"
    shown = caller.post(path, {"since": time.time() - 600})

    assert (202, 2, False) == (shown.status_code, shown.json["redelivered"], shown.json["has_more"])
    assert ["failed", "pending", "pending"] == sorted(row.status for row in deliveries())
    for wrong in ({}, {"since": "yesterday"}, {"since": -1}, {"since": 1e300}):
        assert (400, "since") == (caller.post(path, wrong).status_code, error_of(caller.post(path, wrong))["param"])


def test_disabled_endpoint_refuses_redelivery(caller: Caller) -> None:
    made = make(caller)
    happen(caller)
    one = claim_one()
    settle(one)
    caller.post(f"/v1/webhook_endpoints/{made['id']}", {"enabled": False})

    for path, result in ((f"deliveries/{ids.format_id('wh_', one.id)}/redeliver", None), ("redeliver", {"since": 0})):
        refused = caller.post(f"/v1/webhook_endpoints/{made['id']}/{path}", result)
        assert (409, "Enable it first" in error_of(refused)["message"]) == (refused.status_code, True)


def test_deliveries_to_job_url_are_logged(caller: Caller) -> None:
    endpoint = make(caller)
    name = happen(caller, webhook_url=URL)
    own = next(one for one in map(claim, pick()) if one and not one.endpoint_id)
    settle(own, REFUSED, retry_in_s=60)
    (shown,) = caller.get(f"/v1/jobs/{name}/deliveries").json["data"]

    assert (ids.format_id("wh_", own.id), None, 500) == (shown["id"], shown["webhook_endpoint_id"], shown["response_code"])
    assert 202 == caller.post(f"/v1/jobs/{name}/deliveries/{shown['id']}/redeliver").status_code
    assert 404 == caller.post(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries/{shown['id']}/redeliver").status_code
    other = happen(caller)
    assert 404 == caller.post(f"/v1/jobs/{other}/deliveries/{shown['id']}/redeliver").status_code
    assert [] == caller.get(f"/v1/jobs/{other}/deliveries").json["data"]


def test_sample_shows_response_of_receiver(caller: Caller) -> None:
    made = make(caller, event_types=["job.failed"])
    answers = iter((ARRIVED, REFUSED, delivery_error()))
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.02):
            make_due()
            for one in pick():
                settle(claim(one), next(answers))  # type: ignore[arg-type]

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    path = f"/v1/webhook_endpoints/{made['id']}/test"
    good, bad, away = (caller.post(path, {"event_type": "job.succeeded"}) for _ in range(3))
    over.set()
    sender.join(10)

    shown = {"object": "webhook_endpoint.test", "webhook_endpoint_id": made["id"], "event_type": "job.succeeded", "success": True}
    for response, status in ((good, 200), (bad, 500)):
        assert shown | {"status_code": status} == {name: value for name, value in response.json.items() if name != "delivery_id"}
    assert (502, "webhook_not_delivered") == (away.status_code, error_of(away)["code"])
    assert "could not connect" in error_of(away)["message"] and "false" == away.headers["x-should-retry"]
    assert 400 == caller.post(path, {"event_type": "response.completed"}).status_code
    assert made["updated_at"] == caller.get(f"/v1/webhook_endpoints/{made['id']}").json["updated_at"]


def test_unsent_sample_returns_503(caller: Caller, override: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    override(webhook_timeout_s=0.1)
    monkeypatch.setattr("api.webhooks.views.SEND_WAIT_S", 0.1)
    shown = caller.post(f"/v1/webhook_endpoints/{make(caller)['id']}/test", {"event_type": "job.failed"})

    assert (503, "webhook_not_sent", "false") == (shown.status_code, error_of(shown)["code"], shown.headers["x-should-retry"])


def test_endpoints_and_deliveries_of_other_keys_are_not_found(caller: Caller) -> None:
    stranger, made = Caller("sk-stranger", caller.app), make(caller)
    job = happen(caller, webhook_url=URL)
    one = ids.format_id(delivery_log.PREFIX, deliveries()[0].id)
    result = {"event_type": "job.failed", "since": 0}

    def asked(who: Caller, endpoint: str, of: str, delivery: str) -> list[tuple[int, bytes]]:
        paths = [
            ("GET", f"webhook_endpoints/{endpoint}", None),
            ("POST", f"webhook_endpoints/{endpoint}", {"name": "x"}),
            ("DELETE", f"webhook_endpoints/{endpoint}", None),
            ("POST", f"webhook_endpoints/{endpoint}/rotate_secret", {}),
            ("POST", f"webhook_endpoints/{endpoint}/test", {"event_type": result["event_type"]}),
            ("GET", f"webhook_endpoints/{endpoint}/deliveries", None),
            ("POST", f"webhook_endpoints/{endpoint}/deliveries/{delivery}/redeliver", None),
            ("POST", f"webhook_endpoints/{endpoint}/redeliver", {"since": 0}),
            ("GET", f"jobs/{of}/deliveries", None),
            ("POST", f"jobs/{of}/deliveries/{delivery}/redeliver", None),
        ]
        send = {"GET": who.get, "POST": who.post}
        answers = [
            send[how](f"/v1/{path}", *([body] if body is not None else [])) if how in send else who.send(how, f"/v1/{path}")
            for how, path, body in paths
        ]
        return [(answer.status_code, answer.data) for answer in answers]

    foreign = asked(stranger, made["id"], job, one)
    unknown = asked(stranger, "whe_" + "0" * 32, "job_" + "0" * 32, "wh_" + "0" * 32)

    assert {404} == {status for status, _ in foreign}
    assert foreign == unknown
    assert [] == stranger.get("/v1/webhook_endpoints").json["data"]
    assert made["name"] == caller.get(f"/v1/webhook_endpoints/{made['id']}").json["name"]
    assert stranger.get("/v1/webhook_secret").json != caller.get("/v1/webhook_secret").json


def test_missing_key_is_refused() -> None:
    for path in (
        "webhook_endpoints",
        "webhook_event_types",
        "webhook_secret",
        f"webhook_endpoints/{endpoints.PREFIX}{'0' * 32}/deliveries",
    ):
        assert 401 == Caller().get(f"/v1/{path}", headers={"Authorization": ""}).status_code


def delivery_error() -> Any:
    """Records an attempt without a response."""
    return type(ARRIVED)(has_arrived=False, duration_ms=3, error="could not connect")
