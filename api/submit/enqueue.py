"""Stores a submission as a job, once for each Idempotency-Key, and then notifies the pacer."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api.submit import submit_span
from api.waiting import notify_queue
from models.database import db, large_values
from models.jobs import idempotency, job_rows, job_view
from models.platform import crash_points, wire
from models.platform.wire import JsonObject
from models.queue import enqueue, lanes
from models.queue.position import Enqueued
from models.queue.submission import Submission, new_job_id
from models.telemetry import logs, tracing


@dataclass(frozen=True)
class Accepted:
    """enqueued: the new job's place in the queue. None: an earlier request with this Idempotency-Key stored the job."""

    job_id: UUID
    enqueued: Enqueued | None
    lane_id: int

    @property
    def is_replayed(self) -> bool:
        """Whether an earlier request stored the job."""
        return self.enqueued is None

    def render(self, submission: Submission, *, origin: str) -> JsonObject:
        """The job object. submission: that was accepted."""
        if self.enqueued is not None and self.enqueued.position is not None:
            return job_view.render_enqueued(submission, self.enqueued, job_id=self.job_id)
        # Not in the transaction that stored the job: it locks the row of the flow, and the user's next submit waits for that lock.
        with db.autocommit() as session:
            return job_view.render_job(session, job_rows.find_job(session, self.job_id, submission.key.id), origin=origin)


def accept(submission: Submission, *, token: str | None, digest: bytes, lane_id: int | None = None) -> Accepted:
    """Stores the job durably and notifies the pacer. token: the Idempotency-Key. digest: SHA-256 that a repeated request must match.

    lane_id: of `lanes.id_of`, if the caller has it.
    Raises Invalid, IdempotencyMismatch and Conflict for the token, QueueFull and TooLate for the queue.
    """
    with submit_span.start(submission) as span:
        # Before our transaction: the lane is created in a transaction of its own.
        lane_id = lane_id or lanes.id_of(submission.key.pool_id, submission.model)
        with large_values.transfer_slot(len(submission.request)):
            accepted = _store_and_notify(span.submission, lane_id=lane_id, token=token, digest=digest)
        span.set_job(accepted.job_id, lane_id=accepted.lane_id, is_replayed=accepted.is_replayed)
    trace_id = None if accepted.is_replayed else tracing.trace_id_of(span.submission.traceparent)
    logs.extend(job=wire.public_id(accepted.job_id), lane=accepted.lane_id, trace_id=trace_id)
    return accepted


def _store_and_notify(submission: Submission, *, lane_id: int, token: str | None, digest: bytes) -> Accepted:
    accepted = _store(submission, lane_id=lane_id, token=token, digest=digest)
    crash_points.hit("api.after_commit")
    if accepted.enqueued is not None:
        notify_queue.job_enqueued(accepted.job_id, lane_id=accepted.lane_id)
    crash_points.hit("api.before_reply")
    return accepted


def _store(submission: Submission, *, lane_id: int, token: str | None, digest: bytes) -> Accepted:
    new_id = new_job_id()
    if token is None:
        crash_points.hit("api.before_commit")
        with db.autocommit() as session:
            enqueued = enqueue.enqueue_fast(session, submission, lane_id=lane_id, job_id=new_id)
        if enqueued is not None:
            return Accepted(new_id, enqueued, lane_id)
    lane_id = enqueue.prepare(submission)
    with db.begin() as session:
        job_id, enqueued = new_id, None
        if token is not None:
            job_id = idempotency.claim_token(session, submission.key.id, token, digest=digest, job_id=new_id)
        if job_id == new_id:
            enqueued = enqueue.enqueue_job(session, submission, lane_id=lane_id, job_id=job_id)
        crash_points.hit("api.before_commit")
    return Accepted(job_id, enqueued, lane_id)
