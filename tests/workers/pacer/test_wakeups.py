"""Wake-ups of the pacer: a wake-up that cannot lead to an admission is dropped, because it would cost a useless step."""

from __future__ import annotations

import time

import pytest

from workers.pacer.wakeups import COALESCE_S, Wakeups

LANE, OTHER = 1, 2


@pytest.fixture
def wakeups() -> Wakeups:
    return Wakeups()


def is_set(wakeups: Wakeups) -> bool:
    return wakeups._event.is_set()


def test_enqueued_job_always_wakes_the_pacer(wakeups: Wakeups) -> None:
    wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    wakeups.wake(LANE)

    assert is_set(wakeups)
    assert {LANE} == set(wakeups.take())
    assert not is_set(wakeups)


def test_freed_budget_of_an_idle_lane_does_not_wake_the_pacer(wakeups: Wakeups) -> None:
    wakeups.update(idle=[LANE], waiting=[OTHER], capped=[], lacks_slots=False)
    wakeups.budget_freed(LANE)

    assert (False, {}) == (is_set(wakeups), wakeups.take())


@pytest.mark.parametrize("what", ["not checked yet", "jobs wait", "job enqueued since"])
def test_freed_budget_of_a_busy_lane_wakes_the_pacer(wakeups: Wakeups, what: str) -> None:
    if what == "jobs wait":
        wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
        wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
    if what == "job enqueued since":
        wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
        wakeups.wake(LANE)
        wakeups.take()
    wakeups.budget_freed(LANE)

    assert (True, {LANE}) == (is_set(wakeups), set(wakeups.take()))


def test_job_enqueued_while_the_pacer_settles_is_not_forgotten(wakeups: Wakeups) -> None:
    wakeups.wake(LANE)
    wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    wakeups.take()
    wakeups.budget_freed(LANE)

    assert {LANE} == set(wakeups.take())


@pytest.mark.parametrize("lacks_slots", [True, False])
def test_free_slot_wakes_the_pacer_when_slots_were_short(wakeups: Wakeups, lacks_slots: bool) -> None:
    wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=lacks_slots)
    wakeups.slot_freed()

    assert lacks_slots == is_set(wakeups)


def test_remembered_lanes_are_checked_next_without_a_wakeup(wakeups: Wakeups) -> None:
    wakeups.keep_for_later({LANE: 1.0})

    assert not is_set(wakeups)
    assert {LANE} == set(wakeups.take())


def test_end_of_a_job_wakes_the_pacer_where_caps_hold(wakeups: Wakeups) -> None:
    wakeups.update(idle=[], waiting=[LANE, OTHER], capped=[LANE], lacks_slots=False)
    wakeups.slot_freed()
    assert (True, {LANE}) == (is_set(wakeups), set(wakeups.take()))

    wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    wakeups.slot_freed()
    assert not is_set(wakeups)


def test_flood_of_submits_to_a_busy_lane_costs_one_delayed_check(wakeups: Wakeups) -> None:
    wakeups.take()
    wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
    for _ in range(10):
        wakeups.job_enqueued(LANE)

    assert not is_set(wakeups)
    began = time.monotonic()
    wakeups.wait(60)
    assert time.monotonic() - began < 30
    assert {LANE} == set(wakeups.take())


@pytest.mark.parametrize("what", ["no job waits", "not checked yet", "last check is old"])
def test_enqueue_wakes_the_pacer_at_once_for_an_idle_or_unchecked_lane(wakeups: Wakeups, what: str) -> None:
    wakeups.take()
    if what == "no job waits":
        wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
        wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    if what == "last check is old":
        wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
        wakeups.wait(COALESCE_S)
    wakeups.job_enqueued(LANE)

    assert (True, {LANE}) == (is_set(wakeups), set(wakeups.take()))


def test_lane_kept_for_later_counts_as_busy(wakeups: Wakeups) -> None:
    wakeups.take()
    wakeups.keep_for_later({LANE: 1.0})
    wakeups.job_enqueued(LANE)

    assert (False, {LANE}) == (is_set(wakeups), set(wakeups.take()))
