"""The session routes: create, list, read, update and delete, for the session's own key only."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from api.document import openapi
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import wire
from tests.support.http_tools import IMAGE, Caller, error_of
from tests.support.queue_tools import clean_up, query
from tests.support.session_tools import REFUSED, SESSION, answer, assistant, claim, end, fail, say, stored, talk, user

pytestmark = pytest.mark.usefixtures("database")
PIXEL = "iVBORw0KGgo="


@pytest.fixture
def caller() -> Caller:
    return Caller()


def messages(caller: Caller, query: str = "order=asc", *, session: str = SESSION) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = caller.get(f"/v1/sessions/{session}/messages?{query}").json["data"]
    return shown


def patch(caller: Caller, result: object, *, session: str = SESSION) -> Any:
    return caller.send("PATCH", f"/v1/sessions/{session}", json=result)


def test_first_turn_creates_session(caller: Caller) -> None:
    talk(caller, "one", reply="1" * 300)
    shown = caller.get(f"/v1/sessions/{SESSION}").json

    assert (SESSION, "session", 1, "1" * 200, "skip") == tuple(
        shown[name] for name in ("id", "object", "turns", "preview", "on_failed_turn")
    )
    assert [None] * 4 == [shown[name] for name in ("title", "system_prompt", "context_tokens", "fresh_after_s")]


def test_session_can_be_created_once_before_first_turn(caller: Caller) -> None:
    result = {
        "id": SESSION,
        "title": "Tea",
        "system_prompt": "of tea",
        "context_tokens": 100,
        "fresh_after_s": 60,
        "on_failed_turn": "stop",
    }
    made, again = caller.post("/v1/sessions", result), caller.post("/v1/sessions", result)

    assert (201, 409) == (made.status_code, again.status_code)
    assert result == {name: made.json[name] for name in result}
    assert 0 == made.json["turns"]
    talk(caller, "one")
    assert 1 == caller.get(f"/v1/sessions/{SESSION}").json["turns"]


def test_sessions_are_listed_last_active_first(caller: Caller) -> None:
    for name in ("a", "b", "c", "a"):
        talk(caller, "one", session=name)
    first = caller.get("/v1/sessions?limit=2").json
    rest = caller.get(f"/v1/sessions?limit=2&after={first['last_id']}").json

    assert ["a", "c", "b"] == [one["id"] for one in (*first["data"], *rest["data"])]
    assert [True, False] == [first["has_more"], rest["has_more"]]
    assert 404 == caller.get("/v1/sessions?after=unknown").status_code
    assert 400 == caller.get("/v1/sessions?limit=0").status_code


def test_update_changes_named_fields_and_null_restores_default(caller: Caller) -> None:
    talk(caller, "one")
    patch(caller, {"title": "Tea", "system_prompt": "of\ntea", "on_failed_turn": "stop"})
    changed = patch(caller, {"system_prompt": None, "on_failed_turn": None}).json

    assert ("Tea", None, "skip") == (changed["title"], changed["system_prompt"], changed["on_failed_turn"])
    assert changed == caller.get(f"/v1/sessions/{SESSION}").json == patch(caller, {}).json


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"title": ""}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": 7}, "title"),
        ({"system_prompt": "x" * 32_001}, "system_prompt"),
        ({"system_prompt": ["a"]}, "system_prompt"),
        ({"context_tokens": 63}, "context_tokens"),
        ({"context_tokens": 1.5}, "context_tokens"),
        ({"context_tokens": "100"}, "context_tokens"),
        ({"fresh_after_s": -1}, "fresh_after_s"),
        ({"fresh_after_s": "1800"}, "fresh_after_s"),
        ({"on_failed_turn": "retry"}, "on_failed_turn"),
        ({"color": "red"}, "color"),
    ],
)
def test_invalid_update_is_refused(caller: Caller, wrong: dict[str, Any], param: str) -> None:
    talk(caller, "one")
    before = caller.get(f"/v1/sessions/{SESSION}").json
    changed, made = patch(caller, wrong), caller.post("/v1/sessions", {"id": "new", **wrong})

    assert [(400, param)] * 2 == [(one.status_code, error_of(one)["param"]) for one in (changed, made)]
    assert before == caller.get(f"/v1/sessions/{SESSION}").json
    assert 1 == len(query("SELECT id FROM conversation"))


def test_messages_are_listed_in_order(caller: Caller) -> None:
    talk(caller, {"role": "system", "content": "Be short."}, "one", reply="1")
    waiting = say(caller, "two")
    first, answered, second, awaited = messages(caller)

    assert ("msg_1", "user", "one", "succeeded") == tuple(first[name] for name in ("id", "role", "text", "status"))
    assert ("msg_2", "assistant", "1", None) == tuple(answered[name] for name in ("id", "role", "text", "error"))
    assert ("msg_3", "two", "queued", waiting) == tuple(second[name] for name in ("id", "text", "status", "job_id"))
    assert ("msg_4", None, "queued", None) == tuple(awaited[name] for name in ("id", "text", "status", "created_at"))
    claim(caller, waiting)
    assert "running" == messages(caller)[3]["status"]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_messages_are_paged_in_both_orders(caller: Caller, order: str, limit: int) -> None:
    for n in range(4):
        talk(caller, f"{n}?", reply=f"{n}!")
    seen: list[str] = []
    path = f"/v1/sessions/{SESSION}/messages?order={order}&limit={limit}"
    page = caller.get(path).json
    while page["has_more"]:
        assert limit == len(page["data"])
        seen += [one["text"] for one in page["data"]]
        page = caller.get(f"{path}&after={page['last_id']}").json
    seen += [one["text"] for one in page["data"]]

    result = [f"{n}{sign}" for n in range(4) for sign in "?!"]
    assert (result if order == "asc" else result[::-1]) == seen


def test_page_of_large_turns_ends_early(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.sessions.messages.PAGE_BYTES", 1_000)
    for n in range(3):
        talk(caller, f"{n}" * 2_000)
    page = caller.get(f"/v1/sessions/{SESSION}/messages?order=asc").json

    assert (2, True) == (len(page["data"]), page["has_more"])
    rest = caller.get(f"/v1/sessions/{SESSION}/messages?order=asc&after={page['last_id']}").json
    assert "1" * 2_000 == rest["data"][0]["text"]


@pytest.mark.parametrize("wrong", ["after=msg_0", "after=msg_x", "after=7", "order=up", "limit=x"])
def test_invalid_page_parameters_are_refused(caller: Caller, wrong: str) -> None:
    talk(caller, "one")

    assert caller.get(f"/v1/sessions/{SESSION}/messages?{wrong}").status_code in (400, 404)


def picture_question(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]}


def test_image_in_message_is_forwarded_and_linked(caller: Caller) -> None:
    asked = picture_question(f"data:image/png;base64,{PIXEL}")
    assert [asked] == talk(caller, asked, reply="A cat.")
    assert [asked, assistant("A cat."), user("Sure?")] == talk(caller, "Sure?")
    first = messages(caller)[0]
    link = first["images"][0]["url"]
    opened = caller.app.test_client().get(link)

    assert ("What is this?", "image/png") == (first["text"], first["images"][0]["content_type"])
    assert (200, b"\x89PNG\r\n\x1a\n", "image/png", "nosniff") == (
        opened.status_code, opened.data, opened.content_type, opened.headers["X-Content-Type-Options"],
    )  # fmt: skip
    assert 404 == caller.get(link.replace("signature=", "signature=0")).status_code
    assert 404 == caller.get(link.replace("_0?", "_1?")).status_code


def test_html_in_place_of_image_is_never_displayed(caller: Caller) -> None:
    talk(caller, picture_question("data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=="))
    opened = caller.get(messages(caller)[0]["images"][0]["url"])

    assert "application/octet-stream" == opened.content_type
    assert opened.headers["Content-Disposition"].startswith("attachment")


def test_external_image_stays_a_link(caller: Caller) -> None:
    talk(caller, picture_question("https://example.com/cat.png"))

    assert [{"url": "https://example.com/cat.png", "content_type": None}] == messages(caller)[0]["images"]


# Deleting


def test_deleting_session_erases_content_and_keeps_usage(caller: Caller) -> None:
    talk(caller, "a secret", reply="another secret")
    made = claim(caller, caller.post("/v1/jobs", {**IMAGE, "conversation": SESSION}).json["id"])
    usage = b'{"created":1,"data":[{"b64_json":"iVBORw0KGgo="}],"usage":{"input_tokens":3,"output_tokens":4}}'
    end(made, JobResult(Status.SUCCEEDED, http_status=200, response=usage), REFUSED)
    link = messages(caller)[3]["images"][0]["url"]
    gone = caller.send("DELETE", f"/v1/sessions/{SESSION}")

    assert {"id": SESSION, "object": "session.deleted", "deleted": True} == gone.json
    assert [404, 404, 404] == [
        caller.get(path).status_code for path in (f"/v1/sessions/{SESSION}", f"/v1/sessions/{SESSION}/messages", link)
    ]
    rows = query("SELECT request, response, transcript FROM job")
    assert {(b"", None, None)} == {(bytes(row.request), row.response, row.transcript) for row in rows}
    assert [] == query("SELECT id FROM artifact") == query("SELECT id FROM conversation")
    assert 2 == len(query("SELECT * FROM usage"))
    shown = caller.get(f"/v1/jobs/{wire.public_id(made.id)}").json
    assert ("succeeded", None, None, 2) == (shown["status"], shown["result"], shown["conversation"], len(query("SELECT id FROM job")))


def test_deleting_session_erases_raw_responses(caller: Caller) -> None:
    made = claim(caller, say(caller, "a secret"))
    end(made, JobResult(Status.FAILED, http_status=200, response=b"<html>a secret", response_type="text/html"), REFUSED)
    name = wire.public_id(made.id)
    assert 200 == caller.get(f"/v1/jobs/{name}/raw").status_code
    caller.send("DELETE", f"/v1/sessions/{SESSION}")

    assert (404, None) == (caller.get(f"/v1/jobs/{name}/raw").status_code, caller.get(f"/v1/jobs/{name}").json["result_raw"])
    assert [None] == [row.response for row in query("SELECT response FROM job")]


def test_deleted_session_name_is_reusable_without_history(caller: Caller) -> None:
    talk(caller, "one")
    caller.send("DELETE", f"/v1/sessions/{SESSION}")

    assert [user("two")] == talk(caller, "two")
    assert 404 == caller.send("DELETE", "/v1/sessions/unknown").status_code


def test_deleting_session_cancels_and_erases_open_jobs(caller: Caller) -> None:
    running = claim(caller, say(caller, "a secret"))
    waiting = say(caller, "one more")
    caller.send("DELETE", f"/v1/sessions/{SESSION}")

    assert "cancelled" == caller.get(f"/v1/jobs/{waiting}").json["status"]
    assert stored(running.id).cancel_requested
    answer(running, "too late")
    clean_up()
    assert (b"", None) == (bytes(stored(running.id).request), stored(running.id).response)
    assert [] == query("SELECT id FROM conversation")


def test_job_of_deleted_session_cannot_be_retried(caller: Caller) -> None:
    name = say(caller, "one")
    fail(claim(caller, name))
    caller.send("DELETE", f"/v1/sessions/{SESSION}")
    refused = caller.post(f"/v1/jobs/{name}/retry")

    assert (409, True) == (refused.status_code, "deleted with its session" in error_of(refused)["message"])


def test_retention_deletes_session_with_last_turn(caller: Caller) -> None:
    talk(caller, "one")
    talk(caller, "two", session="young")
    query("UPDATE conversation SET last_active_at = now() + interval '2 d' WHERE name = 'young'")
    query("UPDATE job SET ended_at = now() + interval '2 d' WHERE conversation_id = (SELECT max(id) FROM conversation)")
    clean_up(later_days=31)

    assert ["young"] == [row.name for row in query("SELECT name FROM conversation")]


# Whose it is


def test_sessions_of_other_keys_are_not_found(caller: Caller) -> None:
    stranger = Caller("sk-stranger", caller.app)
    talk(caller, "one")
    stranger.get("/v1/sessions")

    def asked(name: str) -> list[tuple[int, bytes]]:
        answers = [
            stranger.get(f"/v1/sessions/{name}"),
            stranger.get(f"/v1/sessions/{name}/messages"),
            patch(stranger, {"title": "mine"}, session=name),
            stranger.send("DELETE", f"/v1/sessions/{name}"),
            stranger.send("POST", f"/v1/sessions/{name}/attachments"),
            stranger.get(f"/v1/sessions?after={name}"),
        ]
        return [(one.status_code, one.data) for one in answers]

    assert {404} == {code for code, _ in asked(SESSION)}
    assert asked(SESSION) == asked("unknown") == asked("un%00known") == asked("%ff%0a")
    assert [] == stranger.get("/v1/sessions").json["data"]
    assert 1 == len(query("SELECT id FROM conversation"))
    assert [user("two")] == talk(stranger, "two")
    assert 2 == len(messages(caller)) == len(messages(stranger))


def test_missing_key_is_refused(caller: Caller) -> None:
    for path in ("", "/x", "/x/messages"):
        assert 401 == caller.get(f"/v1/sessions{path}", headers={"Authorization": ""}).status_code


def test_responses_match_document(caller: Caller) -> None:
    document = openapi.document()

    def check(name: str, value: object) -> None:
        jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]}).validate(value)

    row = claim(caller, say(caller, picture_question(f"data:image/png;base64,{PIXEL}")))
    fail(row)
    talk(caller, "one")
    check("Session", caller.get(f"/v1/sessions/{SESSION}").json)
    check("SessionList", caller.get("/v1/sessions").json)
    check("SessionMessageList", caller.get(f"/v1/sessions/{SESSION}/messages").json)
    check("SessionDeleted", caller.send("DELETE", f"/v1/sessions/{SESSION}").json)


def test_lost_turn_shows_error(caller: Caller) -> None:
    row = claim(caller, say(caller, "one"))
    end(
        row,
        JobResult(Status.FAILED, error={"message": "lost", "type": "server_error", "param": None, "code": "x"}),
        AttemptResult(Outcome.UNKNOWN),
    )

    assert ("failed", "lost") == (messages(caller)[1]["status"], messages(caller)[1]["error"]["message"])
    assert json.dumps(messages(caller))
