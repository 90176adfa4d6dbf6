"""Stage 5: marks the jobs admitted, charges keys and caps, and releases the lanes, in one transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from models.database import db
from models.database.db import Transaction
from models.queue import admission, caps, key_shares, lanes
from models.queue.admission import Admission, LaneOutcome
from workers.pacer.stages.batch import Batch
from workers.pacer.stages.lane_result import LaneResults


@dataclass(frozen=True)
class Committed:
    """The result of the transaction.

    admitted, cancelled: admissions whose job was still queued, and those whose budget has to be released. jobs: rows of `admitted`.
    queued_since: when jobs that were called before came back. has_caps: the lanes have caps. at_ns: time of the commit.
    """

    admitted: list[Admission]
    cancelled: list[Admission]
    jobs: list[Any]
    lanes: list[LaneOutcome]
    queued_since: dict[UUID, datetime]
    has_caps: bool
    at_ns: int


def commit_batch(batch: Batch, results: LaneResults) -> Committed:
    """Admits the jobs that are still queued and within the caps. Raises Unavailable."""
    admissions = batch.admissions
    jobs_by_id = {job.id: job for job in batch.jobs()}
    rooms = batch.rooms
    with db.begin() as session:
        if rooms:
            # The caps are counted again under their lock: another pacer may have admitted jobs meanwhile.
            rooms = caps.read_allowances(session, lanes=batch.lane_ids, pools=batch.pool_ids, lock=True)
        allowed = _within_caps(batch, rooms)
        delays = _delays(session, batch, rooms)
        settled = [results.settle(batch, lane, delays) for lane in batch.lanes]
        marked = admission.admit(session, allowed)
        admitted = [item for item in admissions if item.dispatch_id in marked]
        jobs = [jobs_by_id[item.job_id] for item in admitted]
        charges = key_shares.charges(jobs, list(batch.jobs()), cut=batch.truncated)
        key_shares.charge_shares(session, charges, times={lane.id: lane.virtual_time for lane in batch.lanes})
        called_before = [job.id for job in jobs if job.calls]
        queued_since = admission.queued_since(session, called_before) if called_before else {}
        if rooms:
            caps.record_admissions(session, {item.dispatch_id: jobs_by_id[item.job_id] for item in admitted}, rooms)
        admission.settle_lanes(session, settled)
    cancelled = [item for item in admissions if item.dispatch_id not in marked]
    return Committed(admitted, cancelled, jobs, settled, queued_since, bool(rooms), time.time_ns())


def _within_caps(batch: Batch, rooms: Sequence[caps.Allowance]) -> list[Admission]:
    """The admissions that the caps allow."""
    if not rooms:
        return batch.admissions
    job_ids = {item.job_id for item in batch.admissions}
    allowed = {job.id for job in caps.filter_allowed([job for job in batch.jobs() if job.id in job_ids], rooms)}
    return [item for item in batch.admissions if item.job_id in allowed]


def _delays(session: Transaction, batch: Batch, rooms: Sequence[caps.Allowance]) -> dict[int, float]:
    """For exhausted lanes with jobs that wait for a delay or a cap: seconds until the first may go."""
    exhausted = [lane_id for lane_id in batch.lane_ids if batch.is_exhausted(lane_id)]
    delays = lanes.delayed_wakes(session, exhausted) if exhausted else {}
    for lane_id, wake_in_s in caps.blocked_lanes(session, exhausted, rooms).items():
        delays[lane_id] = min(delays.get(lane_id, wake_in_s), wake_in_s)
    for lane_id in batch.truncated.intersection(exhausted):
        delays[lane_id] = 0.0  # jobs that were not read may follow those that a cap holds back
    return delays
