"""An order becomes a job: once for each Idempotency-Key, on disk before anybody is told."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api import doorbell, spans
from models import crash, db, idempotency, line, logs, trace, view
from models.line import Order


@dataclass(frozen=True)
class Accepted:
    """is_replayed: an earlier request with the same Idempotency-Key made this job."""

    job_id: UUID
    is_replayed: bool


def accept(order: Order, *, token: str | None, said: bytes) -> Accepted:
    """The job is on disk and the pacer hears of it. token: the Idempotency-Key; said: what has to be the same when it comes again.

    Raises Invalid, IdempotencyMismatch and Conflict of the token, LineFull and TooLate of the line.
    """
    with spans.submit(order) as told:
        lane_id = line.lane_of(order.key.pool_id, order.model)  # in a transaction of its own, so not inside ours
        accepted = _accept(told.order, lane_id=lane_id, token=token, said=said)
        told.made(accepted.job_id, lane_id=lane_id, is_replayed=accepted.is_replayed)
    about = None if accepted.is_replayed else trace.trace_id(told.order.traceparent)
    logs.add(job=view.public_id(accepted.job_id), lane=lane_id, trace_id=about)
    return accepted


def _accept(order: Order, *, lane_id: int, token: str | None, said: bytes) -> Accepted:
    wanted = line.new_id()
    with db.begin() as session:
        job_id = wanted
        if token is not None:
            job_id = idempotency.first_or_earlier(session, order.key.id, token, body=said, job_id=wanted)
        if job_id == wanted:
            line.join(session, order, job_id=job_id)
        crash.at("api.before_commit")
    crash.at("api.after_commit")
    if job_id == wanted:
        doorbell.joined(job_id, lane_id=lane_id)
    crash.at("api.before_reply")
    return Accepted(job_id, is_replayed=job_id != wanted)
