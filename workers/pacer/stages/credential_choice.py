"""Chooses the credential for each lane's jobs: by probes that are due, earlier failures, headroom and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Any

from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Headroom
from workers.pacer.stages.batch import Batch

#: Parked (credential, model, endpoint), and whether a probe is due.
ParkedRoutes = Mapping[tuple[int, str, str], bool]


class CredentialChoice:
    """The credentials of one batch, and which of them each lane has tried."""

    def __init__(self, batch: Batch, limiter: Limiter) -> None:
        self._limiter = limiter
        self._models = {lane.id: lane.model for lane in batch.lanes}
        self._weights = {row.id: row.weight for row in batch.credentials}
        self._probes = batch.probes
        self._parked: ParkedRoutes = {
            (row.id, route["model"], route["endpoint"]): route["is_due"] for row in batch.credentials for route in row.shut or ()
        }
        self._tried: dict[int, set[int]] = {lane.id: set() for lane in batch.lanes}
        #: The credentials that may serve each job.
        self._open_to = {
            job.id: _open_credentials(job, [row.id for row in batch.credentials if row.pool_id == lane.pool_id], lane.model, self._parked)
            for lane in batch.lanes
            for job in batch.picked.get(lane.id, ())
        }

    def choose(self, remaining: Mapping[int, Sequence[Any]]) -> dict[int, CredentialModel]:
        """The best credential that each lane has not tried; lanes that have tried all are missing. remaining: lane → jobs."""
        candidates = {lane: self._candidates(lane, jobs) for lane, jobs in remaining.items()}
        contested = [meter for meters in candidates.values() if len(meters) > 1 for meter in meters]
        headroom = dict(zip(contested, self._limiter.peek_many(contested), strict=True)) if contested else {}
        return {
            lane: max(meters, key=partial(self._rank, jobs=remaining[lane], headroom=headroom))
            for lane, meters in candidates.items() if meters
        }  # fmt: skip

    def jobs_for(self, meter: CredentialModel, jobs: Sequence[Any]) -> list[Any]:
        """The jobs that this credential may serve, in order; of a parked credential or a parked route one job, as its probe."""
        mine = [job for job in jobs if meter.credential_id in self._open_to[job.id]]
        if meter.credential_id in self._probes:
            # The refused job stays first in the queue. The job with the fewest calls goes, so that every job is the probe in turn.
            return [min(mine, key=lambda job: job.calls)]
        probed: set[str] = set()
        chosen = []
        for job in mine:
            if (meter.credential_id, meter.model, job.endpoint) in self._parked:
                if job.endpoint in probed and len(self._open_to[job.id]) > 1:
                    continue
                probed.add(job.endpoint)
            chosen.append(job)
        return chosen

    def probed(self, meter: CredentialModel, admitted: Sequence[Any]) -> list[tuple[int, str, str]]:
        """The parked routes with a due probe that these admitted jobs use."""
        routes = [(meter.credential_id, meter.model, job.endpoint) for job in admitted]
        return [route for route in routes if self._parked.get(route)]

    def mark_tried(self, lane: int, meter: CredentialModel) -> None:
        """Excludes this credential from the lane's next choices."""
        self._tried[lane].add(meter.credential_id)

    def _candidates(self, lane: int, jobs: Sequence[Any]) -> list[CredentialModel]:
        credentials = {credential_id for job in jobs for credential_id in self._open_to[job.id]} - self._tried[lane]
        return [CredentialModel(credential_id, self._models[lane]) for credential_id in sorted(credentials)]

    def _rank(
        self, meter: CredentialModel, *, jobs: Sequence[Any], headroom: Mapping[CredentialModel, Headroom | None]
    ) -> tuple[bool, int, float, float]:
        # A due probe goes first. Otherwise a credential with little headroom would never be probed at light load.
        is_due = any(
            self._parked.get((meter.credential_id, meter.model, job.endpoint)) and meter.credential_id in self._open_to[job.id]
            for job in jobs
        )  # fmt: skip
        # A credential that fails fast has the most headroom. Jobs that it failed try another one first.
        failed = sum(job.failed_with == meter.credential_id for job in jobs)
        weight = self._weights.get(meter.credential_id, 1.0)
        room = headroom.get(meter)
        return (is_due, -failed, -room.wait_ms, room.share * weight) if room is not None else (is_due, -failed, 0.0, weight)


def _open_credentials(job: Any, credentials: Sequence[int], model: str, parked: ParkedRoutes) -> Set[int]:
    """The credentials that may serve this job: not parked for it, and not ones that refused it. If none is left, the next best."""
    refused = {refusal["credential_id"] for refusal in job.refusals or ()}
    untried = [credential_id for credential_id in credentials if credential_id not in refused]
    unparked = {credential_id for credential_id in untried if (credential_id, model, job.endpoint) not in parked}
    due = {credential_id for credential_id in untried if parked.get((credential_id, model, job.endpoint))}
    return unparked | due if unparked else set(untried or credentials)
