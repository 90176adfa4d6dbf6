"""Decides for each lane of a batch how far its virtual time advances, and when and why to examine it again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from models.queue import key_shares
from models.queue.admission import LaneOutcome
from workers.pacer.stages.batch import Batch
from workers.pacer.wakeups import Wakeups

IDLE_S = 1.0
# A slot that is freed elsewhere wakes the lane at once. This interval covers a lost wake-up.
IN_FLIGHT_RECHECK_S = 2.0


class LaneResults:
    """Keeps the last finish tag of each lane from step to step."""

    def __init__(self, wakeups: Wakeups) -> None:
        self._wakeups = wakeups
        self._last_finish: dict[int, float] = {}

    def settle(self, batch: Batch, lane: Any, delays: Mapping[int, float]) -> LaneOutcome:
        """The new state of this lane's row. delays: lanes whose remaining jobs wait for a delay or a cap, in seconds."""
        reservation, picked = batch.reserved[lane.id], batch.picked[lane.id]
        admitted = {admission.job_id for admission in reservation.admissions}
        turns = key_shares.virtual_turns([head for head in picked if head.id in admitted])
        virtual_time = max([lane.virtual_time, *(turn for turn, _ in turns)])
        finish = max([self._last_finish.get(lane.id, 0.0), *(finish for _, finish in turns)])
        self._last_finish[lane.id] = finish
        if reservation.oversized is not None:
            return LaneOutcome(lane.id, virtual_time, 0.0, reservation.blocked_by)
        if reservation.blocked_by is not None:
            wake_in_s = reservation.wake_in_s or 0.0
            limit_s = IN_FLIGHT_RECHECK_S if reservation.blocked_by == "in_flight" else wake_in_s
            return LaneOutcome(lane.id, virtual_time, min(wake_in_s, limit_s), reservation.blocked_by)
        if not batch.is_exhausted(lane.id):
            # Other lanes got the slots. This lane is next as soon as one is free, whichever job frees it.
            self._wakeups.keep_for_later({lane.id: time.monotonic()})
            lacks_slots = len(picked) < len(batch.queues[lane.id])
            return LaneOutcome(lane.id, virtual_time, IDLE_S if lacks_slots else 0.0, "workers" if lacks_slots else None)
        if lane.id in delays:
            return LaneOutcome(lane.id, virtual_time, max(0.0, delays[lane.id]), "backoff")
        # The lane is empty: start-time fair queueing advances its time to the last finish tag, so an idle lane builds up no credit.
        self._last_finish.pop(lane.id, None)
        return LaneOutcome(lane.id, max(virtual_time, finish), None, None)
