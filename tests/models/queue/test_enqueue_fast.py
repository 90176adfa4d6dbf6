"""The fast path of enqueueing: one statement for ordinary jobs; other jobs are left to `enqueue_job` without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from models.billing import budgets
from models.database import db
from models.keys.keys import Key
from models.queue import enqueue, lanes, refusals
from models.queue.position import Enqueued
from models.queue.refusals import FRESH_S, SLACK, CountCache, SlowLanes
from tests.support.queue_tools import enqueue_in, known, query, submit

pytestmark = pytest.mark.usefixtures("database")
Override = Callable[..., None]


@pytest.fixture
def caller() -> Key:
    return known()


@pytest.fixture(autouse=True)
def hindered(monkeypatch: pytest.MonkeyPatch) -> SlowLanes:
    """What is remembered of lanes: of no other test's."""
    monkeypatch.setattr(refusals, "slow_lanes", made := SlowLanes())
    return made


def at_once(caller: Key, **wanted: Any) -> tuple[UUID, Enqueued | None]:
    with db.autocommit() as session:
        return enqueue_in(session, caller, fast=True, **wanted)


def stored() -> list[list[tuple[Any, ...]]]:
    return [[tuple(row) for row in query(f"SELECT * FROM {table}")] for table in ("job", "job_event", "flow", "lane")]


def limit(**figures: Any) -> None:
    query(f"UPDATE lane SET {', '.join(f'{name} = :{name}' for name in figures)}", **figures)


def fill_the_lane(caller: Key, override: Override) -> None:
    override(max_queued_per_lane=1)


def fill_a_long_lane(caller: Key, override: Override) -> None:
    override(max_queued_per_lane=20_000)
    limit(queued=20_000)


def fill_the_key(caller: Key, override: Override) -> None:
    override(max_queued_per_key=1)


def drain(caller: Key, override: Override) -> None:
    query("UPDATE pool SET draining_at = now()")


def cap(caller: Key, override: Override) -> None:
    query("INSERT INTO cap (scope, owner_id, flow, endpoint, max_queued) VALUES ('key', :id, '', '', 1)", id=caller.id)


def give_a_budget(caller: Key, override: Override) -> None:
    override(budgets="all")
    with db.begin() as session:
        budgets.grant(session, caller.id, 1_000_000)


@pytest.mark.parametrize("hindrance", [fill_the_lane, fill_a_long_lane, fill_the_key, drain, cap, give_a_budget])
def test_fast_path_leaves_possible_refusals_to_the_full_path(
    caller: Key, override: Override, hindrance: Callable[[Key, Override], None]
) -> None:
    submit(caller)
    hindrance(caller, override)
    before = stored()

    assert at_once(caller)[1] is None
    assert before == stored()


@pytest.mark.parametrize(
    "figures", [{"rpm": 1}, {"tpm": 100}, {"max_in_flight": 1, "usual_s": 70}, {"blocked_by": "rpm", "wake_at": "2040-01-01"}]
)
def test_fast_path_leaves_long_waits_to_the_full_path(caller: Key, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    submit(caller)
    limit(**figures)
    before = stored()

    assert at_once(caller, expires_in_s=30)[1] is None
    assert before == stored()
    query("UPDATE lane SET paused_at = now()")
    monkeypatch.setattr("models.queue.refusals.FRESH_S", 0.0)
    assert at_once(caller, expires_in_s=30)[1] is not None  # the length of a pause is unknown


def test_fast_path_estimates_the_wait_of_image_jobs(caller: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.queue.refusals.FRESH_S", 0.0)
    submit(caller, images=10)
    limit(ipm=10)

    assert at_once(caller, images=1, expires_in_s=30)[1] is None
    assert at_once(caller, images=1, expires_in_s=90)[1] is not None


@pytest.mark.parametrize("wanted", [{"conversation": "c"}, {"conversation": "c", "turn_tokens": 5}])
def test_fast_path_leaves_turns_of_conversations_to_the_full_path(caller: Key, wanted: dict[str, Any]) -> None:
    assert at_once(caller, **wanted)[1] is None
    assert [] == query("SELECT FROM job")


@pytest.mark.parametrize("wanted", [{}, {"images": 2, "priority": "high", "metadata": {"a": "b"}, "webhook_url": "https://hooks.test"}])
def test_fast_path_stores_the_same_job_as_the_full_path(caller: Key, wanted: dict[str, Any]) -> None:
    joined, rows = [], []
    for each in (False, True):
        for table in ("job", "job_event", "key_flow", "key_share", "lane"):
            query(f"DELETE FROM {table}")
        lanes.id_of.cache_clear()
        submit(caller, flow="before")
        with db.begin() as session:
            job_id, enqueued = enqueue_in(session, caller, fast=each, **wanted)
        joined.append(enqueued)
        apart = "- ARRAY['id', 'lane_id', 'created_at', 'expires_at']"
        rows += query(f"SELECT to_jsonb(job) {apart} AS job, to_jsonb(f) - 'lane_id' AS flow FROM job "
                      "JOIN key_flow AS f ON f.name = job.flow "
                      "WHERE job.id = :id", id=job_id)  # fmt: skip

    assert rows[0] == rows[1]
    assert joined[0] is not None
    assert joined[1] is not None
    assert joined[0].position == joined[1].position


# What is remembered for a moment


def test_slow_lane_skips_the_fast_path_for_a_second() -> None:
    remembered = SlowLanes()
    remembered.mark(1, now=5.0)

    assert [True, True, False] == [remembered.is_slow(1, now=now) for now in (5.0, 5.9, 6.0)]
    assert not remembered.is_slow(2, now=5.0)


def test_fast_path_is_skipped_in_a_lane_that_was_just_full(caller: Key, override: Override, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(caller)
    override(max_queued_per_lane=1)
    assert at_once(caller)[1] is None

    monkeypatch.setattr(enqueue, "_ENQUEUE_FAST", None)  # what would be run
    assert at_once(caller)[1] is None


def test_count_cache_expires_and_ignores_keys_near_their_limit() -> None:
    tally = CountCache()
    assert not tally.is_far_below(1, limit=10 * SLACK, now=0.0)

    tally.store(1, SLACK, now=0.0)
    assert [True, False] == [tally.is_far_below(1, limit=2 * SLACK, now=now) for now in (0.9 * FRESH_S, FRESH_S)]
    assert not tally.is_far_below(1, limit=2 * SLACK - 1, now=0.0)
    assert not tally.is_far_below(2, limit=10 * SLACK, now=0.0)


def test_small_limit_of_a_key_is_never_exceeded(caller: Key, override: Override) -> None:
    override(max_queued_per_key=3)

    assert [*[True] * 3, *[False] * 3] == [at_once(caller)[1] is not None for _ in range(6)]


def test_key_far_below_its_limit_is_not_counted_at_every_submit(caller: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = CountCache()
    monkeypatch.setattr(refusals, "open_jobs", tally)
    for _ in range(3):
        at_once(caller)

    assert 0 == tally._counts[caller.id].jobs
    monkeypatch.setattr("models.queue.refusals.FRESH_S", 0.0)
    at_once(caller)
    assert 3 == tally._counts[caller.id].jobs
