"""Helpers that enqueue jobs and move them through their states, for tests of the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from models.database import db
from models.jobs import api_processes, cancellation, claims, completion, requeue
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys import keys
from models.keys.keys import Key, Limits
from models.ops import retention
from models.queue import admission, enqueue, key_shares, lanes, submission
from models.queue.position import Enqueued
from workers.pacer.cleanup import Cleanup

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
ANSWER = JobResult(Status.SUCCEEDED, http_status=200, response=b'{"id": "answer"}')
GOOD = AttemptResult(Outcome.SUCCEEDED, 200, "req_1")
LOST = AttemptResult(Outcome.UNKNOWN)
BUSY = AttemptResult(Outcome.THROTTLED, 429)


def known(token: str = "sk-test") -> Key:
    """Registers the key of this token."""
    with db.begin() as session:
        return keys.authenticate(session, token)


_STORE_LIMITS = text("""
    INSERT INTO meter (credential_id, model, rpm, tpm, ipm, rpd, max_in_flight)
    VALUES (:credential_id, :model, :rpm, :tpm, :ipm, :rpd, :max_in_flight)
    ON CONFLICT (credential_id, model) DO UPDATE
    SET rpm = excluded.rpm, tpm = excluded.tpm, ipm = excluded.ipm, rpd = excluded.rpd, max_in_flight = excluded.max_in_flight
""")


def store_limits(session: db.Transaction, credential_id: int, limits: Limits, *, model: str = "*") -> None:
    """Replaces the limits of this credential and model, without an entry in the audit log."""
    session.execute(_STORE_LIMITS, {"credential_id": credential_id, "model": model, **vars(limits)})


def order(caller: Key, **wanted: Any) -> submission.Submission:
    """A submission, for model `m` by default."""
    usual = {"endpoint": "/v1/chat/completions", "model": "m", "request": BODY, "flow": "someone", "tokens": 100}
    return submission.Submission(key=caller, **{**usual, **wanted})


def submit(caller: Key, **wanted: Any) -> UUID:
    """Enqueues a job of this key, for model `m` by default, as a request does. Returns its id."""
    submitted, job_id = order(caller, **wanted), submission.new_job_id()
    lane_id = lanes.id_of(caller.pool_id, submitted.model)
    with db.autocommit() as session:
        if enqueue.enqueue_fast(session, submitted, lane_id=lane_id, job_id=job_id) is not None:
            return job_id
    lane_id = enqueue.prepare(submitted)
    with db.begin() as session:
        enqueue.enqueue_job(session, submitted, lane_id=lane_id, job_id=job_id)
    return job_id


def enqueue_in(session: db.Transaction, caller: Key, *, fast: bool = False, **wanted: Any) -> tuple[UUID, Enqueued | None]:
    """Enqueues one job in this transaction, with the fast or the full statement."""
    submitted, job_id = order(caller, **wanted), submission.new_job_id()
    run = enqueue.enqueue_fast if fast else enqueue.enqueue_job
    return job_id, run(session, submitted, lane_id=lanes.id_of(caller.pool_id, submitted.model), job_id=job_id)


def admit_all(caller: Key, *, most: int) -> list[UUID]:
    """Admits the next `most` jobs of the key, as the pacer does without limits. Returns them in order."""
    with db.begin() as session:
        credential_id = credential_of(session, caller)
        session.execute(text("UPDATE lane SET claimed_until = NULL, wake_at = now() - interval '1 s'"))
        claimed = admission.claim_lanes(session, woken=[], limit=100)
        heads = admission.queue_heads(session, claimed, limit=most)
        given = [admission.Admission(job_id=head.id, dispatch_id=uuid4(), credential_id=credential_id) for head in heads]
        assert len(given) == len(admission.admit(session, given))
        key_shares.charge_shares(
            session,
            key_shares.charges(heads, heads, cut={head.lane_id for head in heads[most - 1 :]}),
            times={lane.id: lane.virtual_time for lane in claimed},
        )
        admission.settle_lanes(session, [_moved_on(lane, heads) for lane in claimed])
    return [head.id for head in heads]


def admit(caller: Key, job_id: UUID) -> UUID:
    """Admits this job regardless of its position. Returns the dispatch id."""
    with db.begin() as session:
        one = admission.Admission(job_id, uuid4(), credential_of(session, caller))
        assert {one.dispatch_id} == admission.admit(session, [one])
    return one.dispatch_id


def start(caller: Key, job_id: UUID) -> UUID:
    """Admits and claims this job. Returns the dispatch id."""
    dispatch_id = admit(caller, job_id)
    with db.begin() as session:
        assert claims.claim(session, job_id, dispatch_id, lease_s=30) is not None
    return dispatch_id


def finish(job_id: UUID, dispatch_id: UUID, result: JobResult = ANSWER, attempt: AttemptResult = GOOD) -> bool:
    """Finishes the job as a worker does. Returns whether the result was stored."""
    if row(job_id).conversation_id is None:
        with db.autocommit() as session:
            if completion.finish_fast(session, job_id, dispatch_id, result, attempt, None) is not None:
                return True
    with db.begin() as session:
        return completion.finish(session, job_id, dispatch_id, result, attempt) is not None


def put_back(job_id: UUID, dispatch_id: UUID, attempt: AttemptResult = BUSY, **how: Any) -> bool:
    """Requeues the job. Returns False for a stale dispatch."""
    with db.begin() as session:
        return requeue.requeue_job(session, job_id, dispatch_id, attempt, **how)


def cancel(caller: Key, job_id: UUID) -> Any:
    """Cancels the job; returns the row."""
    with db.begin() as session:
        return cancellation.cancel(session, job_id, caller.id)


def reap() -> Sequence[Any]:
    """Expires every lease and reaps; returns the rows."""
    with db.begin() as session:
        session.execute(text("UPDATE job SET lease_until = now() - interval '1 s' WHERE status = 'running'"))
    with db.begin() as session:
        return requeue.reap(session)


def expire(job_id: UUID) -> Sequence[Any]:
    """Lets this job wait too long and expires it; returns the rows."""
    with db.begin() as session:
        session.execute(text("UPDATE job SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": job_id})
    with db.begin() as session:
        return cancellation.expire(session)


def clean_up(*, later_days: float = 0) -> int:
    """Runs one pass of the cleanup as if this many days later. Returns the number of removed jobs."""
    with db.begin() as session:
        at = retention.database_now(session) + timedelta(days=later_days)
        before = session.execute(text("SELECT count(*) FROM job")).scalar_one()
    assert Cleanup().run_pass(threading.Event(), at=at), "a pass ends when nothing is left to remove"
    with db.begin() as session:
        return int(before - session.execute(text("SELECT count(*) FROM job")).scalar_one())


def report(*names: str) -> None:
    """Records a heartbeat of these API processes."""
    for name in names:
        with db.begin() as session:
            api_processes.record_heartbeat(session, name)


def pass_time(seconds: float, *reporting: str) -> None:
    """Moves disconnects and API processes into the past. Processes in `reporting` send heartbeats all that time, and a minute more."""
    report(*reporting)
    query("UPDATE job SET left_at = left_at - make_interval(secs => :s) WHERE left_at IS NOT NULL", s=seconds)
    query(
        "UPDATE api_process SET up_since = up_since - make_interval(secs => :s), "
        "seen_at = least(seen_at, clock_timestamp()) - make_interval(secs => :s)",
        s=seconds,
    )
    query("UPDATE api_process SET seen_at = clock_timestamp() + interval '1 min' WHERE name = ANY(:names)", names=list(reporting))


def row(job_id: UUID) -> Any:
    """The job's row."""
    (found,) = query("SELECT * FROM job WHERE id = :id", id=job_id)
    return found


def event_types(job_id: UUID) -> list[str]:
    """The types of the job's events in order, without `job.`."""
    return [event.type.removeprefix("job.") for event in query("SELECT type FROM job_event WHERE job_id = :id ORDER BY seq", id=job_id)]


def outcomes(job_id: UUID) -> list[str]:
    """The outcomes of the job's attempts in order."""
    return [one.outcome for one in query("SELECT outcome FROM attempt WHERE job_id = :id ORDER BY n", id=job_id)]


def heads(*, most: int = 100) -> list[UUID]:
    """The first jobs of all lanes, as the pacer reads them."""
    with db.begin() as session:
        lanes = session.execute(text("SELECT id, virtual_time FROM lane")).all()
        return [head.id for head in admission.queue_heads(session, lanes, limit=most)]


def query(statement: str, **values: Any) -> Sequence[Any]:
    """Runs and commits this statement; returns its rows."""
    with db.begin() as session:
        found = session.execute(text(statement), values)
        return found.all() if found.returns_rows else []


def credential_of(session: db.Transaction, caller: Key) -> int:
    """The first credential that serves this key."""
    return int(session.execute(text("SELECT min(id) FROM credential WHERE pool_id = :id"), {"id": caller.pool_id}).scalar_one())


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Runs all of these at the same time, each in a thread of its own. Returns their results, and raises the first error."""
    with ThreadPoolExecutor(len(works)) as threads:
        return [one.result() for one in [threads.submit(work) for work in works]]


def _moved_on(lane: Any, served: Sequence[Any]) -> admission.LaneOutcome:
    turns = [turn for turn, _ in key_shares.virtual_turns([head for head in served if head.lane_id == lane.id])]
    return admission.LaneOutcome(lane_id=lane.id, virtual_time=max([lane.virtual_time, *turns]), wake_in_s=0, blocked_by=None)
