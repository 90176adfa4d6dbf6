"""Fair shares of keys and users under load, without limiter and waiting."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest

from models.database import db
from models.jobs import job_rows
from models.keys import keys as key
from models.keys.keys import Key
from models.queue import admission, key_shares, position
from tests.support.queue_tools import cancel, credential_of, enqueue_in, known, put_back, query, row, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    return known()


def line_up(caller: Key, wanted: Iterable[dict[str, Any]]) -> None:
    """All of these stand in line, in this order."""
    with db.begin() as session:
        for each in wanted:
            enqueue_in(session, caller, **each)


def serve(caller: Key, *, steps: int, a_step: int) -> list[Any]:
    """The heads that were admitted, step by step, as the pacer takes them; their slots are free again at once."""
    served: list[Any] = []
    with db.begin() as session:
        credential_id = credential_of(session, caller)
        for _ in range(steps):
            lanes = admission.claim_lanes(session, woken=[one.id for one in query("SELECT id FROM lane")], limit=100)
            heads = admission.queue_heads(session, lanes, limit=a_step)
            admission.admit(session, [admission.Admission(head.id, uuid4(), credential_id) for head in heads])
            key_shares.charge_shares(
                session,
                key_shares.charges(heads, heads, cut={head.lane_id for head in heads[a_step - 1 :]}),
                times={lane.id: lane.virtual_time for lane in lanes},
            )
            turns = [turn for turn, _ in key_shares.virtual_turns(heads)]
            admission.settle_lanes(session, [admission.LaneOutcome(one.id, max([one.virtual_time, *turns]), 0.0, None) for one in lanes])
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


def test_heavy_user_and_99_light_users_get_equal_shares(caller: Key, flood: None) -> None:
    served = serve(caller, steps=40, a_step=10)

    got = costs(served)
    assert 100 == len(got)
    assert jain(got.values()) >= 0.99


def test_light_user_waits_at_most_two_turns(caller: Key, flood: None) -> None:
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


def test_late_light_user_does_not_wait_for_the_heavy_user(caller: Key, flood: None) -> None:
    serve(caller, steps=20, a_step=10)
    line_up(caller, [{"flow": "late"}])

    assert "late" in {head.flow for head in serve(caller, steps=11, a_step=10)}


def test_priorities_share_as_1_4_and_16(caller: Key) -> None:
    line_up(caller, [{"flow": priority, "priority": priority} for _ in range(170) for priority in ("low", "normal", "high")])
    served = Counter(head.flow for head in serve(caller, steps=21, a_step=10))

    assert {"low": 10, "normal": 40, "high": 160} == pytest.approx(served, abs=2)


def test_user_weight_scales_its_share(caller: Key) -> None:
    line_up(caller, [{"flow": "double"}, {"flow": "single"}])
    query("UPDATE key_flow SET weight = 2 WHERE name = 'double'")
    line_up(caller, [{"flow": flow} for _ in range(60) for flow in ("double", "single")])
    served = Counter(head.flow for head in serve(caller, steps=6, a_step=10))

    assert served["double"] / served["single"] == pytest.approx(2, rel=0.15)


def test_shares_count_tokens_instead_of_jobs(caller: Key) -> None:
    line_up(caller, [{"flow": "large", "tokens": 1_000} for _ in range(30)])
    line_up(caller, [{"flow": "small", "tokens": 100} for _ in range(300)])
    got = costs(serve(caller, steps=11, a_step=10))

    assert got["large"] == pytest.approx(got["small"], rel=0.1)


def test_images_count_as_their_equivalent_tokens(caller: Key) -> None:
    line_up(caller, [{"flow": "painter", "tokens": 0, "images": 1} for _ in range(20)])
    line_up(caller, [{"flow": "writer", "tokens": 1_000} for _ in range(20)])
    served = Counter(head.flow for head in serve(caller, steps=2, a_step=10))

    assert {"painter": 10, "writer": 10} == served


def test_low_priority_is_not_starved_by_high_priority(caller: Key) -> None:
    line_up(caller, [{"flow": "low", "priority": "low"}])
    gone = []
    for _ in range(25):
        line_up(caller, [{"flow": f"high{n}", "priority": "high"} for n in range(4)])
        gone += [head.flow for head in serve(caller, steps=1, a_step=4)]

    assert "low" in gone


def test_idle_user_accumulates_no_credit(caller: Key) -> None:
    line_up(caller, [{"flow": "there"} for _ in range(100)])
    serve(caller, steps=5, a_step=10)
    line_up(caller, [{"flow": "back"} for _ in range(50)])
    served = Counter(head.flow for head in serve(caller, steps=4, a_step=10))

    assert abs(served["there"] - served["back"]) <= 2


@pytest.mark.parametrize("weight", [3, 0.7, 7.1])
def test_rounding_of_weights_hides_no_job_below_the_low_water_mark(caller: Key, weight: float) -> None:
    line_up(caller, [{"flow": "odd"}])
    rng = random.Random(weight)
    for _ in range(40):
        query("UPDATE key_flow SET weight = :weight, last_finish = 0", weight=weight)
        query("UPDATE key_share SET virtual_time = :time, low_water = :time", time=rng.random() * 10 ** rng.randint(0, 9))
        one = submit(caller, flow="odd", tokens=rng.randint(1, 9_999))

        (share,) = query("SELECT low_water FROM key_share")
        assert row(one).start_tag >= share.low_water


def test_rounding_of_weights_keeps_the_order_of_a_user(caller: Key) -> None:
    line_up(caller, [{"flow": "odd"}])
    query("UPDATE key_flow SET weight = 3.3")
    query("UPDATE key_share SET virtual_time = 123456789.123")
    line_up(caller, [{"flow": "odd", "tokens": n % 7 + 1} for n in range(100)])

    assert (tags := [one.start_tag for one in query("SELECT start_tag FROM job ORDER BY id")]) == sorted(tags)


# Keys of one pool, some of them hostile


@pytest.fixture
def keys() -> list[Key]:
    """Ten keys of one pool, as an operator issues them."""
    with db.begin() as session:
        pool = key.create_pool(session, "team")
        key.add_credential(session, pool_id=pool, upstream_key="sk-upstream")
        return [key.issue(session, name=f"key {n}", pool="team")[0] for n in range(10)]


def costs_of_keys(served: Iterable[Any]) -> dict[int, float]:
    got: dict[int, float] = defaultdict(float)
    for head in served:
        got[head.key_id] += head.cost
    return got


def test_first_job_of_a_key_does_not_wait_for_many_jobs_of_another(keys: list[Key]) -> None:
    line_up(keys[0], [{"flow": "key"} for _ in range(60)])
    late = submit(keys[1], flow="key")

    assert late in [head.id for head in serve(keys[0], steps=1, a_step=3)]


def test_keys_and_users_of_a_key_get_equal_shares_under_attack(keys: list[Key]) -> None:
    """One floods, one invents a user for each job, one takes another's name, one cancels most of what it sends; six do nothing odd."""
    flood, inventor, impostor, canceller, *ordinary = keys
    served: list[Any] = []
    line_up(flood, [{"flow": "key"} for _ in range(400)])
    for n in range(30):
        line_up(inventor, [{"flow": f"new {n} {m}"} for m in range(8)])
        line_up(impostor, [{"flow": f"user {m % 2}", "priority": "low"} for m in range(4)])
        impostors = submit(impostor, flow="user 0", priority="low", tokens=10_000_000)
        mine = [submit(canceller, flow=f"user {m % 2}") for m in range(12)]
        for one in mine[:8]:
            cancel(canceller, one)
        cancel(impostor, impostors)
        for each in ordinary:
            line_up(each, [{"flow": f"user {m % 2}"} for m in range(4)])
        served += serve(keys[0], steps=7, a_step=3)

    assert jain([costs_of_keys(served)[each.id] for each in keys]) >= 0.99
    for each in (*ordinary, impostor, canceller):
        users = costs(head for head in served if head.key_id == each.id)
        assert jain([users["user 0"], users["user 1"]]) >= 0.99, each.id


def test_users_of_the_same_name_under_different_keys_are_separate(keys: list[Key]) -> None:
    """A job with a victim's user name, as costly as can be and cancelled at once, delays no other job."""
    victim, impostor = keys[:2]
    submit(victim, flow="ann")
    cancel(impostor, submit(impostor, flow="ann", priority="low", tokens=10_000_000))
    line_up(impostor, [{"flow": f"user {n}"} for n in range(40)])
    again = submit(victim, flow="ann")

    assert again in [head.id for head in serve(victim, steps=1, a_step=4)]


def test_key_with_twice_the_weight_gets_twice_the_share(keys: list[Key]) -> None:
    query("UPDATE key SET weight = 2 WHERE id = :id", id=keys[0].id)
    for each in keys[:2]:
        line_up(each, [{"flow": f"user {n % 3}"} for n in range(90)])
    got = costs_of_keys(serve(keys[0], steps=9, a_step=10))

    assert got[keys[0].id] / got[keys[1].id] == pytest.approx(2, rel=0.05)


def test_refused_call_is_not_charged_to_the_share(keys: list[Key]) -> None:
    """A key whose costly job is refused for load again and again has had nothing, and its turn is still first."""
    unlucky, other = keys[:2]
    costly = submit(unlucky, tokens=10_000)
    line_up(other, [{"flow": "key"} for _ in range(30)])

    for _ in range(5):
        assert [costly] == [head.id for head in serve(unlucky, steps=1, a_step=1)]
        put_back(costly, row(costly).dispatch_id)


def test_cancelled_jobs_are_refunded_and_keep_the_order(caller: Key) -> None:
    first = [submit(caller, flow="ann") for _ in range(10)]
    line_up(caller, [{"flow": "bob"} for _ in range(10)])
    for one in first[:5]:
        cancel(caller, one)
    more = [submit(caller, flow="ann") for _ in range(2)]
    mine = [head.id for head in serve(caller, steps=3, a_step=10) if head.flow == "ann"]
    assert [*first[5:], *more] == mine

    line_up(caller, [{"flow": "bob"} for _ in range(8)])
    for one in [submit(caller, flow="ann") for _ in range(8)]:
        cancel(caller, one)
    last = submit(caller, flow="ann")
    assert last in [head.id for head in serve(caller, steps=1, a_step=4)]


@pytest.mark.parametrize("seed", range(4))
def test_positions_match_the_order_of_admission_with_several_keys(keys: list[Key], seed: int) -> None:
    rng = random.Random(seed)
    query("UPDATE key SET weight = 4 WHERE id = :id", id=keys[2].id)
    for _ in range(60):
        submit(rng.choice(keys[:4]), flow=rng.choice("ab"), priority=rng.choice(["low", "normal", "high"]), tokens=rng.randint(1, 9_999))
    serve(keys[0], steps=2, a_step=7)
    waiting = [one.id for one in query("SELECT id FROM job WHERE status = 'queued'")]
    with db.begin() as session:
        places = position.positions_of(session, job_rows.status_of(session, waiting))
    shown = sorted(waiting, key=lambda one: places[one].position)

    assert list(range(1, 47)) == [places[one].position for one in shown]
    assert shown == [head.id for head in serve(keys[0], steps=1, a_step=60)]


def test_position_behind_many_jobs_of_another_key_is_an_estimate(keys: list[Key]) -> None:
    for each in keys[:2]:
        line_up(each, [{"flow": "key"} for _ in range(300)])
    query("UPDATE key_share SET queued = 300")
    last = submit(keys[0], flow="key")
    with db.begin() as session:
        (found,) = job_rows.status_of(session, [last])
        shown = position.position_of(session, found).position

    assert 601 == shown


def test_new_user_does_not_wait_for_all_jobs_of_a_user_with_a_costly_one(keys: list[Key]) -> None:
    """Also where the pacer saw no other job of that key, because another key's stood before them."""
    mine, others = keys[:2]
    line_up(mine, [{"flow": "costly", "tokens": 10_000}, *[{"flow": "cheap", "tokens": 100} for _ in range(50)]])
    line_up(others, [{"flow": "key", "tokens": 10_000} for _ in range(20)])
    serve(mine, steps=1, a_step=1)
    late = submit(mine, flow="late", tokens=100)

    before = [head.id for head in serve(mine, steps=1, a_step=70) if head.key_id == mine.id]
    assert before.index(late) < 5
