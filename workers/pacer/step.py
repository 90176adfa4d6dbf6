"""The pacer's step: a pipeline of claim, pick, reserve, fail unservable jobs, commit, dispatch. Any number of pacers may run it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from models.database import db
from models.platform import crash_points
from models.platform.errors import LineUnavailable, Unavailable
<<<<<<< HEAD
from models.queue import admission
from workers.broker.publish import Ring
from workers.limiter.limiter import Limiter
=======
from models.queue import admission, caps, key_shares
from models.queue.admission import Admission, LaneOutcome
from workers.broker.publish import Publisher, TaskMessage
from workers.channels import notify
from workers.limiter.limiter import CredentialModel, Limiter, Report
from workers.observe import counters
>>>>>>> ef9e443 (Rename webhooks, sessions, ops and worker names to standard terms)
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
<<<<<<< HEAD
        self._publisher = publisher
=======
        self._reserver = Reserver(limiter)
        self._in_flight = InFlightLeases(limiter)
        self._publisher = publisher
>>>>>>> ef9e443 (Rename webhooks, sessions, ops and worker names to standard terms)
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
            except (Unavailable, LineUnavailable) as error:
                log.warning("pacing waits", extra={"why": str(error.__cause__ or error)})
                stop.wait(0.2)
            except Exception:
                # A border: one failed step must not stop the queue.
                log.exception("a step of the pacer failed")
                stop.wait(0.5)

    def step(self) -> float:
        """Admits and publishes every job that can go now.

        Returns the seconds until the next step is due; a wake-up may make it earlier. Raises Unavailable, LineUnavailable.
        """
        self._in_flight.renew(now=time.monotonic())
        woken = self._wakeups.take()
        batch = claim_batch(list(woken))
        missed = self._keep_missed(woken, batch.lanes)
        if not batch.lanes:
            if batch.free_slots <= 0:
                self._wakeups.update(idle=(), waiting=woken, capped=(), lacks_slots=True)
            return self._rest_s(batch.free_slots, missed)
        crash_points.at("pacer.after_claim_lanes")
        for lane in batch.lanes:
            self._wait_log.note(lane.id, lane.blocked_by)
        pick_jobs(batch, self._round_robin)
        batch.reserved = self._reserver.reserve(batch)
        crash_points.at("pacer.after_reserve")
        fail_unservable(batch)
        committed = commit_batch(batch, self._results)
        self._update_wakeups(committed)
        crash_points.at("pacer.after_admit")
<<<<<<< HEAD
        dispatch.publish(batch, committed.admitted, limiter=self._limiter, ring=self._ring)
        self._log_waits(committed)
        dispatch.release(batch, committed.cancelled, limiter=self._limiter)
        return 0.0 if any(lane.wake_in_s == 0 for lane in committed.lanes) else self._rest_s(1, missed)

    def _keep_missed(self, woken: Mapping[int, float], lanes: Sequence[Any]) -> list[int]:
        """Keeps woken lanes that could not be claimed for the next steps; returns them."""
        claimed = {lane.id for lane in lanes}
=======
        by_id = {lane.id: lane for lane in lanes}
        bound = {one.dispatch_id: CredentialModel(one.credential_id, by_id[heads[one.job_id].lane_id].model) for one in admissions}
        titles = {one.job_id: task_names.task_name(heads[one.job_id].endpoint, by_id[heads[one.job_id].lane_id].pool) for one in admissions}
        for one in admissions:
            if one.dispatch_id in marked:
                counters.admitted(heads[one.job_id].lane_id, bound[one.dispatch_id].model)
        self._ring_all([one for one in admissions if one.dispatch_id in marked], bound, titles)
        # After the doorbells: nobody waits for what is said here.
        self._waits.tell(going, {one.job_id: one.credential_id for one in allowed}, since, over_ns=admitted_ns)
        self._waits.conclude(settled)
        self._give_back([one.dispatch_id for one in admissions if one.dispatch_id not in marked], bound)
        return settled

    def _within(self, admissions: list[Admission], queues: dict[int, list[Any]], rooms: Sequence[caps.Allowance]) -> list[Admission]:
        """Those that the caps still allow, with another pacer's admissions counted."""
        if not rooms:
            return admissions
        wanted = {one.job_id for one in admissions}
        going = {head.id for head in caps.filter_allowed([head for jobs in queues.values() for head in jobs if head.id in wanted], rooms)}
        return [one for one in admissions if one.job_id in going]

    def _refuse(
        self,
        lanes: Sequence[Any],
        wanted: dict[int, list[Any]],
        reserved: dict[int, Reservation],
        probes: set[int],
    ) -> None:
        """Jobs that could never be sent have failed: larger than a whole limit, or of a key that the upstream does not know."""
        doomed: dict[UUID, Refusal] = {}
        hopeless = _hopeless(lane.pool_id for lane in lanes if reserved[lane.id].blocked_by == "parked")
        for lane in lanes:
            given = reserved[lane.id]
            if given.never is not None:
                doomed[given.never] = Refusal(_never_fits(given.blocked_by), status=None)
            if given.blocked_by == "parked" and lane.pool_id in hopeless:
                going = {one.job_id for one in given.admissions}
                doomed |= {head.id: hopeless[lane.pool_id] for head in wanted[lane.id] if head.id not in going}
                given.wake_in_s = 0.0
        probing = {one.credential_id for given in reserved.values() for one in given.admissions} & probes
        probed = sorted({one for given in reserved.values() for one in given.probed})
        if doomed or probing or probed:
            with db.begin() as session:
                parking.probed(session, sorted(probing))
                parking.probed_models(session, probed)
                refused = [
                    job_id
                    for job_id, of in doomed.items()
                    if completion.fail_queued(session, job_id, error=of.error, http_status=of.status)
                ]
                since = admission.queued_since(session, refused) if refused else {}
            heads = {head.id: head for jobs in wanted.values() for head in jobs}
            for job_id in refused:
                log_left_queue(heads[job_id], since.get(job_id, heads[job_id].created_at), why=str(doomed[job_id].error["code"]))
        for job_id in doomed:
            notify.job_changed(job_id, "ended")

    def _ring_all(self, admitted: Sequence[Admission], bound: Mapping[UUID, CredentialModel], titles: Mapping[UUID, str]) -> None:
        """Celery is rung for those whose budget is still reserved.

        Where the limiter was emptied in between, another pacer may have rebuilt it without these: they go back, uncalled.
        """
        held = self._still_held([one.dispatch_id for one in admitted], bound)
        self._publisher.publish(
            [TaskMessage(one.job_id, one.dispatch_id, titles[one.job_id]) for one in admitted if one.dispatch_id in held]
        )
        crash_points.at("pacer.mid_publish")
        for one in admitted:
            if one.dispatch_id not in held:
                with db.begin() as session:
                    requeue.requeue_job(session, one.job_id, one.dispatch_id, AttemptResult(Outcome.NOT_SENT), reason="reservation lost")

    def _still_held(self, dispatches: Sequence[UUID], bound: Mapping[UUID, CredentialModel]) -> set[UUID]:
        by_meter: dict[CredentialModel, list[str]] = {}
        for number in dispatches:
            by_meter.setdefault(bound[number], []).append(str(number))
        held = self._limiter.renew_many(list(by_meter.items()), lease_ms=int(settings().lease_s * 1000)) if by_meter else []
        return {UUID(number) for one in held for number in one}

    def _give_back(self, dispatches: Sequence[UUID], bound: Mapping[UUID, CredentialModel]) -> None:
        """What was reserved for jobs that were cancelled meanwhile is free again."""
        for number in dispatches:
            try:
                self._limiter.release(bound[number], str(number), Report(sent=False))
            except LineUnavailable:
                log.info("slot not freed: Redis is away, it frees itself")

    def _is_done(self, queue: list[Any], wanted: list[Any], given: Reservation) -> bool:
        return len(queue) < self._seen_most and len(wanted) == len(queue) and given.blocked_by is None

    def _conclude(self, lane: Any, queue: list[Any], wanted: list[Any], given: Reservation, later: dict[int, float]) -> LaneOutcome:
        going = {one.job_id for one in given.admissions}
        turns = key_shares.virtual_turns([head for head in wanted if head.id in going])
        virtual_time = max([lane.virtual_time, *(turn for turn, _ in turns)])
        finish = max([self._last_finish.get(lane.id, 0.0), *(finish for _, finish in turns)])
        self._last_finish[lane.id] = finish
        if given.never is not None:
            return LaneOutcome(lane.id, virtual_time, 0.0, given.blocked_by)
        if given.blocked_by is not None:
            look_s = given.wake_in_s or 0.0
            most_s = IN_FLIGHT_RECHECK_S if given.blocked_by == "in_flight" else look_s
            return LaneOutcome(lane.id, virtual_time, min(look_s, most_s), given.blocked_by)
        if not self._is_done(queue, wanted, given):
            # Others had the slots. The lane is next in turn as soon as one is free, whoever frees it.
            self._wakeups.keep_for_later({lane.id: time.monotonic()})
            return LaneOutcome(
                lane.id, virtual_time, IDLE_S if len(wanted) < len(queue) else 0.0, "workers" if len(wanted) < len(queue) else None
            )
        if lane.id in later:
            return LaneOutcome(lane.id, virtual_time, max(0.0, later[lane.id]), "backoff")
        # Nobody waits: as in the paper, time goes on to the last finish, so that an idle hour owes nobody anything.
        self._last_finish.pop(lane.id, None)
        return LaneOutcome(lane.id, max(virtual_time, finish), None, None)

    def _keep_unseen(self, woken: dict[int, float], lanes: Sequence[Any]) -> list[int]:
        """Those that were woken and could not be claimed; they are kept in mind."""
        seen = {lane.id for lane in lanes}
>>>>>>> ef9e443 (Rename webhooks, sessions, ops and worker names to standard terms)
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
            return admission.next_wake_in_s(session, most_s=IDLE_S)

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
        credentials = {one.job_id: one.credential_id for one in committed.admitted}
        self._wait_log.log_admitted(committed.jobs, credentials, committed.queued_since, at_ns=committed.at_ns)
        self._wait_log.update(committed.lanes)
