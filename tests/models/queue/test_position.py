"""Exact position, estimated wait and blocking reason of a queued job."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pytest

from models.database import db
from models.jobs import job_rows, job_view
from models.keys.keys import Key
from models.platform import wire
from models.queue import position
from models.queue.position import QueuePosition
from tests.support.queue_tools import GOOD, admit, cancel, finish, known, put_back, query, row, start, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    return known()


class Counted:
    """A session that counts its statements."""

    session: db.Transaction
    statements = 0

    def execute(self, *what: Any) -> Any:
        self.statements += 1
        return self.session.execute(*what)


def place(caller: Key, job_id: UUID) -> QueuePosition:
    with db.begin() as session:
        return position.position_of(session, job_rows.find_job(session, job_id, caller.id))


def positions(caller: Key, jobs: list[UUID]) -> list[int]:
    return [place(caller, one).position for one in jobs]


def lane_has(**figures: Any) -> None:
    query(f"UPDATE lane SET {', '.join(f'{name} = :{name}' for name in figures)}", **figures)


# Position


@pytest.mark.parametrize("seed", range(3))
def test_position_is_the_rank_in_the_sorted_queue(caller: Key, seed: int) -> None:
    rng = random.Random(seed)
    flows, priorities = ["a", "b", "c"], ["low", "normal", "high"]
    jobs = [submit(caller, flow=rng.choice(flows), priority=rng.choice(priorities), tokens=rng.randint(1, 9_999)) for _ in range(40)]
    for one in rng.sample(jobs, 8):
        put_back(one, start(caller, one), delay_s=rng.choice([0, 60]))
    for one in rng.sample(jobs, 8):
        rng.choice([cancel, admit, start])(caller, one)

    waiting = sorted((row(one).start_tag, one) for one in jobs if row(one).status == "queued")
    assert {one: n for n, (_, one) in enumerate(waiting, 1)} == {one: place(caller, one).position for _, one in waiting}


@pytest.mark.parametrize("seed", range(4))
def test_positions_of_many_jobs_equal_their_single_positions(caller: Key, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "MAX_COUNTED", 20)
    rng = random.Random(seed)
    jobs = [
        submit(
            caller, flow=rng.choice("abc"), model=rng.choice("mmn"), priority=rng.choice(["low", "normal", "high"]),
            tokens=rng.randint(1, 9_999), images=rng.choice([0, 0, 3]), conversation=rng.choice([None, None, "c", "d"]),
        )
        for _ in range(60)
    ]  # fmt: skip
    for one in rng.sample([one for one in jobs if not row(one).held], 12):
        rng.choice([cancel, admit, start, lambda caller, one: put_back(one, start(caller, one), delay_s=60)])(caller, one)
    lane_has(rpm=60, tpm=30_000, ipm=5, usual_s=3, max_in_flight=2)
    query("UPDATE lane SET blocked_by = 'tpm', wake_at = now() + interval '90 s' WHERE model = 'n'")
    query("UPDATE job SET start_tag = 77 WHERE flow = 'a' AND NOT held")

    with db.begin() as session:
        found = job_rows.status_of(session, jobs)
        assert {one.id: position.position_of(session, one) for one in found} == position.positions_of(session, found)


def test_positions_of_a_list_take_three_statements(caller: Key) -> None:
    jobs = [submit(caller, conversation=conversation) for conversation in [None, "c", "c", "d", "d", *[None] * 5]]
    counted = Counted()
    with db.begin() as session:
        counted.session = session
        shown = job_view.render_jobs(counted, job_rows.list_jobs(session, caller.id, limit=20, before=None, status=None))

    assert 3 == counted.statements
    assert {wire.public_id(one): place(caller, one).position for one in jobs} == {one["id"]: one["queue"]["position"] for one in shown}


def test_requeued_job_keeps_its_position(caller: Key) -> None:
    jobs = [submit(caller) for _ in range(3)]
    dispatch_id = start(caller, jobs[0])
    assert [0, 1, 2] == positions(caller, jobs)
    put_back(jobs[0], dispatch_id)

    assert [1, 2, 3] == positions(caller, jobs)


def test_dead_rows_below_the_low_water_mark_are_not_counted(caller: Key) -> None:
    one, two = submit(caller), submit(caller)
    finish(one, start(caller, one))
    query("UPDATE key_share SET low_water = :tag", tag=row(two).start_tag)

    assert 1 == place(caller, two).position


def test_jobs_in_other_lanes_are_not_counted(caller: Key) -> None:
    submit(caller, model="other")

    assert 1 == place(caller, submit(caller)).position


def test_held_turns_have_consecutive_positions(caller: Key) -> None:
    turns = [submit(caller, conversation="c") for _ in range(4)]

    assert [1, 2, 3, 4] == positions(caller, turns)
    assert [None, *["conversation"] * 3] == [place(caller, one).blocked_by for one in turns]


def test_held_turn_behind_a_running_one_has_its_future_position(caller: Key) -> None:
    one, two = submit(caller, conversation="c"), submit(caller, conversation="c")
    start(caller, one)

    assert 1 == place(caller, two).position


def test_held_turn_counts_all_jobs_before_it(caller: Key) -> None:
    first, second = submit(caller, flow="talk", conversation="c"), submit(caller, flow="talk", conversation="c")
    others = [submit(caller, flow=f"other{n}") for n in range(5)]
    assert 7 == place(caller, second).position
    finish(first, start(caller, first), attempt=GOOD)

    assert [6, *range(1, 6)] == positions(caller, [second, *others])


def test_held_turn_of_high_priority_is_behind_the_turn_before_it(caller: Key) -> None:
    for _ in range(3):
        submit(caller, flow="other")
    submit(caller, flow="slow", priority="low", conversation="c")
    query("UPDATE job SET start_tag = 1000 WHERE flow = 'slow'")

    assert 5 == place(caller, submit(caller, flow="quick", priority="high", conversation="c")).position


def test_held_turn_behind_one_in_another_lane_is_counted_in_its_own(caller: Key) -> None:
    for _ in range(3):
        submit(caller, flow="other")
    submit(caller, flow="talk", conversation="c", model="other")

    assert 2 == place(caller, submit(caller, flow="talk", conversation="c")).position


# How long


def test_estimate_uses_the_scarcest_limit(caller: Key) -> None:
    jobs = [submit(caller, tokens=1_000) for _ in range(11)]
    lane_has(rpm=60, tpm=30_000)

    assert 20.0 == place(caller, jobs[-1]).eta_s


def test_estimate_uses_slots_when_calls_are_long(caller: Key) -> None:
    jobs = [submit(caller) for _ in range(9)]
    lane_has(max_in_flight=4, usual_s=10)

    assert 20.0 == place(caller, jobs[-1]).eta_s


def test_estimate_of_a_held_turn_includes_the_calls_before_it(caller: Key) -> None:
    turns = [submit(caller, conversation="c") for _ in range(3)]
    lane_has(usual_s=10)

    assert [0.0, 10.0, 20.0] == [place(caller, one).eta_s for one in turns]


def test_estimate_is_at_least_the_lane_wake_up(caller: Key) -> None:
    one = submit(caller)
    query("UPDATE lane SET blocked_by = 'cooldown', wake_at = now() + interval '90 s'")

    found = place(caller, one)
    assert ("cooldown", 90) == (found.blocked_by, round(found.eta_s or 0))
    assert found.wake_at is not None


def test_estimate_is_never_negative(caller: Key) -> None:
    one = submit(caller)
    query("UPDATE lane SET blocked_by = 'workers', wake_at = now() - interval '90 s'")

    assert (0.0, None) == (place(caller, one).eta_s, place(caller, one).wake_at)


def test_job_in_backoff_shows_reason_and_end(caller: Key) -> None:
    one = submit(caller)
    put_back(one, start(caller, one), delay_s=60)

    found = place(caller, one)
    assert ("backoff", row(one).not_before) == (found.blocked_by, found.wake_at)
    assert 55 < (found.eta_s or 0) <= 60


def test_ended_backoff_does_not_block(caller: Key) -> None:
    one = submit(caller)
    put_back(one, start(caller, one), delay_s=60)
    query("UPDATE job SET not_before = now() - interval '1 s'")

    assert QueuePosition(1, 0.0, None, None) == place(caller, one)


@pytest.mark.parametrize("what", ["lane", "pool"])
def test_paused_lane_shows_reason_without_estimate(caller: Key, what: str) -> None:
    one = submit(caller)
    query(f"UPDATE {what} SET paused_at = now()")

    assert QueuePosition(1, None, "paused", None) == place(caller, one)


def test_admitted_job_has_position_zero(caller: Key) -> None:
    one = submit(caller)
    admit(caller, one)

    assert QueuePosition(0, 0.0, None, None) == place(caller, one)
