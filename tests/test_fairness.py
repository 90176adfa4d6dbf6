"""Who gets how much when many want more than there is: the line itself, without a limiter and without waiting."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest

from models import db, key_share, line, pacing
from models.key import Key
from tests.line_tools import credential_of, known, order, query, row, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    return known()


def line_up(caller: Key, wanted: Iterable[dict[str, Any]]) -> None:
    """All of these stand in line, in this order."""
    with db.begin() as session:
        for each in wanted:
            line.join(session, order(caller, **each), job_id=line.new_id())


def serve(caller: Key, *, steps: int, a_step: int) -> list[Any]:
    """The heads that were admitted, step by step, as the pacer takes them; their slots are free again at once."""
    served: list[Any] = []
    with db.begin() as session:
        credential_id = credential_of(session, caller)
        for _ in range(steps):
            lanes = pacing.claim_lanes(session, woken=[one.id for one in query("SELECT id FROM lane")], most=100)
            heads = pacing.heads(session, lanes, most=a_step)
            pacing.admit(session, [pacing.Admission(head.id, uuid4(), credential_id) for head in heads])
            key_share.charge(session, key_share.charges(heads, heads), times={lane.id: lane.virtual_time for lane in lanes})
            turns = [turn for turn, _ in key_share.turns(heads)]
            pacing.settle(session, [pacing.Settled(one.id, max([one.virtual_time, *turns]), 0.0, None) for one in lanes])
            served += heads
    return served


def jain(shares: Iterable[float]) -> float:
    """1: all got the same; 1/n: one got everything."""
    got = list(shares)
    return sum(got) ** 2 / (len(got) * sum(each * each for each in got))


def costs(served: Iterable[Any]) -> dict[str, float]:
    got: dict[str, float] = defaultdict(float)
    for head in served:
        got[head.flow] += head.cost
    return got


@pytest.fixture
def flood(caller: Key) -> None:
    """One user sends 1,000 jobs, then 99 others 5 each, of sizes as they come."""
    rng = random.Random(1)
    sizes = [rng.choice([50, 100, 200]) for _ in range(5)]
    light = [{"flow": f"light{n}", "tokens": size} for size in sizes for n in range(99)]
    line_up(caller, [{"flow": "flood", "tokens": 100} for _ in range(1_000)])
    line_up(caller, light)


def test_of_a_flood_and_99_light_users_all_get_the_same_while_they_wait(caller: Key, flood: None) -> None:
    served = serve(caller, steps=40, a_step=10)

    got = costs(served)
    assert 100 == len(got)
    assert jain(got.values()) >= 0.99


def test_no_light_user_waits_longer_than_two_turns(caller: Key, flood: None) -> None:
    served = serve(caller, steps=50, a_step=10)

    firsts = {head.flow: n for n, head in reversed(list(enumerate(served)))}
    gaps = _gaps(served, "light")
    assert max(firsts.values()) < 2 * 100
    assert max(gaps) <= 2 * 100


def _gaps(served: list[Any], prefix: str) -> list[int]:
    """How many others went between two jobs of one user, at most, per user."""
    at: dict[str, list[int]] = defaultdict(list)
    for n, head in enumerate(served):
        if head.flow.startswith(prefix):
            at[head.flow].append(n)
    return [max(after - before for before, after in zip([0, *places], places, strict=False)) for places in at.values()]


def test_a_light_user_who_comes_late_does_not_wait_for_the_flood(caller: Key, flood: None) -> None:
    serve(caller, steps=20, a_step=10)
    line_up(caller, [{"flow": "late"}])

    assert "late" in {head.flow for head in serve(caller, steps=11, a_step=10)}


def test_weights_of_1_4_and_16_are_honoured(caller: Key) -> None:
    line_up(caller, [{"flow": priority, "priority": priority} for _ in range(170) for priority in ("low", "normal", "high")])
    served = Counter(head.flow for head in serve(caller, steps=21, a_step=10))

    assert {"low": 10, "normal": 40, "high": 160} == pytest.approx(served, abs=2)


def test_a_flows_own_weight_is_honoured(caller: Key) -> None:
    line_up(caller, [{"flow": "double"}, {"flow": "single"}])
    query("UPDATE key_flow SET weight = 2 WHERE name = 'double'")
    line_up(caller, [{"flow": flow} for _ in range(60) for flow in ("double", "single")])
    served = Counter(head.flow for head in serve(caller, steps=6, a_step=10))

    assert served["double"] / served["single"] == pytest.approx(2, rel=0.15)


def test_shares_are_of_tokens_and_not_of_jobs(caller: Key) -> None:
    line_up(caller, [{"flow": "large", "tokens": 1_000} for _ in range(30)])
    line_up(caller, [{"flow": "small", "tokens": 100} for _ in range(300)])
    got = costs(serve(caller, steps=11, a_step=10))

    assert got["large"] == pytest.approx(got["small"], rel=0.1)


def test_pictures_count_as_the_tokens_they_stand_for(caller: Key) -> None:
    line_up(caller, [{"flow": "painter", "tokens": 0, "images": 1} for _ in range(20)])
    line_up(caller, [{"flow": "writer", "tokens": 1_000} for _ in range(20)])
    served = Counter(head.flow for head in serve(caller, steps=2, a_step=10))

    assert {"painter": 10, "writer": 10} == served


def test_low_priority_is_not_starved_by_a_stream_of_high(caller: Key) -> None:
    line_up(caller, [{"flow": "low", "priority": "low"}])
    gone = []
    for _ in range(25):
        line_up(caller, [{"flow": f"high{n}", "priority": "high"} for n in range(4)])
        gone += [head.flow for head in serve(caller, steps=1, a_step=4)]

    assert "low" in gone


def test_who_was_away_is_owed_nothing(caller: Key) -> None:
    line_up(caller, [{"flow": "there"} for _ in range(100)])
    serve(caller, steps=5, a_step=10)
    line_up(caller, [{"flow": "back"} for _ in range(50)])
    served = Counter(head.flow for head in serve(caller, steps=4, a_step=10))

    assert abs(served["there"] - served["back"]) <= 2


@pytest.mark.parametrize("weight", [3, 0.7, 7.1])
def test_an_odd_weight_hides_nobody_below_the_low_water_mark(caller: Key, weight: float) -> None:
    line_up(caller, [{"flow": "odd"}])
    rng = random.Random(weight)
    for _ in range(40):
        query("UPDATE key_flow SET weight = :weight, last_finish = 0", weight=weight)
        query("UPDATE key_share SET virtual_time = :time, low_water = :time", time=rng.random() * 10 ** rng.randint(0, 9))
        one = submit(caller, flow="odd", tokens=rng.randint(1, 9_999))

        (share,) = query("SELECT low_water FROM key_share")
        assert row(one).start_tag >= share.low_water


def test_an_odd_weight_leaves_a_flow_in_its_order(caller: Key) -> None:
    line_up(caller, [{"flow": "odd"}])
    query("UPDATE key_flow SET weight = 3.3")
    query("UPDATE key_share SET virtual_time = 123456789.123")
    line_up(caller, [{"flow": "odd", "tokens": n % 7 + 1} for n in range(100)])

    assert (tags := [one.start_tag for one in query("SELECT start_tag FROM job ORDER BY id")]) == sorted(tags)
