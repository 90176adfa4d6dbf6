"""The pacer, one step at a time: the jobs that it admits, the jobs that it leaves, and the reported reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from models.database import db
from models.jobs import claims, workers
from models.keys import keys
from models.keys import limits as meter
from models.keys.keys import Key, Limits
from models.platform.errors import LimiterUnavailable
from models.queue import admission, lanes
from tests.support.queue_tools import at_once, cancel, finish, known, outcomes, put_back, query, row, start, store_limits, submit
from workers.broker.publish import TaskMessage
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.pacer.limiter_rebuild import rebuild
from workers.pacer.stages.reserve import Reserver
from workers.pacer.step import Pacer
from workers.pacer.wakeups import Wakeups

pytestmark = pytest.mark.usefixtures("database")


class FakePublisher:
    """Replaces Celery: records the published jobs."""

    def __init__(self) -> None:
        self.published: list[tuple[UUID, UUID]] = []

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        self.published += [(message.number, message.ticket) for message in messages]
        return True

    def take(self) -> list[UUID]:
        """The jobs published since the last call."""
        taken, self.published = [job_id for job_id, _ in self.published], []
        return taken


class PacerHarness:
    """A pacer with its limiter, its wakeups and a fake publisher."""

    def __init__(self, client: redis.Redis) -> None:
        self.limiter = Limiter(client)
        self.publisher = FakePublisher()
        self.wakeups = Wakeups()
        self.pacer = Pacer(limiter=self.limiter, publisher=self.publisher, wakeups=self.wakeups)

    def steps(self, limit: int = 8) -> list[UUID]:
        """Steps until the next step is not due at once; returns the published jobs."""
        for _ in range(limit):
            if self.pacer.step() > 0:
                break
        return self.publisher.take()


@pytest.fixture
def stage(redis_client: redis.Redis) -> PacerHarness:
    return PacerHarness(redis_client)


@pytest.fixture
def caller() -> Key:
    made = known()
    set_limits(made, max_in_flight=1_000)
    return made


def set_limits(caller: Key, *, credential_id: int | None = None, **limits: int) -> None:
    with db.begin() as session:
        for each in [credential_id] if credential_id else meter.active_credentials(session, [caller.pool_id])[caller.pool_id]:
            store_limits(session, each, Limits(**limits))


def add_credential(caller: Key, **limits: int) -> int:
    with db.begin() as session:
        made = keys.add_credential(session, pool_id=caller.pool_id, upstream_key="sk-another")
        store_limits(session, made, Limits(**limits))
    return made


def report_slots(slots: int) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "worker", slots=slots)


def lane(one: UUID) -> object:
    (found,) = query("SELECT lane.* FROM lane JOIN job ON job.lane_id = lane.id WHERE job.id = :id", id=one)
    return found


def make_lanes_due() -> None:
    query("UPDATE lane SET wake_at = now() - interval '1 s', claimed_until = NULL")


def finish_all() -> None:
    for each in query("SELECT id, dispatch_id FROM job WHERE status = 'admitted'"):
        with db.begin() as session:
            claims.claim(session, each.id, each.dispatch_id, lease_s=30)
        finish(each.id, each.dispatch_id)


# Wake-ups


def test_a_lane_whose_row_is_being_written_when_it_is_woken_is_looked_at_again_at_once(caller: Key, stage: PacerHarness) -> None:
    report_slots(10)
    one = submit(caller)
    with db.begin() as session:
        session.execute(text("SELECT FROM lane FOR UPDATE"))
        stage.wakeups.wake(row(one).lane_id)
        rest_s = stage.pacer.step()

    assert 0 < rest_s < 0.1
    assert [one] == stage.steps()


def test_a_woken_lane_that_is_paused_or_another_s_is_not_asked_for_again_and_again(caller: Key, stage: PacerHarness) -> None:
    report_slots(10)
    one = submit(caller)
    for held in ("paused_at = now()", "paused_at = NULL, claimed_until = now() + interval '1 min'"):
        query(f"UPDATE lane SET wake_at = now() + interval '1 h', {held}")
        stage.wakeups.wake(row(one).lane_id)

        assert stage.pacer.step() > 0.5


# Slots


def test_never_more_than_the_free_slots(caller: Key, stage: PacerHarness) -> None:
    report_slots(3)
    jobs = [submit(caller, flow=f"f{n}") for n in range(7)]

    assert jobs[:3] == stage.steps()
    make_lanes_due()
    assert [] == stage.steps()


def test_no_job_is_admitted_without_workers(caller: Key, stage: PacerHarness) -> None:
    submit(caller)

    assert [] == stage.steps()


def test_a_worker_that_went_silent_does_not_count(caller: Key, stage: PacerHarness) -> None:
    report_slots(3)
    query("UPDATE worker SET seen_at = now() - interval '1 min'")
    submit(caller)

    assert [] == stage.steps()


def test_a_line_that_waits_for_slots_is_not_thought_empty(caller: Key, stage: PacerHarness) -> None:
    report_slots(3)
    jobs = [submit(caller) for _ in range(7)]
    stage.steps()

    assert ("workers", row(jobs[0]).cost + row(jobs[1]).cost) == (lane(jobs[0]).blocked_by, lane(jobs[0]).virtual_time)
    assert lane(jobs[0]).wake_at is not None


def test_a_freed_slot_is_taken_by_the_next(caller: Key, stage: PacerHarness) -> None:
    report_slots(3)
    jobs = [submit(caller) for _ in range(7)]
    stage.steps()
    finish_all()

    assert jobs[3:6] == stage.steps()


def test_a_slot_freed_by_one_lane_is_taken_by_another(caller: Key, stage: PacerHarness) -> None:
    report_slots(1)
    one, two = submit(caller), submit(caller, model="other")
    first = stage.steps()
    finish_all()

    assert {one, two} == {*first, *stage.steps()}


# Limits


def test_request_limit_holds_and_is_shown_as_blocking(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, rpm=60)
    report_slots(50)
    jobs = [submit(caller) for _ in range(5)]

    assert [jobs[0]] == stage.steps()
    assert "rpm" == lane(jobs[0]).blocked_by
    (waits,) = query("SELECT wake_at - now() AS left FROM lane")
    assert timedelta(0) < waits.left <= timedelta(milliseconds=500)


def test_calls_in_flight_are_limited(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, max_in_flight=2)
    report_slots(50)
    jobs = [submit(caller) for _ in range(5)]

    assert jobs[:2] == stage.steps()
    assert "in_flight" == lane(jobs[0]).blocked_by


def test_a_job_that_can_never_fit_fails_and_the_next_goes(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, tpm=1_000)
    report_slots(50)
    large, small = submit(caller, tokens=1_001), submit(caller, tokens=5)

    assert [small] == stage.steps()
    assert ("failed", "request_exceeds_limit", []) == (row(large).status, row(large).error["code"], outcomes(large))


def test_a_job_too_large_for_one_credential_goes_to_another(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, tpm=1_000)
    roomy = add_credential(caller, tpm=50_000)
    report_slots(50)
    large = submit(caller, tokens=2_000)

    assert [large] == stage.steps()
    assert ("admitted", roomy) == (row(large).status, row(large).credential_id)


def test_job_too_large_for_the_last_credential_is_not_lost(caller: Key, stage: PacerHarness) -> None:
    # Each credential bears what the other cannot: images here, tokens there.
    set_limits(caller, tpm=1_000, ipm=100)
    add_credential(caller, tpm=90_000, ipm=1)
    report_slots(50)
    jobs = [submit(caller, tokens=2_000), submit(caller, tokens=10, images=4)]

    assert jobs == stage.steps()
    assert ["admitted", "admitted"] == [row(one).status for one in jobs]


def test_a_job_too_large_for_every_credential_fails(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, tpm=1_000)
    add_credential(caller, tpm=2_000)
    report_slots(50)
    large = submit(caller, tokens=3_000)

    assert [] == stage.steps()
    assert "failed" == row(large).status


def test_a_job_is_not_refused_while_a_credential_is_unknown(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, tpm=1_000)
    roomy = add_credential(caller, tpm=50_000)
    report_slots(50)
    submit(caller, tokens=10)
    stage.steps()
    stage.limiter.forget(CredentialModel(roomy, "m"))
    large = submit(caller, tokens=2_000)
    make_lanes_due()

    assert [large] == stage.steps()


# Who must wait


@pytest.mark.parametrize("what", ["lane", "pool"])
def test_paused_lane_waits_without_work(caller: Key, stage: PacerHarness, what: str) -> None:
    report_slots(5)
    one = submit(caller)
    query(f"UPDATE {what} SET paused_at = now()")

    assert stage.pacer.step() > 0.5
    assert [] == stage.publisher.take()
    query(f"UPDATE {what} SET paused_at = NULL")
    assert [one] == stage.steps()


def test_a_parked_credential_gets_nothing(caller: Key, stage: PacerHarness) -> None:
    report_slots(5)
    one = submit(caller)
    query("UPDATE credential SET parked_at = now(), parked_reason = 'no money'")

    assert [] == stage.steps()
    assert "parked" == lane(one).blocked_by


def test_the_other_credential_serves_when_one_is_parked(caller: Key, stage: PacerHarness) -> None:
    query("UPDATE credential SET parked_at = now()")
    spare = add_credential(caller, max_in_flight=10)
    report_slots(5)
    one = submit(caller)

    assert [one] == stage.steps()
    assert spare == row(one).credential_id


def test_a_job_in_backoff_is_left_until_its_time(caller: Key, stage: PacerHarness) -> None:
    report_slots(5)
    one = submit(caller)
    put_back(one, start(caller, one), delay_s=60)

    assert [] == stage.steps()
    assert "backoff" == lane(one).blocked_by
    query("UPDATE job SET not_before = now()")
    make_lanes_due()
    assert [one] == stage.steps()


def test_an_expired_job_in_backoff_does_not_keep_the_pacer_busy(caller: Key, stage: PacerHarness) -> None:
    report_slots(5)
    one = submit(caller)
    put_back(one, start(caller, one), delay_s=60)
    query("UPDATE job SET not_before = now() - interval '1 s', expires_at = now() - interval '1 s'")

    stage.steps()
    make_lanes_due()
    assert stage.pacer.step() > 0


# Redis forgets


def test_lost_state_is_rebuilt_from_the_attempts_and_then_it_goes_on(caller: Key, stage: PacerHarness, redis_client: redis.Redis) -> None:
    set_limits(caller, rpm=1)
    report_slots(5)
    one, two = submit(caller), submit(caller)
    assert [one] == stage.steps()
    finish_all()
    redis_client.flushall()
    make_lanes_due()

    assert [] == stage.steps()
    assert "rpm" == lane(two).blocked_by


def test_after_a_flush_nothing_is_counted_twice(caller: Key, stage: PacerHarness, redis_client: redis.Redis) -> None:
    set_limits(caller, max_in_flight=2)
    report_slots(50)
    jobs = [submit(caller) for _ in range(4)]
    dispatch_id = start(caller, jobs[0])
    redis_client.flushall()

    assert [jobs[1]] == stage.steps()
    stage.limiter.release(CredentialModel(row(jobs[0]).credential_id, "m"), str(dispatch_id), Report(good=True))
    finish(jobs[0], dispatch_id)
    make_lanes_due()
    assert [jobs[2]] == stage.steps()


def test_admissions_lost_with_redis_state_are_published_again(caller: Key, stage: PacerHarness, redis_client: redis.Redis) -> None:
    report_slots(5)
    one = submit(caller)
    assert [one] == stage.steps()
    old = row(one).dispatch_id
    redis_client.flushall()
    two = submit(caller)
    make_lanes_due()

    assert {one, two} == set(stage.steps())
    assert old != row(one).dispatch_id


def test_without_redis_nothing_is_admitted(caller: Key, override: Callable[..., None]) -> None:
    override(redis_url="redis://127.0.0.1:1")
    stage = PacerHarness(notify.connect())
    report_slots(5)
    one = submit(caller)

    with pytest.raises(LimiterUnavailable):
        stage.pacer.step()
    assert "queued" == row(one).status


# Several pacers


def test_two_pacers_at_once_admit_each_job_once(caller: Key, redis_client: redis.Redis) -> None:
    report_slots(200)
    jobs = [submit(caller, model=f"m{n % 6}") for n in range(60)]
    stages = [PacerHarness(redis_client), PacerHarness(redis_client)]

    rung = chain.from_iterable(at_once(*[partial(stage.steps, 20) for stage in stages]))

    assert Counter(jobs) == Counter(rung)


def test_a_lane_left_by_a_dead_pacer_is_taken_over(caller: Key, stage: PacerHarness) -> None:
    report_slots(5)
    one = submit(caller)
    with db.begin() as session:
        admission.claim_lanes(session, woken=[], limit=5)
    assert [] == stage.steps()
    query("UPDATE lane SET claimed_until = now() - interval '1 s', wake_at = now() - interval '1 s'")

    assert [one] == stage.steps()


def test_a_wake_up_during_a_step_is_kept(caller: Key) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    query("UPDATE lane SET wake_at = now()")
    with db.begin() as session:
        (claimed,) = admission.claim_lanes(session, woken=[], limit=5)
    put_back(one, dispatch_id)
    with db.begin() as session:
        admission.settle_lanes(session, [admission.LaneOutcome(claimed.id, 0.0, None, None)])

    with db.begin() as session:
        assert 0 == lanes.next_wake_in_s(session, limit_s=5)


# Cancelled and forgotten


def test_job_cancelled_between_reserve_and_commit_releases_its_limits(caller: Key, stage: PacerHarness) -> None:
    set_limits(caller, max_in_flight=1)
    report_slots(5)
    one, two = submit(caller), submit(caller)
    stage.pacer._reserver = Interrupted(stage.limiter, lambda: cancel(caller, one))

    stage.steps()
    make_lanes_due()
    assert [two] == [*stage.publisher.take(), *stage.steps()]


class Interrupted(Reserver):
    """A reserver that calls a function right after the first reservation."""

    def __init__(self, limiter: Limiter, what: Callable[[], object]) -> None:
        super().__init__(limiter)
        self._what: Callable[[], object] | None = what

    def reserve(self, *args: object, **kwargs: object) -> dict[int, object]:
        given = super().reserve(*args, **kwargs)
        if self._what and any(one.admissions for one in given.values()):
            self._what, what = None, self._what
            what()
        return given


def test_a_lost_wake_up_is_found_within_the_time_it_can_matter(caller: Key, stage: PacerHarness) -> None:
    report_slots(5)
    submit(caller)
    stage.steps()
    late = submit(caller)
    assert [] == stage.steps()

    with db.begin() as session:
        assert [row(late).lane_id] == lanes.wake_lost(session)
    assert [late] == stage.steps()


def test_a_submit_to_a_line_long_asleep_wakes_it_by_itself(caller: Key, stage: PacerHarness) -> None:
    report_slots(5)
    submit(caller)
    stage.steps()
    query("UPDATE lane SET idle_since = now() - interval '21 s'")
    late = submit(caller)

    assert [late] == stage.steps()


# Fairness


def test_a_lane_with_many_jobs_does_not_crowd_out_the_others(caller: Key, stage: PacerHarness) -> None:
    report_slots(4)
    for _ in range(30):
        submit(caller, model="flood")
    few = [submit(caller, model=f"m{n}") for n in range(3)]

    assert set(few) < set(stage.steps())


def test_slots_that_come_one_by_one_go_round_the_lanes(caller: Key, stage: PacerHarness) -> None:
    report_slots(1)
    for n in range(12):
        submit(caller, model=f"m{n % 3}")
    served: Counter[str] = Counter()
    for _ in range(6):
        make_lanes_due()
        served.update(row(one).model for one in stage.steps())
        finish_all()

    assert {"m0": 2, "m1": 2, "m2": 2} == served


def test_one_users_flood_delays_another_by_one_job(caller: Key, stage: PacerHarness) -> None:
    report_slots(2)
    for _ in range(30):
        submit(caller, flow="flood")
    late = submit(caller, flow="late")

    assert late in stage.steps()


def test_reservation_lost_by_redis_is_not_published(caller: Key, stage: PacerHarness, redis_client: redis.Redis) -> None:
    report_slots(5)
    one = submit(caller)
    stage.steps()
    finish_all()
    two = submit(caller)
    other = PacerHarness(redis_client)

    def forget() -> None:
        """Acts as another pacer: Redis lost its keys, and that pacer rebuilt the limiter's state."""
        redis_client.flushall()
        rebuild(other.limiter, CredentialModel(row(one).credential_id, "m"))

    stage.pacer._reserver = Interrupted(stage.limiter, forget)
    stage.wakeups.wake(row(two).lane_id)
    stage.pacer.step()

    assert [] == stage.publisher.take()
    assert ("queued", 0) == (row(two).status, row(two).calls)
