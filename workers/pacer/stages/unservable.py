"""Stage 4: fails picked jobs that can never be sent, and records which parked credentials are being probed."""

from __future__ import annotations

from uuid import UUID

from models.database import db
from models.jobs import completion
from models.keys import parking
from models.keys.parking import Refusal
from models.queue import admission
from workers.channels import notify
from workers.pacer.stages.batch import Batch
from workers.pacer.wait_log import log_left_queue


def fail_unservable(batch: Batch) -> None:
    """Fails jobs larger than a whole limit, and jobs of pools whose key the upstream rejects."""
    refusals = _refusals(batch)
    probing = sorted({admission.credential_id for admission in batch.admissions} & batch.probes)
    probed_routes = sorted({route for reservation in batch.reserved.values() for route in reservation.probed})
    if refusals or probing or probed_routes:
        _store(batch, refusals, probing, probed_routes)
    for job_id in refusals:
        notify.job_changed(job_id, "ended")


def _refusals(batch: Batch) -> dict[UUID, Refusal]:
    """The error of each job that has to fail."""
    refusals: dict[UUID, Refusal] = {}
    rejected = _rejected_pools(batch)
    for lane in batch.lanes:
        reservation = batch.reserved[lane.id]
        if reservation.oversized is not None:
            refusals[reservation.oversized] = Refusal(_oversized_error(reservation.blocked_by), status=None)
        if reservation.blocked_by == "parked" and lane.pool_id in rejected:
            admitted = {admission.job_id for admission in reservation.admissions}
            refusals |= {head.id: rejected[lane.pool_id] for head in batch.picked[lane.id] if head.id not in admitted}
            reservation.wake_in_s = 0.0
    return refusals


def _rejected_pools(batch: Batch) -> dict[int, Refusal]:
    """The parked pools of this batch whose key the upstream rejects, with the error for their jobs."""
    pool_ids = sorted({lane.pool_id for lane in batch.lanes if batch.reserved[lane.id].blocked_by == "parked"})
    if not pool_ids:
        return {}
    with db.autocommit() as session:
        return parking.rejected_keys(session, pool_ids)


def _store(batch: Batch, refusals: dict[UUID, Refusal], probing: list[int], probed_routes: list[tuple[int, str, str]]) -> None:
    with db.begin() as session:
        parking.record_probes(session, probing)
        parking.record_model_probes(session, probed_routes)
        failed = [
            job_id for job_id, refusal in refusals.items()
            if completion.fail_queued(session, job_id, error=refusal.error, http_status=refusal.status)
        ]  # fmt: skip
        queued_since = admission.queued_since(session, failed) if failed else {}
    heads = {head.id: head for picked in batch.picked.values() for head in picked}
    for job_id in failed:
        log_left_queue(heads[job_id], queued_since.get(job_id, heads[job_id].created_at), why=str(refusals[job_id].error["code"]))


def _oversized_error(limit: str | None) -> dict[str, object]:
    return {
        "message": f"This request needs more than the whole {limit} limit of its key, so it could never be sent. "
        "Make it smaller (a shorter prompt, a lower max_tokens or n), or ask for a higher limit.",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_exceeds_limit",
    }
