"""The `x-ratelimit-*` headers: how much room the line has, as an answer tells it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai import rate_limit_headers
from api.openai.rate_limit_headers import Told, duration
from models.database import db
from models.keys.keys import Key
from models.platform.errors import Unavailable
from models.queue import enqueue, headroom
from models.queue.headroom import Headroom, LaneHeadroom
from tests.support.queue_tools import admit, finish, known, query, start, submit

FREE = LaneHeadroom(requests=Headroom(60, 59, 1.0), tokens=None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def caller(database: None) -> Key:
    return known()


def limit(caller: Key, **figures: float) -> int:
    """The lane of this key for model `m`, with these figures."""
    lane_id = enqueue.lane_id_of(caller.pool_id, "m")
    for name, value in figures.items():
        query(f"UPDATE lane SET {name} = :value WHERE id = :id", value=value, id=lane_id)
    return lane_id


def look(lane_id: int) -> LaneHeadroom:
    with db.begin() as session:
        return headroom.read_headroom(session, lane_id)


def of_requests(lane_id: int) -> tuple[int, int]:
    found = look(lane_id).requests
    assert found is not None
    return found.limit, found.remaining


def test_an_untouched_line_has_all_its_room(caller: Key) -> None:
    assert LaneHeadroom(Headroom(60, 60, 0.0), Headroom(1000, 1000, 0.0)) == look(limit(caller, rpm=60, tpm=1000))


def test_where_no_limit_is_known_nothing_is_told(caller: Key) -> None:
    submit(caller)

    assert LaneHeadroom(None, None) == look(limit(caller))
    assert {} == rate_limit_headers.show(LaneHeadroom(None, None))


def test_what_was_sent_in_the_last_minute_is_gone_and_what_was_sent_before_is_not(caller: Key) -> None:
    lane_id = limit(caller, rpm=60, tpm=1000)
    for tokens in (100, 30, 5):
        job_id = submit(caller, tokens=tokens)
        finish(job_id, start(caller, job_id))
    query("UPDATE attempt SET started_at = now() - interval '61 s' WHERE tokens = 100")

    found = look(lane_id)
    assert (58, 965) == (found.requests and found.requests.remaining, found.tokens and found.tokens.remaining)


def test_all_of_it_is_free_again_a_minute_after_the_last_call(caller: Key) -> None:
    lane_id = limit(caller, rpm=60)
    job_id = submit(caller)
    finish(job_id, start(caller, job_id))
    query("UPDATE attempt SET started_at = now() - interval '20 s'")

    found = look(lane_id).requests
    assert found is not None
    assert found.reset_s == pytest.approx(40, abs=2)


def test_what_was_never_sent_takes_no_room(caller: Key) -> None:
    lane_id = limit(caller, rpm=60)
    job_id = submit(caller)
    finish(job_id, start(caller, job_id))
    query("UPDATE attempt SET outcome = 'not_sent'")

    assert (60, 60) == of_requests(lane_id)


@pytest.mark.parametrize("state", ["queued", "admitted"])
def test_who_waits_takes_room_too(caller: Key, state: str) -> None:
    lane_id = limit(caller, rpm=60, tpm=1000)
    job_id = submit(caller, tokens=300)
    if state == "admitted":
        admit(caller, job_id)

    found = look(lane_id)
    assert (59, 700) == (found.requests and found.requests.remaining, found.tokens and found.tokens.remaining)


def test_a_long_line_leaves_nothing_and_says_when_one_who_joins_now_would_go(caller: Key) -> None:
    lane_id = limit(caller, rpm=2, tpm=100_000)
    for _ in range(6):
        submit(caller)

    found = look(lane_id)
    assert Headroom(2, 0, 180.0) == found.requests
    assert Headroom(100_000, 99_400, 180.0) == found.tokens


def test_of_a_paused_line_nobody_knows_when_it_moves(caller: Key) -> None:
    lane_id = limit(caller, rpm=2)
    submit(caller)
    query("UPDATE lane SET paused_at = now()")

    assert {"x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "1"} == rate_limit_headers.show(look(lane_id))


def test_other_lanes_calls_and_waiters_are_not_counted(caller: Key) -> None:
    lane_id, other = limit(caller, rpm=60), known("sk-other")
    for who, model in ((caller, "other"), (other, "m")):
        job_id = submit(who, model=model)
        finish(job_id, start(who, job_id))
        submit(who, model=model)

    assert (60, 60) == of_requests(lane_id)


def test_the_headers_are_those_of_openai() -> None:
    told = rate_limit_headers.show(LaneHeadroom(Headroom(60, 59, 1.0), Headroom(150_000, 149_984, 360.0)))

    assert {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
    } == told  # fmt: skip


def test_a_lane_is_looked_at_once_a_second_however_many_ask() -> None:
    clock, looked = Clock(), list[int]()

    def count(lane_id: int) -> LaneHeadroom:
        looked.append(lane_id)
        return FREE

    told = Told(count, clock=clock)
    for _ in range(100):
        assert "60" == told.headers(1)["x-ratelimit-limit-requests"]
    told.headers(2)
    clock.now += rate_limit_headers.FRESH_S
    told.headers(1)

    assert [1, 2, 1] == looked


def test_while_one_looks_the_others_are_told_what_was_known() -> None:
    clock = Clock()
    meanwhile: list[Any] = []

    def ask_again(lane_id: int) -> LaneHeadroom:
        meanwhile.append(dict(told.headers(lane_id)))
        return FREE

    told = Told(ask_again, clock=clock)
    told.headers(1)
    clock.now += rate_limit_headers.FRESH_S
    told.headers(1)

    assert [{}, rate_limit_headers.show(FREE)] == meanwhile


def test_without_postgres_nothing_is_told() -> None:
    def fail(_: int) -> LaneHeadroom:
        raise Unavailable

    assert {} == Told(fail).headers(1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (0.012, "12ms"), (0.0001, "1ms"), (1, "1s"), (8.64, "8.64s"), (59.9999, "1m0s"), (60, "1m0s"), (90.5, "1m30.5s"),
     (360, "6m0s"), (3600, "1h0m0s"), (86_399.001, "23h59m59.001s")],
)  # fmt: skip
def test_a_duration_is_written_as_go_does(seconds: float, said: str) -> None:
    assert said == duration(seconds)


@given(st.floats(0, 1e6))
def test_a_duration_reads_back_as_the_same_time_or_a_millisecond_more(seconds: float) -> None:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    read = sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", duration(seconds)))

    assert -1e-6 <= read - seconds <= 0.001001
