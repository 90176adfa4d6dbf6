"""Batch: the lanes that one pacer step has claimed, and the result of each stage for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from models.queue import caps
from models.queue.admission import Admission
from workers.limiter.requests import CredentialModel


@dataclass
class Reservation:
    """The limit budget reserved for one lane. With wake_in_s and blocked_by None, every picked job got its budget.

    oversized: the first job, where it needs more than a whole limit. probed: parked (credential, model, endpoint) that these jobs probe.
    """

    admissions: list[Admission] = field(default_factory=list)
    wake_in_s: float | None = None
    blocked_by: str | None = None
    oversized: UUID | None = None
    probed: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass
class Batch:
    """Rows of one step.

    lanes: of admission.claim_lanes. heads: of admission.queue_heads. credentials: of parking.open_or_due.
    heads_limit: jobs read of each lane, one more than can go; a lane with fewer has been read completely.
    queues: each lane's jobs within the caps, in order. picked: the first of them, as many as get a worker slot.
    truncated: lanes with more jobs than were read.
    """

    free_slots: int
    heads_limit: int
    lanes: Sequence[Any]
    rooms: Sequence[caps.Allowance]
    heads: Sequence[Any]
    credentials: Sequence[Any]
    queues: dict[int, list[Any]] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    picked: dict[int, list[Any]] = field(default_factory=dict)
    reserved: dict[int, Reservation] = field(default_factory=dict)

    @property
    def lane_ids(self) -> list[int]:
        """The ids of the claimed lanes."""
        return [lane.id for lane in self.lanes]

    @property
    def pool_ids(self) -> list[int]:
        """The ids of their pools."""
        return sorted({lane.pool_id for lane in self.lanes})

    @property
    def probes(self) -> set[int]:
        """Parked credentials that are due for a probe."""
        return {row.id for row in self.credentials if row.is_probe}

    @property
    def admissions(self) -> list[Admission]:
        """The reservations of all lanes."""
        return [admission for reservation in self.reserved.values() for admission in reservation.admissions]

    def jobs(self) -> Iterator[Any]:
        """The rows of all queues."""
        for queue in self.queues.values():
            yield from queue

    def is_exhausted(self, lane_id: int) -> bool:
        """Whether every job that the lane can send now has its budget."""
        queue = self.queues[lane_id]
        return len(queue) < self.heads_limit and len(self.picked[lane_id]) == len(queue) and self.reserved[lane_id].blocked_by is None

    def meters(self) -> dict[UUID, CredentialModel]:
        """The limiter state that each dispatch id is charged to."""
        models = {lane.id: lane.model for lane in self.lanes}
        lane_of = {job.id: job.lane_id for job in self.jobs()}
        return {item.dispatch_id: CredentialModel(item.credential_id, models[lane_of[item.job_id]]) for item in self.admissions}
