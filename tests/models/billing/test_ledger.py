"""The ledger: each attempt is charged once, in the transaction that ends it; the unknown apart; nothing is ever changed."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from models.billing import ledger
from models.database import db
from models.jobs import completion
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from models.platform.errors import Invalid
from tests.support.money_tools import LOST, REFUSED, cost, entries, standing
from tests.support.queue_tools import ANSWER, finish, known, put_back, query, reap, row, start, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    return known()


def running(caller: Key, *, reserved: int | None = 500, **more: object) -> tuple[UUID, UUID]:
    """A job whose call has gone out."""
    one = submit(caller, reserved_microusd=reserved, **more)
    return one, start(caller, one)


@pytest.mark.parametrize("change", ["UPDATE ledger SET amount_microusd = 1", "DELETE FROM ledger"])
def test_audit_entries_are_immutable(caller: Key, change: str) -> None:
    with db.begin() as session:
        ledger.grant(session, caller.id, 5)
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="only grows"):
        query(change)

    assert [("grant", 5)] == entries()


def test_a_call_is_charged_with_its_result_and_once(caller: Key) -> None:
    one, lease = running(caller, flow="ana")
    assert finish(one, lease, attempt=cost(120))
    finish(one, lease, attempt=cost(120))
    (entry,) = query("SELECT * FROM ledger")

    assert ("charge", -120, one, lease, caller.id, "m", "ana") == (
        entry.kind, entry.amount_microusd, entry.job_id, entry.dispatch_id, entry.key_id, entry.model, entry.flow
    )  # fmt: skip


def test_each_attempt_is_charged_by_itself(caller: Key) -> None:
    one, lease = running(caller)
    put_back(one, lease, LOST, counts=True)
    finish(one, start(caller, one), attempt=cost(120))

    assert [("unknown", -500), ("charge", -120)] == entries(of=one)


@pytest.mark.parametrize(
    "finding",
    [REFUSED, AttemptResult(Outcome.FAILED, 500), AttemptResult(Outcome.THROTTLED, 429), AttemptResult(Outcome.NOT_SENT), cost(0)],
)
def test_free_calls_write_no_ledger_entry(caller: Key, finding: AttemptResult) -> None:
    put_back(*running(caller), finding)
    finish(*running(caller), JobResult(Status.FAILED), finding)

    assert [] == entries()


def test_an_aborted_call_is_unknown_unless_it_never_went_out(caller: Key) -> None:
    finish(*running(caller), JobResult(Status.CANCELLED), AttemptResult(Outcome.CANCELLED))
    finish(*running(caller), JobResult(Status.CANCELLED), AttemptResult(Outcome.CANCELLED, cost_microusd=0))

    assert [("unknown", -500)] == entries()


def test_answer_without_usage_has_unknown_usage(caller: Key) -> None:
    finish(*running(caller), attempt=cost(None))

    assert [("unknown", -500)] == entries()


def test_a_lost_worker_s_call_is_charged_as_unknown(caller: Key) -> None:
    one, _ = running(caller)
    reap()

    assert (Status.QUEUED, [("unknown", -500)]) == (row(one).status, entries(of=one))


@pytest.mark.parametrize(("finding", "correction"), [(cost(120), 380), (cost(500), 0), (cost(700), -200), (REFUSED, 500)])
def test_late_answer_corrects_an_unknown_outcome(caller: Key, finding: AttemptResult, correction: int) -> None:
    one, lease = running(caller)
    reap()
    for _ in range(2):
        finish(one, lease, ANSWER, finding)

    assert [("unknown", -500), ("correction", correction)] == entries(of=one)
    assert (500 - correction, 0) == (standing(caller).spent, standing(caller).unknown)


def test_late_answer_of_an_ended_job_corrects_its_charge(caller: Key) -> None:
    one, lease = running(caller)
    reap()
    second = start(caller, one)

    assert not finish(one, lease, ANSWER, cost(120))
    assert finish(one, second, ANSWER, cost(130))
    assert [("unknown", -500), ("correction", 380), ("charge", -130)] == entries(of=one)


def test_unknown_outcome_is_charged_once(caller: Key) -> None:
    one, lease = running(caller)
    reap()
    put_back(one, lease, LOST)
    finish(one, lease, JobResult(Status.FAILED), LOST)

    assert [("unknown", -500)] == entries(of=one)


def test_a_job_of_unknown_price_is_charged_nothing(caller: Key) -> None:
    finish(*running(caller, reserved=None), attempt=cost(None))
    running(caller, reserved=None)
    reap()

    assert [] == entries()


def test_a_charge_that_is_not_committed_is_not_there(caller: Key) -> None:
    one, lease = running(caller)
    with pytest.raises(ZeroDivisionError), db.begin() as session:
        completion.finish(session, one, lease, ANSWER, cost(120))
        raise ZeroDivisionError

    assert (Status.RUNNING, []) == (row(one).status, entries())


@pytest.mark.parametrize("amount", [0, -1])
def test_a_grant_is_a_gain(caller: Key, amount: int) -> None:
    with pytest.raises(Invalid, match="more than 0"), db.begin() as session:
        ledger.grant(session, caller.id, amount)

    assert [] == entries()
