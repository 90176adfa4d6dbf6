"""Stage 1: claims due and woken lanes, and reads their first jobs, caps and credentials in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from models.config.settings import settings
from models.database import db
from models.jobs import workers
from models.keys import parking
from models.queue import admission, caps
from workers.pacer.stages.batch import Batch

MAX_LANES = 64
MAX_HEADS = 64


def claim_batch(woken: Sequence[int]) -> Batch:
    """Claims lanes while workers have free slots; otherwise the batch has none. Raises Unavailable."""
    with db.autocommit() as session:
        free_slots = workers.free_slots(session, seen_within_s=settings().heartbeat_s * 3)
        lanes = admission.claim_lanes(session, woken=woken, limit=MAX_LANES) if free_slots > 0 else []
        heads_limit = min(MAX_HEADS, max(free_slots, 0)) + 1
        batch = Batch(free_slots, heads_limit, lanes, rooms=[], heads=[], credentials=[])
        if any(lane.has_caps for lane in lanes):
            batch.rooms = caps.read_allowances(session, lanes=batch.lane_ids, pools=batch.pool_ids)
        batch.heads = admission.queue_heads(session, lanes, limit=heads_limit, allowances=batch.rooms)
        if lanes:
            batch.credentials = parking.usable_credentials(session, batch.pool_ids, probe_s=settings().probe_s)
    return batch
