"""What wakes the pacer, and what does not: a wake-up that can change nothing costs a step for nothing."""

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


def test_a_job_that_joins_is_always_heard(wakeups: Wakeups) -> None:
    wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    wakeups.wake(LANE)

    assert is_set(wakeups)
    assert {LANE} == set(wakeups.take())
    assert not is_set(wakeups)


def test_budget_of_a_lane_in_which_nobody_waits_is_not_heard(wakeups: Wakeups) -> None:
    wakeups.update(idle=[LANE], waiting=[OTHER], capped=[], lacks_slots=False)
    wakeups.budget_freed(LANE)

    assert (False, {}) == (is_set(wakeups), wakeups.take())


@pytest.mark.parametrize("what", ["not looked at yet", "somebody waits", "somebody came since"])
def test_budget_of_any_other_lane_is_heard(wakeups: Wakeups, what: str) -> None:
    if what == "somebody waits":
        wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
        wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
    if what == "somebody came since":
        wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
        wakeups.wake(LANE)
        wakeups.take()
    wakeups.budget_freed(LANE)

    assert (True, {LANE}) == (is_set(wakeups), set(wakeups.take()))


def test_who_comes_while_the_pacer_concludes_is_not_forgotten(wakeups: Wakeups) -> None:
    wakeups.wake(LANE)
    wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    wakeups.take()
    wakeups.budget_freed(LANE)

    assert {LANE} == set(wakeups.take())


@pytest.mark.parametrize("lacks_slots", [True, False])
def test_a_free_slot_is_heard_when_there_were_too_few(wakeups: Wakeups, lacks_slots: bool) -> None:
    wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=lacks_slots)
    wakeups.slot_freed()

    assert lacks_slots == is_set(wakeups)


def test_lanes_kept_in_mind_wake_nobody_but_are_looked_at_next(wakeups: Wakeups) -> None:
    wakeups.keep_for_later({LANE: 1.0})

    assert not is_set(wakeups)
    assert {LANE} == set(wakeups.take())


def test_the_end_of_any_job_is_heard_where_caps_hold(wakeups: Wakeups) -> None:
    wakeups.update(idle=[], waiting=[LANE, OTHER], capped=[LANE], lacks_slots=False)
    wakeups.slot_freed()
    assert (True, {LANE}) == (is_set(wakeups), set(wakeups.take()))

    wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    wakeups.slot_freed()
    assert not is_set(wakeups)


def test_a_flood_of_submits_where_others_wait_costs_one_look_in_a_while(wakeups: Wakeups) -> None:
    wakeups.take()
    wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
    for _ in range(10):
        wakeups.job_enqueued(LANE)

    assert not is_set(wakeups)
    began = time.monotonic()
    wakeups.wait(60)
    assert time.monotonic() - began < 30
    assert {LANE} == set(wakeups.take())


@pytest.mark.parametrize("what", ["nobody waits", "not looked at yet", "the last look is a while ago"])
def test_who_joins_is_heard_at_once_where_others_do_not_wait_or_nobody_looked_just_now(wakeups: Wakeups, what: str) -> None:
    wakeups.take()
    if what == "nobody waits":
        wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
        wakeups.update(idle=[LANE], waiting=[], capped=[], lacks_slots=False)
    if what == "the last look is a while ago":
        wakeups.update(idle=[], waiting=[LANE], capped=[], lacks_slots=False)
        wakeups.wait(COALESCE_S)
    wakeups.job_enqueued(LANE)

    assert (True, {LANE}) == (is_set(wakeups), set(wakeups.take()))


def test_a_lane_that_could_not_be_looked_at_is_one_where_others_wait(wakeups: Wakeups) -> None:
    wakeups.take()
    wakeups.keep_for_later({LANE: 1.0})
    wakeups.job_enqueued(LANE)

    assert (False, {LANE}) == (is_set(wakeups), set(wakeups.take()))
