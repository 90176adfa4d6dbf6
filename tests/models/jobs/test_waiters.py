"""Waiters: clients that disconnect, and adopt the same job with a retry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from models.database import db
from models.jobs import claims, completion, waiters
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys import keys
from models.keys.keys import Key
from tests.support.programs.process import until
from tests.support.queue_tools import admit_all, cancel, query, submit

pytestmark = pytest.mark.usefixtures("database")
FINGERPRINT = b"what was asked"


@pytest.fixture
def caller(database: None) -> Key:
    with db.begin() as session:
        return keys.authenticate(session, "sk-reader")


def ask(caller: Key, who: UUID) -> UUID:
    return submit(caller, fingerprint=FINGERPRINT, reader=who)


def adopt(caller: Key, who: UUID, *, fingerprint: bytes = FINGERPRINT) -> UUID | None:
    with db.begin() as session:
        return waiters.adopt(session, caller.id, fingerprint, reader=who)


def leave(job_id: UUID, who: UUID) -> None:
    with db.begin() as session:
        waiters.mark_left(session, job_id, reader=who)


def take_over(job_id: UUID, who: UUID | None) -> None:
    with db.begin() as session:
        waiters.take_over(session, job_id, reader=who)


def left() -> list[UUID]:
    return [row.id for row in query("SELECT id FROM job WHERE left_at IS NOT NULL")]


def end(caller: Key, job_id: UUID, status: Status) -> None:
    admit_all(caller, most=10)
    with db.begin() as session:
        dispatch_id = session.execute(text("SELECT dispatch_id FROM job WHERE id = :id"), {"id": job_id}).scalar_one()
        assert claims.claim(session, job_id, dispatch_id, lease_s=30)
        assert completion.finish(session, job_id, dispatch_id, JobResult(status), AttemptResult(Outcome.SUCCEEDED))


def test_retry_adopts_the_open_job(caller: Key) -> None:
    first = uuid4()
    job_id = ask(caller, first)
    leave(job_id, first)

    assert job_id == adopt(caller, uuid4())
    assert [] == left()


def test_disconnect_of_a_replaced_waiter_changes_nothing(caller: Key) -> None:
    first, second = uuid4(), uuid4()
    job_id = ask(caller, first)
    adopt(caller, second)

    leave(job_id, first)

    assert [] == left()


def test_job_without_its_waiter_is_found_for_cancellation(caller: Key) -> None:
    first = uuid4()
    job_id = ask(caller, first)

    leave(job_id, first)

    assert [job_id] == left()


def test_job_without_a_waiter_is_adopted_first(caller: Key) -> None:
    ask(caller, uuid4())
    first = uuid4()
    abandoned = ask(caller, first)
    leave(abandoned, first)

    assert abandoned == adopt(caller, uuid4())


def test_undelivered_answer_is_kept_for_the_retry(caller: Key) -> None:
    first = uuid4()
    job_id = ask(caller, first)
    end(caller, job_id, Status.SUCCEEDED)
    leave(job_id, first)

    assert job_id == adopt(caller, uuid4())


def test_delivered_answer_is_not_adopted(caller: Key) -> None:
    end(caller, ask(caller, uuid4()), Status.SUCCEEDED)

    assert adopt(caller, uuid4()) is None


def test_job_cancelled_after_a_disconnect_is_not_adopted(caller: Key) -> None:
    first = uuid4()
    job_id = ask(caller, first)
    leave(job_id, first)
    cancel(caller, job_id)

    assert adopt(caller, uuid4()) is None


def test_cancellation_before_the_disconnect_is_delivered_to_the_retry(caller: Key) -> None:
    first = uuid4()
    job_id = ask(caller, first)
    cancel(caller, job_id)
    leave(job_id, first)

    assert job_id == adopt(caller, uuid4())


def test_adopt_waits_for_a_job_that_is_ending(caller: Key) -> None:
    job_id = ask(caller, uuid4())
    with ThreadPoolExecutor(1) as threads:
        with db.begin() as session:
            session.execute(text("UPDATE job SET seq = seq + 1 WHERE id = :id"), {"id": job_id})
            found = threads.submit(adopt, caller, uuid4())
            until(lambda: query("SELECT FROM pg_locks WHERE NOT granted"), what="waiting for the job's row")

        assert job_id == found.result(5)


def test_concurrent_retries_adopt_different_jobs(caller: Key) -> None:
    readers = [uuid4(), uuid4()]
    jobs = [ask(caller, who) for who in readers]
    for job_id, who in zip(jobs, readers, strict=True):
        leave(job_id, who)

    with db.begin() as session:
        assert jobs[0] == waiters.adopt(session, caller.id, FINGERPRINT, reader=uuid4())
        assert jobs[1] == adopt(caller, uuid4())


def test_repeated_idempotency_key_takes_over_the_job(caller: Key) -> None:
    first, second = uuid4(), uuid4()
    job_id = ask(caller, first)
    leave(job_id, first)
    take_over(job_id, second)
    leave(job_id, first)
    assert [] == left()

    leave(job_id, second)

    assert [job_id] == left()


def test_job_without_a_waiter_is_not_cancelled_by_a_disconnect(caller: Key) -> None:
    first = uuid4()
    once_waited_for, never_waited_for = ask(caller, first), submit(caller)
    take_over(once_waited_for, None)
    take_over(never_waited_for, first)

    leave(once_waited_for, first)
    leave(never_waited_for, first)

    assert [] == left()


def test_another_body_or_key_adopts_nothing(caller: Key) -> None:
    ask(caller, uuid4())
    with db.begin() as session:
        other = keys.authenticate(session, "sk-other")

    assert adopt(caller, uuid4(), fingerprint=b"something else") is None
    assert adopt(other, uuid4()) is None


@pytest.mark.parametrize("status", [Status.FAILED, Status.SUCCEEDED])
def test_only_undelivered_failures_are_found_for_unmarked_retries(caller: Key, status: Status) -> None:
    who = uuid4()
    job_id = ask(caller, who)
    assert find_undelivered(caller) is None
    end(caller, job_id, status)
    assert find_undelivered(caller) is None
    leave(job_id, who)

    wanted = job_id if status == Status.FAILED else None
    assert [wanted, wanted] == [find_undelivered(caller), find_undelivered(caller)]
    assert find_undelivered(caller, b"something else") is None
    # Delivered to a marked retry.
    assert job_id == adopt(caller, uuid4())
    assert find_undelivered(caller) is None


def test_job_cancelled_because_its_reader_left_is_no_undelivered_failure(caller: Key) -> None:
    who = uuid4()
    job_id = ask(caller, who)
    leave(job_id, who)
    cancel(caller, job_id)

    assert find_undelivered(caller) is None


def find_undelivered(caller: Key, fingerprint: bytes = FINGERPRINT) -> UUID | None:
    with db.begin() as session:
        return waiters.find_undelivered_failure(session, caller.id, fingerprint)
