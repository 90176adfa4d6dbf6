"""Stage 3: reserves limit budget for the picked jobs. Each job is bound to a credential only now, to the one with the most headroom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from models.config.settings import settings
from models.queue.admission import Admission
from workers.limiter.limiter import Limiter
from workers.limiter.requests import AdmitRequest, BlockedBy, CredentialModel, Grant
from workers.pacer.limiter_rebuild import rebuild
from workers.pacer.stages.batch import Batch, Reservation
from workers.pacer.stages.credential_choice import CredentialChoice

PARKED_RECHECK_S = 5.0


class Reserver:
    """Calls the limiter for the lanes of a batch."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def reserve(self, batch: Batch) -> dict[int, Reservation]:
        """Reserves budget for the first picked jobs of each lane, as far as the limits allow.

        A lane with one credential takes one round trip, shared with all other lanes. A lane with several tries the credential with the
        most headroom first, and the next one for the remaining jobs.
        Raises LimiterUnavailable when Redis does not answer; then no job may be admitted.
        """
        reserved = {lane: Reservation() for lane in batch.picked}
        remaining = {lane: list(jobs) for lane, jobs in batch.picked.items() if jobs}
        choice = CredentialChoice(batch, self._limiter)
        while remaining:
            chosen = choice.choose(remaining)
            for lane in remaining.keys() - chosen.keys():
                if reserved[lane].blocked_by is None:
                    reserved[lane].blocked_by, reserved[lane].wake_in_s = "parked", PARKED_RECHECK_S
                remaining.pop(lane)
            jobs = {lane: choice.jobs_for(meter, remaining[lane]) for lane, meter in chosen.items()}
            asks = {lane: [_ask(job) for job in jobs[lane]] for lane in chosen}
            grants = self._limiter.admit_many([(chosen[lane], asks[lane]) for lane in chosen], lease_ms=int(settings().lease_s * 1000))
            for lane, grant in zip(chosen, grants, strict=True):
                meter, admitted = chosen[lane], jobs[lane][: grant.admitted]
                reserved[lane].probed += choice.probed(meter, admitted)
                reserved[lane].admissions += [
                    Admission(job.id, UUID(ask.dispatch_id), meter.credential_id) for job, ask in zip(admitted, asks[lane], strict=False)
                ]
                self._apply(grant, reserved[lane], remaining, lane, meter, jobs[lane])
                choice.mark_tried(lane, meter)
        return reserved

    def _apply(
        self, grant: Grant, reservation: Reservation, remaining: dict[int, list[Any]], lane: int, meter: CredentialModel,
        asked: Sequence[Any],
    ) -> None:  # fmt: skip
        """Takes the admitted jobs out of the lane's remaining ones, and records what blocks the others."""
        if grant.blocked_by == BlockedBy.NO_STATE:
            rebuild(self._limiter, meter)
            reservation.blocked_by, reservation.wake_in_s, reservation.oversized = grant.blocked_by, 0.0, None
            remaining.pop(lane)
            return
        admitted = {job.id for job in asked[: grant.admitted]}
        remaining[lane] = [job for job in remaining[lane] if job.id not in admitted]
        if not remaining[lane]:
            remaining.pop(lane)
            reservation.blocked_by, reservation.wake_in_s, reservation.oversized = None, None, None
        elif grant.admitted and grant.wake_in_ms is None and reservation.blocked_by is not None:
            # The other credentials refused a job that goes now. The next step asks all of them for the new first job.
            reservation.wake_in_s, reservation.oversized = 0.0, None
        elif grant.admitted < len(asked):
            _record_block(reservation, grant, first=asked[grant.admitted].id)


def _record_block(reservation: Reservation, grant: Grant, *, first: UUID) -> None:
    """Of several credentials that refused, keeps the block that ends first."""
    if grant.blocked_by is None:
        return  # a probe was admitted; the other jobs wait for another credential or for the probe's result
    if grant.wake_in_ms is None:
        if reservation.blocked_by is None:
            reservation.blocked_by, reservation.oversized = str(grant.blocked_by), first
        return
    wake_in_s = grant.wake_in_ms / 1000
    if reservation.wake_in_s is None or wake_in_s < reservation.wake_in_s:
        reservation.blocked_by, reservation.wake_in_s, reservation.oversized = str(grant.blocked_by), wake_in_s, None


def _ask(job: Any) -> AdmitRequest:
    return AdmitRequest(str(uuid4()), tokens=job.tokens, images=job.images, since_us=int(job.created_at.timestamp() * 1e6))
