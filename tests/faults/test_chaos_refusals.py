"""Rules of the fault harness about refusals and unreadable answers, each with correct and with manipulated evidence."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.chaos import refusals
from tests.chaos.journal import FaultWindow, RequestRecord
from tests.chaos.refusals import CREDENTIAL, POISON
from tests.chaos.stack import MAX_THROTTLES
from tests.upstream.behaviour import Scripts
from tests.upstream.journal import Call

ID = UUID(int=1)
POISONED = "status=429;prompts=0.2"
REFUSED = "status=402;probability=1.0"


def record(text: str, *, at: float = 0.0, token: str = "sk-a") -> RequestRecord:
    return RequestRecord(0, token, text, "poll", text, job_id=f"job_{ID.hex}", accepted_at=at)


def call(text: str, at: float, *, lasts_s: float = 1.0, behaviour: str = "", key: str = "a") -> Call:
    return Call(0, at, key, "m", "/v1/chat/completions", text, {}, 1, 0, False, 0, "", behaviour=behaviour, ended_at=at + lasts_s)


def job(**more: Any) -> dict[UUID, Any]:
    row = {"id": ID, "status": "succeeded", "error": None, "failures": 0, "throttles": 0, "on_lost": "retry"}
    return {ID: SimpleNamespace(**{**row, **more})}


# Jobs beside poisoned ones


def held_up(calls: Sequence[Call], *more: FaultWindow) -> list[str]:
    return list(refusals.held_up([record("poison"), record("fine")], calls, [FaultWindow(POISON, 0, 20), *more]))


def test_a_job_that_waits_while_its_key_rests_is_held_up() -> None:
    assert held_up([call("poison", 0, behaviour=POISONED, lasts_s=0), call("fine", 15)])


def test_a_job_called_after_two_pauses_is_not_held_up() -> None:
    assert [] == held_up([call("poison", 0, behaviour=POISONED, lasts_s=0), call("fine", 4)])


def test_a_job_behind_calls_of_its_key_is_not_held_up() -> None:
    assert [] == held_up([call("poison", 0, behaviour=POISONED), call("poison", 1, lasts_s=13), call("fine", 15)])


def test_a_poisoned_job_may_wait() -> None:
    assert [] == held_up([call("fine", 1), call("poison", 18, behaviour=POISONED)])


def test_delay_that_another_fault_explains_is_no_held_up_job() -> None:
    assert [] == held_up([call("fine", 15)], FaultWindow("Postgres frozen 10 s", 1, 11))


def test_refused_prompts_are_the_same_each_time() -> None:
    scripts = Scripts()
    scripts.put("k", [{"status": 429, "prompts": 0.25}])
    texts = [f"prompt {n}" for n in range(400)]
    once, again = ([scripts.next("k", text) is not None for text in texts] for _ in range(2))

    assert once == again
    assert 70 < sum(once) < 130


# Limits of refusals


@pytest.mark.parametrize(
    ("row", "outcomes", "is_right"),
    [
        ({"throttles": MAX_THROTTLES - 1}, ["throttled"] * MAX_THROTTLES, True),
        ({"throttles": MAX_THROTTLES}, ["throttled"] * MAX_THROTTLES, False),
        ({"failures": 1}, ["throttled", "refused", "succeeded"], False),
        ({"failures": 1}, ["failed", "refused", "succeeded"], True),
    ],
)
def test_refusals_are_bounded_and_uncounted(row: dict[str, Any], outcomes: list[str], is_right: bool) -> None:
    assert is_right == (not list(refusals.refused_too_often(job(**row), {ID: outcomes}, {})))


def test_a_lost_call_counts_though_it_is_refused_later() -> None:
    assert [] == list(refusals.refused_too_often(job(failures=1), {ID: ["refused", "succeeded"]}, {ID: 1}))


@pytest.mark.parametrize(
    ("throttles", "outcomes", "is_reason"),
    [
        (MAX_THROTTLES - 1, ["throttled"] * MAX_THROTTLES, True),
        (1, ["throttled"] * 2, False),
        (0, ["refused"], False),
        (0, ["succeeded"], False),
        (0, ["refused", "unknown"], True),
    ],
)
def test_a_job_fails_for_load_only_after_all_its_refusals(throttles: int, outcomes: list[str], is_reason: bool) -> None:
    (row,) = job(status="failed", throttles=throttles).values()

    assert is_reason == refusals.has_reason(row, outcomes)


@pytest.mark.parametrize(("outcome", "is_reason"), [("not_sent", True), ("succeeded", False)])
def test_job_may_report_that_its_last_call_could_not_be_sent(outcome: str, is_reason: bool) -> None:
    (row,) = job(status="failed", error={"code": "upstream_unreachable"}).values()

    assert is_reason == refusals.has_reason(row, ["not_sent", outcome])


# Credentials that refuse everything


@pytest.mark.parametrize(("outcomes", "is_right"), [(["refused", "failed"], True), (["failed", "refused"], False)])
def test_refusal_by_one_credential_fails_no_job(outcomes: list[str], is_right: bool) -> None:
    assert is_right == (not list(refusals.failed_beside_good_key(job(status="failed"), {ID: outcomes})))


@pytest.mark.parametrize(
    ("times", "more", "is_right"),
    [
        ([0, 0.1, 0.4, 1, 4, 10], [], True),
        ([0, 4, 5, 6], [], False),
        ([0, 4, 5, 6], [FaultWindow("FLUSHALL", 3, 3)], True),
    ],
)
def test_a_bad_key_gets_only_probes(times: list[float], more: list[FaultWindow], is_right: bool) -> None:
    calls = [call(f"job {at}", at, behaviour=REFUSED) for at in times]

    assert is_right == (not list(refusals.bad_key_called(calls, [FaultWindow(CREDENTIAL, 0, 14), *more])))


# Unreadable answers


@pytest.mark.parametrize(
    ("row", "behaviours", "lost", "is_right"),
    [
        ({"error": {"code": refusals.INVALID}}, ["garbage=html"], 0, True),
        ({"error": {"code": refusals.INVALID}}, [""], 0, False),
        ({"on_unreadable": "fail"}, ["garbage=html", "garbage=empty"], 0, False),
        ({"on_unreadable": "fail"}, ["garbage=html", "garbage=empty"], 1, True),
        ({"on_unreadable": "retry"}, ["garbage=html", "garbage=empty"], 0, True),
        ({"on_lost": "fail"}, ["garbage=html", "garbage=empty"], 0, False),
    ],
)
def test_an_unreadable_answer_ends_the_job_unless_it_asks_for_more(
    row: dict[str, Any], behaviours: list[str], lost: int, is_right: bool
) -> None:
    calls = [call("fine", at, behaviour=behaviour) for at, behaviour in enumerate(behaviours)]

    assert is_right == (not list(refusals.unreadable_again([record("fine")], job(**row), calls, {ID: lost})))
