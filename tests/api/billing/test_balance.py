"""The billing routes: our own, and the former OpenAI routes as old clients read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.billing.money import MICRO_PER_USD
from models.jobs.states import JobResult, Status
from models.keys.keys import Key
from tests.support.http_tools import Caller, error_of, together
from tests.support.money_tools import MODEL, cost, grant, issued
from tests.support.queue_tools import finish, known, query, reap, start, submit
from workers.results import finish as ending
from workers.results.attempt_record import AttemptRecord

pytestmark = pytest.mark.usefixtures("database")

BASES = ["", "/v1", "/v1/v1"]
TODAY = datetime.now(UTC).date()


@pytest.fixture
def ann() -> tuple[Key, Caller]:
    """An issued key with 18 USD, of which it spent 0.08."""
    made, token = issued(grant_usd=18)
    spend(made, 80_000)
    return made, Caller(token)


def spend(caller: Key, microusd: int | None, **more: Any) -> None:
    one = submit(caller, reserved_microusd=100_000, **more)
    finish(one, start(caller, one), attempt=cost(microusd))


def answered(caller: Key, usage: dict[str, int], *, model: str = MODEL, flow: str = "ana") -> None:
    """Runs a job and commits its result as a worker does."""
    one = submit(caller, model=model, flow=flow)
    body = json.dumps({"id": "chatcmpl-1", "choices": [], "usage": usage}).encode()
    lane_id = query("SELECT lane_id FROM job WHERE id = :id", id=one)[0].lane_id
    result = JobResult(Status.SUCCEEDED, http_status=200, response=body)
    ending.commit(AttemptRecord(one, start(caller, one), caller.id, lane_id, model, cost(None), result))


def test_balance_shows_grants_spending_and_reservations(ann: tuple[Key, Caller]) -> None:
    made, caller = ann
    one = submit(made, reserved_microusd=500_000)
    start(made, one)
    reap()

    assert {
        "object": "balance", "has_budget": True, "balance_usd": 17.42, "reserved_usd": 0.5, "available_usd": 16.92, "granted_usd": 18.0,
        "corrected_usd": 0.0, "spent_usd": 0.58, "unknown_usd": 0.5, "unpriced_calls": 0,
    } == caller.get("/v1/balance").json  # fmt: skip


def test_balance_without_budget() -> None:
    spend(known("sk-one"), 80_000)
    shown = Caller().get("/v1/balance").json

    assert (False, None, 0.08, -0.08) == (shown["has_budget"], shown["available_usd"], shown["spent_usd"], shown["balance_usd"])


def test_balance_is_per_key(ann: tuple[Key, Caller]) -> None:
    stranger = Caller("sk-stranger")

    assert 0 == stranger.get("/v1/balance").json["spent_usd"] == stranger.get("/dashboard/billing/usage").json["total_usage"]
    assert [] == stranger.get("/v1/usage").json["data"]


@pytest.mark.parametrize("path", ["/v1/balance", "/v1/usage", *(f"/dashboard/billing/{one}" for one in ("usage", "credit_grants"))])
def test_missing_key_is_refused(path: str) -> None:
    assert 401 == Caller().get(path, headers={"Authorization": ""}).status_code


# As old clients read it


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("days", ["", f"?start_date={TODAY.replace(day=1)}&end_date={TODAY + timedelta(days=1)}"])
def test_dashboard_routes_show_spending_and_balance(ann: tuple[Key, Caller], base: str, days: str) -> None:
    _, caller = ann
    billing = f"{base}/dashboard/billing"
    subscription = caller.get(f"{billing}/subscription{days}").json

    assert {"object": "list", "total_usage": 8.0} == caller.get(f"{billing}/usage{days}").json
    assert {
        "object": "credit_summary", "total_granted": 18.0, "total_used": 0.08, "total_available": 17.92,
        "grants": {"object": "list", "data": []},
    } == caller.get(f"{billing}/credit_grants{days}").json  # fmt: skip
    assert ("billing_subscription", True) == (subscription["object"], subscription["has_payment_method"])
    assert {18.0} == {subscription[f"{limit}_usd"] for limit in ("soft_limit", "hard_limit", "system_hard_limit")}
    assert subscription["access_until"] > datetime.now(UTC).timestamp()


def test_correction_counts_as_grant(ann: tuple[Key, Caller]) -> None:
    made, caller = ann
    query("INSERT INTO ledger (key_id, kind, amount_microusd) VALUES (:id, 'correction', -3000000)", id=made.id)
    shown = caller.get("/dashboard/billing/credit_grants").json

    assert (15.0, 0.08, 14.92) == (shown["total_granted"], shown["total_used"], shown["total_available"])


def test_dashboard_shows_unlimited_key_as_large_limit() -> None:
    spend(known("sk-one"), 80_000)
    caller = Caller()

    assert 100_000_000 == caller.get("/v1/dashboard/billing/subscription").json["hard_limit_usd"]
    assert 99_999_999.92 == caller.get("/v1/dashboard/billing/credit_grants").json["total_available"]


def test_usage_day_includes_first_and_last_second(ann: tuple[Key, Caller]) -> None:
    _, caller = ann
    for result, cents in ((f"start_date={TODAY}&end_date={TODAY}", 8.0), (f"end_date={TODAY - timedelta(days=1)}", 0.0),
                        (f"start_date={TODAY + timedelta(days=1)}", 0.0), ("start_date=&end_date=", 8.0)):  # fmt: skip
        assert cents == caller.get(f"/dashboard/billing/usage?{result}").json["total_usage"]


@pytest.mark.parametrize("path", ["/v1/usage", "/dashboard/billing/usage"])
@pytest.mark.parametrize(
    ("result", "param"),
    [
        ("start_date=yesterday", "start_date"), ("end_date=2026-02-30", "end_date"), ("start_date=20261125", "start_date"),
        ("start_date=2026-11-25T00:00:00", "start_date"), ("start_date=1764072000", "start_date"), ("end_date=9999-12-31", "end_date"),
        ("start_date=2026-11-25&end_date=2026-11-24", "start_date"), ("start_date=0000-00-00", "start_date"),
    ],
)  # fmt: skip
def test_invalid_date_is_refused(path: str, result: str, param: str) -> None:
    refused = Caller().get(f"{path}?{result}")

    assert (400, param) == (refused.status_code, error_of(refused)["param"])


# By day, model and user


def test_usage_is_grouped_by_day_model_and_user(ann: tuple[Key, Caller]) -> None:
    made, caller = ann
    query("TRUNCATE usage, ledger")
    grant(made, MICRO_PER_USD)
    for _ in range(2):
        answered(made, {"prompt_tokens": 1_000, "completion_tokens": 100})
    answered(made, {"prompt_tokens": 10, "completion_tokens": 5}, model="mystery", flow="bob")
    one = submit(made, model=MODEL, flow="bob", reserved_microusd=300)
    start(made, one)
    reap()
    rows = caller.get("/v1/usage").json["data"]

    names = ("day", "model", "user", "calls", "input_tokens", "output_tokens", "cost_usd", "unknown_usd", "unpriced_calls")
    day = TODAY.isoformat()
    assert [
        (day, MODEL, "ana", 2, 2_000, 200, 0.00042, 0, 0), (day, MODEL, "bob", 1, 0, 0, 0, 0.0003, 0),
        (day, "mystery", "bob", 1, 10, 5, 0, 0, 1),
    ] == [tuple(row[name] for name in names) for row in rows]  # fmt: skip
    (by_model, unpriced) = caller.get("/v1/usage?group_by=model").json["data"]
    assert (None, MODEL, None, 3) == (by_model["day"], by_model["model"], by_model["user"], by_model["calls"])
    assert (1, 1) == (unpriced["unpriced_calls"], caller.get("/v1/balance").json["unpriced_calls"])
    assert 4 == caller.get("/v1/usage?group_by=").json["data"][0]["calls"]


def test_usage_outlives_its_jobs(ann: tuple[Key, Caller]) -> None:
    made, caller = ann
    answered(made, {"prompt_tokens": 1_000, "completion_tokens": 100})
    before = caller.get("/v1/usage").json
    query("TRUNCATE job, attempt, job_event")

    assert before == caller.get("/v1/usage").json


def test_unpriced_job_has_no_cost(ann: tuple[Key, Caller]) -> None:
    made, caller = ann
    answered(made, {"prompt_tokens": 10, "completion_tokens": 5}, model="mystery")
    answered(made, {"prompt_tokens": 1_000, "completion_tokens": 100})
    priced, unpriced = (caller.get(f"/v1/jobs/{one['id']}").json["cost_usd"] for one in caller.get("/v1/jobs?limit=2").json["data"])

    assert (0.00021, None) == (priced, unpriced)


def test_free_job_costs_zero() -> None:
    one = submit(known("sk-one"), model="models", reserved_microusd=0)
    lane_id = query("SELECT lane_id FROM job")[0].lane_id
    result = JobResult(Status.SUCCEEDED, http_status=200, response=b'{"object":"list","data":[]}')
    ending.commit(AttemptRecord(one, start(known("sk-one"), one), known("sk-one").id, lane_id, "models", cost(None), result))

    assert (0, 0) == (Caller().get("/v1/balance").json["unpriced_calls"], Caller().get("/v1/balance").json["spent_usd"])


@pytest.mark.parametrize(("result", "param"), [("group_by=colour", "group_by"), ("start_date=2020-01-01", "start_date")])
def test_invalid_usage_parameters_are_refused(result: str, param: str) -> None:
    refused = Caller().get(f"/v1/usage?{result}")

    assert (400, param) == (refused.status_code, error_of(refused)["param"])


def test_concurrent_balance_reads_agree(override: Callable[..., None]) -> None:
    override(default_grant_usd="5")
    caller = Caller(issued()[1])

    assert [5.0] * 8 == [shown.json["available_usd"] for shown in together(*[lambda: caller.get("/v1/balance")] * 8)]
