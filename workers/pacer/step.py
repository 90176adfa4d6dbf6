"""The pacer's step: a pipeline of claim, pick, reserve, fail unservable jobs, commit, dispatch. Any number of pacers may run it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from models.database import db
from models.platform import crash_points
from models.platform.errors import LimiterUnavailable, Unavailable
from models.queue import admission, lanes
from workers.broker.publish import Publisher
from workers.limiter.limiter import Limiter
from workers.pacer.in_flight import InFlightLeases
from workers.pacer.stages import dispatch
from workers.pacer.stages.claim import claim_batch
from workers.pacer.stages.commit import Committed, commit_batch
from workers.pacer.stages.lane_result import IDLE_S, LaneResults
from workers.pacer.stages.pick import pick_jobs
from workers.pacer.stages.reserve import Reserver
from workers.pacer.stages.round_robin import DeficitRoundRobin
from workers.pacer.stages.unservable import fail_unservable
from workers.pacer.wait_log import WaitLog
from workers.pacer.wakeups import Wakeups

log = logging.getLogger(__name__)

# A woken lane whose row was locked (by a submit, by the reaper) is examined again after this time.
LOCKED_RECHECK_S = 0.01
# A woken lane that another pacer has claimed is kept for this time.
KEEP_WOKEN_S = 4.0


class Pacer:
    """Runs steps; each `step` is complete, so that a test can run steps one at a time."""

    def __init__(self, *, limiter: Limiter, publisher: Publisher, wakeups: Wakeups) -> None:
        self._limiter = limiter
        self._publisher = publisher
        self._wakeups = wakeups
        self._in_flight = InFlightLeases(limiter)
        self._round_robin = DeficitRoundRobin()
        self._reserver = Reserver(limiter)
        self._results = LaneResults(wakeups)
        self._wait_log = WaitLog()
        #: Monotonic seconds of the last completed step, and of the last attempt at one.
        self.stepped_at = self.tried_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Runs steps until `stop`; while Postgres or Redis is unavailable it retries."""
        while not stop.is_set():
            try:
                self.tried_at = time.monotonic()
                rest_s = self.step()
                self.stepped_at = time.monotonic()
                self._wakeups.wait(rest_s)
            except (Unavailable, LimiterUnavailable) as error:
                log.warning("pacing waits", extra={"why": str(error.__cause__ or error)})
                stop.wait(0.2)
            except Exception:
                # A border: one failed step must not stop the queue.
                log.exception("a step of the pacer failed")
                stop.wait(0.5)

    def step(self) -> float:
        """Admits and publishes every job that can go now.

        Returns the seconds until the next step is due; a wake-up may make it earlier. Raises Unavailable, LimiterUnavailable.
        """
        self._in_flight.renew(now=time.monotonic())
        woken = self._wakeups.take()
        batch = claim_batch(list(woken))
        missed = self._keep_missed(woken, batch.lanes)
        if not batch.lanes:
            if batch.free_slots <= 0:
                self._wakeups.update(idle=(), waiting=woken, capped=(), lacks_slots=True)
            return self._rest_s(batch.free_slots, missed)
        crash_points.hit("pacer.after_claim_lanes")
        for lane in batch.lanes:
            self._wait_log.note(lane.id, lane.blocked_by)
        pick_jobs(batch, self._round_robin)
        batch.reserved = self._reserver.reserve(batch)
        crash_points.hit("pacer.after_reserve")
        fail_unservable(batch)
        committed = commit_batch(batch, self._results)
        self._update_wakeups(committed)
        crash_points.hit("pacer.after_admit")
        dispatch.publish(batch, committed.admitted, limiter=self._limiter, publisher=self._publisher)
        self._log_waits(committed)
        dispatch.release(batch, committed.cancelled, limiter=self._limiter)
        return 0.0 if any(lane.wake_in_s == 0 for lane in committed.lanes) else self._rest_s(1, missed)

    def _keep_missed(self, woken: Mapping[int, float], lanes: Sequence[Any]) -> list[int]:
        """Keeps woken lanes that could not be claimed for the next steps; returns them."""
        claimed = {lane.id for lane in lanes}
        now = time.monotonic()
        missed = {lane: at for lane, at in woken.items() if lane not in claimed and now - at < KEEP_WOKEN_S}
        self._wakeups.keep_for_later(missed)
        return list(missed)

    def _rest_s(self, free_slots: int, missed: Sequence[int]) -> float:
        if free_slots <= 0:
            return IDLE_S
        with db.autocommit() as session:
            if missed and admission.is_any_locked(session, missed):
                return LOCKED_RECHECK_S
            return lanes.next_wake_in_s(session, limit_s=IDLE_S)

    def _update_wakeups(self, committed: Committed) -> None:
        waiting = [lane.lane_id for lane in committed.lanes if lane.wake_in_s is not None]
        self._wakeups.update(
            idle=[lane.lane_id for lane in committed.lanes if lane.wake_in_s is None],
            waiting=waiting,
            capped=waiting if committed.has_caps else (),
            lacks_slots=any(lane.blocked_by == "workers" for lane in committed.lanes),
        )

    def _log_waits(self, committed: Committed) -> None:
        """After the messages are published, because no job waits for the log."""
        credentials = {item.job_id: item.credential_id for item in committed.admitted}
        self._wait_log.log_admitted(committed.jobs, credentials, committed.queued_since, at_ns=committed.at_ns)
        self._wait_log.update(committed.lanes)
