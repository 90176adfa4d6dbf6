"""The retry policy: the decision for each kind of answer, as a complete table."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from models.jobs.states import Outcome
from workers.answers import retry_policy
from workers.answers.retry_policy import NextStep
from workers.upstream.exchange import Answer, Lost, NotSent


def answer(status: int, body: object = None, **headers: str) -> Answer:
    result = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, result)


def error(**fields: object) -> dict[str, object]:
    return {"error": {"message": "no", **fields}}


TABLE = [
    (200, NextStep.SUCCEED, Outcome.SUCCEEDED), (201, NextStep.SUCCEED, Outcome.SUCCEEDED),
    (301, NextStep.FAIL, Outcome.REFUSED), (400, NextStep.FAIL, Outcome.REFUSED), (403, NextStep.FAIL, Outcome.REFUSED),
    (404, NextStep.FAIL, Outcome.REFUSED), (413, NextStep.FAIL, Outcome.REFUSED), (422, NextStep.FAIL, Outcome.REFUSED),
    (408, NextStep.AGAIN, Outcome.FAILED), (409, NextStep.AGAIN, Outcome.FAILED), (425, NextStep.AGAIN, Outcome.FAILED),
    (500, NextStep.AGAIN, Outcome.FAILED), (502, NextStep.AGAIN, Outcome.FAILED), (503, NextStep.AGAIN, Outcome.FAILED),
    (504, NextStep.AGAIN, Outcome.FAILED), (524, NextStep.AGAIN, Outcome.FAILED), (529, NextStep.AGAIN, Outcome.FAILED),
    (599, NextStep.AGAIN, Outcome.FAILED), (429, NextStep.WAIT, Outcome.THROTTLED), (401, NextStep.FAIL, Outcome.REFUSED),
]  # fmt: skip


@pytest.mark.parametrize(("status", "then", "outcome"), TABLE)
def test_the_status_decides(status: int, then: NextStep, outcome: Outcome) -> None:
    verdict = retry_policy.classify(answer(status, {}))

    assert (then, outcome) == (verdict.next, verdict.outcome)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"1", b'"ok"', b"null", b"{", b"\xff", b"[" * 100_000])
def test_a_good_status_without_a_json_object_is_unreadable_and_may_have_been_paid_for(body: bytes) -> None:
    verdict = retry_policy.classify(answer(200, body))

    assert (NextStep.UNREADABLE, Outcome.UNKNOWN) == (verdict.next, verdict.outcome)
    assert {"message", "type", "param", "code"} == set(verdict.error or {})


EVENTS = [
    ({"code": None, "type": "server_error"}, NextStep.AGAIN, Outcome.FAILED),
    ({"code": "rate_limit_exceeded"}, NextStep.WAIT, Outcome.THROTTLED),
    ({"code": 429}, NextStep.WAIT, Outcome.THROTTLED),
    ({"code": "context_length_exceeded", "type": "invalid_request_error"}, NextStep.FAIL, Outcome.REFUSED),
    ({"code": 401}, NextStep.AGAIN, Outcome.FAILED),
    ({"code": ["odd"], "type": {}}, NextStep.AGAIN, Outcome.FAILED),
]


@pytest.mark.parametrize(("result", "then", "outcome"), EVENTS)
def test_an_error_within_a_stream_counts_as_the_status_it_would_have_had(
    result: dict[str, object], then: NextStep, outcome: Outcome
) -> None:
    verdict = retry_policy.classify_error_event(answer(200, error(**result)))

    assert (then, outcome, "no", None) == (verdict.next, verdict.outcome, (verdict.error or {})["message"], verdict.park)


PLAIN = [
    (error(code="rate_limit_exceeded"), NextStep.WAIT, 429),
    (error(type="insufficient_quota"), NextStep.FAIL, 429),
    (error(type="invalid_request_error"), NextStep.FAIL, 400),
    (error(code="model_not_found", type="invalid_request_error"), NextStep.FAIL, 404),
    (error(code="overloaded_error"), NextStep.AGAIN, 503),
    (error(code="502"), NextStep.AGAIN, 502),
    (error(code=401), NextStep.AGAIN, 500),
    ({"error": "the server is on fire"}, NextStep.AGAIN, 500),
    ({"object": "error", "message": "no", "code": 404, "type": "NotFoundError"}, NextStep.FAIL, 404),
    ({"error": {"message": "no", "code": 429, "status": "RESOURCE_EXHAUSTED"}, "choices": []}, NextStep.WAIT, 429),
]


@pytest.mark.parametrize(("result", "then", "status"), PLAIN)
def test_an_error_in_a_plain_200_counts_as_the_status_it_would_have_had(result: dict[str, object], then: NextStep, status: int) -> None:
    verdict = retry_policy.classify(answer(200, result))

    assert (then, status) == (verdict.next, verdict.status)


CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "result",
    [
        {"error": None, "choices": [CHOICE]}, {"error": "", "choices": []}, {"error": {}}, {"error": False}, {"errors": ["x"]},
        {"error": {"message": "late"}, "choices": [CHOICE]}, {"error": "odd", "data": [{"embedding": []}]}, {"object": "chat.completion"},
    ],
)  # fmt: skip
def test_an_answer_with_an_empty_error_or_with_content_is_an_answer(result: dict[str, object]) -> None:
    assert NextStep.SUCCEED == retry_policy.classify(answer(200, result)).next


def test_an_account_that_ran_out_of_money_within_a_stream_is_parked() -> None:
    assert retry_policy.NO_MONEY == retry_policy.classify_error_event(answer(200, error(type="insufficient_quota"))).park


def test_error_that_is_a_plain_sentence_is_kept() -> None:
    result = retry_policy.classify(answer(404, {"error": "no such model"})).error

    assert {"message": "no such model", "type": "invalid_request_error", "param": None, "code": None} == result


# 429 and 503


def test_429_pauses_the_credential_for_its_retry_after() -> None:
    verdict = retry_policy.classify(answer(429, error(), retry_after_ms="1500"))

    assert (1_500, True, None) == (verdict.pause_ms, verdict.pushed_back, verdict.park)


@pytest.mark.parametrize(
    "headers", [{}, {"retry_after": "0"}, {"retry_after": "-1"}, {"retry_after": "soon"}, {"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}]
)
def test_a_429_without_a_usable_time_leaves_the_pause_to_the_backoff(headers: dict[str, str]) -> None:
    verdict = retry_policy.classify(answer(429, error(), **headers))

    assert (NextStep.WAIT, None, True) == (verdict.next, verdict.pause_ms, verdict.throttled)


def test_a_limit_per_day_that_is_used_up_is_believed_over_a_short_retry_after() -> None:
    shown = {"retry_after": "1", "x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "7h12m0s"}

    assert 25_920_000 == retry_policy.classify(answer(429, error(), **shown)).pause_ms


@pytest.mark.parametrize("code", sorted(retry_policy.NO_MONEY_CODES))
@pytest.mark.parametrize("where", ["code", "type"])
def test_an_account_without_money_is_parked(where: str, code: str) -> None:
    verdict = retry_policy.classify(answer(429, error(**{where: code}), retry_after="1"))

    assert (NextStep.FAIL, retry_policy.NO_MONEY, None) == (verdict.next, verdict.park, verdict.pause_ms)


def test_a_request_that_is_too_large_does_not_wait_for_ever() -> None:
    verdict = retry_policy.classify(answer(429, {"error": {"message": "Request too large for gpt-4o: Limit 30000, Requested 50000."}}))

    assert (NextStep.FAIL, None, None) == (verdict.next, verdict.park, verdict.pause_ms)


@pytest.mark.parametrize("code", [["insufficient_quota"], {"a": 1}, 7, None])
def test_a_code_that_is_no_text_breaks_nothing(code: object) -> None:
    assert NextStep.WAIT == retry_policy.classify(answer(429, error(code=code))).next


def test_a_503_with_a_time_is_a_pause_and_does_not_count() -> None:
    verdict = retry_policy.classify(answer(503, error(), retry_after="7"))

    assert (NextStep.WAIT, Outcome.THROTTLED, 7_000, True) == (verdict.next, verdict.outcome, verdict.pause_ms, verdict.pushed_back)


def test_a_503_without_a_time_counts_and_pushes_back() -> None:
    assert retry_policy.classify(answer(503, error())).pushed_back
    assert not retry_policy.classify(answer(500, error())).pushed_back


def test_a_key_that_is_not_accepted_is_parked() -> None:
    assert retry_policy.WRONG_KEY == retry_policy.classify(answer(401, error())).park


# The error a caller sees


def test_the_upstreams_own_error_is_passed_on_whole() -> None:
    result = {"message": "Bad", "type": "invalid_request_error", "param": "n", "code": "x", "extra": 3}

    assert result == retry_policy.classify(answer(400, {"error": result})).error


def test_missing_keys_are_filled_in() -> None:
    result = retry_policy.classify(answer(400, error())).error

    assert {"message": "no", "type": "invalid_request_error", "param": None, "code": None} == result


@pytest.mark.parametrize("message", ["two\nlines", "a\u00a0b", "tab\there", "日本語", "emoji 🎈"])
def test_a_message_is_kept_whatever_it_looks_like(message: str) -> None:
    assert message == (retry_policy.classify(answer(400, {"error": {"message": message}})).error or {})["message"]


def test_characters_that_postgres_refuses_are_replaced() -> None:
    result = retry_policy.classify(answer(400, b'{"error": {"message": "a\\u0000b\\ud800", "\\u0000": "x", "type": {"deep": 1}}}')).error

    assert {"message": "a\ufffdb?", "\ufffd": "x", "type": "invalid_request_error", "param": None, "code": None} == result


@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b"\x00\xff", b"{}", b'{"error": {"message": 5}}'])
def test_error_without_a_message_gets_one_with_the_next_step(body: bytes) -> None:
    result = retry_policy.classify(answer(502, body)).error or {}

    assert "upstream_error" == result["code"]
    assert "502" in str(result["message"])


# No answer at all


def test_unsent_call_is_retried() -> None:
    verdict = retry_policy.classify_not_sent(NotSent("ConnectError"))

    assert (NextStep.AGAIN, Outcome.NOT_SENT) == (verdict.next, verdict.outcome)


def test_broken_call_has_an_unknown_outcome() -> None:
    verdict = retry_policy.classify_lost(Lost("ReadError"))

    assert (NextStep.UNKNOWN, Outcome.UNKNOWN) == (verdict.next, verdict.outcome)


@pytest.mark.parametrize(("is_sent", "then"), [(True, NextStep.UNKNOWN), (False, NextStep.AGAIN)])
def test_a_failure_of_our_own_is_never_a_silent_second_call(is_sent: bool, then: NextStep) -> None:
    assert then == retry_policy.classify_internal_error(KeyError("x"), is_sent=is_sent).next


# Delays


def test_delays_double_up_to_the_most(override: Callable[..., None]) -> None:
    override(retry_base_s=1, retry_most_s=60)
    bases = [retry_policy.retry_delay_s(n, rng=random.Random(1)) / (1 + random.Random(1).random() / 2) for n in range(8)]

    assert [1, 2, 4, 8, 16, 32, 60, 60] == pytest.approx(bases)


def test_delays_differ_by_up_to_half(override: Callable[..., None]) -> None:
    override(retry_base_s=1, retry_most_s=60)
    rng = random.Random(7)
    delays = [retry_policy.retry_delay_s(0, rng=rng) for _ in range(200)]

    assert 1 <= min(delays) < 1.05
    assert 1.45 < max(delays) <= 1.5


def test_the_same_seed_gives_the_same_delays() -> None:
    assert retry_policy.retry_delay_s(3, rng=random.Random(5)) == retry_policy.retry_delay_s(3, rng=random.Random(5))


def test_a_huge_number_of_failures_is_no_huge_number_of_seconds(override: Callable[..., None]) -> None:
    override(retry_most_s=60)

    assert retry_policy.retry_delay_s(10**6, rng=random.Random(1)) <= 90
