"""Unusual refusals, errors and answers of upstreams: no answer is paid for twice, and other jobs are not affected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from models.database import db
from models.jobs import job_rows, job_view
from tests.api.stored.test_views import store
from tests.support.http_tools import Caller
from tests.support.programs.in_process import InProcessStack, ask, mark_issued, pool_of
from tests.support.queue_tools import query, row, submit
from tests.support.servers.odd_upstream import Answer, Call, OddUpstream, RawUpstream, chat, error, events
from tests.upstream.client import FakeUpstream, upstream
from workers.answers.chat_chunks import ChatAccumulator
from workers.upstream import answer_body

__all__ = ["upstream"]
pytestmark = pytest.mark.usefixtures("database")
Make = Callable[[Callable[[Call], Answer]], OddUpstream]


@pytest.fixture
def workshop(redis_client: redis.Redis, upstream: FakeUpstream, override: Callable[..., None]) -> InProcessStack:
    override(pause_s=0.05, pause_most_s=0.5, retry_base_s=0.02, max_throttles=5, probe_s=0.3)
    return InProcessStack(redis_client, upstream)


@pytest.fixture
def odd() -> Iterator[Make]:
    started: list[OddUpstream] = []

    def make(answer: Callable[[Call], Answer]) -> OddUpstream:
        started.append(OddUpstream(answer))
        return started[-1]

    yield make
    for server in started:
        server.close()


def ended(*jobs: object) -> Callable[[], bool]:
    return lambda: all(row(job_id).status in ("succeeded", "failed") for job_id in jobs)  # type: ignore[arg-type]  # ids


# A failing key beside a good one


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 429, "kind": "rate_no_retry_after"}], ids=["fails", "throttles"])
def test_failing_key_is_not_retried_beside_a_good_one(workshop: InProcessStack, upstream: FakeUpstream, how: dict[str, Any]) -> None:
    caller, _ = pool_of(upstream, "sk-fails", "sk-good")
    upstream.behave("sk-fails", **how)
    jobs = [ask(caller, f"any {n}") for n in range(3)]
    workshop.run(ended(*jobs))

    assert ["succeeded"] * 3 == [row(job_id).status for job_id in jobs]


def test_unreachable_key_is_not_retried_beside_a_good_one(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, (first, _) = pool_of(upstream, "sk-away", "sk-good")
    query("UPDATE credential SET base_url = 'http://127.0.0.1:9/v1' WHERE id = :id", id=first)
    jobs = [ask(caller, f"any {n}") for n in range(3)]
    workshop.run(ended(*jobs))

    assert ["succeeded"] * 3 == [row(job_id).status for job_id in jobs]


def test_a_request_too_large_for_one_key_goes_to_a_larger_one(workshop: InProcessStack, odd: Make) -> None:
    message = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 50000."
    server = odd(lambda call: (429, {}, error(message, code="rate_limit_exceeded")) if call.key == "sk-small" else (200, {}, chat()))
    caller, _ = pool_of(server, "sk-small", "sk-large")
    job = ask(caller, "large")
    workshop.run(ended(job))

    assert "succeeded" == row(job).status


@pytest.mark.parametrize(("status", "code"), [(401, "mismatched_organization"), (429, "project_spend_limit_exceeded")])
def test_a_wrong_organization_header_fails_its_own_job_alone(workshop: InProcessStack, odd: Make, status: int, code: str) -> None:
    server = odd(
        lambda call: (status, {}, error("No such organization", code=code)) if "openai-organization" in call.headers else (200, {}, chat())
    )
    caller, _ = pool_of(server, "sk-org")
    wrong = ask(caller, "wrong", headers={"openai-organization": "org-wrong"})
    good = [ask(caller, f"good {n}") for n in range(3)]
    workshop.run(ended(wrong, *good))

    assert "failed" == row(wrong).status
    assert ["succeeded"] * 3 == [row(job_id).status for job_id in good]


def test_recovered_key_is_tried_before_a_job_fails(workshop: InProcessStack, odd: Make) -> None:
    recovered: list[int] = []

    def answer(call: Call) -> Answer:
        if call.key == "sk-poor":
            quota = error("You exceeded your current quota", code="insufficient_quota", type="insufficient_quota")
            return (200, {}, chat()) if recovered else (429, {}, quota)
        recovered.append(first)
        query("UPDATE credential SET parked_at = NULL, parked_reason = NULL WHERE id = :id", id=first)
        return 404, {}, error("The model `m` does not exist", code="model_not_found")

    caller, (first, _) = pool_of(odd(answer), "sk-poor", "sk-without")
    mark_issued(caller)
    job = ask(caller, "any")
    workshop.run(ended(job))

    assert "succeeded" == row(job).status


def test_failed_probe_confirms_no_learned_limit(workshop: InProcessStack, odd: Make) -> None:
    tries: list[bytes] = []

    def answer(call: Call) -> Answer:
        if b"large" in call.body and not tries:
            tries.append(call.body)
            return 500, {}, error("The server had an error")
        limit = "30000" if b"small" in call.body else "900000"
        return 200, {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": "29000"}, chat()

    caller, _ = pool_of(odd(answer), "sk-limit")
    small = ask(caller, "small")
    workshop.run(ended(small))
    large = [ask(caller, f"large {n}", tokens=50_000) for n in range(2)]
    workshop.run(lambda: any(row(job_id).status in ("succeeded", "failed") for job_id in large))

    assert not [row(job_id).error for job_id in large if row(job_id).status == "failed"]


# Answers


@pytest.mark.parametrize("value", [{"error": True, "message": "the model is overloaded"}, {"error": 503, "message": "busy"}])
def test_error_that_is_no_object_fails_the_job(workshop: InProcessStack, odd: Make, value: dict[str, Any]) -> None:
    caller, _ = pool_of(odd(lambda _: (200, {}, json.dumps(value).encode())), "sk-true")
    job = ask(caller, "any", max_attempts=1)
    workshop.run(ended(job))

    assert "failed" == row(job).status


@pytest.mark.parametrize("value", [r"\ud800", r"\u0000"])
def test_answer_is_kept_when_its_metadata_cannot_be_stored(workshop: InProcessStack, upstream: FakeUpstream, value: str) -> None:
    caller, _ = pool_of(upstream, "sk-store")
    body = f'{{"model":"m","store":true,"metadata":{{"a":"{value}"}},"messages":[{{"role":"user","content":"hi"}}]}}'
    job = submit(caller, request=body.encode())
    workshop.run(ended(job))

    assert ("succeeded", 1) == (row(job).status, row(job).calls)


def deep(levels: int) -> bytes:
    """An answer whose tool calls are nested this deep."""
    return chat().replace(b'"content"', b'"tool_calls": ' + b"[" * levels + b"]" * levels + b', "content"')


UNUSUAL_ANSWERS = {
    "surrogates": chat("\ud800\x00", model="\ud800", id="\ud800"),
    "odd message": chat(
        choices=[{"index": 0, "message": {"role": 5, "content": [1, None], "tool_calls": "x", "name": 3}, "finish_reason": 4}]
    ),
    "odd choices": chat(choices=[None, 3, [], {"message": None}]),
    "odd usage": chat(usage={"prompt_tokens": 10**300, "completion_tokens": "1e999", "total_tokens": True}),
    "odd pictures": json.dumps({"created": None, "data": [None, 5, {"b64_json": "%%%"}], "usage": 5}).encode(),
    "not a number": chat().replace(b'"created": 1', b'"created": NaN'),
    "nested 480 levels": deep(480),
    "nested 900 levels": deep(900),
}


def as_events(answer: bytes) -> bytes:
    """The answer as the only chunk of a stream."""
    return events(answer.replace(b'"message"', b'"delta"'), b"[DONE]")


@pytest.mark.parametrize("shape", ["plain", "stored", "streamed"])
@pytest.mark.parametrize("name", UNUSUAL_ANSWERS)
def test_unusual_answer_is_not_paid_for_twice(workshop: InProcessStack, odd: Make, name: str, shape: str) -> None:
    body = as_events(UNUSUAL_ANSWERS[name]) if shape == "streamed" else UNUSUAL_ANSWERS[name]
    server = odd(lambda _: (200, {"content-type": "text/event-stream"} if shape == "streamed" else {}, body))
    caller, _ = pool_of(server, "sk-odd")
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "store": shape == "stored", "stream": shape == "streamed"}
    job = submit(caller, request=json.dumps(request).encode(), streamed=shape == "streamed")
    workshop.run(ended(job))
    with db.begin() as session:
        shown = job_view.render_job(session, job_rows.find_job(session, job, caller.id))

    assert (1, 1) == (len(server.calls), shown["attempt_count"])


@pytest.mark.parametrize("charset", ["idna", "punycode", "raw-unicode-escape", "unicode_escape", "utf-7", "undefined", "base64"])
@pytest.mark.parametrize("body", [b"{\xff}", b'{"a":"\\ud800\xff"}', b'{"a":"+2AA-\xff"}', b"{" + b"\xff.a." * 90 + b"}"])
def test_any_charset_label_can_be_decoded(charset: str, body: bytes) -> None:
    answer_body.decode(body, f"text/plain; charset={charset}").encode()


def test_empty_message_beside_deltas_does_not_clear_the_answer() -> None:
    answer = ChatAccumulator(n=1)
    answer.add({"choices": [{"index": 0, "delta": {"content": "a"}, "message": {}}]})
    answer.add({"choices": [{"index": 0, "delta": {"content": "b"}, "message": {}, "finish_reason": "stop"}]})

    assert "ab" == answer.answer()["choices"][0]["message"]["content"]


BAD_ENDS = [events({"error": {"message": "boom", "code": 500}}), events(b"{oops"), b""]


@pytest.mark.parametrize("tail", BAD_ENDS, ids=["error", "garbage", "cut"])
def test_stream_that_fails_after_its_events_were_relayed_is_charged(workshop: InProcessStack, tail: bytes) -> None:
    chunks = events(*[{"id": "c", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}] * 500)
    server = RawUpstream([b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", chunks, chunks, tail])
    caller, _ = pool_of(server, "sk-middle")
    body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    job = submit(caller, request=json.dumps(body).encode(), streamed=True, model="gpt-4o", reserved_microusd=5000)
    workshop.run(ended(job))
    server.close()

    assert ("failed", 1) == (row(job).status, row(job).calls)
    assert [("unknown", -5000)] == [
        (entry.kind, entry.amount_microusd) for entry in query("SELECT * FROM ledger WHERE job_id = :id", id=job)
    ]


# Callers


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("name", ["meta-llama/Llama-3", "meta-llama%2FLlama-3"])
def test_deployment_name_may_contain_a_slash(name: str) -> None:
    path = f"/openai/deployments/{name}/chat/completions?api-version=1"
    response = Caller().post(path, {"messages": []}, headers={"Prefer": "respond-async"})

    assert (202, "meta-llama/Llama-3") == (response.status_code, response.json["model"])


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_duplicate_upstream_ids_end_no_page_early(order: str) -> None:
    caller = Caller()
    for name in ("c-0", "c-1", "c-2", "c-3", "c-1"):
        store(caller, name)
    seen: list[str] = []
    while True:
        after = f"&after={seen[-1]}" if seen else ""
        page = caller.get(f"/v1/chat/completions?limit=1&order={order}{after}").json
        seen += [item["id"] for item in page["data"]]
        if not page["has_more"] or len(seen) > 5:
            break

    assert ["c-0", "c-1", "c-2", "c-3"] == sorted(seen)
