"""The rate-limit headroom of a lane in this minute: the limits of its credentials together, minus sent and queued jobs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import position_index
from models.queue.position import LANE_FIGURES, estimate_s

MINUTE_S = 60


@dataclass(frozen=True)
class Headroom:
    """Headroom in requests or in tokens. limit: per minute. remaining: what could be sent now.

    reset_s: until the whole limit is free; with queued jobs, until a job enqueued now would be admitted; None: unknown.
    """

    limit: int
    remaining: int
    reset_s: float | None


@dataclass(frozen=True)
class LaneHeadroom:
    """None: no limit is known."""

    requests: Headroom | None
    tokens: Headroom | None


_KEY_AHEAD = position_index.key_ahead(
    lane_id="lane.id", key_id="share.key_id", low_water="share.low_water", start_tag=position_index.MAX_TAG, job_id=position_index.MIN_ID
)
# Sent requests are counted only with a known limit. Admitted jobs are not sent yet.
_HEADROOM = text(f"""
    SELECT lane.*, sent.requests AS sent_requests, sent.tokens AS sent_tokens, sent.newest_s,
           queued.jobs + admitted.jobs AS jobs, queued.tokens + admitted.tokens AS tokens, queued.images + admitted.images AS images
    FROM ({LANE_FIGURES} WHERE lane.id = :id) AS lane
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
        FROM key_share AS share CROSS JOIN LATERAL ({_KEY_AHEAD}) AS of_key WHERE share.lane_id = lane.id
    ) AS queued
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(images), 0)::bigint AS images FROM job
        WHERE (lane.rpm IS NOT NULL OR lane.tpm IS NOT NULL) AND lane_id = lane.id AND status = 'admitted'
    ) AS admitted
""")


def read_headroom(session: Transaction, lane_id: int) -> LaneHeadroom:
    """The headroom of this lane, shared by all its keys."""
    params = {"id": lane_id, "minute_s": MINUTE_S, "max_counted": position_index.MAX_COUNTED}
    lane = session.execute(_HEADROOM, params).one()
    reset_s: float | None = max(0.0, MINUTE_S - lane.newest_s) if lane.sent_requests else 0.0
    if lane.jobs:
        # The row holds both: the lane's figures, and the jobs ahead of a job enqueued now.
        reset_s = None if lane.is_paused else estimate_s(lane, lane)
    return LaneHeadroom(
        requests=_headroom(lane.rpm, lane.sent_requests + lane.jobs, reset_s),
        tokens=_headroom(lane.tpm, lane.sent_tokens + lane.tokens, reset_s),
    )


def _headroom(limit: float | None, taken: int, reset_s: float | None) -> Headroom | None:
    return None if limit is None else Headroom(limit=int(limit), remaining=max(0, int(limit - taken)), reset_s=reset_s)
