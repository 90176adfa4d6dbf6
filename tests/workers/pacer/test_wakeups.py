"""What wakes the pacer, and what does not: a wake-up that can change nothing costs a step for nothing."""

from __future__ import annotations

import time

import pytest

from workers.pacer.wakeups import TOGETHER_S, Bell

LANE, OTHER = 1, 2


@pytest.fixture
def bell() -> Bell:
    return Bell()


def is_rung(bell: Bell) -> bool:
    return bell._rung.is_set()


def test_a_job_that_joins_is_always_heard(bell: Bell) -> None:
    bell.conclude(at_rest=[LANE], waiting=[], capped=[], is_short=False)
    bell.ring(LANE)

    assert is_rung(bell)
    assert {LANE} == set(bell.take())
    assert not is_rung(bell)


def test_budget_of_a_lane_in_which_nobody_waits_is_not_heard(bell: Bell) -> None:
    bell.conclude(at_rest=[LANE], waiting=[OTHER], capped=[], is_short=False)
    bell.budget(LANE)

    assert (False, {}) == (is_rung(bell), bell.take())


@pytest.mark.parametrize("what", ["not looked at yet", "somebody waits", "somebody came since"])
def test_budget_of_any_other_lane_is_heard(bell: Bell, what: str) -> None:
    if what == "somebody waits":
        bell.conclude(at_rest=[LANE], waiting=[], capped=[], is_short=False)
        bell.conclude(at_rest=[], waiting=[LANE], capped=[], is_short=False)
    if what == "somebody came since":
        bell.conclude(at_rest=[LANE], waiting=[], capped=[], is_short=False)
        bell.ring(LANE)
        bell.take()
    bell.budget(LANE)

    assert (True, {LANE}) == (is_rung(bell), set(bell.take()))


def test_who_comes_while_the_pacer_concludes_is_not_forgotten(bell: Bell) -> None:
    bell.ring(LANE)
    bell.conclude(at_rest=[LANE], waiting=[], capped=[], is_short=False)
    bell.take()
    bell.budget(LANE)

    assert {LANE} == set(bell.take())


@pytest.mark.parametrize("is_short", [True, False])
def test_a_free_slot_is_heard_when_there_were_too_few(bell: Bell, is_short: bool) -> None:
    bell.conclude(at_rest=[], waiting=[LANE], capped=[], is_short=is_short)
    bell.slot()

    assert is_short == is_rung(bell)


def test_lanes_kept_in_mind_wake_nobody_but_are_looked_at_next(bell: Bell) -> None:
    bell.keep({LANE: 1.0})

    assert not is_rung(bell)
    assert {LANE} == set(bell.take())


def test_the_end_of_any_job_is_heard_where_caps_hold(bell: Bell) -> None:
    bell.conclude(at_rest=[], waiting=[LANE, OTHER], capped=[LANE], is_short=False)
    bell.slot()
    assert (True, {LANE}) == (is_rung(bell), set(bell.take()))

    bell.conclude(at_rest=[LANE], waiting=[], capped=[], is_short=False)
    bell.slot()
    assert not is_rung(bell)


def test_a_flood_of_submits_where_others_wait_costs_one_look_in_a_while(bell: Bell) -> None:
    bell.take()
    bell.conclude(at_rest=[], waiting=[LANE], capped=[], is_short=False)
    for _ in range(10):
        bell.joined(LANE)

    assert not is_rung(bell)
    began = time.monotonic()
    bell.sleep(60)
    assert time.monotonic() - began < 30
    assert {LANE} == set(bell.take())


@pytest.mark.parametrize("what", ["nobody waits", "not looked at yet", "the last look is a while ago"])
def test_who_joins_is_heard_at_once_where_others_do_not_wait_or_nobody_looked_just_now(bell: Bell, what: str) -> None:
    bell.take()
    if what == "nobody waits":
        bell.conclude(at_rest=[], waiting=[LANE], capped=[], is_short=False)
        bell.conclude(at_rest=[LANE], waiting=[], capped=[], is_short=False)
    if what == "the last look is a while ago":
        bell.conclude(at_rest=[], waiting=[LANE], capped=[], is_short=False)
        bell.sleep(TOGETHER_S)
    bell.joined(LANE)

    assert (True, {LANE}) == (is_rung(bell), set(bell.take()))


def test_a_lane_that_could_not_be_looked_at_is_one_where_others_wait(bell: Bell) -> None:
    bell.take()
    bell.keep({LANE: 1.0})
    bell.joined(LANE)

    assert (False, {LANE}) == (is_rung(bell), set(bell.take()))
