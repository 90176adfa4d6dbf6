"""An order becomes a job: once for each Idempotency-Key, on disk before anybody is told."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api.submit import submit_span
from api.waiting import notify_queue
from models.database import db, large_values
from models.jobs import idempotency, job_rows, job_view
from models.platform import crash_points, wire
from models.platform.wire import JsonObject
from models.queue import enqueue, lanes, submission
from models.queue.position import Enqueued
from models.queue.submission import Submission
from models.telemetry import logs, tracing


@dataclass(frozen=True)
class Accepted:
    """joined: how it came into the line; None: an earlier request with the same Idempotency-Key made this job."""

    job_id: UUID
    joined: Enqueued | None
    lane_id: int

    @property
    def is_replayed(self) -> bool:
        return self.joined is None

    def shown(self, order: Submission, *, origin: str) -> JsonObject:
        """The job object. order: what was accepted."""
        if self.joined is not None and self.joined.position is not None:
            return job_view.render_enqueued(order, self.joined, job_id=self.job_id)
        # Not in the transaction that accepted it: that one holds its flow's row, for which the next submit of this user waits.
        with db.autocommit() as session:
            return job_view.render_job(session, job_rows.find_job(session, self.job_id, order.key.id), origin=origin)


def accept(order: Submission, *, token: str | None, digest: bytes, lane_id: int | None = None) -> Accepted:
    """The job is on disk and the pacer hears of it. token: the Idempotency-Key; digest: SHA-256 of all that has to be the
    same when it comes again.

    lane_id: of `lanes.id_of`, if the caller has it.
    Raises Invalid, IdempotencyMismatch and Conflict of the token, QueueFull and TooLate of the line.
    """
    with submit_span.start(order) as told:
        # Before our transaction: the lane is created in a transaction of its own.
        lane_id = lane_id or lanes.id_of(order.key.pool_id, order.model)
        with large_values.transfer_slot(len(order.request)):
            accepted = _accept(told.order, lane_id=lane_id, token=token, digest=digest)
        told.made(accepted.job_id, lane_id=accepted.lane_id, is_replayed=accepted.is_replayed)
    about = None if accepted.is_replayed else tracing.trace_id_of(told.order.traceparent)
    logs.extend(job=wire.public_id(accepted.job_id), lane=accepted.lane_id, trace_id=about)
    return accepted


def _accept(order: Submission, *, lane_id: int, token: str | None, digest: bytes) -> Accepted:
    accepted = _stored(order, lane_id=lane_id, token=token, digest=digest)
    crash_points.hit("api.after_commit")
    if accepted.joined is not None:
        notify_queue.job_enqueued(accepted.job_id, lane_id=accepted.lane_id)
    crash_points.hit("api.before_reply")
    return accepted


def _stored(order: Submission, *, lane_id: int, token: str | None, digest: bytes) -> Accepted:
    wanted = submission.new_job_id()
    if token is None:
        crash_points.hit("api.before_commit")
        with db.autocommit() as session:
            joined = enqueue.enqueue_fast(session, order, lane_id=lane_id, job_id=wanted)
        if joined is not None:
            return Accepted(wanted, joined, lane_id)
    lane_id = enqueue.prepare(order)
    with db.begin() as session:
        job_id, joined = wanted, None
        if token is not None:
            job_id = idempotency.claim_token(session, order.key.id, token, digest=digest, job_id=wanted)
        if job_id == wanted:
            joined = enqueue.enqueue_job(session, order, lane_id=lane_id, job_id=job_id)
        crash_points.hit("api.before_commit")
    return Accepted(job_id, joined, lane_id)
