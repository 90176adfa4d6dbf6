"""The room of a lane in this minute: the limits of its credentials together, less what was sent and what waits."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import enqueue, position_index

MINUTE_S = 60


@dataclass(frozen=True)
class Headroom:
    """Of requests or of tokens. limit: a minute's worth. remaining: what could still go now, were it asked for.

    reset_s: until all of the limit is free again, or, while somebody waits, until a job that joins now would go; None: nobody knows.
    """

    limit: int
    remaining: int
    reset_s: float | None


@dataclass(frozen=True)
class LaneHeadroom:
    """None: no limit is known."""

    requests: Headroom | None
    tokens: Headroom | None


def read_headroom(session: Transaction, lane_id: int) -> LaneHeadroom:
    """The room in this lane, for all who stand in it together."""
    lane = session.execute(_LOOK, {"id": lane_id, "minute_s": MINUTE_S, "most": position_index.MAX_COUNTED}).one()
    reset_s: float | None = max(0.0, MINUTE_S - lane.newest_s) if lane.sent_requests else 0.0
    if lane.jobs:
        # The row has both: the lane's figures, and what stands before somebody who joins now.
        reset_s = None if lane.is_paused else enqueue.estimate_s(lane, lane)
    return LaneHeadroom(
        requests=_room(lane.rpm, lane.sent_requests + lane.jobs, reset_s),
        tokens=_room(lane.tpm, lane.sent_tokens + lane.tokens, reset_s),
    )


def _room(limit: float | None, taken: int, reset_s: float | None) -> Headroom | None:
    return None if limit is None else Headroom(limit=int(limit), remaining=max(0, int(limit - taken)), reset_s=reset_s)


_OF_KEY = position_index.key_ahead(
    lane_id="lane.id", key_id="share.key_id", low_water="share.low_water", start_tag=position_index.MAX_TAG, job_id=position_index.MIN_ID
)
# Where no limit is known what was sent is not counted. Admitted jobs are on their way and not sent yet.
_LOOK = text(f"""
    SELECT lane.*, sent.requests AS sent_requests, sent.tokens AS sent_tokens, sent.newest_s,
           queued.jobs + admitted.jobs AS jobs, queued.tokens + admitted.tokens AS tokens, queued.images + admitted.images AS images
    FROM ({enqueue.LANE_FIGURES} WHERE lane.id = :id) AS lane
    CROSS JOIN LATERAL (
        SELECT count(*) AS requests, coalesce(sum(tokens), 0) AS tokens,
               extract(epoch FROM clock_timestamp() - max(started_at))::float8 AS newest_s
        FROM attempt
        WHERE (lane.rpm IS NOT NULL OR lane.tpm IS NOT NULL) AND model = lane.model AND outcome <> 'not_sent'
        AND credential_id = ANY(ARRAY(SELECT id FROM credential WHERE pool_id = lane.pool_id AND parked_at IS NULL))
        AND started_at > now() - make_interval(secs => :minute_s)
    ) AS sent
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(of_key.jobs), 0)::int AS jobs, coalesce(sum(of_key.tokens), 0)::bigint AS tokens,
               coalesce(sum(of_key.images), 0)::bigint AS images
        FROM key_share AS share CROSS JOIN LATERAL ({_OF_KEY}) AS of_key WHERE share.lane_id = lane.id
    ) AS queued
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(images), 0)::bigint AS images FROM job
        WHERE (lane.rpm IS NOT NULL OR lane.tpm IS NOT NULL) AND lane_id = lane.id AND status = 'admitted'
    ) AS admitted
""")
