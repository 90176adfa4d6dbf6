"""Runs the job of one Celery message: claim, load, call, release, finish. The job's row always says how far it came."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

from models.billing import pricing
from models.config.settings import settings
from models.database import db
from models.jobs import claims
from models.jobs.states import MIN_CALL_S
from models.platform import crash_points, wire
from models.platform.errors import Unavailable
from models.telemetry import logs
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.observe import counters
from workers.observe.attempt_log import AttemptLog
from workers.results import finish
from workers.runner.attempt import Attempt
from workers.runner.leases import Leases, RunningJob
from workers.runner.run_attempt import NO_ROOM, NO_ROOM_DELAY_S, release_slot, run_attempt
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import body_budget
from workers.upstream.body_budget import FREE_BYTES, BodyReservation
from workers.upstream.call import CallControl

log = logging.getLogger(__name__)


class JobRunner:
    """Runs jobs with the process's limiter and leases. Thread-safe."""

    def __init__(self, limiter: Limiter, leases: Leases) -> None:
        self._limiter = limiter
        self._leases = leases
        pricing.load_price_list()  # now, so that the first finished job does not wait for it

    def run(self, job_id: UUID, dispatch_id: UUID) -> None:
        """Runs the job, unless this dispatch no longer holds it. Celery may deliver the same message any number of times."""
        with logs.bound(job=wire.public_id(job_id)):
            began = time.monotonic()
            crash_points.hit("worker.before_claim")
            with body_budget.budget().room() as room:
                if self._has_room(job_id, dispatch_id, room):
                    self._claim_and_run(job_id, dispatch_id, room, began=began)

    def _has_room(self, job_id: UUID, dispatch_id: UUID, room: BodyReservation) -> bool:
        """Reserves memory before the claim, so that the wait does not use up running time. False: the job was requeued."""
        if not room.is_short():
            return True
        try:
            with db.autocommit() as session:
                row = claims.find_claimable(session, job_id, dispatch_id)
        except Unavailable:
            return True  # the claim fails in the same way
        if row is None or not (size := _body_bytes(row)):
            return True
        if room.may_wait(settings().worker_threads // 2) and room.reserve(size):
            return True
        release_slot(self._limiter, CredentialModel(row.credential_id, row.model), row, Report(sent=False))
        finish.requeue_unclaimed(row, why=NO_ROOM, delay_s=NO_ROOM_DELAY_S)
        return False

    def _claim_and_run(self, job_id: UUID, dispatch_id: UUID, room: BodyReservation, *, began: float) -> None:
        try:
            with db.autocommit() as session:
                row = claims.claim(session, job_id, dispatch_id, lease_s=settings().lease_s, max_bytes=FREE_BYTES)
        except Unavailable:
            log.warning("claim failed: Postgres is unavailable; the reaper requeues the job")
            return
        if row is None:
            self._release_ended(job_id, dispatch_id)
            return
        crash_points.hit("worker.after_claim")
        attempt_log = AttemptLog(row)
        counters.claimed(row)
        if row.due:
            notify.deliveries_due(row.due)
        claimed = time.monotonic()
        call = CallControl(deadline=claimed + max(MIN_CALL_S, row.timeout_s - row.ran_s), room=room)
        attempt = Attempt(row, CredentialModel(row.credential_id, row.model), call, StreamPublisher(row), attempt_log, claimed)
        self._leases.add(dispatch_id, RunningJob(job_id=job_id, meter=attempt.meter, call=call))
        try:
            run_attempt(self._limiter, attempt, room, began=began)
        finally:
            self._leases.drop(dispatch_id)
            attempt.publisher.end()
            attempt_log.end()
            counters.served(row, seconds=time.monotonic() - began)

    def _release_ended(self, job_id: UUID, dispatch_id: UUID) -> None:
        """Releases the reservation of a job that ended before it was claimed."""
        try:
            with db.begin() as session:
                row = claims.ended_unclaimed(session, job_id, dispatch_id)
        except Unavailable:
            return  # the slot's own lease expires
        if row is not None:
            release_slot(self._limiter, CredentialModel(row.credential_id, row.model), row, Report(sent=False))


def _body_bytes(row: Any) -> int:
    """About how many bytes an unclaimed job will load; 0 where that is too few to count. row: of claims.find_claimable."""
    size = row.request_bytes + (settings().max_body_bytes if row.remembers else 0)
    return size if size > FREE_BYTES else 0
