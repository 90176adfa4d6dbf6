"""Positions in long queues: counted from checkpoints, exact as far as these are fresh, and independent of the length."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from models.database import db
from models.jobs import job_rows
from models.keys.keys import Key
from models.queue import enqueue, headroom, lane_maintenance, lanes, position, position_index
from models.queue.position import QueuePosition
from tests.support.queue_tools import cancel, enqueue_in, known, query, row, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    return known()


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> int:
    """So few jobs from one milestone to the next, and twice as many make a long line."""
    monkeypatch.setattr(position_index, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(lane_maintenance, "LONG_LANE", 10)
    return position_index.CHECKPOINT_EVERY


def set_anew(job_id: UUID) -> None:
    with db.begin() as session:
        position_index.rebuild_checkpoints(session, row(job_id).lane_id)


def place(caller: Key, job_id: UUID) -> QueuePosition:
    with db.begin() as session:
        return position.position_of(session, job_rows.find_job(session, job_id, caller.id))


def crowd(caller: Key, jobs: int, *, seed: int = 0) -> list[UUID]:
    """Jobs of three users in every priority, sorted as they stand in line."""
    rng = random.Random(seed)
    made = [
        submit(caller, flow=rng.choice("abc"), priority=rng.choice(["low", "normal", "high"]), tokens=rng.randint(1, 9_999))
        for _ in range(jobs)
    ]
    return in_order(made)


def in_order(jobs: list[UUID]) -> list[UUID]:
    return sorted((one for one in jobs if row(one).status == "queued"), key=lambda one: (row(one).start_tag, one))


def places_of(caller: Key, jobs: list[UUID]) -> list[QueuePosition]:
    return [place(caller, one) for one in jobs]


def set_at() -> Any:
    return next(iter(query("SELECT ids, jobs FROM key_milestones")), None)


@pytest.mark.parametrize("seed", range(3))
def test_fresh_checkpoints_give_exact_positions(caller: Key, every: int, seed: int) -> None:
    jobs = crowd(caller, 33, seed=seed)
    query("UPDATE lane SET rpm = 60, tpm = 30_000")
    without = places_of(caller, jobs)
    set_anew(jobs[0])

    assert ([jobs[n] for n in range(5, 33, 5)], list(range(5, 33, 5))) == tuple(set_at())
    assert without == places_of(caller, jobs)
    assert list(range(1, 34)) == [one.position for one in without]


def test_jobs_with_equal_tags_are_ordered_by_id(caller: Key, every: int) -> None:
    jobs = [submit(caller, flow=f"user {n}") for n in range(23)]
    set_anew(jobs[0])

    assert {0.0} == {row(one).start_tag for one in jobs}
    assert list(range(1, 24)) == [one.position for one in places_of(caller, jobs)]


def test_enqueued_job_gets_the_position_of_a_later_query(caller: Key, every: int) -> None:
    jobs = crowd(caller, 21)
    set_anew(jobs[0])
    with db.begin() as session:
        job_id, enqueued = enqueue_in(session, caller, flow="late", tokens=10)

    assert enqueued is not None
    assert enqueued.position is not None
    assert (in_order([*jobs, job_id]).index(job_id) + 1, place(caller, job_id)) == (enqueued.position.position, enqueued.position)


def test_position_before_the_first_checkpoint_ignores_ended_jobs(caller: Key, every: int) -> None:
    jobs = crowd(caller, 33)
    set_anew(jobs[0])
    for one in jobs[:4]:
        cancel(caller, one)

    assert 1 == place(caller, jobs[4]).position
    assert 33 == place(caller, jobs[-1]).position  # counted at the milestones before it
    set_anew(jobs[0])
    assert 29 == place(caller, jobs[-1]).position


def test_old_checkpoints_are_ignored(caller: Key, every: int) -> None:
    jobs = crowd(caller, 33)
    set_anew(jobs[0])
    for one in jobs[:4]:
        cancel(caller, one)
    query(f"UPDATE key_milestones SET set_at = now() - interval '{position_index.FRESH_S + 1} s'")

    assert 29 == place(caller, jobs[-1]).position


def test_position_is_not_counted_beyond_the_maximum(caller: Key, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_index, "MAX_COUNTED", 12)
    monkeypatch.setattr(position, "MAX_COUNTED", 12)
    monkeypatch.setattr(enqueue, "MAX_COUNTED", 12)
    jobs = crowd(caller, 20)
    set_anew(jobs[0])

    assert [*range(1, 13), *[13] * 8] == [one.position for one in places_of(caller, jobs)]


def test_headroom_counts_all_queued_jobs(caller: Key, every: int) -> None:
    jobs = crowd(caller, 33)
    query("UPDATE lane SET rpm = 60")
    with db.begin() as session:
        without = headroom.read_headroom(session, row(jobs[0]).lane_id)
    set_anew(jobs[0])

    with db.begin() as session:
        assert without == headroom.read_headroom(session, row(jobs[0]).lane_id)


def test_maintenance_keeps_checkpoints_of_long_lanes(caller: Key, every: int) -> None:
    care = lane_maintenance.LaneMaintenance()
    jobs = crowd(caller, 9)
    look(care, now=0)
    assert set_at() is None

    jobs += crowd(caller, 9, seed=1)
    look(care, now=100)  # it counts
    look(care, now=200)
    assert [5, 10, 15] == set_at().jobs

    for one in jobs[:15]:
        cancel(caller, one)
    look(care, now=300)
    assert set_at() is None


def look(care: lane_maintenance.LaneMaintenance, *, now: float) -> None:
    with db.begin() as session:
        for lane in care.next_batch(session):
            care.refresh(session, lane, now=now)


def test_slow_maintenance_task_pauses_twenty_times_its_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 100.0, 100.0])
    monkeypatch.setattr(lane_maintenance.time, "monotonic", lambda: next(clock))
    done: list[float] = []
    seen = lane_maintenance.LaneState()

    def at(now: float) -> None:
        seen.rate_limited("count", lambda: done.append(now), now=now)

    for now in (50.0, 59.9, 60.0):
        at(now)
    assert [50.0, 60.0] == done


@pytest.mark.parametrize("counted", ["ahead of a job", "heads of the line"])
def test_queue_query_uses_its_index_for_any_plan(caller: Key, counted: str) -> None:
    # As in a new database: its indexes are empty, and nothing is known of the jobs of tests before.
    query("TRUNCATE job")
    query("SELECT pg_clear_relation_stats('public', 'job')")
    query(
        "SELECT pg_clear_attribute_stats('public', 'job', attname, false) FROM pg_stats WHERE schemaname = 'public' AND tablename = 'job'"
    )
    with db.begin() as session:
        lane_id = lanes.id_of(caller.pool_id, "m")
        plan = explained(session, counted, lane_id)

    assert "job_queue" in plan
    assert "job_deadline" not in plan


def explained(session: db.Transaction, counted: str, lane_id: int) -> str:
    """The plan for any lane, as it is kept for a statement that runs often."""
    order = f"lane_id = {lane_id} AND key_id = 1 AND status = 'queued' AND NOT held AND start_tag >= 0"
    more = (
        "" if counted == "ahead of a job" else "AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY start_tag, id LIMIT 64"
    )
    found = session.execute(text(f"EXPLAIN SELECT id, tokens, images FROM job WHERE {order} {more}"))
    return "\n".join(found.scalars())
