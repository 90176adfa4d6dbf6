"""The jobs this process runs: their leases are renewed by one statement, their cancellations reach the call."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis

from models.config.settings import settings
from models.database import db
from models.jobs import claims
from models.platform import wire
from models.platform.errors import LineUnavailable, Unavailable
from workers.channels import notify
from workers.limiter.limiter import CredentialModel, Limiter
from workers.upstream.call import CallControl

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningJob:
    """One job in this process."""

    job_id: UUID
    meter: CredentialModel
    call: CallControl


class Leases:
    """What this process holds, by dispatch id. Safe to use from any thread."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._held: dict[UUID, RunningJob] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many jobs run here."""
        return len(self._held)

    def add(self, dispatch_id: UUID, held: RunningJob) -> None:
        with self._lock:
            self._held[dispatch_id] = held

    def drop(self, dispatch_id: UUID) -> None:
        with self._lock:
            self._held.pop(dispatch_id, None)

    def jobs(self) -> list[UUID]:
        """The jobs that this process has now."""
        with self._lock:
            return [held.job_id for held in self._held.values()]

    def renew(self) -> None:
        """Every lease holds for NOWSERVING_LEASE_S from now; calls whose job is to be cancelled are closed.

        A lost lease only gets a log line: the answer on its way may still be adopted, and finishing is fenced.
        """
        with self._lock:
            held = dict(self._held)
        if not held:
            return
        try:
            with db.begin() as session:
                alive = claims.renew_leases(session, {number: one.job_id for number, one in held.items()}, lease_s=settings().lease_s)
        except Unavailable:
            log.warning("leases not renewed: Postgres is away", extra={"leases": len(held)})
            self._renew_slots(held)  # the calls are in flight all the same
            return
        for dispatch_id, one in held.items():
            if dispatch_id not in alive and self._holds(dispatch_id):
                log.warning("lease lost", extra={"job": wire.public_id(one.job_id), "dispatch_id": str(dispatch_id)})
            elif alive.get(dispatch_id):
                one.call.abort()
        self._renew_slots(held)

    def cancel(self, job_id: UUID) -> None:
        """The call for this job, if it runs here, is closed now rather than at the next beat."""
        with self._lock:
            calls = [held.call for held in self._held.values() if held.job_id == job_id]
        for call in calls:
            call.abort()

    def _holds(self, dispatch_id: UUID) -> bool:
        """False: it has ended while its lease was being renewed."""
        with self._lock:
            return dispatch_id in self._held

    def _renew_slots(self, held: dict[UUID, RunningJob]) -> None:
        by_meter: dict[CredentialModel, list[str]] = {}
        for dispatch_id, one in held.items():
            by_meter.setdefault(one.meter, []).append(str(dispatch_id))
        try:
            for meter, dispatches in by_meter.items():
                self._limiter.renew(meter, dispatches, lease_ms=int(settings().lease_s * 1000))
        except LineUnavailable:
            log.warning("in-flight slots not renewed: Redis is away")


def listen_for_cancels(leases: Leases, stop: threading.Event) -> None:
    """Until `stop`: a cancellation reaches the call within milliseconds; without Redis, at the next beat."""

    def hear(message: dict[str, Any]) -> None:
        if message["event"] == "cancelling":
            leases.cancel(UUID(message["job"]))

    while not stop.is_set():
        try:
            notify.subscribe(notify.JOBS_CHANNEL, hear, until=stop.is_set)
        except (redis.RedisError, OSError):
            stop.wait(1.0)
