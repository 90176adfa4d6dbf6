"""The reference model: the rules of docs/internals (queue, jobs) in plain Python.

The rules of the state machine tell the model each step; the model returns the expected state. Costs are whole numbers and weights are
powers of two, so tags are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tests.stateful.records import ENDED, WEIGHTS, Call, Cap, Conversation, Endpoint, Flow, Lane, ModelJob, ParkedModel, Tenant, Verdict


class ReferenceModel:
    """The expected state of all tenants, lanes and jobs."""

    def __init__(self) -> None:
        self.jobs: list[ModelJob] = []
        # Last finish of each user of a key in a lane, in the key's virtual time.
        self.finishes: dict[Flow, float] = {}
        self.weights: dict[Flow, float] = {}
        # From the tables: each key's next turn in a lane, and its weight.
        self.starts: dict[tuple[Lane, int], tuple[float, float]] = {}
        self.conversations: dict[tuple[str, str], Conversation] = {}
        self.caps: dict[tuple[Any, ...], Cap] = {}
        # Credentials of each pool, and credentials parked for a lane.
        self.credentials: dict[int, list[int]] = {}
        self.parked: dict[tuple[int, Lane], ParkedModel] = {}
        self.paused: set[Any] = set()
        self.draining: set[Any] = set()
        self.endpoints: list[Endpoint] = []
        self.deliveries: Counter[tuple[str, str, str]] = Counter()

    # Queries

    def of(self, who: Tenant) -> list[ModelJob]:
        """This key's jobs, newest first."""
        return sorted((other for other in self.jobs if other.who is who), key=lambda other: other.id, reverse=True)

    def queued_in(self, lane: Lane) -> list[ModelJob]:
        """The queued jobs of this lane that are not held, in order."""
        return sorted((other for other in self.jobs if other.lane == lane and other.waits), key=lambda other: self.turn(other))

    def turn(self, job: ModelJob, *, among: Callable[[ModelJob], bool] = lambda other: other.waits) -> tuple[float, str]:
        """The job's turn in its lane: after the earlier jobs of its key."""
        if job.tag < 0:
            return job.tag, job.id
        starts, weight = self.starts.get((job.lane, job.who.key_id), (0.0, 1.0))
        before = [
            other for other in self.jobs if other.lane == job.lane and other.who is job.who and among(other) and other.place < job.place
        ]
        return starts + sum(other.cost for other in before) / weight, job.id

    def in_flight_in(self, lane: Lane) -> list[ModelJob]:
        return [other for other in self.jobs if other.lane == lane and other.status in ("admitted", "running")]

    def position(self, job: ModelJob) -> int:
        """The number of jobs ahead plus one: lower tags of its key, earlier turns of other keys, and the turns before it."""
        before = [
            other
            for other in (job.conversation.turns if job.conversation and job.held else [])
            if other.status == "queued" and other.lane == job.lane
        ]
        before = before[: before.index(job)] if job in before else []
        last = max([job, *before], key=lambda other: other.place)
        turn = self.turn(last)
        ahead = [
            other for other in self.queued_in(job.lane) if (other.place < last.place if other.who is job.who else self.turn(other) < turn)
        ]
        return len({id(other) for other in [*ahead, *before, job]})

    def blocked_by(self, job: ModelJob) -> str | None:
        """The reason that blocks a queued job, except limits, workers and time."""
        why = self._capped(job)
        if self.is_lane_paused(job.lane) or why == "paused":
            return "paused"
        if job.held:
            return "conversation"
        return "backoff" if job.delayed else why

    def is_lane_paused(self, lane: Lane) -> bool:
        return bool({lane, lane[0]} & self.paused)

    def is_admissible(self, job: ModelJob) -> bool:
        return job.waits and not job.delayed and not self.is_lane_paused(job.lane) and self._capped(job) is None

    def _capped(self, job: ModelJob) -> str | None:
        for scope, cap in self._caps_of(job.who, job.lane, job.flow):
            if cap.is_paused:
                return "paused"
            if cap.max_in_flight is not None and self.live_within(scope) >= cap.max_in_flight:
                return f"{scope[0]}_max_in_flight"
        return None

    def serving(self, job: ModelJob) -> set[int]:
        """The credentials that may serve this job: none that refused it and none that is parked, if there are others."""
        refused = dict(job.refusals)
        untried = [each for each in self.credentials[job.lane[0]] if each not in refused]
        good = {each for each in untried if (each, job.lane) not in self.parked}
        due = {each for each in untried if (parked := self.parked.get((each, job.lane))) and parked.is_due}
        return good | due if good else set(untried or self.credentials[job.lane[0]])

    def has_others(self, job: ModelJob, call: Call) -> bool:
        """Whether another credential than those that refused the job may serve it."""
        return bool(set(self.credentials[job.lane[0]]) - dict(call.refusals).keys() - {call.credential})

    def _caps_of(self, who: Tenant, lane: Lane, flow: str) -> list[tuple[tuple[Any, ...], Cap]]:
        names = (("flow", (lane, who.key_id, flow)), ("key", who.key_id))
        return [(name, self.caps[name]) for name in names if name in self.caps]

    def cap_of_key(self, who: Tenant) -> Cap:
        return self.caps.get(("key", who.key_id), Cap())

    def live_within(self, scope: tuple[Any, ...]) -> int:
        return len([other for other in self.within(scope) if other.status in ("admitted", "running")])

    def within(self, scope: tuple[Any, ...]) -> Iterable[ModelJob]:
        if scope[0] == "key":
            return (other for other in self.jobs if other.who.key_id == scope[1])
        return (other for other in self.jobs if other.of == scope[1])

    def spent(self, who: Tenant) -> int:
        return sum(call.paid or 0 for other in self.of(who) for call in other.calls)

    def reserved(self, who: Tenant) -> int:
        return sum(other.reserved or 0 for other in self.of(who) if other.is_open)

    def refusal(self, job: ModelJob) -> str | None:
        """The error code with which the queue refuses this job; None: it accepts it."""
        who = job.who
        left = None if who.granted is None or job.reserved == 0 else who.granted - self.spent(who) - self.reserved(who)
        if left is not None and left < max(1, job.reserved or 0):
            return "credit_balance_exhausted"
        if {job.lane, job.lane[0]} & self.draining:
            return "draining"
        for scope, cap in self._caps_of(who, job.lane, job.flow):
            if cap.is_draining:
                return "draining"
            waiting = len([other for other in self.within(scope) if other.status == "queued"])
            if cap.max_queued is not None and waiting + 1 > cap.max_queued:
                return f"{scope[0]}_max_queued"
        return None

    # Callers

    def conversation(self, who: Tenant, name: str) -> Conversation:
        return self.conversations.setdefault((who.name, name), Conversation(name))

    def enqueue(self, job: ModelJob, *, at: float) -> None:
        """Enqueues the job. at: its key's virtual time in the lane."""
        flow = job.of
        share = job.cost / WEIGHTS[job.priority]
        job.share = share / self.weights.setdefault(flow, 1.0)
        free = max(at, self.finishes.get(flow, at))
        job.tag = max([free, *(other.tag + other.share for other in self.jobs if other.of == flow and other.status == "queued")])
        self.finishes[flow] = free + (job.share if flow in self.finishes else share)
        if job.conversation is not None:
            job.held = any(other.is_open for other in job.conversation.turns)
            job.conversation.turns.append(job)
        self.jobs.append(job)

    def cancel(self, job: ModelJob) -> bool:
        """Returns False if the job has ended or is being cancelled."""
        if not job.is_open or job.cancel_requested:
            return False
        job.cancel_requested = True
        if job.status == "running":
            job.events.append("cancelling")
        else:
            self._refund(job)
            self._end(job, "cancelled")
        return True

    def _refund(self, job: ModelJob) -> None:
        """Refunds the user of a job that ends without a call."""
        self.finishes[job.of] -= job.share

    def delete_talk(self, who: Tenant, name: str) -> None:
        conversation = self.conversations.pop((who.name, name))
        conversation.is_deleted = True
        for other in reversed(conversation.turns):
            self.cancel(other)
        self.erase()

    def erase(self) -> None:
        """Erases questions and answers of deleted conversations."""
        for other in self.jobs:
            if other.conversation is not None and other.conversation.is_deleted and not other.is_open:
                other.is_erased, other.answer = True, None

    # Operators

    def boost(self, job: ModelJob) -> None:
        job.delayed = False
        job.tag = min([0.0, *(other.tag for other in self.queued_in(job.lane))]) - 1

    def retag(self, flow: Flow) -> None:
        """Sets the tags of the user's queued jobs anew, one share after the other from the first tag. Boosted jobs keep theirs."""
        mine = sorted(
            (other for other in self.jobs if other.of == flow and other.status == "queued" and other.tag >= 0),
            key=lambda other: other.place,
        )
        tag = mine[0].tag if mine else 0.0
        for other in mine:
            other.tag, other.share = tag, other.cost / (WEIGHTS[other.priority] * self.weights[flow])
            tag += other.share
        if mine:
            self.finishes[flow] = tag

    def cap(self, scope: tuple[Any, ...]) -> Cap:
        return self.caps.setdefault(scope, Cap())

    def resume(self, target: Any, scope: tuple[Any, ...]) -> None:
        self.paused.discard(target)
        self.draining.discard(target)
        if scope in self.caps:
            self.caps[scope].is_paused = self.caps[scope].is_draining = False
        self.drop_empty_caps()

    def drop_empty_caps(self) -> None:
        self.caps = {scope: cap for scope, cap in self.caps.items() if cap.is_set}

    # Pacer, workers and reaper

    def admit(self, job: ModelJob, dispatch: Any, credential: int) -> None:
        assert job.waits and not job.delayed
        assert credential in self.serving(job), "the job went to a credential that cannot serve it"
        job.status, job.dispatch, job.credential = "admitted", dispatch, credential
        if parked := self.parked.get((credential, job.lane)):
            parked.is_due = False

    def park(self, job: ModelJob, call: Call) -> None:
        """Parks the credential that refused the job; without other credentials, unparks those that the job parked."""
        if self.has_others(job, call):
            self.parked[call.credential, job.lane] = ParkedModel(job)
        else:
            self.parked = {where: parked for where, parked in self.parked.items() if parked.job is not job}

    def unpark(self, job: ModelJob, call: Call) -> None:
        """Unparks the credential after an answered probe."""
        if call.is_probe:
            self.parked.pop((call.credential, job.lane), None)

    def unclaimed(self, job: ModelJob) -> None:
        job.status, job.dispatch = "queued", None

    def start(self, job: ModelJob, dispatch: Any) -> bool:
        """Claims the job. Returns False for a stale dispatch."""
        if job.status != "admitted" or job.dispatch != dispatch:
            return False
        job.status, job.lost = "running", None
        is_probe = (job.credential, job.lane) in self.parked
        job.calls.append(Call(dispatch, job.credential, is_probe, job.throttles, job.failures, job.refusals))
        job.events.append("started")
        self._deliver(job, "job.started")
        return True

    def end_call(self, job: ModelJob, dispatch: Any, verdict: Verdict) -> bool:
        """Applies the verdict of a call, however late. Returns False if it does not change the job."""
        call = next(other for other in job.calls if other.dispatch == dispatch)
        if call.outcome in ("running", "unknown"):
            call.outcome = verdict.outcome
            self._charge(job, call, verdict.owed)
        if verdict.usage is not None and call.usage is None:
            call.usage = verdict.usage
        is_mine = job.status == "running" and job.dispatch == dispatch
        if verdict.ends_as is None:
            if is_mine:
                self._requeue(job, verdict, call.credential)
            return is_mine
        adopted = job.status in ("queued", "admitted") and job.lost == dispatch
        if not (is_mine or adopted):
            return False
        job.possible_duplicates -= 1 if adopted else 0
        job.delayed, job.lost = False, None
        job.answer, job.answer_text, job.error = verdict.answer, verdict.answer_text, verdict.error
        self._end(job, verdict.ends_as)
        return True

    def _requeue(self, job: ModelJob, verdict: Verdict, credential: int) -> None:
        job.failures += verdict.counts
        job.throttles += verdict.throttled
        if verdict.refused is not None and credential not in dict(job.refusals):
            job.refusals = (*job.refusals, (credential, verdict.refused))
        job.possible_duplicates += verdict.outcome == "unknown"
        job.dispatch = None
        if job.cancel_requested:
            self._end(job, "cancelled")
            return
        job.status, job.delayed = "queued", verdict.delay
        job.events.append("queued")

    def reap(self, job: ModelJob) -> None:
        """Reaps a job whose worker was lost."""
        call = next(other for other in job.calls if other.dispatch == job.dispatch)
        call.outcome = "unknown"
        self._charge(job, call, None)
        is_last = job.on_lost == "fail" or job.failures + 1 >= job.max_attempts
        job.failures += 1
        job.lost, job.dispatch = job.dispatch, None
        if job.cancel_requested:
            self._end(job, "cancelled")
        elif is_last:
            job.error = "upstream_outcome_unknown"
            self._end(job, "failed")
        else:
            job.possible_duplicates += 1
            job.status = "queued"
            job.events.append("queued")

    def expire(self, job: ModelJob) -> None:
        job.error = "expired"
        self._refund(job)
        self._end(job, "expired")

    def _charge(self, job: ModelJob, call: Call, owed: int | None) -> None:
        if not call.is_open:
            return
        if owed is None:
            call.paid = call.paid if call.paid is not None else (job.reserved or None)
        elif owed or call.paid is not None:
            call.paid, call.is_open = owed, False

    def _end(self, job: ModelJob, status: str) -> None:
        was_held, job.status = job.held, status
        job.events.append(status)
        self._deliver(job, f"job.{status}")
        if job.conversation is not None and not was_held:
            self._enqueue_next(job.conversation, after=job)

    def _enqueue_next(self, conversation: Conversation, *, after: ModelJob) -> None:
        held = [other for other in conversation.turns if other.status == "queued" and other.held]
        if conversation.stops and after.status in ("failed", "expired"):
            for other in held:
                other.error = "earlier_turn_failed"
                self._refund(other)
                self._end(other, "cancelled")
        elif held:
            held[0].held = False

    def _deliver(self, job: ModelJob, kind: str) -> None:
        for other in self.endpoints:
            if other.who is job.who and kind in other.types:
                self.deliveries[other.id, job.id, kind] += 1
        if job.hook is not None and job.status in ENDED:
            self.deliveries[job.hook, job.id, kind] += 1
