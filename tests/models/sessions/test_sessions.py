"""History window of a turn: the newest answered turns of its session since the last fresh start that fit, whole turns only."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from models.content import token_estimate
from models.content.image_placeholders import placeholder_for
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import wire
from models.queue import history_window
from tests.support.http_tools import IMAGE, Caller, error_of
from tests.support.queue_tools import query
from tests.support.session_tools import REFUSED, SESSION, answer, assistant, claim, end, fail, pass_time, say, sent, stored, talk, user

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Caller:
    return Caller()


def rule(caller: Caller, **rules: Any) -> None:
    """The session is made with these rules."""
    made = caller.post("/v1/sessions", {"id": SESSION, **rules})
    assert 201 == made.status_code, made.text


def status(caller: Caller, name: str) -> str:
    return str(caller.get(f"/v1/jobs/{name}").json["status"])


def test_each_turn_carries_the_turns_before_it(caller: Caller) -> None:
    assert [user("one")] == talk(caller, "one", reply="1")
    assert [user("one"), assistant("1"), user("two")] == talk(caller, "two", reply="2")
    assert [user("one"), assistant("1"), user("two"), assistant("2"), user("three")] == talk(caller, "three")


def test_turns_submitted_together_carry_the_answers_before_them(caller: Caller) -> None:
    first, second, third = (say(caller, text) for text in ("one", "two", "three"))
    for name, reply in ((first, "1"), (second, "2")):
        answer(claim(caller, name), reply)

    assert [user("one"), assistant("1"), user("two"), assistant("2"), user("three")] == sent(claim(caller, third))


def test_first_turn_is_sent_and_stored_byte_for_byte(caller: Caller) -> None:
    first = claim(caller, say(caller, "one"))
    answer(first, "1")
    second = claim(caller, say(caller, "two"))

    assert bytes(stored(first.id).request) == bytes(first.request)
    assert [user("two")] == json.loads(bytes(stored(second.id).request))["messages"]


def test_sessions_of_two_names_and_of_two_keys_know_nothing_of_each_other(caller: Caller) -> None:
    talk(caller, "one")

    assert [user("two")] == talk(caller, "two", session="coffee")
    assert [user("three")] == talk(Caller("sk-other", caller.app), "three")


def test_openai_route_remembers_and_sends_no_session_fields(caller: Caller) -> None:
    talk(caller, "one", reply="1")
    body = {"model": "m", "messages": [user("two")], "nowserving": {"conversation": SESSION}, "stream": True}
    made = caller.post("/v1/chat/completions", body, headers={"Prefer": "respond-async"})
    row = claim(caller, made.json["id"])

    assert row.streamed
    assert [user("one"), assistant("1"), user("two")] == sent(row)
    assert {"model", "messages", "stream"} == set(json.loads(row.request))


def test_history_sends_only_fields_that_the_upstream_accepts(caller: Caller) -> None:
    talk(caller, "one", reply={"role": "assistant", "content": "1", "refusal": None, "annotations": [], "audio": None, "reasoning": "…"})
    talk(caller, "two", reply={"role": "assistant", "content": None, "refusal": "I must not."})

    assert [assistant("1"), assistant("I must not.")] == [one for one in talk(caller, "three") if one["role"] == "assistant"]


# Failed turns


def test_a_failed_turn_is_kept_and_marked_and_the_next_one_runs_without_it(caller: Caller) -> None:
    talk(caller, "one", reply="1")
    failed, after = say(caller, "bad"), say(caller, "two")
    fail(claim(caller, failed))

    assert [user("one"), assistant("1"), user("two")] == sent(claim(caller, after))
    shown = caller.get(f"/v1/sessions/{SESSION}/messages?order=asc").json["data"]
    assert [("bad", "failed"), (None, "failed")] == [(one["text"], one["status"]) for one in shown[2:4]]
    assert "bad" == shown[3]["error"]["code"]


@pytest.mark.parametrize("how", ["cancelled", "lost"])
def test_turn_without_an_answer_is_left_out_of_the_history(caller: Caller, how: str) -> None:
    row = claim(caller, say(caller, "one"))
    outcome = Outcome.CANCELLED if how == "cancelled" else Outcome.UNKNOWN
    end(row, JobResult(Status.CANCELLED if how == "cancelled" else Status.FAILED), AttemptResult(outcome))

    assert [user("two")] == talk(caller, "two")


def test_where_it_is_wanted_a_failed_turn_stops_those_behind_it(caller: Caller) -> None:
    rule(caller, on_failed_turn="stop")
    first, second, third = (say(caller, text) for text in ("one", "two", "three"))
    fail(claim(caller, first))

    assert ["failed", "cancelled", "cancelled"] == [status(caller, name) for name in (first, second, third)]
    assert "earlier_turn_failed" == caller.get(f"/v1/jobs/{third}").json["error"]["code"]
    assert ["job.queued", "job.cancelled"] == [
        one.type for one in query("SELECT type FROM job_event WHERE job_id = :id ORDER BY seq", id=wire.parse_id(third))
    ]
    assert [user("four")] == talk(caller, "four")


def test_cancelled_turn_stops_no_later_turn(caller: Caller) -> None:
    rule(caller, on_failed_turn="stop")
    first, second = say(caller, "one"), say(caller, "two")
    caller.post(f"/v1/jobs/{first}/cancel")

    assert [user("two")] == sent(claim(caller, second))


def test_stopped_turn_is_sent_to_its_webhook(caller: Caller) -> None:
    rule(caller, on_failed_turn="stop")
    first, second = say(caller, "one"), say(caller, "two", webhook_url="https://example.com/hook")
    fail(claim(caller, first))

    assert [(wire.parse_id(second), "job.cancelled")] == [(one.job_id, one.event_type) for one in query("SELECT * FROM delivery")]


# Fresh starts


def test_after_half_an_hour_of_silence_a_session_begins_afresh_and_its_history_stays_readable(caller: Caller) -> None:
    talk(caller, "one", reply="1")
    pass_time(29)
    assert 3 == len(talk(caller, "two", reply="2"))
    pass_time(31)

    assert [user("three")] == talk(caller, "three", reply="3")
    assert [user("three"), assistant("3"), user("four")] == talk(caller, "four")
    shown = caller.get(f"/v1/sessions/{SESSION}/messages?order=asc").json["data"]
    assert ["one", "1", "two", "2", "three", "3", "four", "yes"] == [one["text"] for one in shown]
    assert [False, False, True, False] == [one["starts_afresh"] for one in shown if one["role"] == "user"]


def test_the_silence_begins_with_the_answer_not_with_the_question(caller: Caller) -> None:
    row = claim(caller, say(caller, "one"))
    pass_time(31)
    answer(row, "1")

    assert 3 == len(talk(caller, "two"))


def test_long_wait_does_not_count_as_silence(caller: Caller) -> None:
    first, second = say(caller, "one"), say(caller, "two")
    pass_time(45)
    answer(claim(caller, first), "1")

    assert 3 == len(sent(claim(caller, second)))


def test_a_turn_that_was_cancelled_in_line_breaks_no_stretch(caller: Caller) -> None:
    talk(caller, "one")
    row, held = claim(caller, say(caller, "two")), say(caller, "never")
    caller.post(f"/v1/jobs/{held}/cancel")
    answer(row, "2")

    assert 5 == len(talk(caller, "three"))


@pytest.mark.parametrize(("fresh_after_s", "minutes", "remembers"), [(0, 100_000, True), (60, 2, False), (7_200, 100, True)])
def test_how_long_a_silence_may_be_is_the_sessions_own(caller: Caller, fresh_after_s: int, minutes: int, remembers: bool) -> None:
    rule(caller, fresh_after_s=fresh_after_s)
    talk(caller, "one")
    pass_time(minutes)

    assert remembers == (3 == len(talk(caller, "two")))


def test_expiry_follows_its_setting(caller: Caller, override: Callable[..., None]) -> None:
    override(session_fresh_after_s=60)
    talk(caller, "one")
    pass_time(2)

    assert [user("two")] == talk(caller, "two")


# Instructions


def test_a_system_prompt_goes_before_everything(caller: Caller, override: Callable[..., None]) -> None:
    override(session_system_prompt="of the operator")
    system = {"role": "system", "content": "of the operator"}
    assert [system, user("one")] == talk(caller, "one", reply="1")
    caller.send("PATCH", f"/v1/sessions/{SESSION}", json={"system_prompt": "of tea"})
    assert [{**system, "content": "of tea"}, user("one"), assistant("1"), user("two")] == talk(caller, "two")
    caller.send("PATCH", f"/v1/sessions/{SESSION}", json={"system_prompt": ""})
    assert user("one") == talk(caller, "three")[0]


def test_a_turns_own_instructions_are_for_it_alone(caller: Caller) -> None:
    rule(caller, system_prompt="of tea")
    own = {"role": "developer", "content": "Shout."}
    assert [own, user("one")] == talk(caller, own, "one", reply="1")
    assert [{"role": "system", "content": "of tea"}, user("one"), assistant("1"), user("two")] == talk(caller, "two")


# The budget


def test_the_oldest_turns_are_left_out_whole(caller: Caller) -> None:
    rule(caller, context_tokens=90)
    for n in range(3):
        talk(caller, f"{n}" * 60, reply=f"{n}" * 60)  # 50 tokens each

    messages = talk(caller, "and now")
    assert ["2" * 60, "2" * 60, "and now"] == [one["content"] for one in messages]


def test_a_session_of_200_turns_never_exceeds_its_budget(caller: Caller, override: Callable[..., None]) -> None:
    override(session_context_tokens=600)
    seen, widest = [], 0
    for n in range(200):
        row = claim(caller, say(caller, f"{n} " + "word " * (n % 40), session="long"))
        messages = sent(row)
        answer(row, f"{n} " + "reply " * (n % 25))
        going = token_estimate.estimate_messages(messages)
        widest = max(widest, going)
        seen.append(going)
        assert going <= 600
        assert stored(row.id).tokens >= going + 10, "what goes out was reserved"

    assert 200 == len(seen)
    assert 500 < widest, "and the budget is used"


def test_a_question_that_fills_the_budget_alone_goes_out_alone(caller: Caller) -> None:
    rule(caller, context_tokens=100)
    talk(caller, "one")

    assert ["x" * 4_000] == [one["content"] for one in talk(caller, "x" * 4_000)]
    assert [user("two")] == talk(caller, "two"), "what does not fit hides what was before it"
    assert [user("two"), assistant("yes"), user("three")] == talk(caller, "three")


def test_a_system_prompts_tokens_are_stored_with_it_and_reserved(caller: Caller) -> None:
    chinese = "请用中文回答。" * 20
    rule(caller, system_prompt="of tea")
    caller.send("PATCH", f"/v1/sessions/{SESSION}", json={"system_prompt": chinese})

    (kept,) = query("SELECT system_prompt_tokens FROM conversation")
    row = claim(caller, say(caller, "one"))
    assert history_window.prompt_tokens(chinese) == kept.system_prompt_tokens == row.history_tokens > 100


def test_a_system_prompt_of_an_earlier_version_is_reserved_too(caller: Caller) -> None:
    rule(caller, system_prompt="of tea " * 50)
    query("UPDATE conversation SET system_prompt_tokens = NULL")

    row = claim(caller, say(caller, "one"))
    assert history_window.prompt_tokens("of tea " * 50) <= row.history_tokens
    assert 2 == len(sent(row))


def test_turn_reserves_its_history(caller: Caller) -> None:
    first, second = say(caller, "one"), say(caller, "two")
    alone = stored(wire.parse_id(second)).tokens
    row = claim(caller, first)
    answer(row, "1" * 400)
    shown = stored(wire.parse_id(second))

    assert alone + token_estimate.estimate_messages([user("one"), assistant("1" * 400)]) == shown.tokens


def test_a_history_fits_the_keys_tokens_per_minute(caller: Caller) -> None:
    talk(caller, "one", reply="1" * 4_000)
    query("INSERT INTO meter (credential_id, model, tpm) SELECT id, '*', 1000 FROM credential")
    row = claim(caller, say(caller, "two"))

    assert [user("two")] == sent(row)
    assert 1_000 >= row.tokens


def test_history_shrinks_after_a_context_length_error(caller: Caller) -> None:
    for n in range(8):
        talk(caller, f"{n}" * 200, reply=f"{n}" * 200)
    row = claim(caller, say(caller, "too long"))
    fail(row, code="context_length_exceeded")
    shorter = sent(claim(caller, say(caller, "again")))

    assert 17 == len(sent(row))
    assert 3 <= len(shorter) <= 9
    assert user("again") == shorter[-1]


def test_a_turn_too_long_by_itself_shortens_nothing(caller: Caller) -> None:
    fail(claim(caller, say(caller, "too long")), code="context_length_exceeded")
    talk(caller, "one")

    assert 3 == len(talk(caller, "two"))


def test_a_turn_tried_again_reserves_once(caller: Caller) -> None:
    talk(caller, "one", reply="1" * 100)
    row = claim(caller, say(caller, "two"))
    fail(row)
    again = caller.post(f"/v1/jobs/{wire.public_id(row.id)}/retry").json["id"]

    assert row.tokens == stored(wire.parse_id(again)).tokens
    assert [user("one"), assistant("1" * 100), user("two")] == sent(claim(caller, again))


# Contents of messages


CHINESE = "你好、世界。" * 166 + "排队等候"


@pytest.mark.parametrize(
    "result",
    [CHINESE, "👨‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u202eright to left", '\t\n "quoted" \\ back', "क्षत्रिय ภาษาไทย עברית"],
    ids=["chinese", "emoji", "signs", "scripts"],
)
def test_every_script_comes_back_as_it_was(caller: Caller, result: str) -> None:
    talk(caller, result, reply=result, session="会话🍵")

    assert [user(result), assistant(result), user(result)] == talk(caller, result, session="会话🍵")
    shown = caller.get("/v1/sessions/会话🍵/messages?order=asc").json["data"]
    assert [result, result] == [one["text"] for one in shown[:2]]


def test_estimate_of_chinese_text_is_close_to_its_tokens() -> None:
    assert 1_000 == len(CHINESE)
    assert 700 <= token_estimate.estimate_messages([user(CHINESE)]) <= 1_100


def test_half_a_surrogate_pair_in_an_answer_breaks_no_later_turn(caller: Caller) -> None:
    row = claim(caller, say(caller, "one"))
    body = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"\\ud83d cut \\u0000"},"finish_reason":"stop"}]}'
    end(row, JobResult(Status.SUCCEEDED, http_status=200, response=body), REFUSED)

    assert "\ud83d cut \0" == talk(caller, "two")[1]["content"]
    assert 200 == caller.get(f"/v1/sessions/{SESSION}/messages").status_code


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"choices":[]}', b'{"choices":[{"message":7}]}', b'{"choices":{"a":1}}'])
def test_an_answer_that_makes_no_sense_breaks_no_later_turn(caller: Caller, body: bytes) -> None:
    end(claim(caller, say(caller, "one")), JobResult(Status.SUCCEEDED, http_status=200, response=body), REFUSED)

    assert [user("one"), user("two")] == talk(caller, "two")
    assert 200 == caller.get(f"/v1/sessions/{SESSION}").status_code
    assert 200 == caller.get(f"/v1/sessions/{SESSION}/messages").status_code


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "42"}


def test_tool_call_and_its_result_stay_together_in_the_history(caller: Caller) -> None:
    talk(caller, "one", reply=CALL)
    talk(caller, RESULT, reply="It is 42.")

    assert [user("one"), CALL, RESULT, assistant("It is 42."), user("two")] == talk(caller, "two")


def test_a_call_whose_result_failed_is_forgotten_with_it(caller: Caller) -> None:
    talk(caller, "zero", reply="0")
    talk(caller, "one", reply=CALL)
    fail(claim(caller, say(caller, RESULT)))

    assert [user("zero"), assistant("0"), user("two")] == talk(caller, "two")


def test_a_result_whose_call_did_not_fit_is_forgotten_with_it(caller: Caller) -> None:
    rule(caller, context_tokens=100)
    talk(caller, "x" * 400, reply=CALL)
    talk(caller, RESULT, reply="It is 42.")

    assert [user("two")] == talk(caller, "two")


def test_requested_image_appears_in_the_history_as_its_prompt(caller: Caller) -> None:
    talk(caller, "one", reply="1")
    made = caller.post("/v1/jobs", {**IMAGE, "conversation": SESSION}).json["id"]
    row = claim(caller, made)
    assert "a cat" == json.loads(row.request)["prompt"]
    end(row, JobResult(Status.SUCCEEDED, http_status=200, response=b'{"created":1,"data":[{"b64_json":"iVBORw0KGgo="}]}'), REFUSED)
    messages = talk(caller, "two")
    shown = caller.get(f"/v1/sessions/{SESSION}/messages?order=asc").json["data"]

    assert [user("one"), assistant("1"), user("a cat"), user("two")] == messages
    assert ("a cat", None, "image/png") == (shown[2]["text"], shown[3]["text"], shown[3]["images"][0]["content_type"])
    assert b"\x89PNG\r\n\x1a\n" == caller.get(shown[3]["images"][0]["url"]).data
    assert placeholder_for(wire.parse_id(made)) not in json.dumps(shown)


def test_other_requests_keep_their_position(caller: Caller) -> None:
    caller.submit(endpoint="/v1/embeddings", body={"model": "e", "input": "words"}, conversation=SESSION)
    job = claim(caller, caller.get("/v1/jobs").json["data"][0]["id"])
    waiting = say(caller, "one")
    assert "conversation" == caller.get(f"/v1/jobs/{waiting}").json["queue"]["blocked_by"]
    end(job, JobResult(Status.SUCCEEDED, http_status=200, response=b'{"data":[]}'), REFUSED)

    assert [user("one")] == sent(claim(caller, waiting))


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a\\b", ".", "..", "two\nlines", 7, ["a"], {"a": 1}])
def test_an_id_that_makes_no_sense_is_refused_and_nothing_is_stored(caller: Caller, name: Any) -> None:
    body = {"model": "m", "messages": [user("one")]}
    at_jobs = caller.post("/v1/jobs", {"endpoint": "/v1/chat/completions", "body": body, "conversation": name})
    inside = caller.post("/v1/chat/completions", {**body, "nowserving": {"conversation": name}})
    made = caller.post("/v1/sessions", {"id": name})

    assert [(400, "conversation"), (400, "nowserving.conversation"), (400, "id")] == [
        (one.status_code, error_of(one)["param"]) for one in (at_jobs, inside, made)
    ]
    assert [] == query("SELECT id FROM job") == query("SELECT id FROM conversation")


def test_an_id_of_64_characters_is_taken(caller: Caller) -> None:
    assert [user("one")] == talk(caller, "one", session="会" * 64)
    assert 200 == caller.get(f"/v1/sessions/{'会' * 64}").status_code
