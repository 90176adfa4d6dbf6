"""The reaper recovers unclaimed admissions and lost calls and removes old rows; it reports no running call as lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import pytest
import redis

from models.database import db
from models.jobs import idempotency, workers
from models.keys.keys import Key, Limits
from models.queue import lane_maintenance
from models.queue.key_shares import SETTLED_S
from tests.support.queue_tools import (
    admit,
    cancel,
    clean_up,
    credential_of,
    expire,
    finish,
    heads,
    known,
    outcomes,
    put_back,
    query,
    row,
    start,
    store_limits,
    submit,
)
from workers.limiter.limiter import Limiter
from workers.limiter.requests import AdmitRequest, CredentialModel
from workers.pacer.reap_grace import MAX_PASS_GAP_S, ReapGrace
from workers.pacer.reaper import Reaper
from workers.pacer.wakeups import Wakeups


@pytest.fixture
def caller(database: None) -> Key:
    return known()


@pytest.fixture
def wakeups() -> Wakeups:
    return Wakeups()


@pytest.fixture
def limiter(redis_client: redis.Redis) -> Limiter:
    return Limiter(redis_client)


@pytest.fixture
def sweep(limiter: Limiter, wakeups: Wakeups) -> Reaper:
    """A reaper whose grace period after the start is over."""
    made = Reaper(limiter=limiter, wakeups=wakeups)
    with db.begin() as session:
        postmaster = lane_maintenance.postmaster_started(session)
    made._grace = ReapGrace(postmaster=postmaster, until=0.0, last=time.monotonic())
    return made


def reserved(limiter: Limiter, caller: Key, dispatch_id: UUID) -> CredentialModel:
    """Gives this call the only in-flight slot of its credential."""
    with db.begin() as session:
        bound = CredentialModel(credential_of(session, caller), "m")
    limiter.init(bound, Limits(max_in_flight=1))
    limiter.admit(bound, [AdmitRequest(str(dispatch_id), 1)], lease_ms=30_000)
    assert (0, 1) == free_and_used(limiter, bound)
    return bound


def free_and_used(limiter: Limiter, bound: CredentialModel) -> tuple[int | None, int]:
    (room,) = limiter.peek_many([bound])
    assert room is not None
    return room.free, room.in_flight


# Amnesty


def test_nothing_is_lost_right_after_the_start() -> None:
    assert ReapGrace().is_on(postmaster="a", now=100.0)


def test_amnesty_ends_a_lease_and_two_seconds_later(override: Callable[..., None]) -> None:
    override(lease_s=30)
    amnesty = ReapGrace()

    assert [True] * 31 + [True] + [False] * 3 == [amnesty.is_on(postmaster="a", now=float(now)) for now in range(35)]


def test_a_restart_of_postgres_begins_a_new_amnesty() -> None:
    amnesty = ReapGrace(postmaster="a", until=0.0, last=99.0)

    assert [False, True, True] == [amnesty.is_on(postmaster=began, now=now) for began, now in (("a", 100.0), ("b", 101.0), ("b", 102.0))]


def test_a_gap_of_our_own_begins_a_new_amnesty() -> None:
    amnesty = ReapGrace(postmaster="a", until=0.0, last=100.0)

    assert not amnesty.is_on(postmaster="a", now=100.0 + MAX_PASS_GAP_S)
    assert amnesty.is_on(postmaster="a", now=100.0 + 2 * MAX_PASS_GAP_S + 0.1)


def test_a_lease_is_not_reaped_during_an_amnesty(caller: Key, limiter: Limiter, wakeups: Wakeups) -> None:
    one = submit(caller)
    start(caller, one)
    query("UPDATE job SET lease_until = now() - interval '1 s'")

    Reaper(limiter=limiter, wakeups=wakeups).step(now=time.monotonic())

    assert "running" == row(one).status


# Lost and not claimed


def test_a_lost_job_goes_back_and_its_slot_is_free(caller: Key, limiter: Limiter, wakeups: Wakeups, sweep: Reaper) -> None:
    one = submit(caller)
    bound = reserved(limiter, caller, start(caller, one))
    query("UPDATE job SET lease_until = now() - interval '1 s'")
    sweep.step(now=time.monotonic())

    assert (["unknown"], [one], (1, 0)) == (outcomes(one), heads(), free_and_used(limiter, bound))
    assert {row(one).lane_id} == set(wakeups.take())


def test_an_unclaimed_job_goes_back_and_its_slot_is_free(caller: Key, limiter: Limiter, wakeups: Wakeups, sweep: Reaper) -> None:
    one = submit(caller)
    bound = reserved(limiter, caller, admit(caller, one))
    query("UPDATE job SET admitted_at = now() - interval '1 min'")
    sweep.step(now=time.monotonic())

    assert ([one], (1, 0)) == (heads(), free_and_used(limiter, bound))
    assert {row(one).lane_id} == set(wakeups.take())


def test_without_redis_jobs_go_back_all_the_same(caller: Key, sweep: Reaper, override: Callable[..., None]) -> None:
    one = submit(caller)
    admit(caller, one)
    query("UPDATE job SET admitted_at = now() - interval '1 min'")
    sweep._limiter = Limiter(redis.Redis(port=1, retry=None))

    sweep.step(now=time.monotonic())

    assert [one] == heads()


def test_a_forgotten_lane_is_woken(caller: Key, wakeups: Wakeups, sweep: Reaper) -> None:
    one = submit(caller)
    query("UPDATE lane SET wake_at = NULL, idle_since = now()")
    sweep.step(now=time.monotonic())

    assert {row(one).lane_id} == set(wakeups.take())


def test_a_waiting_job_expires(caller: Key, sweep: Reaper) -> None:
    one = submit(caller)
    query("UPDATE job SET expires_at = now() - interval '1 s'")
    sweep.step(now=time.monotonic())

    assert "expired" == row(one).status


def test_silent_workers_are_forgotten(caller: Key, sweep: Reaper) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "gone", slots=4)
        workers.record_heartbeat(session, "here", slots=4)
    query("UPDATE worker SET seen_at = now() - interval '1 h' WHERE name = 'gone'")
    sweep.step(now=time.monotonic())

    assert ["here"] == [one.name for one in query("SELECT name FROM worker")]


# The low-water mark and the figures


def refresh(care: lane_maintenance.LaneMaintenance, *, now: float) -> None:
    with db.begin() as session:
        lanes = care.next_batch(session)
    for lane in lanes:
        with db.begin() as session:
            care.refresh(session, lane, now=now)


def test_the_mark_follows_the_line_only_after_every_submit_has_seen_it(caller: Key) -> None:
    care = lane_maintenance.LaneMaintenance()
    one = submit(caller)
    finish(one, start(caller, one))
    query("UPDATE key_share SET virtual_time = 500, low_water = 0")

    marks = []
    for now in (0.0, SETTLED_S - 1.0, float(SETTLED_S)):
        refresh(care, now=now)
        marks += [mark.low_water for mark in query("SELECT low_water FROM key_share")]
    assert [0, 0, 500] == marks


def test_low_water_mark_stays_below_waiting_jobs(caller: Key) -> None:
    care = lane_maintenance.LaneMaintenance()
    one = submit(caller)
    query("UPDATE job SET start_tag = 300")
    query("UPDATE key_share SET virtual_time = 500, low_water = 0")
    for now in (0.0, SETTLED_S + 1.0):
        refresh(care, now=now)

    assert [(300,)] == query("SELECT low_water FROM key_share")
    assert [one] == heads()


def test_a_job_that_the_version_before_put_back_is_found_again(caller: Key) -> None:
    """Workers older than migration 0016 lower only the low-water mark of the lane."""
    care = lane_maintenance.LaneMaintenance()
    one = submit(caller)
    start(caller, one)
    query("UPDATE key_share SET virtual_time = 500")
    for now in (0.0, SETTLED_S + 1.0):
        refresh(care, now=now)
    query("UPDATE job SET status = 'queued', dispatch_id = NULL, lease_until = NULL, admitted_at = NULL")
    refresh(care, now=SETTLED_S + 3.0)

    assert [one] == heads()


def test_previous_version_finds_waiting_jobs_after_a_rollback(caller: Key) -> None:
    """The previous version reads the low-water mark of the lane, and raised it in the lane's own time while both versions ran."""
    one = submit(caller)
    query("UPDATE lane SET low_water = 1e9")
    refresh(lane_maintenance.LaneMaintenance(), now=0.0)

    assert [(True,)] == query("SELECT low_water <= start_tag FROM lane, job WHERE job.id = :id", id=one)


def test_a_share_that_was_made_again_has_no_mark_of_the_one_before(caller: Key) -> None:
    care = lane_maintenance.LaneMaintenance()
    submit(known("sk-other"))
    one = submit(caller)
    finish(one, start(caller, one))
    # Its users' last finish is behind the key's own time where a job was admitted, put back and cancelled.
    query("UPDATE key_share SET virtual_time = 1000 WHERE key_id = :id", id=caller.id)
    refresh(care, now=0.0)
    query("DELETE FROM key_share WHERE key_id = :id", id=caller.id)
    finish(two := submit(caller), start(caller, two))
    for now in (2.0, SETTLED_S + 1.0, SETTLED_S + 3.0):
        refresh(care, now=now)
    three = submit(caller)

    assert three in heads()


def test_the_figures_are_those_of_the_lanes_credentials(caller: Key) -> None:
    submit(caller)
    query("INSERT INTO meter (credential_id, model, rpm, tpm) SELECT id, '*', 60, 1000 FROM credential")
    refresh(lane_maintenance.LaneMaintenance(), now=0.0)

    assert [(60, 1_000, None, 1)] == query("SELECT rpm, tpm, ipm, queued FROM lane")


# What is old


def test_old_ended_jobs_go_with_their_belongings_and_usage_stays(caller: Key) -> None:
    one, two = submit(caller), submit(caller)
    dispatch_id = start(caller, one)
    finish(one, dispatch_id)
    query("INSERT INTO usage (dispatch_id, job_id, key_id, model, input_tokens, output_tokens, images) VALUES (:d, :j, 1, 'm', 1, 1, 0)",
          d=dispatch_id, j=one)  # fmt: skip
    query("INSERT INTO artifact (id, job_id, n, content_type, content) VALUES (:d, :j, 0, 'image/png', 'x')", d=dispatch_id, j=one)

    assert (0, 1) == (clean_up(later_days=29), clean_up(later_days=31))
    assert [two] == [each.id for each in query("SELECT id FROM job")]
    left = [len(query(f"SELECT FROM {table} WHERE job_id = :id", id=one)) for table in ("attempt", "job_event", "artifact", "usage")]
    assert [0, 0, 0, 1] == left


@pytest.mark.parametrize("state", ["queued", "admitted", "running", "back"])
def test_retention_never_removes_open_jobs(caller: Key, state: str) -> None:
    one = submit(caller)
    if state == "back":
        put_back(one, start(caller, one))
    elif state != "queued":
        {"admitted": admit, "running": start}[state](caller, one)

    assert 0 == clean_up(later_days=365)


def test_young_ended_jobs_stay(caller: Key) -> None:
    one, two = submit(caller), submit(caller)
    cancel(caller, one)
    expire(two)

    assert 0 == clean_up(later_days=29)


def test_idempotency_keys_go_after_their_time(caller: Key) -> None:
    one = submit(caller)
    with db.begin() as session:
        idempotency.claim_token(session, caller.id, "old", digest=b"", job_id=one)
        idempotency.claim_token(session, caller.id, "new", digest=b"", job_id=one)
    query("UPDATE idempotency SET created_at = now() - interval '25 h' WHERE token = 'old'")
    clean_up()

    assert ["new"] == [each.token for each in query("SELECT token FROM idempotency")]


def test_flows_that_say_nothing_any_more_go_and_weighted_ones_stay(caller: Key) -> None:
    for flow in ("gone", "weighted", "ahead"):
        cancel(caller, submit(caller, flow=flow))
    query("UPDATE key_flow SET weight = 2 WHERE name = 'weighted'")
    query("UPDATE key_flow SET last_finish = 1e6 WHERE name = 'ahead'")
    query("UPDATE key_share SET low_water = 1000")
    clean_up()

    assert {"weighted", "ahead"} == {each.name for each in query("SELECT name FROM key_flow")}


def test_limits_that_the_operator_changes_hold_without_a_restart(caller: Key, sweep: Reaper, limiter: Limiter) -> None:
    bound = limited_later(caller, sweep, limiter, Limits(max_in_flight=2))

    assert 2 == limiter.admit(bound, [AdmitRequest(str(n), 1) for n in range(5)], lease_ms=30_000).admitted


def test_a_daily_limit_that_is_new_has_the_state_made_again_from_the_ledger(caller: Key, sweep: Reaper, limiter: Limiter) -> None:
    bound = limited_later(caller, sweep, limiter, Limits(rpd=100))

    assert [None] == limiter.peek_many([bound])


def limited_later(caller: Key, sweep: Reaper, limiter: Limiter, limits: Limits) -> CredentialModel:
    """A meter in use, whose limits the operator changes between two passes of the reaper."""
    submit(caller)
    with db.begin() as session:
        bound = CredentialModel(credential_of(session, caller), "m")
    limiter.init(bound, Limits(max_in_flight=50))
    sweep.step(now=time.monotonic())
    with db.begin() as session:
        store_limits(session, bound.credential_id, limits)
    sweep.step(now=time.monotonic() + 10)
    return bound
