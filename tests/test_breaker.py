"""What a hostile tester found: one test for each fault."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import redis

from tests.line_tools import query, row, submit
from tests.raw_server import RawServer
from tests.upstream.client import FakeUpstream, upstream
from tests.breaker_server import Odd, chat, error
from tests.workshop import Workshop, ask, issue, pool_of

__all__ = ["upstream"]
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def workshop(redis_client: redis.Redis, upstream: FakeUpstream, override: Callable[..., None]) -> Workshop:
    override(pause_s=0.05, pause_most_s=0.5, retry_base_s=0.02, max_throttles=5, probe_s=0.3)
    return Workshop(redis_client, upstream)


def ended(*jobs: object) -> Callable[[], bool]:
    return lambda: all(row(one).status in ("succeeded", "failed") for one in jobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [r"\ud800", r"\u0000"])
def test_metadata_that_cannot_be_stored_loses_no_paid_answer(workshop: Workshop, upstream: FakeUpstream, said: str) -> None:
    caller, _ = pool_of(upstream, "sk-store")
    body = '{"model":"m","store":true,"metadata":{"a":"%s"},"messages":[{"role":"user","content":"hi"}]}' % said
    job = submit(caller, request=body.encode())
    workshop.run(ended(job))

    assert ("succeeded", 1) == (row(job).status, row(job).calls)


@pytest.mark.parametrize("fault", ["status=500", "status=502", "kind=garbage"])
def test_a_key_that_fails_is_not_asked_again_beside_a_good_one(workshop: Workshop, upstream: FakeUpstream, fault: str) -> None:
    caller, _ = pool_of(upstream, "sk-five-a", "sk-five-b")
    upstream.behave("sk-five-a", status=500)
    jobs = [ask(caller, f"any {n}") for n in range(3)]
    workshop.run(ended(*jobs))

    assert ["succeeded"] * 3 == [row(one).status for one in jobs]


def test_a_key_that_cannot_be_reached_is_not_asked_again_beside_a_good_one(workshop: Workshop, upstream: FakeUpstream) -> None:
    caller, (first, _) = pool_of(upstream, "sk-dns-a", "sk-dns-b")
    query("UPDATE credential SET base_url = 'http://127.0.0.1:9/v1' WHERE id = :id", id=first)
    jobs = [ask(caller, f"any {n}") for n in range(3)]
    workshop.run(ended(*jobs))

    assert ["succeeded"] * 3 == [row(one).status for one in jobs]


def test_a_job_that_one_key_always_throttles_goes_to_the_other(workshop: Workshop, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-thr-a", "sk-thr-b")
    upstream.behave("sk-thr-a", status=429, kind="rate_no_retry_after")
    jobs = [ask(caller, f"any {n}") for n in range(3)]
    workshop.run(ended(*jobs))

    assert ["succeeded"] * 3 == [row(one).status for one in jobs]


@pytest.fixture
def odd(request: pytest.FixtureRequest):
    made = []

    def make(answer):
        made.append(Odd(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_request_too_large_for_one_key_goes_to_a_larger_one(workshop: Workshop, odd) -> None:
    words = "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 50000."
    there = odd(lambda key, *_: (429, {}, error(words, code="rate_limit_exceeded")) if key == "sk-large-a" else (200, {}, chat()))
    caller, _ = pool_of(there, "sk-large-a", "sk-large-b")
    job = ask(caller, "large")
    workshop.run(ended(job))

    assert "succeeded" == row(job).status


@pytest.mark.parametrize("status, code", [(401, "mismatched_organization"), (401, "invalid_organization"), (429, "project_spend_limit_exceeded")])
def test_a_wrong_organization_header_fails_its_own_job_alone(workshop: Workshop, odd, status: int, code: str) -> None:
    def answer(key, path, body, headers):
        if any(n.lower() == "openai-organization" for n in headers):
            return status, {}, error("OpenAI-Organization header should match organization for API key", code=code)
        return 200, {}, chat()

    there = odd(answer)
    caller, _ = pool_of(there, "sk-org")
    wrong = ask(caller, "wrong", headers={"openai-organization": "org-wrong"})
    good = [ask(caller, f"good {n}") for n in range(3)]
    workshop.run(ended(wrong, *good))

    assert "failed" == row(wrong).status
    assert ["succeeded"] * 3 == [row(one).status for one in good]


def test_a_key_mended_meanwhile_is_tried_before_a_job_fails(workshop: Workshop, odd) -> None:
    state = {"mended": False, "first": 0}

    def answer(key, path, body, headers):
        if key == "sk-m-a":
            if state["mended"]:
                return 200, {}, chat()
            return 429, {}, error("You exceeded your current quota", code="insufficient_quota", type="insufficient_quota")
        state["mended"] = True
        query("UPDATE credential SET parked_at = NULL, parked_reason = NULL WHERE id = :id", id=state["first"])
        return 404, {}, error("The model `m` does not exist", code="model_not_found")

    there = odd(answer)
    caller, (first, _) = pool_of(there, "sk-m-a", "sk-m-b")
    issue(caller)
    state["first"] = first
    job = ask(caller, "any")
    workshop.run(ended(job))

    assert "succeeded" == row(job).status, row(job).error


def test_a_probe_that_nobody_answered_confirms_no_learned_limit(workshop: Workshop, odd) -> None:
    state = {"n": 0}

    def answer(key, path, body, headers):
        if b"large" in body:
            state["n"] += 1
            if state["n"] == 1:
                return 500, {}, error("The server had an error")
        return 200, {"x-ratelimit-limit-tokens": "30000" if b"small" in body else "900000", "x-ratelimit-remaining-tokens": "29000"}, chat()

    there = odd(answer)
    caller, _ = pool_of(there, "sk-limit")
    small = ask(caller, "small")
    workshop.run(ended(small))
    large = [ask(caller, f"large {n}", tokens=50_000) for n in range(2)]
    workshop.run(lambda: any(row(one).status in ("succeeded", "failed") for one in large))

    assert not [row(one).error for one in large if row(one).status == "failed"]


@pytest.mark.parametrize("said", [{"error": True, "message": "the model is overloaded"}, {"error": 503, "message": "busy"}])
def test_an_error_that_is_no_object_is_no_success(workshop: Workshop, odd, said) -> None:
    there = odd(lambda *_: (200, {}, json.dumps(said).encode()))
    caller, _ = pool_of(there, "sk-true")
    job = ask(caller, "any", max_attempts=1)
    workshop.run(ended(job))

    assert "failed" == row(job).status


ODD_ANSWERS = {
    "model surrogate": chat(model="\ud800").decode(),
    "id surrogate": chat(id="\ud800"),
    "content surrogate": chat("\ud800\x00"),
    "role odd": chat(choices=[{"index": 0, "message": {"role": 5, "content": [1, None, {"text": 7}, {"type": "image_url", "image_url": 5}], "tool_calls": "x", "name": 3}, "finish_reason": 4}]),
    "picture odd": chat(choices=[{"index": 0, "message": {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAAAAAAAAACwAAAAAAAAAAAAA"}}]}, "finish_reason": 4}], usage={}),
    "choices odd": chat(choices=[None, 3, [], {"message": None}]),
    "choices object": chat(choices={"0": 1}),
    "usage list": chat(usage=[1]),
    "usage odd": chat(usage={"prompt_tokens": "1e999", "completion_tokens": "-1", "total_tokens": True}),
    "usage huge": chat(usage={"prompt_tokens": 10**300, "completion_tokens": 1.5e300, "total_tokens": "9" * 20}),
    "data odd": json.dumps({"created": None, "data": [None, 5, {"b64_json": 5}, {"b64_json": "%%%"}, {"b64_json": ""}], "usage": 5}).encode(),
    "deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "deep content": b'{"id":"x","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"x","tool_calls":' + b"[" * 900 + b"]" * 900 + b"}}]}",
    "deep 480": b'{"id":"x","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"x","tool_calls":' + b"[" * 480 + b"]" * 480 + b"}}]}",
    "nan": b'{"id":"x","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"x","logprob":NaN}}],"usage":{"prompt_tokens":NaN}}',
    "inf": b'{"id":"x","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"x","logprob":1e999}}],"usage":{"prompt_tokens":1e999}}',
    "long number": b'{"id":"x","n":' + b"9" * 5000 + b',"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"x"}}]}',
    "escaped nul name": chat(**{"\x00": 1}),
}


def as_stream(answer: bytes) -> bytes:
    try:
        said = json.loads(answer)
    except ValueError:
        said = {}
    out = b""
    for c in said.get("choices") if isinstance(said.get("choices"), list) else []:
        chunk = {**said, "choices": [{**c, "delta": c.get("message")} if isinstance(c, dict) else c]}
        out += b"data: " + json.dumps(chunk).encode() + b"\n\n"
    return out + b"data: [DONE]\n\n"


@pytest.mark.parametrize("shape", ["plain", "streamed", "sse"])
@pytest.mark.parametrize("more", ["", "store", "turn"])
@pytest.mark.parametrize("name", ODD_ANSWERS)
def test_no_odd_answer_is_bought_twice(workshop: Workshop, odd, name: str, more: str, shape: str) -> None:
    said = ODD_ANSWERS[name]
    said = said.encode() if isinstance(said, str) else said
    try:
        body = said if shape == "plain" else as_stream(said)
    except RecursionError:
        pytest.skip("deep")
    there = odd(lambda *_: (200, {"content-type": "text/event-stream" if shape != "plain" else "application/json"}, body))
    caller, _ = pool_of(there, "sk-odd")
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    if more == "store":
        request["store"] = True
    if shape == "streamed":
        request["stream"] = True
    wanted = {"conversation": "talk"} if more == "turn" else {}
    job = submit(caller, request=json.dumps(request).encode(), streamed=shape == "streamed", **wanted)
    workshop.run(ended(job))

    assert 1 == row(job).calls == len(there.calls), row(job).error
    from models import db, view
    with db.begin() as session:
        view.show(session, view.find(session, job, caller.id))


def test_a_deployment_may_have_a_slash_in_its_name(redis_client: redis.Redis) -> None:
    from tests.http_tools import Caller

    caller = Caller()
    for name in ("meta-llama/Llama-3", "meta-llama%2FLlama-3"):
        made = caller.post(f"/openai/deployments/{name}/chat/completions?api-version=1", {"messages": []}, headers={"Prefer": "respond-async"})
        assert (202, "meta-llama/Llama-3") == (made.status_code, made.json["model"])


@pytest.mark.parametrize("charset", ["idna", "punycode", "raw-unicode-escape", "unicode_escape", "utf-7", "undefined", "base64"])
@pytest.mark.parametrize("body", [b"{\xff}", b'{"a":"\\ud800\xff"}', b'{"a":"+2AA-\xff"}', b"{" + b"\xff.a." * 90 + b"}"])
def test_no_label_of_a_charset_breaks_the_reader(charset: str, body: bytes) -> None:
    from workers import answer_body

    answer_body.decode(body, f"text/plain; charset={charset}").encode()


def test_an_empty_message_beside_the_deltas_empties_no_answer() -> None:
    from workers.assembly import Chat

    chat_ = Chat(n=1)
    chat_.add({"choices": [{"index": 0, "delta": {"content": "a"}, "message": {}}]})
    chat_.add({"choices": [{"index": 0, "delta": {"content": "b"}, "message": {}, "finish_reason": "stop"}]})
    assert "ab" == chat_.answer()["choices"][0]["message"]["content"]


def events(*said: object) -> bytes:
    return b"".join(b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n" for each in said)


@pytest.mark.parametrize("tail", [events({"error": {"message": "boom", "code": 500}}), events(b"{oops"), b""], ids=["error", "garbage", "cut"])
def test_a_stream_that_ends_badly_after_its_reader_had_it_is_charged(workshop: Workshop, tail: bytes) -> None:
    said = {"id": "c", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
    there = RawServer([b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", events(*[said] * 500), events(*[said] * 500), tail])
    caller, _ = pool_of(there, "sk-mid")  # type: ignore[arg-type]
    body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    job = submit(caller, request=json.dumps(body).encode(), streamed=True, model="gpt-4o", reserved_microusd=5000)
    workshop.run(ended(job))
    there.close()

    assert ("failed", 1) == (row(job).status, row(job).calls)
    assert [("unknown", -5000)] == [(one.kind, one.amount_microusd) for one in query("SELECT * FROM ledger WHERE job_id = :id", id=job)]


def test_ids_that_an_upstream_gave_twice_end_no_page_early(redis_client: redis.Redis) -> None:
    from tests.http_tools import Caller
    from tests.test_stored_completions import store

    caller = Caller()
    for name in ("c-0", "c-1", "c-2", "c-3", "c-1"):
        store(caller, name)
    for order in ("asc", "desc"):
        seen: list[str] = []
        for _ in range(6):
            after = f"&after={seen[-1]}" if seen else ""
            page = caller.get(f"/v1/chat/completions?limit=1&order={order}{after}").json
            seen += [one["id"] for one in page["data"]]
            if not page["has_more"]:
                break
        assert sorted(seen) == ["c-0", "c-1", "c-2", "c-3"]
