"""The memory budget of a worker: first in, first out, without deadlock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.support.programs.process import until
from workers.upstream import body_budget
from workers.upstream.body_budget import FREE_BYTES, STALLED_S, STEP_BYTES, BodyBudget, BodyReservation

MIB = 2**20


class Later:
    """A call that waits in a thread."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(20)
        assert self.is_over
        return self.result

    def _run(self) -> None:
        self.result = self._work()


def waiting(budget: BodyBudget, *works: Callable[[], Any]) -> list[Later]:
    """Starts these calls in order; each waits before the next starts."""
    made = []
    for work in works:
        before = budget.waiting()
        made.append(Later(work))
        until(lambda before=before: budget.waiting() > before, what="in line")
    return made


def test_reservation_is_returned_however_its_block_ends() -> None:
    budget = BodyBudget(10)
    for _ in range(2):
        with budget.room() as room:
            assert room.try_reserve(10)
            assert not budget.room().try_reserve(1)
            room.resize(4)
            assert 4 == budget.held_bytes
        assert 0 == budget.held_bytes


def test_a_large_one_is_not_overtaken_and_small_ones_come_after_it() -> None:
    budget, served = BodyBudget(10), []
    first = budget.room()
    first.try_reserve(6)

    def ask(size: int) -> Callable[[], None]:
        room = budget.room()

        def wait() -> None:
            assert room.reserve(size, wait_s=60)
            served.append(size)
            room.resize(0)

        return wait

    large, small = waiting(budget, ask(9), ask(2))
    assert not budget.room().try_reserve(1), "a new request overtook the waiting ones"
    first.resize(0)
    large.join()
    small.join()

    assert ([9, 2], 0) == (served, budget.held_bytes)


def test_larger_than_all_of_it_is_served_alone() -> None:
    budget = BodyBudget(10)
    first, larger = budget.room(), budget.room()
    first.try_reserve(3)
    (waits,) = waiting(budget, lambda: larger.reserve(25, wait_s=60))
    first.resize(0)

    assert waits.join()
    assert 25 == budget.held_bytes


def test_waiter_for_memory_gives_up_in_time() -> None:
    budget = BodyBudget(10)
    budget.room().try_reserve(10)

    assert not budget.room().reserve(1, wait_s=0)
    assert not budget.room().reserve(1, wait_s=60, is_over=lambda: True)
    assert (0, 10) == (budget.waiting(), budget.held_bytes)


def test_oldest_holder_proceeds_when_all_holders_wait() -> None:
    budget = BodyBudget(10)
    rooms = [budget.room() for _ in range(2)]
    for room in rooms:
        assert room.try_reserve(5)
    younger, older = waiting(budget, lambda: rooms[1].reserve(5, wait_s=60)), Later(lambda: rooms[0].reserve(5, wait_s=60))
    assert older.join()
    assert 15 == budget.held_bytes
    assert not younger[0].is_over
    rooms[0].resize(0)

    assert younger[0].join()
    assert 10 == budget.held_bytes


def test_an_answer_takes_room_at_once_where_its_length_is_known_and_else_in_steps() -> None:
    budget = BodyBudget(100 * MIB)
    known, unknown, short = budget.room(), budget.room(), budget.room()
    known.arrive(1000, expected=5 * MIB)
    known.arrive(5 * MIB - 1000, expected=5 * MIB)
    short.arrive(FREE_BYTES)
    unknown.arrive(FREE_BYTES + 1)
    unknown.arrive(10)

    assert (5 * MIB - FREE_BYTES, 0, STEP_BYTES + 1) == (known.held_bytes, short.held_bytes, unknown.held_bytes)
    unknown.arrive(STEP_BYTES)
    assert unknown.held_bytes > 2 * STEP_BYTES


def test_an_answer_waits_while_room_is_given_back_and_goes_on_when_nothing_moves() -> None:
    now = 0.0
    budget = BodyBudget(MIB, clock=lambda: now)
    holder, answer = budget.room(), budget.room()
    holder.try_reserve(MIB)
    (waits,) = waiting(budget, lambda: answer.arrive(MIB + FREE_BYTES))
    now = STALLED_S - 1
    holder.resize(MIB - 1)
    now = STALLED_S + 5
    until(lambda: budget.waiting(), what="still waiting")
    assert not waits.is_over
    now = 2 * STALLED_S + 5

    assert waits.join() > STALLED_S
    assert answer.held_bytes > MIB


def test_many_threads_never_hold_more_than_the_budget_and_one_of_them_more() -> None:
    budget = BodyBudget(8 * MIB)

    def call(room: BodyReservation) -> None:
        with room:
            assert room.reserve(2 * MIB, wait_s=60)
            room.arrive(MIB, expected=4 * MIB)
            room.arrive(3 * MIB, expected=4 * MIB)

    calls = [Later(lambda: call(budget.room())) for _ in range(40)]
    for each in calls:
        each.join()

    assert (0, 0) == (budget.held_bytes, budget.waiting())
    assert budget.peak_bytes <= 8 * MIB + 4 * MIB


def test_a_peak_is_forgotten_once_nothing_is_held(override: Callable[..., None]) -> None:
    override(worker_body_bytes=10 * MIB)
    body_budget.budget.cache_clear()
    known = body_budget.budget()
    with known.room() as room:
        room.try_reserve(8 * MIB)
        body_budget.trim_after_peak()
        assert 8 * MIB == known.peak_bytes
    body_budget.trim_after_peak()
    body_budget.budget.cache_clear()

    assert 0 == known.peak_bytes
