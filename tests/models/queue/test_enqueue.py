"""Enqueueing: order, positions and refusals in Postgres."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from models.database import db
from models.jobs import claims, completion, job_rows, job_view, states
from models.keys import keys
from models.keys.keys import Key
from models.platform.errors import QueueFull, TooLate
from models.queue import admission
from tests.support.queue_tools import admit_all, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    with db.begin() as session:
        return keys.authenticate(session, "sk-test")


def test_user_with_many_jobs_delays_another_user_by_one_job(caller: Key) -> None:
    for _ in range(20):
        submit(caller, flow="flood")
    late = submit(caller, flow="late")

    assert late in admit_all(caller, most=2)


def test_jobs_of_one_user_keep_their_order(caller: Key) -> None:
    jobs = [submit(caller, flow="one") for _ in range(5)]

    assert jobs == admit_all(caller, most=5)


def test_high_priority_gets_four_turns_for_one(caller: Key) -> None:
    for _ in range(40):
        submit(caller, flow="high", priority="high")
        submit(caller, flow="normal")

    first = admit_all(caller, most=20)

    with db.begin() as session:
        rows = session.execute(text("SELECT flow, count(*) FROM job WHERE id = ANY(:ids) GROUP BY flow"), {"ids": first})
        assert 15 <= {row[0]: row[1] for row in rows}["high"] <= 17


def test_position_counts_jobs_ahead(caller: Key) -> None:
    jobs = [submit(caller, flow="one") for _ in range(3)]

    with db.begin() as session:
        assert [1, 2, 3] == [
            job_view.render_job(session, job_rows.find_job(session, number, caller.id))["queue"]["position"] for number in jobs
        ]


def test_full_lane_refuses_a_job_and_stores_nothing(caller: Key, override) -> None:
    override(max_queued_per_key=2)
    submit(caller)
    submit(caller)

    with pytest.raises(QueueFull):
        submit(caller)
    with db.begin() as session:
        assert 2 == session.execute(text("SELECT count(*) FROM job")).scalar_one()


def test_job_that_would_expire_in_the_queue_is_refused(caller: Key) -> None:
    submit(caller)
    with db.begin() as session:
        session.execute(text("UPDATE lane SET rpm = 1"))

    with pytest.raises(TooLate):
        submit(caller, expires_in_s=30)


def test_turns_of_a_conversation_are_admitted_one_by_one(caller: Key) -> None:
    first, second = submit(caller, conversation="c"), submit(caller, conversation="c")

    assert [first] == admit_all(caller, most=5)
    assert [] == admit_all(caller, most=5)
    with db.begin() as session:
        row = session.execute(text("SELECT dispatch_id FROM job WHERE id = :id"), {"id": first}).one()
        claims.claim(session, first, row.dispatch_id, lease_s=30)
        completion.finish(
            session, first, row.dispatch_id, states.JobResult(states.Status.SUCCEEDED), states.AttemptResult(states.Outcome.SUCCEEDED)
        )
    assert [second] == admit_all(caller, most=5)


def test_lane_is_claimed_by_one_pacer_at_a_time(caller: Key) -> None:
    submit(caller)

    with db.begin() as session:
        assert 1 == len(admission.claim_lanes(session, woken=[], limit=5))
        assert 0 == len(admission.claim_lanes(session, woken=[], limit=5))
