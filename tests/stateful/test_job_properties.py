"""Properties of the queue: no job is lost or called twice, and the order of admissions is fair.

A state machine runs steps in random order on the real Postgres; eight threads act at the same time.
HYPOTHESIS_PROFILE=nightly runs many more.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text

from models.database import db
from models.jobs import cancellation, claims, completion, requeue
from models.jobs.states import TERMINAL, AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from models.platform.errors import QueueFull, Unavailable
from models.queue import admission, enqueue, key_shares, lanes, share_maintenance, submission
from models.queue.admission import Admission, LaneOutcome
from tests.support.queue_tools import at_once, cancel, credential_of, finish, known, order, put_back, query, submit

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
COMMON = settings(
    max_examples=600 if NIGHTLY else 25, stateful_step_count=80 if NIGHTLY else 40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("database")

ANY = st.integers(0, 1_000)
PACER = st.integers(0, 1)
ENDS = [
    (JobResult(Status.SUCCEEDED, 200, b"{}"), AttemptResult(Outcome.SUCCEEDED, 200)),
    (JobResult(Status.FAILED, 400, error={"message": "no"}), AttemptResult(Outcome.REFUSED, 400)),
    (JobResult(Status.CANCELLED), AttemptResult(Outcome.CANCELLED)),
]
BACKS = [(AttemptResult(Outcome.THROTTLED, 429), False), (AttemptResult(Outcome.FAILED, 500), True), (AttemptResult(Outcome.UNKNOWN), True)]
EVENTS_OF_STATUS = {"queued": {"queued"}, "admitted": {"queued"}, "running": {"started", "cancelling"}} | {
    str(status): {str(status)} for status in TERMINAL
}
wanted_orders = st.fixed_dictionaries(
    {"flow": st.sampled_from("ab"), "model": st.sampled_from("mmn"), "priority": st.sampled_from(["low", "normal", "high"]),
     "tokens": st.integers(1, 500), "conversation": st.sampled_from([None, None, "x", "y"]), "on_lost": st.sampled_from(["retry", "fail"]),
     "max_attempts": st.sampled_from([1, 2, 9])}
)  # fmt: skip


class Queue(RuleBasedStateMachine):
    """Submitters, pacers, workers and time around the queue, and the invariants."""

    @initialize()
    def begin(self) -> None:
        for table in ("job", "job_event", "attempt", "key_flow", "key_share", "conversation", "lane"):
            query(f"DELETE FROM {table}")
        lanes.id_of.cache_clear()
        self.caller: Key = known()
        self.dispatches: list[tuple[UUID, UUID]] = []
        self.calls: list[tuple[UUID, UUID]] = []
        self.claimed: dict[int, tuple[Sequence[Any], Sequence[Any]]] = {}
        self.admitted_once: set[UUID] = set()
        self.ended: dict[UUID, Any] = {}
        self.virtual_times: dict[int, float] = {}
        self.open = ExitStack()
        self.open_since: dict[tuple[int, int], float] | None = None

    def teardown(self) -> None:
        if hasattr(self, "open"):
            self.open.close()

    # Submitters

    @rule(wanted=wanted_orders)
    def submit(self, wanted: dict[str, Any]) -> None:
        submit(self.caller, **wanted)

    @rule(wanted=wanted_orders)
    def submit_several(self, wanted: dict[str, Any]) -> None:
        for _ in range(4):
            submit(self.caller, **wanted)

    @precondition(lambda self: self.open_since is None)
    @rule(wanted=wanted_orders)
    def begin_submit(self, wanted: dict[str, Any]) -> None:
        """Leaves the transaction of a submit open; it locks nothing that others need."""
        submitted = order(self.caller, **{**wanted, "flow": "open", "conversation": None})
        lane_id = enqueue.prepare(submitted)
        query("UPDATE lane SET wake_at = coalesce(wake_at, now()), idle_since = NULL")
        self.open_since = self.times()
        session = self.open.enter_context(db.begin())
        enqueue.enqueue_job(session, submitted, lane_id=lane_id, job_id=submission.new_job_id())

    @precondition(lambda self: self.open_since is not None)
    @rule()
    def commit_submit(self) -> None:
        self.open.close()
        self.open_since = None

    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        for one in self.pick("SELECT * FROM job ORDER BY id", which):
            assert (one.status in TERMINAL or one.cancel_requested) == (cancel(self.caller, one.id) is None)

    # Pacers

    @rule(pacer=PACER, most=st.integers(1, 5))
    def claim_lanes(self, pacer: int, most: int) -> None:
        query("UPDATE lane SET wake_at = now() WHERE wake_at > now() AND claimed_until IS NULL")
        with db.begin() as session:
            claimed = admission.claim_lanes(session, woken=[], limit=5)
            self.claimed[pacer] = (claimed, admission.queue_heads(session, claimed, limit=most))

    @rule(pacer=PACER, granted=st.integers(0, 5))
    def admit_claimed(self, pacer: int, granted: int) -> None:
        claimed, heads = self.claimed.pop(pacer, ([], []))
        going = [head for n, head in enumerate(heads) if n < granted]
        with db.begin() as session:
            credential_id = credential_of(session, self.caller)
            given = [Admission(head.id, uuid4(), credential_id) for head in going]
            marked = admission.admit(session, given)
            empty = {one.id for one in claimed} - {head.lane_id for head in heads}
            later = lanes.delayed_wakes(session, sorted(empty)) if empty else {}
            went = [head for head, each in zip(going, given, strict=True) if each.dispatch_id in marked]
            key_shares.charge_shares(
                session,
                key_shares.charges(went, heads, cut={head.lane_id for head in heads}),
                times={one.id: one.virtual_time for one in claimed},
            )
            admission.settle_lanes(
                session,
                [
                    LaneOutcome(one.id, max([one.virtual_time, *(at for at, _ in key_shares.virtual_turns(
                        [head for head in going if head.lane_id == one.id]))]),
                            later.get(one.id) if one.id in empty else 0.0, None)
                    for one in claimed
                ],
            )  # fmt: skip
        admitted = [one for one in given if one.dispatch_id in marked]
        self.dispatches += [(one.job_id, one.dispatch_id) for one in admitted]
        self.check_turns([one.job_id for one in admitted])

    @rule(pacer=PACER, most=st.integers(1, 3))
    def claim_and_admit(self, pacer: int, most: int) -> None:
        self.claim_lanes(pacer, most)
        self.admit_claimed(pacer, most)
        self.raise_low_water()

    @rule(most=st.integers(1, 3))
    def start_jobs(self, most: int) -> None:
        """Admits and claims jobs."""
        query("UPDATE lane SET claimed_until = NULL, wake_at = now()")
        self.claim_and_admit(0, most)
        for n in range(most):
            self.claim(n)

    @rule(pacer=PACER)
    def expire_lane_claim(self, pacer: int) -> None:
        query("""
            UPDATE lane SET claimed_until = now() - interval '1 s',
                   wake_at = CASE WHEN wake_at = claimed_until THEN now() - interval '1 s' ELSE wake_at END
            WHERE claimed_until IS NOT NULL
        """)

    @rule(which=ANY)
    def fail_a_head(self, which: int) -> None:
        for one in self.pick("SELECT * FROM job WHERE status = 'queued' AND NOT held ORDER BY start_tag, id", which):
            with db.begin() as session:
                assert completion.fail_queued(session, one.id, error={"message": "too large"})

    # Workers

    @rule(which=ANY)
    def claim(self, which: int) -> None:
        """Claims any dispatch that was ever published, also late and repeatedly."""
        for job_id, dispatch_id in self.dispatches[-1 - which % 4 :][:1]:
            (before,) = query("SELECT * FROM job WHERE id = :id", id=job_id)
            with db.begin() as session:
                claimed = claims.claim(session, job_id, dispatch_id, lease_s=30)
            assert (claimed is not None) == (before.status == Status.ADMITTED and before.dispatch_id == dispatch_id)
            if claimed is not None:
                assert (job_id, dispatch_id) not in self.calls
                self.calls.append((job_id, dispatch_id))

    @rule(end=st.sampled_from(ENDS))
    def finish_last(self, end: tuple[JobResult, AttemptResult]) -> None:
        self.finish(0, end)

    @rule(which=ANY, end=st.sampled_from(ENDS))
    def finish(self, which: int, end: tuple[JobResult, AttemptResult]) -> None:
        """Finishes any call that was ever sent, however late."""
        for job_id, dispatch_id in self.calls[-1 - which % 4 :][:1]:
            (before,) = query("SELECT * FROM job WHERE id = :id", id=job_id)
            running = before.status == Status.RUNNING and before.dispatch_id == dispatch_id
            is_last = [call for call in self.calls if call[0] == job_id][-1] == (job_id, dispatch_id)
            adopts = before.status in (Status.QUEUED, Status.ADMITTED) and before.lost_dispatch_id == dispatch_id and is_last
            assert (running or adopts) == finish(job_id, dispatch_id, *end)

    @rule(which=ANY, back=st.sampled_from(BACKS), delay_s=st.sampled_from([0, 60]))
    def put_back(self, which: int, back: tuple[AttemptResult, bool], delay_s: float) -> None:
        for job_id, dispatch_id in self.calls[-1 - which % 4 :][:1]:
            (before,) = query("SELECT * FROM job WHERE id = :id", id=job_id)
            running = before.status == Status.RUNNING and before.dispatch_id == dispatch_id
            assert running == put_back(job_id, dispatch_id, back[0], counts=back[1], delay_s=delay_s)

    @rule()
    def beat(self) -> None:
        leases = {dispatch_id: job_id for job_id, dispatch_id in self.calls}
        running = {one.dispatch_id: one.cancel_requested for one in query("SELECT * FROM job WHERE status = 'running'")}
        with db.begin() as session:
            assert running == claims.renew_leases(session, leases, lease_s=30)

    # Time and the reaper

    @rule(every=st.integers(1, 3))
    def expire_some_leases(self, every: int) -> None:
        query(
            "UPDATE job SET lease_until = now() - interval '1 s' WHERE status = 'running' AND right(id::text, 1) < :most",
            most=" 7ag"[every],
        )
        with db.begin() as session:
            requeue.reap(session)

    @rule()
    def expire_all_leases(self) -> None:
        self.expire_some_leases(3)

    @rule()
    def requeue_unclaimed(self) -> None:
        with db.begin() as session:
            requeue.requeue_unclaimed(session, older_than_s=0)

    @rule(which=ANY)
    def expire(self, which: int) -> None:
        for one in self.pick("SELECT id FROM job WHERE status = 'queued' ORDER BY id", which):
            query("UPDATE job SET expires_at = now() - interval '1 s' WHERE id = :id", id=one.id)
            with db.begin() as session:
                assert [one.id] == [late.id for late in cancellation.expire(session)]

    @rule()
    def end_backoffs(self) -> None:
        query("UPDATE job SET not_before = now() - interval '1 s' WHERE not_before > now() AND status = 'queued'")
        query("UPDATE lane SET wake_at = now() WHERE wake_at > now() AND claimed_until IS NULL")

    @rule()
    def raise_low_water(self) -> None:
        """Raises low-water marks to the virtual time that the oldest open submit may have read; SETTLED_S guarantees that."""
        for (lane_id, key_id), ceiling in (self.times() if self.open_since is None else self.open_since).items():
            with db.begin() as session:
                share_maintenance.raise_low_water(session, lane_id, {key_id: ceiling})

    @rule()
    def wake_lost_lanes(self) -> None:
        with db.begin() as session:
            lanes.wake_lost(session)

    # Invariants

    @invariant()
    def jobs_are_reachable_and_recorded(self) -> None:
        if not hasattr(self, "ended"):
            return
        jobs = {one.id: one for one in query("SELECT * FROM job")}
        self.check_reachable(jobs)
        self.check_conversations(jobs)
        self.check_records(jobs)
        for one in jobs.values():
            if one.id in self.ended:
                assert self.ended[one.id] == one, "a job that has ended changed"
            elif one.status in TERMINAL:
                self.ended[one.id] = one
        assert set(self.ended) <= set(jobs)

    def check_reachable(self, jobs: dict[UUID, Any]) -> None:
        lanes = query("SELECT *, idle_since > now() - interval '39 s' AS is_watched FROM lane")
        with db.begin() as session:
            found = {head.id for head in admission.queue_heads(session, lanes, limit=1_000)}
        (now,) = query("SELECT now() AS at")
        waiting = {one.id for one in jobs.values() if one.status == Status.QUEUED and not one.held}
        may_go = {one for one in waiting if jobs[one].not_before is None or jobs[one].not_before <= now.at}
        assert may_go == found, "a queued job is not found"
        asleep = {one.id for one in lanes if one.wake_at is None and not one.is_watched}
        assert not {jobs[one].lane_id for one in waiting} & asleep, "a lane with queued jobs is never due"
        for one in lanes:
            assert self.virtual_times.get(one.id, 0.0) <= one.virtual_time
            self.virtual_times[one.id] = one.virtual_time

    def check_conversations(self, jobs: dict[UUID, Any]) -> None:
        turns: dict[int, list[bool]] = defaultdict(list)
        for one in jobs.values():
            if one.status not in TERMINAL:
                assert one.status == Status.QUEUED or not one.held
                if one.conversation_id:
                    turns[one.conversation_id].append(one.held)
        for held in turns.values():
            assert 1 == held.count(False), "an open conversation has exactly one turn that is not held"

    def check_records(self, jobs: dict[UUID, Any]) -> None:
        events: dict[UUID, list[Any]] = defaultdict(list)
        for event in query("SELECT * FROM job_event ORDER BY job_id, seq"):
            events[event.job_id].append(event)
        attempts = Counter(one.job_id for one in query("SELECT job_id FROM attempt"))
        for one in jobs.values():
            assert [event.seq for event in events[one.id]] == list(range(1, one.seq + 1))
            assert events[one.id][-1].type.removeprefix("job.") in EVENTS_OF_STATUS[one.status]
            assert one.calls == attempts[one.id]
            assert (one.status == Status.RUNNING) == (one.lease_until is not None)
            assert (one.ended_at is not None) == (one.status in TERMINAL)
        assert Counter(job_id for job_id, _ in self.calls) == attempts

    def check_turns(self, admitted: list[UUID]) -> None:
        """A job that is admitted for the first time precedes all later jobs of its flow and its conversation."""
        jobs = {one.id: one for one in query("SELECT * FROM job")}
        for one in (jobs[job_id] for job_id in admitted):
            assert one.status == Status.ADMITTED
            before = [other for other in jobs.values() if other.id < one.id]
            if one.id not in self.admitted_once:
                passed = [other for other in before if (other.lane_id, other.flow) == (one.lane_id, one.flow) and self.never_went(other)]
                assert passed == [] or one.flow == "open"
            turns = [other for other in before if one.conversation_id and other.conversation_id == one.conversation_id]
            assert [] == [other for other in turns if other.status not in TERMINAL]
        self.admitted_once |= set(admitted)

    def never_went(self, one: Any) -> bool:
        return one.status == Status.QUEUED and not one.held and one.id not in self.admitted_once

    def times(self) -> dict[tuple[int, int], float]:
        """The virtual time of each key in each lane."""
        return {(one.lane_id, one.key_id): one.virtual_time for one in query("SELECT lane_id, key_id, virtual_time FROM key_share")}

    def pick(self, statement: str, which: int) -> list[Any]:
        rows = list(query(statement))
        return [rows[which % len(rows)]] if rows else []


def test_jobs_are_neither_lost_nor_called_twice() -> None:
    run_state_machine_as_test(Queue, settings=COMMON)


# Concurrent threads


class Crowd:
    """One of eight threads that act at random on the same few lanes and conversations."""

    def __init__(self, caller: Key, seed: int) -> None:
        self.caller = caller
        self.rng = random.Random(seed)
        self.failures: list[str] = []

    def run(self, until: float) -> list[str]:
        """The errors, including those that a server would only report as `try again`."""
        acts = [self.submit, self.submit, self.pace, self.pace, self.claim, self.claim, self.end, self.end, self.cancel]
        acts += [self.expire, self.reap, self.requeue_unclaimed]
        while time.monotonic() < until:
            act = self.rng.choice(acts)
            try:
                act()
            except Unavailable as error:
                self.failures.append(f"{act.__name__}: {error.__cause__}")
        return self.failures

    def submit(self) -> None:
        name = self.rng.choice([None, *(f"c{n}" for n in range(5))])
        submit(self.caller, model=f"m{self.rng.randrange(5)}", flow=f"f{self.rng.randrange(3)}", conversation=name)

    def pace(self) -> None:
        with db.begin() as session:
            lanes = admission.claim_lanes(session, woken=[], limit=10)
            heads = admission.queue_heads(session, lanes, limit=4)
            credential_id = credential_of(session, self.caller)
        with db.begin() as session:
            admission.admit(session, [Admission(head.id, uuid4(), credential_id) for head in heads])
            admission.settle_lanes(session, [LaneOutcome(one.id, one.virtual_time, None if not heads else 0.0, None) for one in lanes])

    def claim(self) -> None:
        for one in self.some("admitted"):
            with db.begin() as session:
                claims.claim(session, one.id, one.dispatch_id, lease_s=30)

    def end(self) -> None:
        for one in self.some("running"):
            self.rng.choice([finish, put_back])(one.id, one.dispatch_id)

    def cancel(self) -> None:
        for one in self.some(self.rng.choice(["queued", "admitted", "running"])):
            cancel(self.caller, one.id)

    def expire(self) -> None:
        for one in self.some("queued"):
            query("UPDATE job SET expires_at = now() - interval '1 s' WHERE id = :id", id=one.id)
        with db.begin() as session:
            cancellation.expire(session)
        with db.begin() as session:
            lanes.wake_lost(session)

    def reap(self) -> None:
        for one in [*self.some("running"), *self.some("running")]:
            query("UPDATE job SET lease_until = now() - interval '1 s' WHERE id = :id AND status = 'running'", id=one.id)
        with db.begin() as session:
            requeue.reap(session)

    def requeue_unclaimed(self) -> None:
        with db.begin() as session:
            requeue.requeue_unclaimed(session, older_than_s=0)

    def some(self, status: str) -> list[Any]:
        rows = list(query("SELECT id, dispatch_id FROM job WHERE status = :status LIMIT 20", status=status))
        return [self.rng.choice(rows)] if rows else []


def test_concurrent_threads_do_not_block_each_other_forever() -> None:
    caller = known()
    until = time.monotonic() + (30 if NIGHTLY else 4)

    failures: list[list[str]] = at_once(*[partial(Crowd(caller, seed).run, until) for seed in range(8)])

    assert [] == [*chain.from_iterable(failures)]
    assert [] == list(query(_STUCK)), "a conversation in which no turn is admissible"
    assert [] == list(query(_HIDDEN)), "a queued job below the low-water mark, or in a lane that is never due"


def test_key_exceeds_its_limit_at_most_by_concurrent_submits(override: Callable[..., None]) -> None:
    override(max_queued_per_key=5)
    caller = known()

    def try_one() -> None:
        with suppress(QueueFull):
            submit(caller)

    for _ in range(4):
        at_once(*[try_one] * 8)

    assert 5 <= len(query("SELECT id FROM job")) <= 5 + 7
    with pytest.raises(QueueFull):
        submit(caller)


_STUCK = """
    SELECT conversation_id FROM job WHERE conversation_id IS NOT NULL AND status IN ('queued', 'admitted', 'running')
    GROUP BY conversation_id HAVING count(*) FILTER (WHERE NOT held) <> 1
"""
_HIDDEN = """
    SELECT job.id FROM job JOIN lane ON lane.id = job.lane_id
    LEFT JOIN key_share AS share ON share.lane_id = job.lane_id AND share.key_id = job.key_id
    WHERE status = 'queued' AND NOT held
    AND (share.low_water IS NULL OR start_tag < share.low_water OR (wake_at IS NULL AND lane.idle_since IS NULL))
"""


def _wait_for_locks(count: int, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline and not done():
        if len(query("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")) >= count:
            return


def test_cancelling_the_next_turn_while_the_first_ends_does_not_deadlock() -> None:
    caller = known()
    one, two, three = (submit(caller, conversation="c") for _ in range(3))
    with db.begin() as session:
        given = Admission(one, uuid4(), credential_of(session, caller))
        admission.admit(session, [given])
        claims.claim(session, one, given.dispatch_id, lease_s=30)

    def hold_the_conversation() -> None:
        with db.begin() as session:
            session.execute(text("SELECT id FROM conversation FOR UPDATE"))
            _wait_for_locks(2, lambda: cancelled != [])

    def cancel_two() -> None:
        _wait_for_locks(1, lambda: False)
        cancelled.append(cancel(caller, two))

    cancelled: list[Any] = []
    at_once(hold_the_conversation, partial(finish, one, given.dispatch_id), cancel_two)

    assert ["succeeded", "cancelled", "queued"] == [each.status for each in query("SELECT status FROM job ORDER BY id")]
    assert [three] == [each.id for each in query("SELECT id FROM job WHERE status = 'queued' AND NOT held")]
