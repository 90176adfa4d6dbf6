"""The `x-ratelimit-*` headers show a lane's headroom."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai import rate_limit_headers
from api.openai.rate_limit_headers import HeaderCache, go_duration
from models.database import db
from models.keys.keys import Key
from models.platform.errors import Unavailable
from models.queue import headroom, lanes
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
    """Returns the key's lane for model `m`, with these column values."""
    lane_id = lanes.id_of(caller.pool_id, "m")
    for name, value in figures.items():
        query(f"UPDATE lane SET {name} = :value WHERE id = :id", value=value, id=lane_id)
    return lane_id


def read(lane_id: int) -> LaneHeadroom:
    with db.begin() as session:
        return headroom.read_headroom(session, lane_id)


def of_requests(lane_id: int) -> tuple[int, int]:
    room = read(lane_id).requests
    assert room is not None
    return room.limit, room.remaining


def test_unused_lane_has_full_headroom(caller: Key) -> None:
    assert LaneHeadroom(Headroom(60, 60, 0.0), Headroom(1000, 1000, 0.0)) == read(limit(caller, rpm=60, tpm=1000))


def test_unknown_limits_give_no_headers(caller: Key) -> None:
    submit(caller)

    assert LaneHeadroom(None, None) == read(limit(caller))
    assert {} == rate_limit_headers.render_headers(LaneHeadroom(None, None))


def test_calls_of_last_minute_reduce_headroom(caller: Key) -> None:
    lane_id = limit(caller, rpm=60, tpm=1000)
    for tokens in (100, 30, 5):
        job_id = submit(caller, tokens=tokens)
        finish(job_id, start(caller, job_id))
    query("UPDATE attempt SET started_at = now() - interval '61 s' WHERE tokens = 100")

    rooms = read(lane_id)
    assert (58, 965) == (rooms.requests and rooms.requests.remaining, rooms.tokens and rooms.tokens.remaining)


def test_headroom_resets_a_minute_after_last_call(caller: Key) -> None:
    lane_id = limit(caller, rpm=60)
    job_id = submit(caller)
    finish(job_id, start(caller, job_id))
    query("UPDATE attempt SET started_at = now() - interval '20 s'")

    room = read(lane_id).requests
    assert room is not None
    assert room.reset_s == pytest.approx(40, abs=2)


def test_unsent_attempt_uses_no_headroom(caller: Key) -> None:
    lane_id = limit(caller, rpm=60)
    job_id = submit(caller)
    finish(job_id, start(caller, job_id))
    query("UPDATE attempt SET outcome = 'not_sent'")

    assert (60, 60) == of_requests(lane_id)


@pytest.mark.parametrize("state", ["queued", "admitted"])
def test_waiting_job_uses_headroom(caller: Key, state: str) -> None:
    lane_id = limit(caller, rpm=60, tpm=1000)
    job_id = submit(caller, tokens=300)
    if state == "admitted":
        admit(caller, job_id)

    rooms = read(lane_id)
    assert (59, 700) == (rooms.requests and rooms.requests.remaining, rooms.tokens and rooms.tokens.remaining)


def test_long_queue_has_no_headroom_and_a_reset_time(caller: Key) -> None:
    lane_id = limit(caller, rpm=2, tpm=100_000)
    for _ in range(6):
        submit(caller)

    rooms = read(lane_id)
    assert Headroom(2, 0, 180.0) == rooms.requests
    assert Headroom(100_000, 99_400, 180.0) == rooms.tokens


def test_paused_lane_has_no_reset_time(caller: Key) -> None:
    lane_id = limit(caller, rpm=2)
    submit(caller)
    query("UPDATE lane SET paused_at = now()")

    assert {"x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "1"} == rate_limit_headers.render_headers(read(lane_id))


def test_headroom_ignores_other_lanes(caller: Key) -> None:
    lane_id, other = limit(caller, rpm=60), known("sk-other")
    for key, model in ((caller, "other"), (other, "m")):
        job_id = submit(key, model=model)
        finish(job_id, start(key, job_id))
        submit(key, model=model)

    assert (60, 60) == of_requests(lane_id)


def test_headers_have_openai_format() -> None:
    headers = rate_limit_headers.render_headers(LaneHeadroom(Headroom(60, 59, 1.0), Headroom(150_000, 149_984, 360.0)))

    assert {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
    } == headers  # fmt: skip


def test_lane_is_read_once_a_second() -> None:
    clock, reads = Clock(), list[int]()

    def count(lane_id: int) -> LaneHeadroom:
        reads.append(lane_id)
        return FREE

    cache = HeaderCache(count, clock=clock)
    for _ in range(100):
        assert "60" == cache.headers(1)["x-ratelimit-limit-requests"]
    cache.headers(2)
    clock.now += rate_limit_headers.FRESH_S
    cache.headers(1)

    assert [1, 2, 1] == reads


def test_concurrent_requests_get_cached_headers() -> None:
    clock = Clock()
    meanwhile: list[Any] = []

    def read_again(lane_id: int) -> LaneHeadroom:
        meanwhile.append(dict(cache.headers(lane_id)))
        return FREE

    cache = HeaderCache(read_again, clock=clock)
    cache.headers(1)
    clock.now += rate_limit_headers.FRESH_S
    cache.headers(1)

    assert [{}, rate_limit_headers.render_headers(FREE)] == meanwhile


def test_postgres_outage_gives_no_headers() -> None:
    def fail(_: int) -> LaneHeadroom:
        raise Unavailable

    assert {} == HeaderCache(fail).headers(1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.012, "12ms"), (0.0001, "1ms"), (1, "1s"), (8.64, "8.64s"), (59.9999, "1m0s"), (60, "1m0s"), (90.5, "1m30.5s"),
     (360, "6m0s"), (3600, "1h0m0s"), (86_399.001, "23h59m59.001s")],
)  # fmt: skip
def test_duration_has_go_format(seconds: float, text: str) -> None:
    assert text == go_duration(seconds)


@given(st.floats(0, 1e6))
def test_duration_is_rounded_up_to_a_millisecond(seconds: float) -> None:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parsed = sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", go_duration(seconds)))

    assert -1e-6 <= parsed - seconds <= 0.001001
