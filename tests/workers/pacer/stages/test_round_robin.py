"""Deficit round robin across lanes: shares by cost, and no lane starves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from workers.pacer.stages.round_robin import DeficitRoundRobin


def jobs(*costs: float) -> list[Any]:
    return [SimpleNamespace(cost=cost) for cost in costs]


def served(rounds: DeficitRoundRobin, costs: Mapping[int, float], *, steps: int, slots: int) -> Counter[int]:
    """The cost that each of these endless lanes got."""
    total: Counter[int] = Counter()
    for _ in range(steps):
        for lane, taken in rounds.pick({lane: jobs(*[cost] * (slots + 1)) for lane, cost in costs.items()}, slots=slots).items():
            total[lane] += int(taken * costs[lane])
    return total


def test_all_go_when_there_is_room_for_all() -> None:
    assert {1: 2, 2: 1} == DeficitRoundRobin().pick({1: jobs(1, 1), 2: jobs(5)}, slots=10)


def test_never_more_than_the_slots() -> None:
    assert 3 == sum(DeficitRoundRobin().pick({1: jobs(1, 1, 1), 2: jobs(1, 1, 1)}, slots=3).values())


def test_an_empty_lane_takes_nothing() -> None:
    assert {1: 0, 2: 1} == DeficitRoundRobin().pick({1: [], 2: jobs(1)}, slots=5)


def test_no_worker_at_all_is_accepted() -> None:
    assert {} == DeficitRoundRobin().pick({}, slots=5)


def test_a_lane_of_one_large_job_gets_its_turn_beside_many_small_ones() -> None:
    assert 1 == DeficitRoundRobin().pick({1: jobs(*[1] * 64), 2: jobs(1000)}, slots=65)[2]


def test_the_round_goes_on_where_it_stopped() -> None:
    rounds = DeficitRoundRobin()
    queues = {lane: jobs(1, 1) for lane in (1, 2, 3)}

    assert [{1: 1, 2: 0, 3: 0}, {1: 0, 2: 1, 3: 0}, {1: 0, 2: 0, 3: 1}] == [rounds.pick(queues, slots=1) for _ in range(3)]


def test_lanes_with_jobs_of_one_size_get_the_same() -> None:
    got = served(DeficitRoundRobin(), {1: 10, 2: 10, 3: 10}, steps=30, slots=4)

    assert max(got.values()) - min(got.values()) <= 10


def test_shares_are_by_cost_and_not_by_number_of_jobs() -> None:
    got = served(DeficitRoundRobin(), {1: 100, 2: 10}, steps=40, slots=7)

    assert 0.8 < got[1] / got[2] < 1.25


def test_shares_are_by_cost_when_slots_come_one_by_one() -> None:
    got = served(DeficitRoundRobin(), {1: 100, 2: 10}, steps=220, slots=1)

    assert 0.8 < got[1] / got[2] < 1.25


def test_waiting_saves_up_no_more_than_one_turn() -> None:
    rounds = DeficitRoundRobin()
    served(rounds, {1: 100, 2: 1}, steps=50, slots=1)

    taken = rounds.pick({1: jobs(*[100] * 64), 2: jobs(*[1] * 64)}, slots=64)
    assert 0 < taken[1]


def test_a_lane_that_went_empty_starts_again_without_a_debt_or_a_credit() -> None:
    rounds = DeficitRoundRobin()
    rounds.pick({1: jobs(100), 2: jobs(1)}, slots=1)
    rounds.pick({1: jobs(100)}, slots=5)

    assert {1: 1, 2: 1} == rounds.pick({1: jobs(1, 1), 2: jobs(1, 1)}, slots=2)
