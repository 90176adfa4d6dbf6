"""Lanes: their maximum number in a pool, and their deletion after a day without jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.database import db
from models.keys.keys import Key
from models.ops import job_search
from models.platform.errors import TooManyModels
from models.queue import lanes
from tests.support.http_tools import CHAT, Caller
from tests.support.programs.process import until
from tests.support.queue_tools import at_once, enqueue_in, finish, heads, known, query, row, start, submit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Key:
    return known()


def drop() -> int:
    with db.begin() as session:
        return lanes.delete_idle(session, limit=100)


def mark() -> None:
    """A day after they were last used."""
    query("UPDATE lane SET idle_since = now() - interval '25 h' WHERE wake_at IS NULL")
    assert 0 == drop(), "marked only"


def leave() -> int:
    """How many lanes leave, a day and a minute after they were last used."""
    mark()
    query("UPDATE lane SET leaving_at = leaving_at - interval '1 min'")
    return drop()


def used(caller: Key, model: str = "m") -> int:
    """The number of a lane whose only job has ended, and that the pacer has left."""
    one = submit(caller, model=model)
    finish(one, start(caller, one))
    query("UPDATE lane SET wake_at = NULL, idle_since = now()")
    return int(row(one).lane_id)


def test_pool_has_a_limited_number_of_lanes(caller: Key, override: Callable[..., None]) -> None:
    override(max_lanes_per_pool=3)
    for n in range(3):
        submit(caller, model=f"m{n}")

    with pytest.raises(TooManyModels, match="lines for 3 models"):
        submit(caller, model="m3")
    submit(caller, model="m1")
    submit(known("sk-another"), model="m3")
    assert 4 == len(query("SELECT FROM lane"))


def test_error_for_too_many_models_says_what_to_do(caller: Key, override: Callable[..., None]) -> None:
    override(max_lanes_per_pool=1)
    client = Caller("sk-test")
    client.submit()
    refused = client.post("/v1/jobs", {**CHAT, "body": {**CHAT["body"], "model": "another"}})

    assert (429, "too_many_models", "model") == (refused.status_code, refused.json["error"]["code"], refused.json["error"]["param"])
    assert "false" == refused.headers["x-should-retry"]
    assert 1 == len(query("SELECT FROM job"))


def test_concurrent_submits_create_one_lane_per_model(caller: Key) -> None:
    at_once(*[lambda n=n: submit(caller, model=f"m{n % 3}") for n in range(12)])

    assert 3 == len(query("SELECT FROM lane"))


def test_idle_lane_is_deleted_after_a_day_with_its_rows(caller: Key) -> None:
    gone, stays = used(caller), submit(caller, model="waits")

    assert 1 == leave()
    for table in ("lane", "key_flow", "key_share"):
        column = "id" if table == "lane" else "lane_id"
        assert [(row(stays).lane_id,)] == query(f"SELECT {column} FROM {table}")
    assert gone != row(stays).lane_id


def test_unused_lane_is_deleted_after_a_day(caller: Key) -> None:
    lanes.id_of(caller.pool_id, "misspelt")
    assert 0 == drop(), "its day begins"
    assert 1 == leave()


@pytest.mark.parametrize(
    "result",
    [
        "UPDATE lane SET paused_at = now()", "UPDATE lane SET draining_at = now()", "UPDATE key_flow SET weight = 2",
        "INSERT INTO cap (scope, owner_id, flow, endpoint, key_id, rpm) SELECT 'flow', id, '1:someone', '', 1, 5 FROM lane",
    ],
)  # fmt: skip
def test_lane_changed_by_an_operator_is_kept(caller: Key, result: str) -> None:
    used(caller)
    query(result)

    assert 0 == leave()


def test_lane_with_a_running_call_is_kept(caller: Key) -> None:
    start(caller, submit(caller))
    query("UPDATE lane SET wake_at = NULL, idle_since = now()")

    assert 0 == leave()


@pytest.mark.parametrize("conversation", [None, "talk"])
def test_submit_after_deletion_creates_a_new_lane(caller: Key, conversation: str | None) -> None:
    before = used(caller)
    leave()
    one = submit(caller, conversation=conversation)

    assert before != row(one).lane_id
    assert [one] == heads()


def test_operators_see_jobs_of_a_deleted_lane(caller: Key) -> None:
    used(caller)
    leave()
    with db.begin() as session:
        found = job_search.search(session, job_search.JobQuery(model="m"), limit=10, after=None)

    assert ["own"] == [one["key"]["kind"] for one in found.jobs]


@pytest.mark.parametrize("conversation", [None, "talk"])
def test_submit_to_a_marked_lane_keeps_it(caller: Key, conversation: str | None) -> None:
    before = used(caller)
    mark()
    one = submit(caller, conversation=conversation)
    query("UPDATE lane SET leaving_at = leaving_at - interval '1 min'")

    assert (before, 0) == (row(one).lane_id, drop())
    assert [one] == heads()


def test_submit_that_began_before_the_mark_keeps_the_lane(caller: Key) -> None:
    """It stores its job after the mark; when that is old enough for the lane to go, the job is seen."""
    used(caller)
    with db.begin() as session:
        assert enqueue_in(session, caller, fast=True)[1] is not None
        mark()
    query("UPDATE lane SET leaving_at = coalesce(leaving_at, now()) - interval '1 min'")

    assert 0 == drop()
    assert 1 == len(heads())


def test_pool_at_its_limit_reuses_a_marked_lane(caller: Key, override: Callable[..., None]) -> None:
    override(max_lanes_per_pool=1)
    used(caller)
    mark()
    lanes.id_of.cache_clear()

    assert [submit(caller)] == heads()


def test_submit_succeeds_while_another_one_inserts_the_share_again(caller: Key) -> None:
    """The sweep may have dropped the share since `prepare`."""
    lanes.id_of(caller.pool_id, "m")
    query("UPDATE lane SET wake_at = now()")

    def join() -> None:
        with db.begin() as session:
            enqueue_in(session, caller, flow="second")

    with ThreadPoolExecutor(1) as threads, db.begin() as session:
        enqueue_in(session, caller, fast=True, flow="first")[1]
        joining = threads.submit(join)
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        until(lambda: query(waits), what="a submit that waits for the first")
    joining.result()

    assert 2 == len(heads())


def test_submits_after_the_first_of_a_key_do_not_wait_for_each_other(caller: Key) -> None:
    """In a lane that is awake, two that came while the first was stored go on side by side: neither holds the key's row."""
    lanes.id_of(caller.pool_id, "m")
    query("UPDATE lane SET wake_at = now()")
    both = threading.Barrier(2, timeout=30)

    def join(user: str) -> None:
        with db.begin() as session:
            if enqueue_in(session, caller, fast=True, flow=user)[1] is None:
                enqueue_in(session, caller, flow=user)
            both.wait()

    with ThreadPoolExecutor(2) as threads:
        with db.begin() as session:
            enqueue_in(session, caller, fast=True, flow="first")[1]
            joining = [threads.submit(join, user) for user in ("second", "third")]
            waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            until(lambda: len(query(waits)) == 2, what="both wait for the first")
        for one in joining:
            one.result()

    assert 3 == len(heads())
