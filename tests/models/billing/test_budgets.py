"""Budgets: a job reserves what it may cost before it joins the line, and two hundred at once never overspend."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from uuid import uuid4

import pytest

from models.billing import budgets
from models.billing.money import MICRO_PER_USD
from models.database import db
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from models.platform.errors import BudgetExhausted, NotFound
from tests.support.http_tools import CHAT, Caller, error_of, stored, together
from tests.support.money_tools import MODEL, REFUSED, cost, entries, grant, issued, standing
from tests.support.queue_tools import at_once, cancel, expire, finish, known, query, reap, row, start, submit
from workers.results import finish as ending
from workers.results.attempt_record import AttemptRecord

pytestmark = pytest.mark.usefixtures("database")

# 6 tokens in and 1,000 out.
BODY = {**CHAT["body"], "model": MODEL, "max_completion_tokens": 1_000}
MOST = 601


@pytest.fixture
def rich() -> Key:
    """An issued key that has 1,000 micro-USD."""
    made, _ = issued()
    grant(made, 1_000)
    return made


def test_a_job_reserves_its_estimate_until_it_ends(rich: Key) -> None:
    one = submit(rich, reserved_microusd=600)
    assert (1_000, 600, 400) == (standing(rich).balance, standing(rich).reserved, standing(rich).available)
    finish(one, start(rich, one), attempt=cost(150))

    assert (850, 0, 850) == (standing(rich).balance, standing(rich).reserved, standing(rich).available)


def test_a_key_without_money_is_refused_and_nothing_is_stored(rich: Key) -> None:
    submit(rich, reserved_microusd=600)
    with pytest.raises(BudgetExhausted, match=r"may cost 0.000401 USD, and this key has 0.0004 USD left \(0.0006 USD are reserved"):
        submit(rich, reserved_microusd=401)

    assert 1 == stored()
    submit(rich, reserved_microusd=400)


@pytest.mark.parametrize("how", ["cancel", "expire", "refused", "failed"])
def test_ended_job_releases_its_reservation(rich: Key, how: str) -> None:
    one = submit(rich, reserved_microusd=1_000)
    if how == "cancel":
        cancel(rich, one)
    elif how == "expire":
        expire(one)
    else:
        finish(one, start(rich, one), JobResult(Status.FAILED), REFUSED)

    assert 1_000 == standing(rich).available


def test_a_lost_call_is_paid_for_and_its_job_still_reserves(rich: Key) -> None:
    one = submit(rich, reserved_microusd=300)
    start(rich, one)
    reap()

    assert (Status.QUEUED, 700, 400, 300) == (row(one).status, standing(rich).balance, standing(rich).available, standing(rich).unknown)


def test_missing_usage_is_charged_to_the_budget(rich: Key) -> None:
    body = json.dumps({"choices": [{"message": {"content": "word " * 400}}], "usage": {}}).encode()
    for _ in range(3):
        one = submit(rich, model=MODEL, reserved_microusd=300)
        good = AttemptResult(Outcome.SUCCEEDED, 200)
        result = JobResult(Status.SUCCEEDED, http_status=200, response=body)
        ending.commit(AttemptRecord(one, start(rich, one), rich.id, row(one).lane_id, MODEL, good, result, asked_tokens=100))

    (each,) = {amount for _, amount in entries()[1:]}
    assert [("grant", 1_000), *[("charge", each)] * 3] == entries()
    assert -280 < each < -230, "100 tokens in, about 400 out"
    with pytest.raises(BudgetExhausted):
        submit(rich, model=MODEL, reserved_microusd=300)


def test_key_without_money_may_use_free_routes(rich: Key) -> None:
    submit(rich, reserved_microusd=1_000)
    submit(rich, reserved_microusd=0)

    with pytest.raises(BudgetExhausted, match="no money left"):
        submit(rich, reserved_microusd=None)


def test_a_key_that_was_never_granted_anything_has_no_budget() -> None:
    for free in (issued()[0], known()):
        submit(free, reserved_microusd=10**9)

    assert 2 == stored()


@pytest.mark.parametrize(("whose", "own", "of_issued"), [("issued", False, True), ("all", True, True), ("off", False, False)])
def test_budgets_setting_selects_the_keys(override: Callable[..., None], whose: str, own: bool, of_issued: bool) -> None:
    override(budgets=whose)
    for caller, has_budget in ((known(), own), (issued()[0], of_issued)):
        grant(caller, 5)
        assert has_budget == standing(caller).has_budget
        with pytest.raises(BudgetExhausted) if has_budget else nullcontext():
            submit(caller, reserved_microusd=6)


def test_a_new_key_has_its_default_grant_once(override: Callable[..., None]) -> None:
    override(default_grant_usd="0.001")
    caller, _ = issued()
    at_once(*[partial(standing, caller)] * 4, partial(submit, caller, reserved_microusd=900))
    with pytest.raises(BudgetExhausted):
        submit(caller, reserved_microusd=101)

    assert [("grant", 1_000)] == entries()
    submit(known(), reserved_microusd=10**9)
    assert [("grant", 1_000)] == entries()


def test_a_grant_comes_on_top_of_the_default(override: Callable[..., None]) -> None:
    override(default_grant_usd="1")
    caller, _ = issued(grant_usd=2)

    assert 3 * MICRO_PER_USD == standing(caller).balance


def test_grant_to_an_unknown_key_is_refused() -> None:
    with pytest.raises(NotFound, match="no key 12345"), db.begin() as session:
        budgets.grant(session, 12345, 1)

    assert [] == entries()
    assert [] == list(query("SELECT * FROM budget"))


def test_tokens_are_not_counted_twice(rich: Key) -> None:
    def spend(entries: int, *, ago_s: int) -> None:
        query(
            "INSERT INTO ledger (key_id, kind, amount_microusd, dispatch_id, at) "
            "SELECT :id, 'charge', -1, gen_random_uuid(), now() - make_interval(secs => :ago_s) "
            "FROM generate_series(1, :entries)",
            id=rich.id,
            ago_s=ago_s,
            entries=entries,
        )

    grant(rich, 4_000)
    spend(1_500, ago_s=120)
    spend(500, ago_s=10)
    for _ in range(2):
        submit(rich, reserved_microusd=1_000)
        (shown,) = query("SELECT counted_microusd FROM budget")
        assert 3_500 == shown.counted_microusd
    submit(rich, reserved_microusd=1_000)
    with pytest.raises(BudgetExhausted):
        submit(rich, reserved_microusd=1)

    assert (3_000, 0) == (standing(rich).balance, standing(rich).available)


# As callers see it


def test_refusal_is_final_and_names_the_next_step() -> None:
    caller = Caller(issued(grant_usd=1)[1])
    query("INSERT INTO ledger (key_id, kind, amount_microusd) SELECT key_id, 'charge', -1000000 FROM budget")
    for path, payload in (("/v1/jobs", {**CHAT, "body": BODY}), ("/v1/chat/completions", BODY), ("/chat/completions", BODY)):
        shown = caller.post(path, payload)
        error = error_of(shown)

        assert (429, "false") == (shown.status_code, shown.headers["x-should-retry"])
        assert ("insufficient_quota", "credit_balance_exhausted") == (error["type"], error["code"])
        assert "Ask the operator for a grant" in error["message"]
    assert 0 == stored()


def test_a_replay_reserves_nothing_again() -> None:
    made, token = issued()
    grant(made, MOST)
    caller, once = Caller(token), {"Idempotency-Key": "one"}
    answers = together(*[partial(caller.post, "/v1/jobs", {**CHAT, "body": BODY}, headers=once)] * 5)

    assert {202} == {answer.status_code for answer in answers}
    assert (1, MOST) == (stored(), standing(made).reserved)
    other = caller.post("/v1/jobs", {**CHAT, "body": BODY}, headers={"Idempotency-Key": "two"})
    assert (429, 1) == (other.status_code, len(query("SELECT * FROM idempotency")))


def test_a_retry_reserves_like_any_other_job() -> None:
    made, token = issued()
    grant(made, 2 * MOST - 1)
    caller = Caller(token)
    name = caller.submit(body=BODY)
    assert 200 == caller.post(f"/v1/jobs/{name}/cancel").status_code
    again = caller.post(f"/v1/jobs/{name}/retry")

    assert (202, MOST) == (again.status_code, standing(made).reserved)
    assert 429 == caller.post(f"/v1/jobs/{name}/retry").status_code


def test_two_hundred_at_once_never_overspend() -> None:
    made, token = issued()
    grant(made, 37 * MOST + MOST - 1)
    caller = Caller(token)

    def one() -> str:
        # As an SDK does with what may be tried again.
        headers = {"Idempotency-Key": uuid4().hex}
        while (shown := caller.post("/v1/jobs", {**CHAT, "body": BODY}, headers=headers)).status_code == 503:
            pass
        return "in line" if shown.status_code == 202 else str(error_of(shown)["code"])

    answers = Counter(together(*[one] * 200))

    assert {"in line": 37, "credit_balance_exhausted": 163} == answers
    assert (37, 37 * MOST, MOST - 1) == (stored(), standing(made).reserved, standing(made).available)
