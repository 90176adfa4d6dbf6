"""Leases of the jobs that this process runs: one statement renews them, and a requested cancellation aborts the call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from models.config.settings import settings
from models.database import db
from models.jobs import claims
from models.platform import wire
from models.platform.errors import LimiterUnavailable, Unavailable
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel
from workers.upstream.call import CallControl

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningJob:
    """One job that this process runs."""

    job_id: UUID
    meter: CredentialModel
    call: CallControl


class Leases:
    """The running jobs of this process by dispatch id. Thread-safe."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._running: dict[UUID, RunningJob] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of running jobs."""
        return len(self._running)

    def add(self, dispatch_id: UUID, running: RunningJob) -> None:
        """Adds a claimed job."""
        with self._lock:
            self._running[dispatch_id] = running

    def drop(self, dispatch_id: UUID) -> None:
        """Removes a job whose attempt has ended."""
        with self._lock:
            self._running.pop(dispatch_id, None)

    def jobs(self) -> list[UUID]:
        """The ids of the running jobs."""
        with self._lock:
            return [running.job_id for running in self._running.values()]

    def renew(self) -> None:
        """Renews every lease for NOWSERVING_LEASE_S, and aborts calls whose cancellation was requested.

        A lost lease is only logged: its answer may still be accepted, because finishing is fenced by the dispatch id.
        """
        with self._lock:
            running = dict(self._running)
        if not running:
            return
        try:
            with db.begin() as session:
                alive = claims.renew_leases(
                    session, {dispatch_id: job.job_id for dispatch_id, job in running.items()}, lease_s=settings().lease_s
                )  # fmt: skip
        except Unavailable:
            log.warning("leases not renewed: Postgres is unavailable", extra={"leases": len(running)})
            self._renew_in_flight(running)  # the calls are in flight all the same
            return
        for dispatch_id, job in running.items():
            if dispatch_id not in alive and self._is_running(dispatch_id):
                log.warning("lease lost", extra={"job": wire.public_id(job.job_id), "dispatch_id": str(dispatch_id)})
            elif alive.get(dispatch_id):
                job.call.abort()
        self._renew_in_flight(running)

    def cancel(self, job_id: UUID) -> None:
        """Aborts the call of this job, if it runs here, before the next renewal would."""
        with self._lock:
            calls = [running.call for running in self._running.values() if running.job_id == job_id]
        for call in calls:
            call.abort()

    def _is_running(self, dispatch_id: UUID) -> bool:
        """False: the job ended while its lease was renewed."""
        with self._lock:
            return dispatch_id in self._running

    def _renew_in_flight(self, running: Mapping[UUID, RunningJob]) -> None:
        by_meter: dict[CredentialModel, list[str]] = {}
        for dispatch_id, job in running.items():
            by_meter.setdefault(job.meter, []).append(str(dispatch_id))
        try:
            for meter, dispatch_ids in by_meter.items():
                self._limiter.renew(meter, dispatch_ids, lease_ms=int(settings().lease_s * 1000))
        except LimiterUnavailable:
            log.warning("in-flight leases not renewed: Redis is unavailable")


def listen_for_cancels(leases: Leases, stop: threading.Event) -> None:
    """Aborts calls within milliseconds of a cancellation, until `stop`. Without Redis, the next renewal aborts them."""

    def handle(message: dict[str, Any]) -> None:
        if message["event"] == "cancelling":
            leases.cancel(UUID(message["job"]))

    notify.subscribe(notify.JOBS_CHANNEL, handle, stop)
