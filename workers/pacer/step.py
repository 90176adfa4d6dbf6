"""The pacer's step: the line's heads in fair order, their budget reserved, marked admitted, Celery rung. Any number may run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from models.config.settings import settings
from models.database import db
from models.jobs import completion, requeue, task_names
from models.jobs.states import AttemptResult, Outcome
from models.keys import parking
from models.keys.parking import Refusal
from models.platform import crash_points
from models.platform.errors import LineUnavailable, Unavailable
from models.queue import admission, caps, key_shares
from models.queue.admission import Admission, LaneOutcome
from workers.broker.publish import Call, Ring
from workers.channels import notify
from workers.limiter.limiter import Limiter, Meter, Report
from workers.observe import counters
from workers.pacer.in_flight import InFlightLeases
from workers.pacer.reserve import Reservation, Reserver
from workers.pacer.round_robin import DeficitRoundRobin
from workers.pacer.wait_log import WaitLog, log_left_queue
from workers.pacer.wakeups import Wakeups

log = logging.getLogger(__name__)

MAX_LANES = 64
MAX_HEADS = 64
IDLE_S = 1.0
# Slots freed elsewhere wake the lane at once; this is for the wake-up that got lost.
IN_FLIGHT_RECHECK_S = 2.0
# A lane whose row was locked just then (by a submit, by the sweep) is looked at again so soon.
LOCKED_RECHECK_S = 0.01
# A lane woken while another pacer has it is kept in mind for this long.
KEEP_WOKEN_S = 4.0


class Pacer:
    """One step after another; `step` is all of it, so that a test can take steps by hand."""

    def __init__(self, *, limiter: Limiter, ring: Ring, wakeups: Wakeups) -> None:
        self._limiter = limiter
        self._reserver = Reserver(limiter)
        self._in_flight = InFlightLeases(limiter)
        self._ring = ring
        self._wakeups = wakeups
        self._rounds = DeficitRoundRobin()
        self._waits = WaitLog()
        self._last_finish: dict[int, float] = {}
        self._seen_most = 0
        #: In monotonic seconds: the last step that was taken, and the last that was tried.
        self.stepped_at = self.tried_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Steps until told to stop; without Postgres or Redis it waits for them."""
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
                # A border: one step that cannot be taken must not end the line.
                log.exception("a step of the pacer failed")
                stop.wait(0.5)

    def step(self) -> float:
        """Whatever can go now is admitted and rung; returns the seconds until the next step is due (less, when rung)."""
        self._in_flight.renew(now=time.monotonic())
        woken = self._wakeups.take()
        with db.autocommit() as session:
            free = admission.free_slots(session, seen_within_s=settings().heartbeat_s * 3)
            lanes = admission.claim_lanes(session, woken=list(woken), most=MAX_LANES) if free > 0 else []
            self._seen_most = min(MAX_HEADS, max(free, 0)) + 1  # one more than can go: whoever has fewer is seen whole
            pool_ids = sorted({lane.pool_id for lane in lanes})
            has_caps = any(lane.has_caps for lane in lanes)
            rooms = caps.read_allowances(session, lanes=[lane.id for lane in lanes], pools=pool_ids) if has_caps else []
            heads = admission.queue_heads(session, lanes, most=self._seen_most, rooms=rooms)
            serving = parking.open_or_due(session, pool_ids, probe_s=settings().probe_s) if lanes else []
        unseen = self._keep_unseen(woken, lanes)
        if not lanes:
            if free <= 0:
                self._wakeups.update(at_rest=(), waiting=woken, capped=(), is_short=True)
            return self._rest_s(free, unseen)
        crash_points.at("pacer.after_claim_lanes")
        for lane in lanes:
            self._waits.note(lane.id, lane.blocked_by)
        queues: dict[int, list[Any]] = {lane.id: [] for lane in lanes}
        for head in heads:
            queues[head.lane_id].append(head)
        cut = {number for number, jobs in queues.items() if len(jobs) >= self._seen_most}
        if rooms:
            going = {head.id for head in caps.filter_allowed(heads, rooms)}
            queues = {number: [head for head in jobs if head.id in going] for number, jobs in queues.items()}
        _put_probes_first(queues, lanes, serving)
        taken = self._rounds.pick(queues, slots=free)
        wanted = {lane: queues[lane][:most] for lane, most in taken.items()}
        probes = {one.id for one in serving if one.is_probe}
        reserved = self._reserver.reserve(
            wanted,
            models={lane.id: lane.model for lane in lanes},
            credentials={lane.id: [one.id for one in serving if one.pool_id == lane.pool_id] for lane in lanes},
            probes=probes,
            weights={one.id: one.weight for one in serving},
            shut={(one.id, each["model"], each["endpoint"]): each["is_due"] for one in serving for each in one.shut or ()},
        )
        crash_points.at("pacer.after_reserve")
        self._refuse(lanes, wanted, reserved, probes)
        settled = self._admit(lanes, queues, wanted, reserved, rooms=rooms, cut=cut)
        return 0.0 if any(one.wake_in_s == 0 for one in settled) else self._rest_s(1, unseen)

    def _admit(
        self,
        lanes: Sequence[Any],
        queues: dict[int, list[Any]],
        wanted: dict[int, list[Any]],
        reserved: dict[int, Reservation],
        *,
        rooms: Sequence[caps.Allowance],
        cut: set[int],
    ) -> list[LaneOutcome]:
        admissions = [one for given in reserved.values() for one in given.admissions]
        heads = {head.id: head for jobs in queues.values() for head in jobs}
        empty = [lane.id for lane in lanes if self._is_done(queues[lane.id], wanted[lane.id], reserved[lane.id])]
        with db.begin() as session:
            if rooms:
                rooms = caps.read_allowances(
                    session, lanes=[lane.id for lane in lanes], pools=sorted({lane.pool_id for lane in lanes}), lock=True
                )
            allowed = self._within(admissions, queues, rooms)
            later = admission.delayed_wakes(session, empty) if empty else {}
            for number, wake_in_s in caps.blocked_lanes(session, empty, rooms).items():
                later[number] = min(later.get(number, wake_in_s), wake_in_s)
            for number in cut.intersection(empty):
                later[number] = 0.0  # behind those that were passed over there may be others
            settled = [self._conclude(lane, queues[lane.id], wanted[lane.id], reserved[lane.id], later) for lane in lanes]
            marked = admission.admit(session, allowed)
            going = [heads[one.job_id] for one in allowed if one.dispatch_id in marked]
            charges = key_shares.charges(going, [one for jobs in queues.values() for one in jobs], cut=cut)
            key_shares.charge_shares(session, charges, times={lane.id: lane.virtual_time for lane in lanes})
            again = [head.id for head in going if head.calls]
            since = admission.queued_since(session, again) if again else {}
            if rooms:
                caps.record_admissions(session, {one.dispatch_id: heads[one.job_id] for one in allowed if one.dispatch_id in marked}, rooms)
            admission.settle_lanes(session, settled)
        admitted_ns = time.time_ns()
        self._wakeups.update(
            at_rest=[one.lane_id for one in settled if one.wake_in_s is None],
            waiting=[one.lane_id for one in settled if one.wake_in_s is not None],
            capped=[one.lane_id for one in settled if one.wake_in_s is not None] if rooms else (),
            is_short=any(one.blocked_by == "workers" for one in settled),
        )
        crash_points.at("pacer.after_admit")
        by_id = {lane.id: lane for lane in lanes}
        bound = {one.dispatch_id: Meter(one.credential_id, by_id[heads[one.job_id].lane_id].model) for one in admissions}
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
            notify.job(job_id, "ended")

    def _ring_all(self, admitted: Sequence[Admission], bound: Mapping[UUID, Meter], titles: Mapping[UUID, str]) -> None:
        """Celery is rung for those whose budget is still reserved.

        Where the limiter was emptied in between, another pacer may have rebuilt it without these: they go back, uncalled.
        """
        held = self._still_held([one.dispatch_id for one in admitted], bound)
        self._ring.ring([Call(one.job_id, one.dispatch_id, titles[one.job_id]) for one in admitted if one.dispatch_id in held])
        crash_points.at("pacer.mid_publish")
        for one in admitted:
            if one.dispatch_id not in held:
                with db.begin() as session:
                    requeue.requeue_job(session, one.job_id, one.dispatch_id, AttemptResult(Outcome.NOT_SENT), reason="reservation lost")

    def _still_held(self, dispatches: Sequence[UUID], bound: Mapping[UUID, Meter]) -> set[UUID]:
        by_meter: dict[Meter, list[str]] = {}
        for number in dispatches:
            by_meter.setdefault(bound[number], []).append(str(number))
        held = self._limiter.renew_many(list(by_meter.items()), lease_ms=int(settings().lease_s * 1000)) if by_meter else []
        return {UUID(number) for one in held for number in one}

    def _give_back(self, dispatches: Sequence[UUID], bound: Mapping[UUID, Meter]) -> None:
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
        now = time.monotonic()
        unseen = {lane: at for lane, at in woken.items() if lane not in seen and now - at < KEEP_WOKEN_S}
        self._wakeups.keep_for_later(unseen)
        return list(unseen)

    def _rest_s(self, free: int, unseen: Sequence[int]) -> float:
        if free <= 0:
            return IDLE_S
        with db.autocommit() as session:
            if unseen and admission.is_any_locked(session, unseen):
                return LOCKED_RECHECK_S
            return admission.next_wake_in_s(session, most_s=IDLE_S)


def _put_probes_first(queues: dict[int, list[Any]], lanes: Sequence[Any], serving: Sequence[Any]) -> None:
    """In lanes that only a probe may leave, jobs with the fewest calls stand first, however few slots are free.

    The job that was refused last keeps its old tag, and would be the probe again and again.
    """
    serving_pools = {one.pool_id for one in serving if not one.is_probe}
    for lane in lanes:
        if lane.pool_id not in serving_pools:
            queues[lane.id].sort(key=lambda head: head.calls)


def _hopeless(pool_ids: Iterable[int]) -> dict[int, Refusal]:
    """Of these pools those whose key the upstream does not serve, and how their jobs fail."""
    if not (wanted := sorted(set(pool_ids))):
        return {}
    with db.autocommit() as session:
        return parking.hopeless(session, wanted)


def _never_fits(limit: str | None) -> dict[str, object]:
    return {
        "message": f"This request needs more than the whole {limit} limit of its key, so it could never be sent. "
        "Make it smaller (a shorter prompt, a lower max_tokens or n), or ask for a higher limit.",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_exceeds_limit",
    }
