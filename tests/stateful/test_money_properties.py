"""Properties of money: the balance is the sum of the ledger, each attempt is charged at most once, and no key overspends.

A state machine runs steps in random order on the real Postgres; eight threads act at the same time.
HYPOTHESIS_PROFILE=nightly runs many more.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from models.database import db
from models.jobs import claims, requeue
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from models.platform.errors import BudgetExhausted
from models.queue.admission import Admission, admit
from tests.stateful.test_job_properties import COMMON, NIGHTLY
from tests.support.money_tools import grant, issued, standing
from tests.support.queue_tools import at_once, cancel, credential_of, expire, finish, put_back, query, submit

pytestmark = pytest.mark.usefixtures("database")

OPEN = ("queued", "admitted", "running")
WHICH = st.integers(0, 1_000)
# Parts of the reservation: nothing, a part, all.
PARTS = st.sampled_from([0.0, 0.3, 1.0])
FAILED = [
    AttemptResult(Outcome.REFUSED, 400),
    AttemptResult(Outcome.FAILED, 500),
    AttemptResult(Outcome.THROTTLED, 429),
    AttemptResult(Outcome.NOT_SENT),
]


class Ledger(RuleBasedStateMachine):
    """One key. paid: the expected charge of each call (dispatch id)."""

    @initialize(amount=st.sampled_from([0, 5_000]))
    def begin(self, amount: int) -> None:
        self.key: Key = issued(uuid4().hex)[0]
        self.given = 0
        self.paid: dict[UUID, int] = {}
        self.unknown: set[UUID] = set()
        self.calls: list[tuple[UUID, UUID, int]] = []
        if amount:
            self.grant(amount)

    @rule(amount=st.integers(1, 3_000))
    def grant(self, amount: int) -> None:
        grant(self.key, amount)
        self.given += amount

    @rule(amount=st.integers(1, 900))
    def submit(self, amount: int) -> None:
        had = standing(self.key)
        try:
            submit(self.key, reserved_microusd=amount)
        except BudgetExhausted:
            assert had.available < amount
        else:
            assert not had.has_budget or had.available >= amount

    @rule(which=WHICH)
    def start(self, which: int) -> None:
        for one in self.pick("queued", which):
            call = uuid4()
            with db.begin() as session:
                admit(session, [Admission(one.id, call, credential_of(session, self.key))])
                assert claims.claim(session, one.id, call, lease_s=30)
            self.calls.append((one.id, call, one.reserved_microusd))

    @rule(amounts=st.lists(st.integers(1, 900), min_size=1, max_size=3))
    def several_start(self, amounts: list[int]) -> None:
        """Admits and claims jobs."""
        for n, amount in enumerate(amounts):
            self.submit(amount)
            self.start(n)

    @rule(which=WHICH, part=PARTS)
    def answer_late(self, which: int, part: float) -> None:
        self.reap(which)
        self.answer(which, part)

    @rule(which=WHICH, part=PARTS)
    def answer(self, which: int, part: float) -> None:
        """Ends any call that was ever sent, however late, possibly again."""
        for job_id, call, most in self.calls[-1 - which % 4 :][:1]:
            owed = int(most * part)
            finish(job_id, call, attempt=AttemptResult(Outcome.SUCCEEDED, 200, cost_microusd=owed))
            self.settle(call, owed)

    @rule(which=WHICH, attempt=st.sampled_from(FAILED), again=st.booleans())
    def fail(self, which: int, attempt: AttemptResult, again: bool) -> None:
        for job_id, call, _ in self.calls[-1 - which % 4 :][:1]:
            if again:
                put_back(job_id, call, attempt)
            else:
                finish(job_id, call, JobResult(Status.FAILED), attempt)
            self.settle(call, 0)

    @rule(which=WHICH, outcome=st.sampled_from([Outcome.UNKNOWN, Outcome.CANCELLED]))
    def lose_or_abort(self, which: int, outcome: Outcome) -> None:
        for job_id, call, most in self.calls[-1 - which % 4 :][:1]:
            finish(job_id, call, JobResult(Status.FAILED), AttemptResult(outcome))
            if outcome == Outcome.UNKNOWN:
                self.lose(call, most)
            elif call not in self.paid or call in self.unknown:
                self.lose(call, most)
                self.unknown.discard(call)  # the call has ended: no later answer corrects `cancelled`

    @rule(which=WHICH)
    def reap(self, which: int) -> None:
        for one in self.pick("running", which):
            query("UPDATE job SET lease_until = now() - interval '1 s' WHERE id = :id", id=one.id)
            with db.begin() as session:
                requeue.reap(session)
            self.lose(one.dispatch_id, one.reserved_microusd)

    @rule(which=WHICH, status=st.sampled_from(OPEN))
    def cancel(self, which: int, status: str) -> None:
        for one in self.pick(status, which):
            cancel(self.key, one.id)

    @rule(which=WHICH)
    def expire(self, which: int) -> None:
        for one in self.pick("queued", which)[: which % 2]:
            expire(one.id)

    @invariant()
    def balance_agrees(self) -> None:
        if not hasattr(self, "key"):
            return
        now = standing(self.key)
        (ledger,) = query("SELECT coalesce(sum(amount_microusd), 0)::bigint AS sum FROM ledger WHERE key_id = :id", id=self.key.id)
        assert ledger.sum == now.balance == self.given - sum(self.paid.values())
        opened = query("SELECT reserved_microusd FROM job WHERE key_id = :id AND status = ANY(:open)", id=self.key.id, open=list(OPEN))
        assert sum(one.reserved_microusd for one in opened) == now.reserved

    def settle(self, call: UUID, owed: int) -> None:
        if call not in self.paid or call in self.unknown:
            self.paid[call] = owed
            self.unknown.discard(call)

    def lose(self, call: UUID, most: int) -> None:
        if call not in self.paid:
            self.paid[call] = most
            self.unknown.add(call)

    def pick(self, status: str, which: int) -> list[Any]:
        rows = list(query("SELECT * FROM job WHERE key_id = :id AND status = :status ORDER BY id", id=self.key.id, status=status))
        return [rows[which % len(rows)]] if rows else []


def test_balance_is_the_sum_of_the_ledger() -> None:
    run_state_machine_as_test(Ledger, settings=COMMON)


# Concurrent threads


class Crowd:
    """One of eight threads that submit, run, lose and cancel jobs of one key at random."""

    def __init__(self, caller: Key, seed: int) -> None:
        self.caller = caller
        self.rng = random.Random(seed)

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            self.rng.choice([self.submit, self.submit, self.submit, self.start, self.start, self.end, self.end, self.reap, self.cancel])()

    def submit(self) -> None:
        with suppress(BudgetExhausted):
            submit(self.caller, model=f"m{self.rng.randrange(3)}", flow=f"f{self.rng.randrange(3)}", reserved_microusd=100)

    def start(self) -> None:
        for one in self.some("queued"):
            with db.begin() as session:
                call = Admission(one.id, uuid4(), credential_of(session, self.caller))
                if admit(session, [call]):
                    claims.claim(session, one.id, call.dispatch_id, lease_s=30)

    def end(self) -> None:
        for one in self.some("running"):
            self.rng.choice([self.good, self.good, self.bad, self.lost])(one)

    def good(self, one: Any) -> None:
        finish(one.id, one.dispatch_id, attempt=AttemptResult(Outcome.SUCCEEDED, 200, cost_microusd=self.rng.choice([0, 30, 100])))

    def bad(self, one: Any) -> None:
        finish(one.id, one.dispatch_id, JobResult(Status.FAILED), self.rng.choice(FAILED))

    def lost(self, one: Any) -> None:
        finish(one.id, one.dispatch_id, JobResult(Status.FAILED), AttemptResult(Outcome.UNKNOWN))

    def reap(self) -> None:
        for one in self.some("running"):
            query("UPDATE job SET lease_until = now() - interval '1 s', on_lost = 'fail' WHERE id = :id AND status = 'running'", id=one.id)
        with db.begin() as session:
            requeue.reap(session)

    def cancel(self) -> None:
        for one in self.some(self.rng.choice(OPEN)):
            cancel(self.caller, one.id)

    def some(self, status: str) -> list[Any]:
        rows = list(query("SELECT id, dispatch_id FROM job WHERE status = :status LIMIT 20", status=status))
        return [self.rng.choice(rows)] if rows else []


def test_concurrent_jobs_do_not_exceed_the_balance() -> None:
    caller, _ = issued()
    grant(caller, 5_000)
    until = time.monotonic() + (30 if NIGHTLY else 4)
    at_once(*[partial(Crowd(caller, seed).run, until) for seed in range(8)])
    now = standing(caller)

    assert now.balance >= now.reserved >= 0
    assert 5_000 - now.balance == sum(one.paid for one in query(_PAID))
    assert [] == list(query(_TOO_MUCH)), "a call that is charged twice"
    assert [] == list(query(_WRONG)), "a call whose charge does not match its outcome"


_PAID = "SELECT -sum(amount_microusd)::bigint AS paid FROM ledger WHERE dispatch_id IS NOT NULL GROUP BY dispatch_id"
_TOO_MUCH = "SELECT FROM ledger WHERE dispatch_id IS NOT NULL GROUP BY dispatch_id HAVING -sum(amount_microusd) NOT BETWEEN 0 AND 100"
_WRONG = """
    SELECT outcome, paid FROM attempt LEFT JOIN (
        SELECT dispatch_id, -sum(amount_microusd) AS paid FROM ledger GROUP BY dispatch_id
    ) AS owed USING (dispatch_id)
    WHERE outcome IN ('unknown', 'cancelled') AND paid IS DISTINCT FROM 100
    OR outcome IN ('refused', 'failed', 'throttled', 'not_sent', 'running') AND coalesce(paid, 0) <> 0
"""
