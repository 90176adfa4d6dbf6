"""Reserving budget for the heads of lanes: late binding to the credential with most room, rebuilt state, jobs that never fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from models.config.settings import settings
from models.database import db
from models.jobs import requeue
from models.keys import limits
from models.platform import crash_points
from models.queue.admission import Admission
from workers.limiter.limiter import AdmitRequest, BlockedBy, CredentialModel, Grant, Limiter, PastCharges

log = logging.getLogger(__name__)

MINUTES_S = 600
DAY_S = 86_400
EQUAL_WEIGHTS: Mapping[int, float] = {}
#: (credential, model, endpoint) that is parked, and whether a probe is due.
ParkedRoutes = Mapping[tuple[int, str, str], bool]
NO_PARKED_ROUTES: ParkedRoutes = {}


@dataclass
class Reservation:
    """What one lane got. wake_in_s None with blocked_by None: everything asked for was granted.

    probed: (credential, model, endpoint) that were parked and are tried by one of these jobs.
    """

    admissions: list[Admission] = field(default_factory=list)
    wake_in_s: float | None = None
    blocked_by: str | None = None
    never: UUID | None = None
    probed: list[tuple[int, str, str]] = field(default_factory=list)


class Reserver:
    """Asks the limiter on behalf of lanes."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def reserve(
        self,
        wanted: Mapping[int, Sequence[Any]],
        *,
        models: Mapping[int, str],
        credentials: Mapping[int, Sequence[int]],
        probes: Set[int] = frozenset(),
        weights: Mapping[int, float] = EQUAL_WEIGHTS,
        shut: ParkedRoutes = NO_PARKED_ROUTES,
    ) -> dict[int, Reservation]:
        """Budget for the first jobs of each lane, as far as it goes. credentials: lane → those that serve it, in any order.

        One round trip for all lanes with one credential; a lane with several asks the one with most room first and the next for
        the rest. probes: of these, the parked ones, which get one job at most. weights: by which a credential's
        room counts, where not 1. shut: what credentials are parked for; their jobs go to the others.
        Raises LineUnavailable when Redis is silent: nothing is admitted then.
        """
        given = {lane: Reservation() for lane in wanted}
        left = {lane: list(jobs) for lane, jobs in wanted.items() if jobs}
        tried: dict[int, set[int]] = {lane: set() for lane in wanted}
        open_to = {one.id: _open_to(one, credentials[lane], models[lane], shut) for lane, jobs in left.items() for one in jobs}
        while left:
            chosen = self._choose(left, models=models, open_to=open_to, tried=tried, weights=weights, shut=shut)
            for lane in [lane for lane in left if lane not in chosen]:
                if given[lane].blocked_by is None:
                    given[lane].blocked_by, given[lane].wake_in_s = "parked", 5.0
                left.pop(lane)
            going = {lane: self._going(left[lane], used, open_to, shut, probes) for lane, used in chosen.items()}
            asks = {lane: [_ask(one) for one in jobs] for lane, jobs in going.items()}
            grants = self._limiter.admit_many([(chosen[lane], asks[lane]) for lane in chosen], lease_ms=int(settings().lease_s * 1000))
            for lane, grant in zip(chosen, grants, strict=True):
                used = chosen[lane]
                given[lane].probed += [
                    (used.credential_id, used.model, one.endpoint)
                    for one in going[lane][: grant.admitted] if shut.get((used.credential_id, used.model, one.endpoint))
                ]  # fmt: skip
                self._note(given[lane], left, lane, used, going[lane], asks[lane], grant, tried[lane])
        return given

    def _going(
        self, jobs: Sequence[Any], used: CredentialModel, open_to: Mapping[UUID, Set[int]], shut: ParkedRoutes, probes: Set[int]
    ) -> list[Any]:  # fmt: skip
        """The jobs to ask for with this credential, in order: one alone where the credential is parked, for all or for their endpoint."""
        mine = [one for one in jobs if used.credential_id in open_to[one.id]]
        if used.credential_id in probes:
            # The job that was refused last stands first in line. The one with the fewest calls goes, so every job is the probe in turn.
            return [min(mine, key=lambda one: one.calls)]
        parked: set[str] = set()
        going = []
        for one in mine:
            if (used.credential_id, used.model, one.endpoint) in shut:
                if one.endpoint in parked and len(open_to[one.id]) > 1:
                    continue
                parked.add(one.endpoint)
            going.append(one)
        return going

    def _note(
        self, given: Reservation, left: dict[int, list[Any]], lane: int, used: CredentialModel, going: Sequence[Any],
        asks: list[AdmitRequest], grant: Grant, tried: set[int],
    ) -> None:  # fmt: skip
        admitted = going[: grant.admitted]
        given.admissions += [Admission(one.id, UUID(ask.dispatch_id), used.credential_id) for one, ask in zip(admitted, asks, strict=False)]
        gone = {one.id for one in admitted}
        rest = [one for one in left[lane] if one.id not in gone]
        if grant.blocked_by == BlockedBy.NO_STATE:
            self.rebuild(used)
            given.blocked_by, given.wake_in_s, given.never = grant.blocked_by, 0.0, None
            left.pop(lane)
            return
        tried.add(used.credential_id)
        if not rest:
            left.pop(lane)
            given.blocked_by, given.wake_in_s, given.never = None, None, None
            return
        left[lane] = rest
        if grant.admitted and grant.wake_in_ms is None and given.blocked_by is not None:
            # What the others said was about a job that goes now: whoever stands first next time asks them all.
            given.wake_in_s, given.never = 0.0, None
            return
        if grant.admitted < len(going):
            self._explain(given, grant, going[grant.admitted].id)

    def _explain(self, given: Reservation, grant: Grant, first: UUID) -> None:
        """Of several credentials that refused, the one that can pay first says when to look again."""
        if grant.blocked_by is None:
            return  # a probe went out; the rest waits for another credential, or for what becomes of it
        if grant.wake_in_ms is None:
            if given.blocked_by is None:
                given.blocked_by, given.never = str(grant.blocked_by), first
            return
        wake_in_s = grant.wake_in_ms / 1000
        if given.wake_in_s is None or wake_in_s < given.wake_in_s:
            given.blocked_by, given.wake_in_s, given.never = str(grant.blocked_by), wake_in_s, None

    def _choose(
        self,
        left: Mapping[int, Sequence[Any]],
        *,
        models: Mapping[int, str],
        open_to: Mapping[UUID, Set[int]],
        tried: Mapping[int, set[int]],
        weights: Mapping[int, float],
        shut: ParkedRoutes,
    ) -> dict[int, CredentialModel]:
        wanted = {lane: sorted({number for one in jobs for number in open_to[one.id]} - tried[lane]) for lane, jobs in left.items()}
        several = [CredentialModel(number, models[lane]) for lane, numbers in wanted.items() if len(numbers) > 1 for number in numbers]
        rooms = dict(zip(several, self._limiter.peek_many(several), strict=True)) if several else {}

        def room(one: CredentialModel, lane: int) -> tuple[bool, int, float, float]:
            found = rooms.get(one)
            weight = weights.get(one.credential_id, 1.0)
            # A probe that is due goes first, or a credential with less room than others would never be probed at light load.
            is_due = any(
                shut.get((one.credential_id, one.model, job.endpoint)) and one.credential_id in open_to[job.id] for job in left[lane]
            )
            # A credential that fails fast has most room. A job that it failed tries another one first.
            failed = sum(job.failed_with == one.credential_id for job in left[lane])
            return (is_due, -failed, -found.wait_ms, found.share * weight) if found is not None else (is_due, -failed, 0.0, weight)

        return {
            lane: max((CredentialModel(number, models[lane]) for number in numbers), key=partial(room, lane=lane))
            for lane, numbers in wanted.items() if numbers
        }  # fmt: skip

    def rebuild(self, lost: CredentialModel) -> None:
        """The limiter's state for this credential and model is made again from Postgres, never looser than what was lost.

        What was admitted and not claimed goes back first: its doorbell is as lost as the state. After that no claim can add a
        call that the history below does not show.
        """
        with db.begin() as session:
            requeue.requeue_unclaimed(session, older_than_s=0, credential_id=lost.credential_id, model=lost.model)
        with db.begin() as session:
            known = limits.read(session, lost.credential_id, lost.model)
            past = limits.history(session, lost.credential_id, lost.model, seconds=MINUTES_S, step_s=1)
            day = limits.history(session, lost.credential_id, lost.model, seconds=DAY_S, step_s=60) if known.limits.rpd else []
            live = limits.live(session, lost.credential_id, lost.model)
        crash_points.at("rebuild.before_init")
        now_us = time.time_ns() // 1000
        self._limiter.init(
            lost,
            known.limits,
            learned_rpm=known.learned_rpm,
            learned_tpm=known.learned_tpm,
            window=known.window_size,
            cooldown_until_us=int(known.cooldown_until.timestamp() * 1e6) if known.cooldown_until else 0,
            past=[PastCharges(row.ends_us, row.requests, int(row.tokens), int(row.images)) for row in past],
            day=[PastCharges(row.ends_us, row.requests, int(row.tokens), int(row.images)) for row in day],
            leases={str(row.dispatch_id): (now_us + int(row.left_s * 1e6), row.tokens, row.images) for row in live},
        )
        log.info("limiter state rebuilt", extra={"credential_id": lost.credential_id, "model": lost.model, "live": len(live)})


def _open_to(one: Any, credentials: Sequence[int], model: str, shut: ParkedRoutes) -> Set[int]:
    """The credentials that may serve this job: neither parked for it nor such that have refused it; if there are none, the next best."""
    refused = {refusal["credential_id"] for refusal in one.refusals or ()}
    untried = [number for number in credentials if number not in refused]
    open_ = {number for number in untried if (number, model, one.endpoint) not in shut}
    due = {number for number in untried if shut.get((number, model, one.endpoint))}
    return open_ | due if open_ else set(untried or credentials)


def _ask(one: Any) -> AdmitRequest:
    return AdmitRequest(str(uuid4()), tokens=one.tokens, images=one.images, since_us=int(one.created_at.timestamp() * 1e6))
