"""Operator actions on any caller's jobs: boost, priority, cancel, retry, and bulk cancel by filter.

Each action is one transaction with its entry in the audit log. After the commit the job's waiters and the pacer are notified.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from api.submit import build
from api.waiting import notify_queue
from models.access import audit_log
from models.access.audit_log import Act
from models.database import db
from models.jobs import cancellation, job_rows, job_view
from models.jobs.states import Status
from models.keys.keys import Key
from models.ops import bulk, job_owner, priorities
from models.ops.bulk import JobFilter
from models.platform import wire
from models.platform.errors import WrongState
from models.queue import enqueue, submission


def boost(act: Act, job_id: UUID) -> dict[str, Any]:
    """Moves a waiting job to the head of its lane."""
    with db.begin() as session:
        lane_id = priorities.boost(session, act, job_id)
    notify_queue.lane_changed(lane_id)
    return _show(job_id)


def set_priority(act: Act, job_id: UUID, *, priority: str) -> dict[str, Any]:
    """Changes a waiting job's weight in its flow."""
    with db.begin() as session:
        lane_id = priorities.set_priority(session, act, job_id, priority=priority)
    notify_queue.lane_changed(lane_id)
    return _show(job_id)


def cancel(act: Act, job_id: UUID) -> dict[str, Any]:
    """Cancels a waiting job, or signals a running one to stop. Raises NotFound, WrongState."""
    with db.begin() as session:
        job = job_owner.find(session, job_id)
        cancelled = cancellation.cancel(session, job_id, job.key_id)
        if cancelled is None and not job.cancel_requested:
            raise WrongState(f"The job has already {job.status}: it cannot be cancelled.")
        audit_log.write(session, act, "cancel", f"job:{job_id}", before={"status": job.status}, after=None)
    if cancelled is not None:
        _notify_cancelled(cancelled)
    return _show(job_id)


def cancel_matching(act: Act, which: JobFilter, *, status: str, until: float) -> tuple[int, bool]:
    """Cancels the matching jobs in chunks, until this monotonic time. Returns the number, and whether more remain."""
    total = 0
    while time.monotonic() < until:
        with db.begin() as session:
            cancelled = bulk.cancel_batch(session, act, which, status=status)
        for row in cancelled:
            _notify_cancelled(row)
        if not cancelled:
            return total, False
        total += len(cancelled)
    return total, True


def retry(act: Act, job_id: UUID) -> dict[str, Any]:
    """Resubmits an ended job for its caller. Raises NotFound, WrongState, and every error of a submit."""
    with db.begin() as session:
        row = job_owner.find(session, job_id)
    new_id = resubmit(act, job_id, bulk.job_key(row))
    assert new_id is not None
    return _show(new_id)


def resubmit(act: Act, job_id: UUID, caller: Key, *, is_only_once: bool = False) -> UUID | None:
    """Resubmits an ended job for its caller; returns the new job's id.

    is_only_once: None when another job repeats this one already, or is being stored as its repeat right now.
    Raises NotFound, WrongState, and every error of a submit.
    """
    new_id = submission.new_job_id()
    with db.autocommit() as session:
        before = job_rows.find_submission(session, job_id, caller.id)
    order = build.retry_submission(caller, before, retry_of=job_id)
    lane_id = enqueue.prepare(order)
    with db.begin() as session:
        if is_only_once and not bulk.may_retry(session, job_id):
            return None
        enqueue.enqueue_job(session, order, lane_id=lane_id, job_id=new_id)
        audit_log.write(session, act, "retry", f"job:{job_id}", before={"status": before.status}, after={"job": wire.public_id(new_id)})
    notify_queue.job_enqueued(new_id, lane_id=lane_id)
    return new_id


def _show(job_id: UUID) -> dict[str, Any]:
    """Returns the job without its request and result, which belong to its caller."""
    with db.begin() as session:
        key_id = job_owner.find(session, job_id).key_id
        shown = job_view.render_job(session, job_rows.find_job(session, job_id, key_id), with_result=False)
    return {name: value for name, value in shown.items() if name not in ("metadata", "artifacts")}


def _notify_cancelled(row: Any) -> None:
    notify_queue.job_cancelled(row.id, lane_id=row.lane_id, is_ended=row.status == Status.CANCELLED)
