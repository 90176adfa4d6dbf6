"""Stage 2: orders each lane's jobs and picks those that get a worker slot. Pure: no store is read or written."""

from __future__ import annotations

from models.queue import caps
from workers.pacer.stages.batch import Batch
from workers.pacer.stages.round_robin import DeficitRoundRobin


def pick_jobs(batch: Batch, round_robin: DeficitRoundRobin) -> None:
    """Picks jobs for the free slots by deficit round robin between lanes; fills batch.queues, batch.truncated and batch.picked."""
    batch.queues = {lane.id: [] for lane in batch.lanes}
    for head in batch.heads:
        batch.queues[head.lane_id].append(head)
    batch.truncated = {lane_id for lane_id, queue in batch.queues.items() if len(queue) >= batch.heads_limit}
    if batch.rooms:
        allowed = {head.id for head in caps.filter_allowed(batch.heads, batch.rooms)}
        batch.queues = {lane_id: [head for head in queue if head.id in allowed] for lane_id, queue in batch.queues.items()}
    _put_probes_first(batch)
    counts = round_robin.pick(batch.queues, slots=batch.free_slots)
    batch.picked = {lane_id: batch.queues[lane_id][:count] for lane_id, count in counts.items()}


def _put_probes_first(batch: Batch) -> None:
    """Sorts jobs with the fewest calls first in lanes whose pool is parked, where only a probe may go.

    A refused job keeps its start tag. Without this order the same job would be the probe again and again.
    """
    open_pools = {row.pool_id for row in batch.credentials if not row.is_probe}
    for lane in batch.lanes:
        if lane.pool_id not in open_pools:
            batch.queues[lane.id].sort(key=lambda head: head.calls)
