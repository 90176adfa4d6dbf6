"""Stage 6: publishes admitted jobs to Celery, and releases the budget of jobs that were cancelled meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from uuid import UUID

from models.config.settings import settings
from models.database import db
from models.jobs import requeue, task_names
from models.jobs.states import AttemptResult, Outcome
from models.platform import crash_points
from models.platform.errors import LimiterUnavailable
from models.queue.admission import Admission
from workers.broker.publish import Publisher, TaskMessage
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.observe import counters
from workers.pacer.stages.batch import Batch

log = logging.getLogger(__name__)


def publish(batch: Batch, admitted: Sequence[Admission], *, limiter: Limiter, publisher: Publisher) -> None:
    """Publishes the jobs whose budget is still reserved, and requeues the others uncalled.

    The limiter may have been emptied since the reservation, and rebuilt by another pacer without these jobs.
    """
    meters = batch.meters()
    jobs = {job.id: job for job in batch.jobs()}
    lanes = {lane.id: lane for lane in batch.lanes}
    for item in admitted:
        counters.admitted(jobs[item.job_id].lane_id, meters[item.dispatch_id].model)
    reserved = _still_reserved([item.dispatch_id for item in admitted], meters, limiter)
    messages = []
    for item in admitted:
        if item.dispatch_id in reserved:
            job = jobs[item.job_id]
            messages.append(TaskMessage(item.job_id, item.dispatch_id, task_names.task_name(job.endpoint, lanes[job.lane_id].pool)))
    publisher.publish(messages)
    crash_points.hit("pacer.mid_publish")
    for item in admitted:
        if item.dispatch_id not in reserved:
            with db.begin() as session:
                not_sent = AttemptResult(Outcome.NOT_SENT)
                requeue.requeue_job(session, item.job_id, item.dispatch_id, not_sent, reason="reservation lost")


def release(batch: Batch, cancelled: Sequence[Admission], *, limiter: Limiter) -> None:
    """Releases the reserved budget of jobs that were cancelled between reservation and commit."""
    meters = batch.meters()
    for item in cancelled:
        try:
            limiter.release(meters[item.dispatch_id], str(item.dispatch_id), Report(sent=False))
        except LimiterUnavailable:
            log.info("slot not released: Redis is unavailable; its lease expires by itself")


def _still_reserved(dispatches: Sequence[UUID], meters: Mapping[UUID, CredentialModel], limiter: Limiter) -> set[UUID]:
    """Renews the in-flight leases of these dispatches; returns those that the limiter still holds."""
    by_meter: dict[CredentialModel, list[str]] = {}
    for dispatch_id in dispatches:
        by_meter.setdefault(meters[dispatch_id], []).append(str(dispatch_id))
    renewed = limiter.renew_many(list(by_meter.items()), lease_ms=int(settings().lease_s * 1000)) if by_meter else []
    return {UUID(dispatch_id) for ids in renewed for dispatch_id in ids}
