"""Each transition of a job: what it changes, and when it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from models.database import db
from models.jobs import claims, completion, requeue
from models.jobs.states import TERMINAL, AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from tests.support.queue_tools import (
    ANSWER,
    BUSY,
    GOOD,
    LOST,
    admit,
    admit_all,
    cancel,
    event_types,
    expire,
    finish,
    heads,
    known,
    outcomes,
    put_back,
    query,
    reap,
    row,
    start,
    submit,
)

pytestmark = pytest.mark.usefixtures("database")
FAILED = JobResult(Status.FAILED, http_status=400, error={"message": "no", "type": None, "param": None, "code": None})


@pytest.fixture
def caller() -> Key:
    return known()


def claim(job_id: UUID, dispatch_id: UUID) -> object:
    with db.begin() as session:
        return claims.claim(session, job_id, dispatch_id, lease_s=30)


def ended_unclaimed(job_id: UUID, dispatch_id: UUID) -> object:
    with db.begin() as session:
        return claims.ended_unclaimed(session, job_id, dispatch_id)


def beat(leases: dict[UUID, UUID]) -> dict[UUID, bool]:
    with db.begin() as session:
        return claims.renew_leases(session, leases, lease_s=30)


def return_unclaimed(*, older_than_s: float = 0, credential_id: int | None = None, model: str | None = None) -> list[UUID]:
    with db.begin() as session:
        return [one.id for one in requeue.requeue_unclaimed(session, older_than_s=older_than_s, credential_id=credential_id, model=model)]


def refuse(job_id: UUID) -> bool:
    with db.begin() as session:
        return completion.fail_queued(session, job_id, error={"message": "too large"})


# Claim


def test_claim_records_the_attempt_before_the_call(caller: Key) -> None:
    one = submit(caller)
    start(caller, one)

    assert (Status.RUNNING, ["running"], 1) == (row(one).status, outcomes(one), row(one).calls)
    assert ["queued", "started"] == event_types(one)


def test_second_claim_of_a_dispatch_changes_nothing(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)

    assert claim(one, dispatch_id) is None
    assert 1 == row(one).calls


def test_stale_dispatch_claims_nothing(caller: Key) -> None:
    one = submit(caller)
    old = admit(caller, one)
    return_unclaimed()
    admit(caller, one)

    assert claim(one, old) is None
    assert Status.ADMITTED == row(one).status


def test_queued_job_cannot_be_claimed(caller: Key) -> None:
    assert claim(submit(caller), uuid4()) is None


# Renew leases


def test_renew_leases_extends_the_lease(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    query("UPDATE job SET lease_until = now() + interval '1 s'")

    assert {dispatch_id: False} == beat({dispatch_id: one})
    assert [True] == [each.renewed for each in query("SELECT lease_until > now() + interval '20 s' AS renewed FROM job")]


def test_renew_leases_returns_requested_cancellations(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    cancel(caller, one)

    assert {dispatch_id: True} == beat({dispatch_id: one})


def test_renew_leases_omits_lost_leases(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    reap()

    assert {} == beat({dispatch_id: one, uuid4(): uuid4()})
    assert {} == beat({})


# Finish


def test_finished_job_has_its_answer_and_no_lease(caller: Key) -> None:
    one = submit(caller)
    assert finish(one, start(caller, one))

    ended = row(one)
    assert (Status.SUCCEEDED, 200, b'{"id": "answer"}', None) == (ended.status, ended.http_status, bytes(ended.response), ended.lease_until)
    assert (["succeeded"], ["queued", "started", "succeeded"]) == (outcomes(one), event_types(one))


def test_job_finishes_once(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    finish(one, dispatch_id)

    assert not finish(one, dispatch_id, FAILED, AttemptResult(Outcome.REFUSED, 400))
    assert (Status.SUCCEEDED, ["succeeded"]) == (row(one).status, outcomes(one))


def test_late_answer_of_a_reaped_job_is_adopted(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    reap()

    assert finish(one, dispatch_id)
    assert (Status.SUCCEEDED, ["succeeded"], []) == (row(one).status, outcomes(one), heads())


def test_adopted_answer_leaves_no_possible_duplicate(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    reap()
    assert 1 == row(one).possible_duplicate_calls

    finish(one, dispatch_id)
    assert 0 == row(one).possible_duplicate_calls


def test_late_answer_is_adopted_while_the_next_call_is_only_admitted(caller: Key) -> None:
    one = submit(caller)
    late = start(caller, one)
    reap()
    unclaimed = admit(caller, one)

    assert finish(one, late)
    assert claim(one, unclaimed) is None
    assert ended_unclaimed(one, unclaimed) is not None


def test_late_answer_is_only_recorded_after_the_job_is_called_again(caller: Key) -> None:
    one = submit(caller)
    late = start(caller, one)
    reap()
    again = start(caller, one)

    assert not finish(one, late)
    assert (Status.RUNNING, ["succeeded", "running"]) == (row(one).status, outcomes(one))
    assert finish(one, again)


def test_late_answer_is_not_adopted_after_another_call_ended(caller: Key) -> None:
    one = submit(caller)
    late = start(caller, one)
    reap()
    put_back(one, start(caller, one))

    assert not finish(one, late)
    assert Status.QUEUED == row(one).status


# Requeue


def test_throttled_job_is_requeued_at_its_old_tag_without_counting(caller: Key) -> None:
    one, two = submit(caller, flow="a"), submit(caller, flow="b")
    tag = row(one).start_tag
    put_back(one, start(caller, one))

    after = row(one)
    assert (Status.QUEUED, tag, 0, 1) == (after.status, after.start_tag, after.failures, after.calls)
    assert [one, two] == heads()


def test_failed_attempt_counts_and_delays_the_job(caller: Key) -> None:
    one = submit(caller)
    put_back(one, start(caller, one), AttemptResult(Outcome.FAILED, 500), delay_s=60, counts=True)

    assert (1, []) == (row(one).failures, heads())


def test_unknown_outcome_counts_as_a_possible_duplicate(caller: Key) -> None:
    one = submit(caller)
    put_back(one, start(caller, one), LOST, counts=True)

    assert (1, ["unknown"]) == (row(one).possible_duplicate_calls, outcomes(one))


def test_requeued_job_is_found_after_the_low_water_mark_rose(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    query("UPDATE lane SET virtual_time = 1e9")
    query("UPDATE key_share SET virtual_time = 1e9, low_water = 1e9")
    put_back(one, dispatch_id)

    assert [one] == heads()


def test_job_is_requeued_once(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    put_back(one, dispatch_id)

    assert not put_back(one, dispatch_id)
    assert ["queued", "started", "queued"] == event_types(one)


def test_job_with_requested_cancellation_is_cancelled_instead_of_requeued(caller: Key) -> None:
    one, two = submit(caller, conversation="c"), submit(caller, conversation="c")
    dispatch_id = start(caller, one)
    cancel(caller, one)

    assert put_back(one, dispatch_id)
    assert Status.CANCELLED == row(one).status
    assert [two] == heads()


# Requeue unclaimed


def test_unclaimed_job_is_requeued_without_an_event(caller: Key) -> None:
    one = submit(caller)
    admit_all(caller, most=1)

    assert [one] == return_unclaimed()
    assert ([one], ["queued"], 0) == (heads(), event_types(one), row(one).calls)


def test_recent_admission_is_not_requeued(caller: Key) -> None:
    one = submit(caller)
    admit(caller, one)

    assert [] == return_unclaimed(older_than_s=10)
    query("UPDATE job SET admitted_at = now() - interval '11 s'")
    assert [one] == return_unclaimed(older_than_s=10)


def test_running_job_is_not_requeued_as_unclaimed(caller: Key) -> None:
    start(caller, submit(caller))

    assert [] == return_unclaimed()


def test_requeue_unclaimed_filters_by_credential_and_model(caller: Key) -> None:
    one, two = submit(caller), submit(caller, model="other")
    admit(caller, one)
    admit(caller, two)

    assert [two] == return_unclaimed(credential_id=row(two).credential_id, model="other")


# Reap


def test_job_of_a_lost_worker_is_called_again(caller: Key) -> None:
    one = submit(caller)
    start(caller, one)

    assert [(one, "queued")] == [(lost.id, lost.status) for lost in reap()]
    assert (1, 1, ["unknown"], [one]) == (row(one).failures, row(one).possible_duplicate_calls, outcomes(one), heads())


def test_valid_lease_is_not_reaped(caller: Key) -> None:
    start(caller, submit(caller))

    with db.begin() as session:
        assert [] == list(requeue.reap(session))


@pytest.mark.parametrize("wanted", [{"on_lost": "fail"}, {"max_attempts": 1}])
def test_lost_job_that_must_not_be_called_again_fails(caller: Key, wanted: dict[str, object]) -> None:
    one = submit(caller, **wanted)
    start(caller, one)
    reap()

    ended = row(one)
    assert (Status.FAILED, "upstream_outcome_unknown", 0) == (ended.status, ended.error["code"], ended.possible_duplicate_calls)
    assert ["queued", "started", "failed"] == event_types(one)


def test_lost_job_with_requested_cancellation_is_cancelled(caller: Key) -> None:
    one = submit(caller, on_lost="fail")
    start(caller, one)
    cancel(caller, one)
    reap()

    assert (Status.CANCELLED, None, ["queued", "started", "cancelling", "cancelled"]) == (
        row(one).status,
        row(one).error,
        event_types(one),
    )


def test_lost_turn_that_fails_enqueues_the_next_one(caller: Key) -> None:
    one, two = submit(caller, conversation="c", on_lost="fail"), submit(caller, conversation="c")
    start(caller, one)
    assert [] == heads()
    reap()

    assert [two] == heads()


# Cancel


def test_queued_job_is_cancelled_at_once(caller: Key) -> None:
    one = submit(caller)

    assert (Status.CANCELLED, None) == (cancel(caller, one).status, row(one).dispatch_id)
    assert ([], ["queued", "cancelled"]) == (heads(), event_types(one))


def test_admitted_job_is_cancelled_and_found_as_ended_unclaimed(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = admit(caller, one)

    assert (Status.CANCELLED, dispatch_id) == (cancel(caller, one).status, row(one).dispatch_id)
    assert claim(one, dispatch_id) is None
    assert dispatch_id == ended_unclaimed(one, dispatch_id).dispatch_id


def test_running_job_gets_a_cancellation_request(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)

    assert dispatch_id == cancel(caller, one).dispatch_id
    assert (Status.RUNNING, True, "cancelling") == (row(one).status, row(one).cancel_requested, event_types(one)[-1])


def test_job_answered_before_its_cancellation_succeeds(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    cancel(caller, one)

    assert finish(one, dispatch_id)
    assert Status.SUCCEEDED == row(one).status


def test_job_is_cancelled_once(caller: Key) -> None:
    one = submit(caller)
    start(caller, one)
    cancel(caller, one)

    assert cancel(caller, one) is None
    assert 1 == event_types(one).count("cancelling")


def test_key_cannot_cancel_a_job_of_another_key(caller: Key) -> None:
    one = submit(caller)

    assert cancel(known("sk-stranger"), one) is None
    assert Status.QUEUED == row(one).status


def test_cancelled_held_turn_blocks_no_other_turn(caller: Key) -> None:
    one, two, three = (submit(caller, conversation="c") for _ in range(3))
    cancel(caller, two)
    assert [one] == heads()
    finish(one, start(caller, one))

    assert [three] == heads()


# Ended unclaimed


def test_open_job_is_not_ended_unclaimed(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = admit(caller, one)

    assert ended_unclaimed(one, dispatch_id) is None


def test_called_job_is_not_ended_unclaimed(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    cancel(caller, one)
    finish(one, dispatch_id, JobResult(Status.CANCELLED), AttemptResult(Outcome.CANCELLED))

    assert ended_unclaimed(one, dispatch_id) is None


# Expire


def test_job_that_waited_too_long_expires(caller: Key) -> None:
    one = submit(caller)

    assert [one] == [late.id for late in expire(one)]
    assert (Status.EXPIRED, "expired", ["queued", "expired"]) == (row(one).status, row(one).error["code"], event_types(one))


def test_held_turn_expires_without_affecting_the_turn_before_it(caller: Key) -> None:
    one, two, three = (submit(caller, conversation="c") for _ in range(3))
    dispatch_id = start(caller, one)
    expire(two)
    assert (Status.EXPIRED, []) == (row(two).status, heads())
    finish(one, dispatch_id)

    assert [three] == heads()


def test_expired_turn_enqueues_the_next_one(caller: Key) -> None:
    one, two = submit(caller, conversation="c"), submit(caller, conversation="c")
    expire(one)

    assert [two] == heads()


def test_admitted_and_running_jobs_do_not_expire(caller: Key) -> None:
    one = submit(caller)
    start(caller, one)

    assert [] == list(expire(one))


# Fail queued


def test_fail_queued_fails_a_job_without_a_call(caller: Key) -> None:
    one = submit(caller)

    assert refuse(one)
    assert (Status.FAILED, {"message": "too large"}, 0) == (row(one).status, row(one).error, row(one).calls)


def test_fail_queued_ignores_an_admitted_job(caller: Key) -> None:
    one = submit(caller)
    admit(caller, one)

    assert not refuse(one)


# Ended jobs


def _succeeded(caller: Key, one: UUID) -> UUID:
    dispatch_id = start(caller, one)
    finish(one, dispatch_id)
    return dispatch_id


def _failed(caller: Key, one: UUID) -> UUID:
    dispatch_id = start(caller, one)
    reap()
    return dispatch_id


def _cancelled(caller: Key, one: UUID) -> UUID:
    dispatch_id = admit(caller, one)
    cancel(caller, one)
    return dispatch_id


def _expired(caller: Key, one: UUID) -> UUID:
    dispatch_id = start(caller, one)
    put_back(one, dispatch_id)
    expire(one)
    return dispatch_id


def _lasting(ended: Any) -> dict[str, object]:
    return {name: value for name, value in ended._asdict().items() if name != "expires_at"}


@pytest.mark.parametrize("end", [_succeeded, _failed, _cancelled, _expired])
def test_ended_job_never_changes(caller: Key, end: Callable[[Key, UUID], UUID]) -> None:
    one = submit(caller, on_lost="fail")
    dispatch_id = end(caller, one)
    before, events = row(one), event_types(one)
    assert before.status in TERMINAL

    tried = [
        claim(one, dispatch_id),
        beat({dispatch_id: one}),
        finish(one, dispatch_id),
        put_back(one, dispatch_id),
        put_back(one, dispatch_id, GOOD),
    ]
    tried += [cancel(caller, one), refuse(one), list(reap()), list(expire(one)), return_unclaimed(), finish(one, uuid4(), ANSWER, BUSY)]

    assert [] == [each for each in tried if each]
    assert (_lasting(before), events) == (_lasting(row(one)), event_types(one))
