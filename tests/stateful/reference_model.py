"""What must be true of every job, whatever was done: the rules of docs/internals (queue, jobs) once more, in plain Python.

Whoever plays callers, operators and workers tells the picture what was done; it says what must be seen then. Costs are whole numbers and
weights are powers of two, so tags are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tests.stateful.records import ENDED, WEIGHTS, Aside, Call, Cap, Endpoint, Flow, Lane, Talk, Tenant, Ticket, Verdict


class Picture:
    """All tenants, lanes and jobs."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        # Of each user of a key in a lane, in the key's own time.
        self.finishes: dict[Flow, float] = {}
        self.weights: dict[Flow, float] = {}
        # As the tables have it: when each key's next turn is in a lane, and its weight.
        self.starts: dict[tuple[Lane, int], tuple[float, float]] = {}
        self.talks: dict[tuple[str, str], Talk] = {}
        self.caps: dict[tuple[Any, ...], Cap] = {}
        # Of each pool; and those put aside for one of its lanes.
        self.credentials: dict[int, list[int]] = {}
        self.aside: dict[tuple[int, Lane], Aside] = {}
        self.paused: set[Any] = set()
        self.draining: set[Any] = set()
        self.endpoints: list[Endpoint] = []
        self.told: Counter[tuple[str, str, str]] = Counter()

    # Questions

    def of(self, who: Tenant) -> list[Ticket]:
        """This key's jobs, newest first."""
        return sorted((one for one in self.tickets if one.who is who), key=lambda one: one.id, reverse=True)

    def in_line(self, lane: Lane) -> list[Ticket]:
        """Who waits in this lane and is not held, in order."""
        return sorted((one for one in self.tickets if one.lane == lane and one.waits), key=lambda one: self.turn(one))

    def turn(self, job: Ticket, *, among: Callable[[Ticket], bool] = lambda one: one.waits) -> tuple[float, str]:
        """When it is this job's turn in its lane: after its key's earlier ones have had theirs."""
        if job.tag < 0:
            return job.tag, job.id
        starts, weight = self.starts.get((job.lane, job.who.key_id), (0.0, 1.0))
        before = [one for one in self.tickets if one.lane == job.lane and one.who is job.who and among(one) and one.place < job.place]
        return starts + sum(one.cost for one in before) / weight, job.id

    def on_the_way(self, lane: Lane) -> list[Ticket]:
        return [one for one in self.tickets if one.lane == lane and one.status in ("admitted", "running")]

    def position(self, job: Ticket) -> int:
        """Who must go before it, and itself: its key's with lower tags, others' whose turn is earlier, the turns before it."""
        before = [one for one in (job.talk.turns if job.talk and job.held else []) if one.status == "queued" and one.lane == job.lane]
        before = before[: before.index(job)] if job in before else []
        last = max([job, *before], key=lambda one: one.place)
        turn = self.turn(last)
        ahead = [one for one in self.in_line(job.lane) if (one.place < last.place if one.who is job.who else self.turn(one) < turn)]
        return len({id(one) for one in [*ahead, *before, job]})

    def blocked_by(self, job: Ticket) -> str | None:
        """Why a waiting job waits, as far as it is not about limits, workers or time."""
        why = self._capped(job)
        if self.is_halted(job.lane) or why == "paused":
            return "paused"
        if job.held:
            return "conversation"
        return "backoff" if job.delayed else why

    def is_halted(self, lane: Lane) -> bool:
        return bool({lane, lane[0]} & self.paused)

    def may_go(self, job: Ticket) -> bool:
        return job.waits and not job.delayed and not self.is_halted(job.lane) and self._capped(job) is None

    def _capped(self, job: Ticket) -> str | None:
        for scope, cap in self._caps_of(job.who, job.lane, job.flow):
            if cap.is_paused:
                return "paused"
            if cap.max_in_flight is not None and self.live_within(scope) >= cap.max_in_flight:
                return f"{scope[0]}_max_in_flight"
        return None

    def serving(self, job: Ticket) -> set[int]:
        """The credentials that may be called for this job: none that refused it, none that is aside, if there are others."""
        refused = dict(job.refusals)
        untried = [each for each in self.credentials[job.lane[0]] if each not in refused]
        good = {each for each in untried if (each, job.lane) not in self.aside}
        due = {each for each in untried if (aside := self.aside.get((each, job.lane))) and aside.is_due}
        return good | due if good else set(untried or self.credentials[job.lane[0]])

    def has_others(self, job: Ticket, call: Call) -> bool:
        """Whether another credential than those that refused the job may serve it."""
        return bool(set(self.credentials[job.lane[0]]) - dict(call.refusals).keys() - {call.credential})

    def _caps_of(self, who: Tenant, lane: Lane, flow: str) -> list[tuple[tuple[Any, ...], Cap]]:
        names = (("flow", (lane, who.key_id, flow)), ("key", who.key_id))
        return [(name, self.caps[name]) for name in names if name in self.caps]

    def cap_of_key(self, who: Tenant) -> Cap:
        return self.caps.get(("key", who.key_id), Cap())

    def live_within(self, scope: tuple[Any, ...]) -> int:
        return len([one for one in self.within(scope) if one.status in ("admitted", "running")])

    def within(self, scope: tuple[Any, ...]) -> Iterable[Ticket]:
        if scope[0] == "key":
            return (one for one in self.tickets if one.who.key_id == scope[1])
        return (one for one in self.tickets if one.of == scope[1])

    def spent(self, who: Tenant) -> int:
        return sum(call.paid or 0 for one in self.of(who) for call in one.calls)

    def reserved(self, who: Tenant) -> int:
        return sum(one.reserved or 0 for one in self.of(who) if one.is_open)

    def refusal(self, job: Ticket) -> str | None:
        """Why the line does not take this job; None: it does."""
        who = job.who
        left = None if who.granted is None or job.reserved == 0 else who.granted - self.spent(who) - self.reserved(who)
        if left is not None and left < max(1, job.reserved or 0):
            return "credit_balance_exhausted"
        if {job.lane, job.lane[0]} & self.draining:
            return "draining"
        for scope, cap in self._caps_of(who, job.lane, job.flow):
            if cap.is_draining:
                return "draining"
            waiting = len([one for one in self.within(scope) if one.status == "queued"])
            if cap.max_queued is not None and waiting + 1 > cap.max_queued:
                return f"{scope[0]}_max_queued"
        return None

    # What callers do

    def talk(self, who: Tenant, name: str) -> Talk:
        return self.talks.setdefault((who.name, name), Talk(name))

    def join(self, job: Ticket, *, at: float) -> None:
        """The job stands in line. at: its key's own time in the lane."""
        flow = job.of
        share = job.cost / WEIGHTS[job.priority]
        job.share = share / self.weights.setdefault(flow, 1.0)
        free = max(at, self.finishes.get(flow, at))
        job.tag = max([free, *(one.tag + one.share for one in self.tickets if one.of == flow and one.status == "queued")])
        self.finishes[flow] = free + (job.share if flow in self.finishes else share)
        if job.talk is not None:
            job.held = any(one.is_open for one in job.talk.turns)
            job.talk.turns.append(job)
        self.tickets.append(job)

    def cancel(self, job: Ticket) -> bool:
        """False: there was nothing to cancel any more."""
        if not job.is_open or job.cancel_requested:
            return False
        job.cancel_requested = True
        if job.status == "running":
            job.events.append("cancelling")
        else:
            self._give_back(job)
            self._end(job, "cancelled")
        return True

    def _give_back(self, job: Ticket) -> None:
        """It ends uncalled: its user has its share again."""
        self.finishes[job.of] -= job.share

    def delete_talk(self, who: Tenant, name: str) -> None:
        talk = self.talks.pop((who.name, name))
        talk.is_deleted = True
        for one in reversed(talk.turns):
            self.cancel(one)
        self.erase()

    def erase(self) -> None:
        """What was asked and answered in deleted conversations is gone."""
        for one in self.tickets:
            if one.talk is not None and one.talk.is_deleted and not one.is_open:
                one.is_erased, one.answer = True, None

    # What operators do

    def boost(self, job: Ticket) -> None:
        job.delayed = False
        job.tag = min([0.0, *(one.tag for one in self.in_line(job.lane))]) - 1

    def retag(self, flow: Flow) -> None:
        """The user's waiting jobs stand one share after the other, from where the first one stood; what was put first stays so."""
        mine = sorted(
            (one for one in self.tickets if one.of == flow and one.status == "queued" and one.tag >= 0), key=lambda one: one.place
        )
        tag = mine[0].tag if mine else 0.0
        for one in mine:
            one.tag, one.share = tag, one.cost / (WEIGHTS[one.priority] * self.weights[flow])
            tag += one.share
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
        self.caps = {scope: cap for scope, cap in self.caps.items() if cap.says_anything}

    # What pacer, workers and sweep do

    def admit(self, job: Ticket, dispatch: Any, credential: int) -> None:
        assert job.waits and not job.delayed
        assert credential in self.serving(job), "the job went to a credential that cannot serve it"
        job.status, job.dispatch, job.credential = "admitted", dispatch, credential
        if aside := self.aside.get((credential, job.lane)):
            aside.is_due = False

    def put_aside(self, job: Ticket, call: Call) -> None:
        """The credential of this call cannot serve the job: the others are tried; when there are none, what the job put aside is back."""
        if self.has_others(job, call):
            self.aside[call.credential, job.lane] = Aside(job)
        else:
            self.aside = {where: aside for where, aside in self.aside.items() if aside.job is not job}

    def serves_again(self, job: Ticket, call: Call) -> None:
        """This call was answered."""
        if call.is_probe:
            self.aside.pop((call.credential, job.lane), None)

    def unclaimed(self, job: Ticket) -> None:
        job.status, job.dispatch = "queued", None

    def start(self, job: Ticket, dispatch: Any) -> bool:
        """False: this dispatch is not the one, or no more."""
        if job.status != "admitted" or job.dispatch != dispatch:
            return False
        job.status, job.lost = "running", None
        is_probe = (job.credential, job.lane) in self.aside
        job.calls.append(Call(dispatch, job.credential, is_probe, job.throttles, job.failures, job.refusals))
        job.events.append("started")
        self._tell(job, "job.started")
        return True

    def end_call(self, job: Ticket, dispatch: Any, verdict: Verdict) -> bool:
        """The call has come to this, however late; False: the job went on without it."""
        call = next(one for one in job.calls if one.dispatch == dispatch)
        if call.outcome in ("running", "unknown"):
            call.outcome = verdict.outcome
            self._charge(job, call, verdict.owed)
        if verdict.usage is not None and call.usage is None:
            call.usage = verdict.usage
        is_mine = job.status == "running" and job.dispatch == dispatch
        if verdict.ends_as is None:
            if is_mine:
                self._back(job, verdict, call.credential)
            return is_mine
        adopted = job.status in ("queued", "admitted") and job.lost == dispatch
        if not (is_mine or adopted):
            return False
        job.maybe_twice -= 1 if adopted else 0
        job.delayed, job.lost = False, None
        job.answer, job.said, job.error = verdict.answer, verdict.said, verdict.error
        self._end(job, verdict.ends_as)
        return True

    def _back(self, job: Ticket, verdict: Verdict, credential: int) -> None:
        job.failures += verdict.counts
        job.throttles += verdict.throttled
        if verdict.refused is not None and credential not in dict(job.refusals):
            job.refusals = (*job.refusals, (credential, verdict.refused))
        job.maybe_twice += verdict.outcome == "unknown"
        job.dispatch = None
        if job.cancel_requested:
            self._end(job, "cancelled")
            return
        job.status, job.delayed = "queued", verdict.delay
        job.events.append("queued")

    def lose(self, job: Ticket) -> None:
        """Its worker was not heard of for too long."""
        call = next(one for one in job.calls if one.dispatch == job.dispatch)
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
            job.maybe_twice += 1
            job.status = "queued"
            job.events.append("queued")

    def expire(self, job: Ticket) -> None:
        job.error = "expired"
        self._give_back(job)
        self._end(job, "expired")

    def _charge(self, job: Ticket, call: Call, owed: int | None) -> None:
        if not call.is_open:
            return
        if owed is None:
            call.paid = call.paid if call.paid is not None else (job.reserved or None)
        elif owed or call.paid is not None:
            call.paid, call.is_open = owed, False

    def _end(self, job: Ticket, status: str) -> None:
        was_held, job.status = job.held, status
        job.events.append(status)
        self._tell(job, f"job.{status}")
        if job.talk is not None and not was_held:
            self._let_next(job.talk, after=job)

    def _let_next(self, talk: Talk, *, after: Ticket) -> None:
        held = [one for one in talk.turns if one.status == "queued" and one.held]
        if talk.stops and after.status in ("failed", "expired"):
            for one in held:
                one.error = "earlier_turn_failed"
                self._give_back(one)
                self._end(one, "cancelled")
        elif held:
            held[0].held = False

    def _tell(self, job: Ticket, kind: str) -> None:
        for one in self.endpoints:
            if one.who is job.who and kind in one.types:
                self.told[one.id, job.id, kind] += 1
        if job.hook is not None and job.status in ENDED:
            self.told[job.hook, job.id, kind] += 1
