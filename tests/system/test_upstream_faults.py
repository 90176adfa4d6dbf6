"""Upstream faults and the resulting job: real pacer, real worker, and a fake OpenAI that misbehaves."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from deploy.local.server_process import free_port
from models.database import db
from models.keys.keys import Key
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, attempts, caller, violations, wait_ended, wake_lane
from tests.support.programs.process import Process, until
from tests.support.programs.processes import Stack
from tests.support.queue_tools import query, submit
from tests.support.stream_tools import content
from tests.upstream.behaviour import PACKED
from tests.upstream.chat import echo
from tests.upstream.errors import BY_STATUS, QUOTA, SHAPED, WORDS
from tests.upstream.garbage import PAGE
from workers.answers import retry_policy
from workers.upstream.exchange import Answer

MAX_BYTES = 200_000
RETRY_BASE_S = 0.05


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with processes.running(folder, retry_base_s=RETRY_BASE_S, pause_s=0.3, max_answer_bytes=MAX_BYTES) as stack:
        stack.pacer()
        stack.worker(threads=12)
        yield stack


@pytest.fixture(autouse=True)
def worker(stack: Stack) -> Iterator[Process]:
    """The only worker process; it must survive each test."""
    stack.upstream.reset()
    process = stack.processes[1]
    yield process
    assert process.is_alive()


def run(stack: Stack, prompt: str, **options: Any) -> Any:
    """The ended job of a new key."""
    (ended,) = wait_ended([ask(caller(f"sk-{time.monotonic_ns()}"), prompt, **options)], stack=stack)
    assert [] == violations([ended.id], stack.upstream.calls())
    return ended


def test_transient_error_is_retried(stack: Stack) -> None:
    ended = run(stack, "try again [[fake:status=500;times=2]]")

    assert ("succeeded", 3, 2, 0) == (ended.status, ended.calls, ended.failures, ended.possible_duplicate_calls)
    assert [("failed", 500), ("failed", 500), ("succeeded", 200)] == _attempts(ended.id)


def test_waits_between_attempts_grow(stack: Stack) -> None:
    run(stack, "try again [[fake:status=502;times=3]]")

    began = [call.at for call in stack.upstream.calls()]
    gaps = [later - before for before, later in itertools.pairwise(began)]
    assert all(RETRY_BASE_S * 2**n <= gap for n, gap in enumerate(gaps))


def test_persistent_error_fails_the_job_with_the_upstreams_message(stack: Stack) -> None:
    ended = run(stack, "never [[fake:status=500]]", max_attempts=3)

    assert ("failed", 500, ["failed"] * 3) == (ended.status, ended.http_status, attempts(ended.id))
    assert BY_STATUS[500][2] == ended.error["message"]
    assert 3 == len(stack.upstream.calls())


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_permanent_refusal_is_not_retried(stack: Stack, status: int) -> None:
    ended = run(stack, f"no [[fake:status={status}]]")

    kind, code, message = BY_STATUS[status]
    assert ("failed", status, ["refused"]) == (ended.status, ended.http_status, attempts(ended.id))
    assert {"message": message, "type": kind, "param": None, "code": code} == ended.error
    assert ended.response_type is None
    assert {"error": ended.error} == json.loads(ended.response)
    assert 1 == len(stack.upstream.calls())


def test_429_pauses_the_credential_and_counts_no_attempt(stack: Stack) -> None:
    key = caller("sk-paused", max_in_flight=1)
    stack.upstream.behave("sk-paused", {"status": 429, "kind": "rate", "retry_after": 1.2})
    jobs = [ask(key, f"turn {n}") for n in range(4)]
    ended = wait_ended(jobs, stack=stack)
    calls = stack.upstream.calls()

    assert {("succeeded", 0)} == {(row.status, row.failures) for row in ended}
    assert ["turn 0", "turn 0", "turn 1", "turn 2", "turn 3"] == [call.text for call in calls]
    assert ["throttled", "succeeded"] == attempts(jobs[0])
    assert 1.2 <= calls[1].at - (calls[0].ended_at or 0)
    assert [] == violations(jobs, calls)


def test_503_is_a_pause_with_retry_after_and_a_failure_without(stack: Stack) -> None:
    paused = run(stack, "busy [[fake:status=503;retry_after=0.3;times=1]]")
    failed = run(stack, "busy [[fake:status=503;times=1]]")

    assert (["throttled", "succeeded"], 0) == (attempts(paused.id), paused.failures)
    assert (["failed", "succeeded"], 1) == (attempts(failed.id), failed.failures)


@pytest.mark.parametrize(("kind", "code"), [("quota", "credit_balance_exhausted"), ("quota_legacy", "insufficient_quota")])
def test_credential_without_quota_is_parked(stack: Stack, kind: str, code: str) -> None:
    key = caller(f"sk-poor-{kind}")
    (first,) = wait_ended([ask(key, f"pay [[fake:status=429;kind={kind}]]")], stack=stack)
    (second,) = wait_ended([ask(key, "fine")], stack=stack)

    assert ("failed", ["refused"], QUOTA, code) == (first.status, attempts(first.id), first.error["message"], first.error["code"])
    assert "money" in _parked_reason(key)
    assert ("failed", code, []) == (second.status, second.error["code"], attempts(second.id)), "uncalled, with the upstream's words"
    assert 1 == len(stack.upstream.calls())


def test_credential_with_an_invalid_key_is_parked(stack: Stack) -> None:
    key = caller("sk-wrong")
    (first,) = wait_ended([ask(key, "let me in [[fake:status=401]]")], stack=stack)
    ask(key, "fine")
    time.sleep(0.5)

    assert ("failed", 401, ["refused"], "invalid_api_key") == (first.status, first.http_status, attempts(first.id), first.error["code"])
    assert "does not accept this key" in _parked_reason(key)
    assert 1 == len(stack.upstream.calls())


@pytest.mark.parametrize("how", ["hang", "hang=headers", "drip=20"])
def test_call_ends_at_its_timeout(stack: Stack, how: str) -> None:
    ended = run(stack, f"slow [[fake:{how}]]", timeout_s=0.7, on_lost="fail")

    assert ("failed", "upstream_timeout", ["unknown"]) == (ended.status, ended.error["code"], attempts(ended.id))
    # The upstream would continue forever.
    assert 0.7 <= (ended.ended_at - ended.started_at).total_seconds() < 20
    assert 1 == len(stack.upstream.calls())


@pytest.mark.parametrize("how", ["reset", "reset=body", "garbage=long", "garbage=not_http"])
def test_broken_connection_has_an_unknown_outcome(stack: Stack, how: str) -> None:
    retried = run(stack, f"cut [[fake:{how};times=1]]")
    once = run(stack, f"cut [[fake:{how}]]", on_lost="fail")

    assert ("succeeded", ["unknown", "succeeded"]) == (retried.status, attempts(retried.id))
    assert (1, 1) == (retried.possible_duplicate_calls, retried.failures)
    assert ("failed", ["unknown"], 0) == (once.status, attempts(once.id), once.possible_duplicate_calls)
    assert "upstream_outcome_unknown" == once.error["code"]


def test_call_on_a_stale_connection_is_retried_on_a_new_one(stack: Stack) -> None:
    token = "sk-kept"
    key = caller(token, max_in_flight=1)
    stack.upstream.behave(token, {"leaves": "reset_next"})
    wait_ended([ask(key, "first")], stack=stack)
    (ended,) = wait_ended([ask(key, "second")], stack=stack)

    assert ("succeeded", ["unknown", "succeeded"], 1) == (ended.status, attempts(ended.id), ended.possible_duplicate_calls)
    assert ["first", "second"] == [call.text for call in stack.upstream.calls()]


def test_job_with_only_broken_connections_ends_after_max_attempts(stack: Stack) -> None:
    ended = run(stack, "cut [[fake:reset]]", max_attempts=2)

    assert ("failed", ["unknown"] * 2, "upstream_outcome_unknown") == (ended.status, attempts(ended.id), ended.error["code"])
    assert 1 == ended.possible_duplicate_calls


def test_unsent_call_is_no_possible_duplicate(stack: Stack) -> None:
    key = caller("sk-dead-port")
    with db.begin() as session:
        params = {"url": f"http://127.0.0.1:{free_port()}/v1", "pool": key.pool_id}
        session.execute(text("UPDATE credential SET base_url = :url WHERE pool_id = :pool"), params)
    job_id = ask(key, "hello")
    until(lambda: len(attempts(job_id)) >= 2, what="tried again")
    with db.begin() as session:
        session.execute(text("UPDATE credential SET base_url = NULL WHERE pool_id = :pool"), {"pool": key.pool_id})
    (ended,) = wait_ended([job_id], stack=stack)

    *before, last = attempts(job_id)
    assert ("succeeded", 0, "succeeded", {"not_sent"}) == (ended.status, ended.possible_duplicate_calls, last, set(before))
    assert len(before) == ended.failures
    assert 1 == len(stack.upstream.calls())


@pytest.mark.parametrize("kind", ["nul", "surrogate", "nan", "type"])
def test_unusual_json_is_stored_unchanged(stack: Stack, kind: str) -> None:
    (ended,) = wait_ended([ask(caller(f"sk-odd-{kind}"), f"odd [[fake:garbage={kind}]]")], stack=stack)

    assert ("succeeded", ["succeeded"]) == (ended.status, attempts(ended.id))
    wrong = {"nul": b"\\u0000", "surrogate": b"\\ud800", "nan": b"NaN", "type": b"{"}[kind]
    assert wrong in ended.response


UNREADABLE = {
    "html": (200, "text/html; charset=utf-8"), "truncated": (200, "application/json"), "empty": (200, None), "no_content": (204, None),
    "binary": (200, "application/json"), "short": (200, "application/json"), "trailing_comma": (200, "application/json"),
    "objects": (200, "application/json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_answer_is_kept_and_not_retried(stack: Stack, kind: str) -> None:
    ended = run(stack, f"odd [[fake:garbage={kind}]]")

    status, content_type = UNREADABLE[kind]
    assert ("failed", ["unknown"], 0) == (ended.status, attempts(ended.id), ended.possible_duplicate_calls)
    assert ("upstream_invalid_response", status) == (ended.error["code"], ended.http_status)
    assert content_type == ended.response_type
    assert (content_type is not None) == bool(ended.response)
    assert 1 == len(stack.upstream.calls())


def test_unreadable_answer_is_charged_its_reservation_once(stack: Stack) -> None:
    ended = run(stack, "odd [[fake:garbage=html]]", reserved_microusd=700)

    entries = query("SELECT kind, amount_microusd FROM ledger WHERE job_id = :id", id=ended.id)
    assert [("unknown", -700)] == [(row.kind, row.amount_microusd) for row in entries]


def test_unreadable_answer_is_retried_with_on_unreadable_retry(stack: Stack) -> None:
    retried = run(stack, "odd [[fake:garbage=html;times=1]]", on_unreadable="retry")
    failed = run(stack, "odd [[fake:garbage=html]]", on_unreadable="retry", max_attempts=2)

    assert ("succeeded", ["unknown", "succeeded"], 1) == (retried.status, attempts(retried.id), retried.possible_duplicate_calls)
    assert ("failed", ["unknown"] * 2, PAGE) == (failed.status, attempts(failed.id), failed.response)


PLAIN_FORMS = [kind for kind in PACKED if kind not in ("done_blank", "no_blank", "no_last_line")]


@pytest.mark.parametrize("kind", PLAIN_FORMS)
def test_answer_is_read_in_any_encoding(stack: Stack, kind: str) -> None:
    prompt = f"größe [[fake:packed={kind}]]"
    ended = run(stack, prompt)

    answer = json.loads(ended.response.decode())
    assert ("succeeded", ["succeeded"], 1) == (ended.status, attempts(ended.id), len(stack.upstream.calls()))
    assert ("chat.completion", echo(prompt)) == (answer["object"], answer["choices"][0]["message"]["content"])
    assert answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("kind", ["sse", "sse_json", "br"])
def test_images_are_read_in_any_encoding(stack: Stack, kind: str) -> None:
    key = caller(f"sk-packed-{kind}")
    body = {"model": "m", "prompt": f"a fox [[fake:packed={kind}]]", "n": 2}
    job_id = submit(key, endpoint="/v1/images/generations", images=2, request=json.dumps(body).encode())
    wake_lane(key)
    (ended,) = wait_ended([job_id], stack=stack)

    assert ("succeeded", 2) == (ended.status, len(json.loads(ended.response)["data"]))


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/models"])
def test_every_route_reads_a_compressed_answer(stack: Stack, route: str) -> None:
    key = caller(f"sk-gzip-{route}")
    stack.upstream.behave(f"sk-gzip-{route}", {"packed": "gzip"})
    job_id = submit(key, endpoint=route, request=b'{"model":"m","input":"text"}' if route == "/v1/embeddings" else b"")
    wake_lane(key)
    (ended,) = wait_ended([job_id], stack=stack)

    assert ("succeeded", "list") == (ended.status, json.loads(ended.response)["object"])


@pytest.mark.parametrize("kind", PACKED)
def test_stream_is_read_in_any_encoding(stack: Stack, kind: str) -> None:
    prompt = f"grosse [[fake:packed={kind}]]"
    ended = run(stack, prompt, streamed=True, body={"stream": True})

    assert ("succeeded", ["succeeded"], 1) == (ended.status, attempts(ended.id), len(stack.upstream.calls()))
    assert echo(prompt) == content(ended.transcript) == json.loads(ended.response)["choices"][0]["message"]["content"]


def test_plain_answer_to_a_stream_is_read_in_another_charset(stack: Stack) -> None:
    prompt = "plain [[fake:plain;packed=latin1]]"
    ended = run(stack, prompt, streamed=True, body={"stream": True})

    assert ("succeeded", echo(prompt)) == (ended.status, content(ended.transcript))


@pytest.mark.parametrize("kind", ["html", "empty", "no_content", "binary"])
def test_unreadable_stream_is_kept_and_not_retried(stack: Stack, kind: str) -> None:
    ended = run(stack, f"odd [[fake:garbage={kind}]]", streamed=True, body={"stream": True})

    assert ("failed", "upstream_invalid_response", 1) == (ended.status, ended.error["code"], len(stack.upstream.calls()))
    assert {"html": PAGE, "binary": bytes(range(256))}.get(kind) == ended.response


@pytest.mark.parametrize(
    ("how", "status", "outcomes"),
    [
        ("status=400", 400, ["refused"]),
        ("status=404", 404, ["refused"]),
        ("status=500;times=1", 200, ["failed", "succeeded"]),
        ("status=429;kind=slow_down;retry_after=0.3;times=1", 200, ["throttled", "succeeded"]),
        ("status=429;kind=quota", 429, ["refused"]),
    ],
)
@pytest.mark.parametrize("shape", ["in_200", "in_200_list"])
def test_error_in_a_200_is_treated_as_with_its_real_status(stack: Stack, how: str, status: int, outcomes: list[str], shape: str) -> None:
    ended = run(stack, f"error [[fake:{how};shape={shape}]]")

    assert (status, outcomes) == (ended.http_status, attempts(ended.id))
    assert ("succeeded" if status == 200 else "failed") == ended.status


def test_answer_with_a_null_error_is_an_answer(stack: Stack) -> None:
    assert "succeeded" == run(stack, "fine [[fake:shape=in_200_null]]").status


@pytest.mark.parametrize("shape", [*SHAPED, "text", "gzip", "latin1", "html"])
def test_upstream_error_message_is_found_in_every_shape(stack: Stack, shape: str) -> None:
    ended = run(stack, f"words [[fake:status=400;shape={shape}]]")

    assert ("failed", 400, 1) == (ended.status, ended.http_status, len(stack.upstream.calls()))
    assert WORDS in ended.error["message"]
    assert {"message", "type", "param", "code"} <= set(ended.error)
    assert (shape in ("text", "latin1", "html")) == (ended.response_type is not None)


def test_answer_over_the_size_limit_is_cut_and_not_retried(stack: Stack) -> None:
    ended = run(stack, "big [[fake:huge_mb=2]]")

    assert ("failed", ["unknown"]) == (ended.status, attempts(ended.id))
    assert ended.response is None
    packed = run(stack, "big [[fake:huge_mb=2;packed=gzip]]")
    assert ("upstream_answer_too_large", 1) == (packed.error["code"], packed.calls)
    kept = run(stack, "less [[fake:huge_mb=0.1]]")
    assert ("succeeded", True) == (kept.status, len(kept.response) > 100_000)


def test_redirect_is_not_followed(stack: Stack) -> None:
    ended = run(stack, "elsewhere [[fake:redirect=/elsewhere]]")

    assert ("failed", 307, ["refused"]) == (ended.status, ended.http_status, attempts(ended.id))
    assert "/elsewhere" in ended.error["message"]
    assert "OPENAI_BASE_URL" in ended.error["message"]
    assert ["/v1/chat/completions"] == [call.path for call in stack.upstream.calls()]


@pytest.mark.parametrize("status", [100, 102, 103])
def test_informational_response_is_skipped(stack: Stack, status: int) -> None:
    assert "succeeded" == run(stack, f"early [[fake:informational={status}]]").status


def test_error_page_of_a_proxy_becomes_an_error_object(stack: Stack) -> None:
    ended = run(stack, "proxy [[fake:status=502]]", max_attempts=1)

    assert ("failed", 502, "upstream_error") == (ended.status, ended.http_status, ended.error["code"])
    assert {"message", "type", "param", "code"} == set(ended.error)
    assert ("text/html", True) == (ended.response_type, b"cloudflare" in ended.response)
    assert "cloudflare" in ended.error["message"]


def test_upstream_error_message_keeps_unusual_characters() -> None:
    body = b'{"error": {"message": "first line\\nsecond \\u0000 \\ud800", "code": "odd", "inner": {"dropped": 1}}}'
    error = retry_policy.classify(Answer(400, {}, body)).error

    assert {"message": "first line\nsecond \ufffd ?", "type": "invalid_request_error", "param": None, "code": "odd"} == error


def test_job_with_an_undecryptable_key_is_never_sent(stack: Stack) -> None:
    key = caller("sk-not-ours")
    with db.begin() as session:
        session.execute(text("UPDATE credential SET secret = 'not sealed by us' WHERE pool_id = :pool"), {"pool": key.pool_id})
    (ended,) = wait_ended([ask(key, "hello", max_attempts=2)], stack=stack)

    assert ("failed", ["not_sent"] * 2, "server_error") == (ended.status, attempts(ended.id), ended.error["code"])
    assert 0 == ended.possible_duplicate_calls
    assert [] == stack.upstream.calls()


def test_many_errors_lose_no_job(stack: Stack) -> None:
    stack.upstream.behave("sk-storm", {"status": 500, "probability": 0.3}, {"reset": "before", "probability": 0.1})
    key = caller("sk-storm", max_in_flight=12)
    jobs = [ask(key, f"storm {n}", max_attempts=20) for n in range(40)]
    ended = wait_ended(jobs, stack=stack)

    assert {"succeeded"} == {row.status for row in ended}
    assert [] == violations(jobs, stack.upstream.calls())


def _attempts(job_id: UUID) -> list[tuple[str, int | None]]:
    with db.begin() as session:
        rows = session.execute(text("SELECT outcome, http_status FROM attempt WHERE job_id = :id ORDER BY n"), {"id": job_id})
        return [(row.outcome, row.http_status) for row in rows]


def _parked_reason(key: Key) -> str:
    with db.begin() as session:
        rows = session.execute(text("SELECT parked_reason FROM credential WHERE pool_id = :id"), {"id": key.pool_id})
        return str(rows.scalar_one())
