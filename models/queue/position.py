"""The position of a queued job in its lane, and an estimate of its wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import caps, conversations, position_index
from models.queue.position_index import MAX_COUNTED


@dataclass(frozen=True)
class QueuePosition:
    """The position of a queued job. position 1 is next; eta_s None: paused or unknown; wake_at: when its lane is admitted from again."""

    position: int
    eta_s: float | None
    blocked_by: str | None
    wake_at: datetime | None

    @property
    def standstill(self) -> str | None:
        """The reason why the lane stands still without a known end (parked, paused); None with an estimate."""
        return self.blocked_by if self.eta_s is None else None


@dataclass(frozen=True)
class Enqueued:
    """An enqueued job. position: as of the insert; None for turns of conversations and keys with caps, which need another query."""

    created_at: datetime
    expires_at: datetime
    position: QueuePosition | None


ADMITTED = QueuePosition(position=0, eta_s=0.0, blocked_by=None, wake_at=None)

#: SQL: a lane's row with the columns that estimates need.
LANE_FIGURES = """
    SELECT lane.*, now() AS now, coalesce(extract(epoch FROM lane.wake_at - now()), 0)::float8 AS wake_in_s,
           lane.paused_at IS NOT NULL OR pool.paused_at IS NOT NULL AS is_paused,
           lane.draining_at IS NOT NULL OR pool.draining_at IS NOT NULL AS is_draining, EXISTS (SELECT FROM cap) AS has_caps
    FROM lane JOIN pool ON pool.id = lane.pool_id
"""
_LANES = text(f"{LANE_FIGURES} WHERE lane.id = ANY(:ids)")
_LANE_AHEAD = position_index.lane_ahead(
    lane_id="asked.lane_id", key_id="asked.key_id", lane_time="lane.virtual_time", start_tag="asked.start_tag", job_id="asked.id",
    share="share",
)  # fmt: skip
_AHEAD = text(f"""
    SELECT asked.n::int, ahead.*
    FROM unnest(CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:tags AS float8[]), CAST(:ids AS uuid[]))
        WITH ORDINALITY AS asked (lane_id, key_id, start_tag, id, n)
    JOIN lane ON lane.id = asked.lane_id
    CROSS JOIN LATERAL (
        SELECT coalesce(known.last_finish, lane.virtual_time) AS last_finish, coalesce(known.low_water, '-infinity') AS low_water, weight
        FROM key LEFT JOIN key_share AS known ON known.lane_id = asked.lane_id AND known.key_id = key.id WHERE key.id = asked.key_id
    ) AS share
    CROSS JOIN LATERAL ({_LANE_AHEAD}) AS ahead
""")


def position_of(session: Transaction, job: Any) -> QueuePosition:
    """The position of this job. job: a row with id, lane_id, key_id, start_tag, status, held, conversation_id, turn and not_before.

    The count is exact with few jobs ahead (position_index: CHECKPOINT_EVERY, MAX_READ_PER_KEY). Beyond that, part of it is a few seconds
    old. It ends at MAX_COUNTED. A held turn is behind the turns before it and behind every lower tag of its key.
    """
    return positions_of(session, [job])[job.id]


def positions_of(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, QueuePosition]:
    """The position of each of these jobs, as from `position_of`, with a constant number of statements."""
    queued = [job for job in jobs if job.status == "queued"]
    positions = {job.id: ADMITTED for job in jobs}
    if not queued:
        return positions
    lanes = {lane.id: lane for lane in session.execute(_LANES, {"ids": sorted({job.lane_id for job in queued})})}
    open_turns = conversations.open_turns(session, {job.conversation_id for job in queued if job.held})
    earlier = [[turn for turn in open_turns[job.conversation_id] if turn.turn < job.turn] if job.held else [] for job in queued]
    lasts = [_last_of(job, _queued_here(job, turns)) for job, turns in zip(queued, earlier, strict=True)]
    params = {
        "lanes": [job.lane_id for job in queued], "keys": [job.key_id for job in queued], "tags": [last.start_tag for last in lasts],
        "ids": [last.id for last in lasts], "max_counted": MAX_COUNTED,
    }  # fmt: skip
    capped = caps.block_reasons(session, queued) if any(lane.has_caps for lane in lanes.values()) else {}
    for ahead in session.execute(_AHEAD, params):
        job = queued[ahead.n - 1]
        positions[job.id] = from_rows(job, lanes[job.lane_id], ahead, earlier=earlier[ahead.n - 1], capped=capped.get(job.id))
    return positions


def _queued_here(job: Any, turns: Sequence[Any]) -> list[Any]:
    """Those of the turns that are queued in the job's lane."""
    return [turn for turn in turns if turn.lane_id == job.lane_id and turn.status == "queued"]


def _last_of(job: Any, turns: Sequence[Any]) -> Any:
    """The last in order among this job and the turns before it in its lane: the job is at best at that place."""
    return max([job, *turns], key=lambda turn: (turn.start_tag, turn.id))


def from_rows(job: Any, lane: Any, ahead: Any, *, earlier: Sequence[Any] = (), capped: str | None = None) -> QueuePosition:
    """The position from the rows that describe it.

    lane: of LANE_FIGURES. ahead: jobs, tokens and images ahead. earlier: open turns before a held one. capped: the cap that blocks it.
    """
    turns = _queued_here(job, earlier)
    last = _last_of(job, turns)
    # `ahead` counts neither held turns nor `last` itself.
    position = ahead.jobs + 1 + sum(turn.held or turn is last for turn in turns)
    eta_s = estimate_s(lane, ahead, turns_before=len(earlier))
    if lane.is_paused or capped == "paused":
        return QueuePosition(position, eta_s=None, blocked_by="paused", wake_at=None)
    if job.held:
        return QueuePosition(position, eta_s=eta_s, blocked_by="conversation", wake_at=None)
    if job.not_before and job.not_before > lane.now:
        rest_s = round((job.not_before - lane.now).total_seconds(), 1)
        return QueuePosition(position, eta_s=max(eta_s, rest_s), blocked_by="backoff", wake_at=job.not_before)
    if capped or lane.blocked_by == "parked":
        return QueuePosition(position, eta_s=None, blocked_by=capped or "parked", wake_at=None)
    wake_at = lane.wake_at if lane.blocked_by and lane.wake_in_s > 0 else None
    return QueuePosition(position, eta_s=eta_s, blocked_by=lane.blocked_by, wake_at=wake_at)


def estimate_s(lane: Any, ahead: Any, *, turns_before: int = 0) -> float:
    """Estimated seconds until this job is admitted: the maximum over all limits of the lane, and over the lane's wake-up."""
    estimates = [max(0.0, lane.wake_in_s) if lane.blocked_by else 0.0]
    if lane.rpm:
        estimates.append(ahead.jobs * 60 / lane.rpm)
    if lane.tpm:
        estimates.append(ahead.tokens * 60 / lane.tpm)
    if lane.ipm:
        estimates.append(ahead.images * 60 / lane.ipm)
    if lane.max_in_flight and lane.usual_s:
        estimates.append((ahead.jobs + 1 if lane.blocked_by else ahead.jobs) / lane.max_in_flight * lane.usual_s)
    return round(max(estimates) + turns_before * (lane.usual_s or 0.0), 1)
