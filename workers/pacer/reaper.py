"""The reaper: once a second it recovers unclaimed admissions, expired leases, expired jobs, abandoned jobs and lost wake-ups."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from models.config.settings import settings
from models.database import db
from models.jobs import api_processes, cancellation, requeue, waiters, workers
from models.jobs.states import Status
from models.platform import crash_points, wire
from models.platform.errors import LimiterUnavailable, Unavailable
from models.queue import admission, lane_maintenance, lanes
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.observe import attempt_log
from workers.pacer import parked_timeout, wait_log
from workers.pacer.limit_enforcer import LimitEnforcer
from workers.pacer.reap_grace import ReapGrace
from workers.pacer.wakeups import Wakeups

log = logging.getLogger(__name__)

EVERY_S = 1.0
LIMITS_EVERY_S = 2.0
PROCESSES_EVERY_S = 60.0
# The query reads a parked queue as a whole to find callers who wait on a connection: 0.2 s for 200,000 jobs.
PARKED_EVERY_S = 5.0
MAX_ABANDONED = 200


class Reaper:
    """One pass is `step`; any number of processes may run passes at once."""

    def __init__(self, *, limiter: Limiter, wakeups: Wakeups) -> None:
        self.limits = LimitEnforcer(limiter=limiter, wakeups=wakeups)
        self._limiter = limiter
        self._wakeups = wakeups
        self._grace = ReapGrace()
        self._due_at: dict[str, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Runs a pass each second until `stop`."""
        while not stop.is_set():
            try:
                self.step(now=time.monotonic())
            except (Unavailable, LimiterUnavailable) as error:
                log.warning("reaper waits", extra={"why": str(error.__cause__ or error)})
            except Exception:
                # A border: a failed pass must not stop the next one.
                log.exception("a pass of the reaper failed")
            stop.wait(EVERY_S)

    def step(self, *, now: float) -> None:
        """Runs one pass. now: monotonic seconds. Raises Unavailable, LimiterUnavailable."""
        self._requeue_unclaimed()
        self._reap_lost(now=now)
        if settings().cancel_abandoned:
            self._cancel_abandoned()
        if any(row.held for row in self._expire()):
            self._expire()  # the first call expires blocked turns, the second one the other jobs
        if self._is_due("parked", PARKED_EVERY_S, now):
            parked_timeout.fail_parked()
        with db.begin() as session:
            forgotten = lanes.wake_lost(session)
        for lane_id in forgotten:
            self._wakeups.wake(lane_id)
        if self._is_due("limits", LIMITS_EVERY_S, now):
            self.limits.refresh_lanes(now=now)
        if self._is_due("processes", PROCESSES_EVERY_S, now):
            with db.begin() as session:
                workers.remove_silent(session, unseen_s=settings().lease_s * 10)
                api_processes.remove_silent(session, unseen_s=settings().lease_s * 10)

    def _requeue_unclaimed(self) -> None:
        """Requeues admitted jobs that no worker claimed in time: their message was lost."""
        with db.begin() as session:
            requeued = requeue.requeue_unclaimed(session, older_than_s=settings().unclaimed_after_s)
        if requeued:
            log.warning("admissions not claimed in time were requeued", extra={"jobs": len(requeued)})
        self._release(requeued, Report(sent=False))

    def _reap_lost(self, *, now: float) -> None:
        """Ends attempts whose lease has expired, except during the grace period."""
        with db.begin() as session:
            if self._grace.is_on(postmaster=lane_maintenance.postmaster_started(session), now=now):
                return
            lost = requeue.reap(session)
        if lost:
            crash_points.hit("sweep.mid_reap")
        for row in lost:
            attempt_log.log_lost_attempt(row)
        self._release(lost, Report())
        _notify_ended(lost)

    def _expire(self) -> Sequence[Any]:
        with db.begin() as session:
            expired = cancellation.expire(session)
            queued_since = admission.queued_since(session, [row.id for row in expired if row.calls]) if expired else {}
        _notify_ended(expired)
        for row in expired:
            wait_log.log_left_queue(row, queued_since.get(row.id, row.created_at), why=Status.EXPIRED)
        return expired

    def _cancel_abandoned(self) -> None:
        """Cancels jobs whose callers disconnected and did not return in time."""
        for _ in range(MAX_ABANDONED):
            # One transaction each: cancelling takes several locks, and holds them so that no caller can return to the job meanwhile.
            with db.begin() as session:
                row = waiters.cancel_abandoned(session, longer_than_s=settings().abandoned_after_s)
            if row is None:
                return
            log.info(
                "cancelled: its caller went away",
                extra={"job": wire.public_id(row.id), "lane": row.lane_id, "key": row.key_id, "status": row.status},
            )
            is_ended = row.status == Status.CANCELLED
            notify.job_changed(row.id, "cancelled" if is_ended else "cancelling")
            if is_ended:
                notify.lane_changed(row.lane_id, cancelled=row.id)

    def _release(self, rows: Iterable[Any], report: Report) -> None:
        for row in rows:
            try:
                self._limiter.release(CredentialModel(row.credential_id, row.model), str(row.dispatch_id), report)
            except LimiterUnavailable:
                log.info("slot not released: Redis is unavailable; its lease expires by itself")
            self._wakeups.wake(row.lane_id)

    def _is_due(self, task: str, every_s: float, now: float) -> bool:
        if now < self._due_at.get(task, float("-inf")):
            return False
        self._due_at[task] = now + every_s
        return True


def _notify_ended(rows: Iterable[Any]) -> None:
    for row in rows:
        notify.job_changed(row.id, "ended")
